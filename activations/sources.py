"""Finds the files that `--dataset` names (one format, one split, no duplicates) and opens them decompressed."""

import bz2
import gzip
import hashlib
import io
import json
import logging
import lzma
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from activations.errors import TextError

log = logging.getLogger(__name__)

# File extension -> the reader that the file goes to
KINDS = {
    ".txt": "text", ".md": "text", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet",
    ".csv": "csv", ".tsv": "tsv", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
DOCUMENTATION = re.compile(
    r"(readme|licen[cs]e|notice|changelog|citation|contributing|authors)\b.*", re.IGNORECASE
)
MADE_BY_DATASETS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "validation": "validation",
    "valid": "validation", "val": "validation", "dev": "validation", "eval": "test", "evaluation": "test",
}  # fmt: skip
# The Hugging Face Hub's names of shards, such as train_sft-00000-of-00002.parquet
SHARD = re.compile(r"(?:.*/)?([^/]+)-\d{5}-of-\d{5}[^/]*")


@dataclass(frozen=True)
class Source:
    """One file of text, or one within a .zip file."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """The path of the file; within a .zip file, the archive's path followed by the path inside."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def extensions(self) -> tuple[str, str]:
        """The file extensions of content and compression in lower case, such as (".jsonl", ".gz"); "" if not compressed."""
        path = Path(self.member or self.path.name)
        compression = path.suffix.lower() if path.suffix.lower() in COMPRESSED else ""
        content = Path(path.stem).suffix.lower() if compression else path.suffix.lower()
        return content, compression

    @property
    def kind(self) -> str | None:
        """The reader that the file goes to; None for an unknown file format."""
        return KINDS.get(self.extensions[0])

    @property
    def decompressed_name(self) -> str:
        """The name without the file extension of the compression."""
        return self.name[: len(self.name) - len(self.extensions[1])]

    def open(self) -> IO[bytes]:
        """Open the file for reading bytes, which are decompressed as they are read."""
        compression = self.extensions[1]
        member = self.member
        raw: Any = zipfile.ZipFile(self.path).open(member) if member else self.path.open("rb")  # noqa: SIM115
        if compression == ".zst":
            import pyarrow as pa

            return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))  # type: ignore[arg-type]
        opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(compression)
        return opener(raw) if opener else raw

    def size(self) -> int:
        """Return the size on disk in bytes; within a .zip file, the decompressed size."""
        return (
            zipfile.ZipFile(self.path).getinfo(self.member).file_size
            if self.member
            else self.path.stat().st_size
        )


def is_named(dataset: str) -> bool:
    """Return whether a name stands for files on this machine, existing or not, instead of a data set of the Hugging Face Hub."""
    path = Path(dataset).expanduser()
    has_known_extension = Source(path).kind or (path.suffix.lower() in COMPRESSED)
    return bool(
        has_known_extension
        or path.is_absolute()
        or dataset.startswith((".", "~"))
        or path.exists()
        or _is_glob(dataset)
    )


def sources(dataset: str, split: str, quiet: bool = False) -> list[Source]:
    """Return the files to read, all of one format, in order.

    Hidden files and folders are left out, and so is what accompanies data: README, LICENSE, the metadata files of the
    `datasets` library.
    If files are named for several splits, those of `split` are taken. A text that exists twice is read once. With
    `quiet`, copies are not looked for and nothing is logged. Raises TextError if there are no files, or files of several
    formats."""
    path = Path(dataset).expanduser()
    is_whole = True  # unlike a glob, which may name the files of one split on purpose
    if path.is_file():
        taken = _expanded([path])
    elif path.is_dir():
        root = _root(path, split)
        if (saved := root / "state.json").is_file():
            return _saved(root, saved)
        taken = _expanded(_visible(root))
        path = root
    else:
        taken, is_whole = _expanded(_globbed(path)), False
    if not [source for source in taken if source.kind]:
        extensions = sorted({source.extensions[0] or source.path.name for source in taken})
        holds = f"it holds {', '.join(extensions[:5])}" if extensions else "nothing is there"
        raise TextError(
            f"no text at {dataset}: {holds}, must have files ending in {' '.join([*KINDS, *COMPRESSED])}"
        )
    if path.is_file() and any(source.kind is None for source in taken) and not taken[0].member:
        raise TextError(f"no text at {dataset}: none of its files ends in {' '.join(KINDS)}")
    taken = _data([source for source in taken if source.kind])
    if not path.is_file() or taken[0].member:
        taken = _of_split(taken, path, dataset, split, is_whole, quiet)
    if not quiet:
        taken = _without_copies(taken, dataset)
    _refuse_mixture(taken, path, dataset)
    return taken


def _root(path: Path, split: str) -> Path:
    """Return the folder that holds the files: the current snapshot of a hub cache, the split of a saved DatasetDict."""
    if (path / "snapshots").is_dir() and (path / "blobs").is_dir():
        snapshots = sorted(folder for folder in (path / "snapshots").iterdir() if folder.is_dir())
        main = path / "refs" / "main"
        current = [s for s in snapshots if main.is_file() and s.name == main.read_text().strip()]
        if not current and len(snapshots) != 1:
            raise TextError(
                f"{path} holds {len(snapshots)} snapshots of a data set: name one of them"
                + (f", such as {snapshots[-1]}" if snapshots else "")
            )
        path = (current or snapshots)[0]
    if (path / "dataset_dict.json").is_file():
        splits = sorted(each.parent.name for each in path.glob("*/state.json"))
        if split not in splits:
            raise TextError(
                f"{path} has no split {split!r}"
                + (f": choose with --split {' or '.join(splits)}" if splits else ", nor any other")
            )
        path /= split
    return path


def _saved(root: Path, state: Path) -> list[Source]:
    """Return the Arrow files of a data set that `save_to_disk` wrote, in its order."""
    try:
        names = [str(file["filename"]) for file in json.loads(state.read_text("utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise TextError(f"{state} is damaged: {error!r}; save the data set again") from error
    saved = [Source(root / name) for name in names]
    for source in saved:
        # A name must not lead out of the folder: the file may come from a stranger
        if source.path.parent != root or not source.path.is_file() or source.kind != "arrow":
            raise TextError(
                f"{state} names {source.path.name!r}, which is not an Arrow file in {root}: save the data set again"
            )
    if not saved:
        raise TextError(f"{root} is empty: it was saved without a row")
    return saved


def _visible(root: Path) -> list[Path]:
    """Return the files below a folder, sorted. Hidden files and folders are left out, links to folders are not followed."""
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        files += [Path(folder, name) for name in names if not _is_hidden(name)]
    return sorted((file for file in files if file.is_file()), key=str)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))  # .git, .cache, ._notes.txt, __MACOSX, __pycache__


def _is_glob(dataset: str) -> bool:
    return any(mark in dataset for mark in "*?[")


def _globbed(path: Path) -> list[Path]:
    """Return the files that a pattern matches, sorted; hidden ones only if part of the pattern begins with . or __."""
    if not _is_glob(str(path)):
        return []
    pattern = path.relative_to(path.anchor) if path.is_absolute() else path
    root = Path(path.anchor) if path.is_absolute() else Path()
    fixed = 0
    while not _is_glob(pattern.parts[fixed]):
        fixed += 1
    wants_hidden = any(_is_hidden(part) for part in pattern.parts[fixed:])
    files = (file for file in root.glob(str(pattern)) if file.is_file())
    below = len(root.parts) + fixed
    return sorted((f for f in files if wants_hidden or not any(map(_is_hidden, f.parts[below:]))), key=str)


def _expanded(paths: Iterable[Path]) -> list[Source]:
    """Return a source for each file, and for each file within a .zip."""
    expanded = []
    for path in paths:
        if path.suffix.lower() != ".zip":
            expanded.append(Source(path))
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
        except (zipfile.BadZipFile, OSError) as error:
            raise TextError(f"{path} cannot be read: {error}") from error
        expanded += [Source(path, name) for name in names if not any(map(_is_hidden, name.split("/")))]
    return expanded


def _data(taken: list[Source]) -> list[Source]:
    """Leave out what only describes the data, if there is anything else."""
    rest = [
        source
        for source in taken
        if Path(source.name).name not in MADE_BY_DATASETS
        and not (source.kind == "text" and DOCUMENTATION.fullmatch(Path(source.name).name))
    ]
    # A folder of notes may hold one named README
    notes = all(source.extensions[0] == ".md" for source in rest)
    return taken if notes and {source.kind for source in taken} == {"text"} else rest or taken


def split_of(name: str) -> str | None:
    """Return the split that a file's path within its data set's folder names, or None.

    A Hub shard's name begins with the split. Otherwise a file's name begins or ends with it, as in train_small or wiki.train,
    or a folder has its name."""
    if shard := SHARD.fullmatch(name):
        return SPLITS.get(shard[1].lower(), shard[1])
    *folders, file = name.lower().split("/")
    for compression in COMPRESSED:
        file = file.removesuffix(compression)
    stem = file[: file.rfind(".")] if "." in file else file
    words = [word for word in re.split(r"[-_.]", stem) if not word.isdigit()]
    likely = [*words[:1], *words[-1:], *stem.split("."), *reversed(folders)]
    return next((SPLITS[word] for word in likely if word in SPLITS), None)


def _of_split(
    taken: list[Source], path: Path, dataset: str, split: str, is_whole: bool, quiet: bool
) -> list[Source]:
    """Return the files of a split if files are named for splits. A glob whose files are all of
    one split is used as it is, whatever `split` is.

    Raises TextError if no file is of the split."""
    above = (
        os.path.commonpath([str(source.path.parent) for source in taken])
        if _is_glob(str(path))
        else str(path)
    )
    named = {source: split_of(os.path.relpath(source.name, above).replace(os.sep, "/")) for source in taken}
    splits = {name for name in named.values() if name}
    if not splits or (not is_whole and set(named.values()) == splits and len(splits) == 1):
        return taken
    if "train" not in splits and None in named.values():
        named = {source: name or "train" for source, name in named.items()}
    wanted = SPLITS.get(split.lower(), split)
    chosen = [source for source, name in named.items() if name == wanted]
    if not chosen:
        available = sorted({name for name in named.values() if name})
        raise TextError(
            f"{dataset} has no files of the split {split!r}: choose with --split {' or '.join(available)}"
        )
    if not quiet and len(chosen) < len(taken):
        others = sorted({name or "no split" for name in named.values() if name != wanted})
        _log_once(
            f"{dataset}: {len(chosen)} of {len(taken)} files are of the split {split}; those of {', '.join(others)} are not read"
        )
    return chosen


def _without_copies(taken: list[Source], dataset: str) -> list[Source]:
    """Keep one of several copies of a text, in its place; an uncompressed copy is preferred to a compressed one.

    Copies are links to one file, a file and its compressed form, files of one format and name but other file extensions,
    and files with equal bytes."""
    firsts: dict[Any, Source] = {}
    copies: dict[Source, Source] = {}
    sizes = Counter(source.size() for source in taken)
    for source in sorted(taken, key=lambda source: (source.extensions[1] != "", source.name)):
        stem = source.decompressed_name.removesuffix(Path(source.decompressed_name).suffix)
        keys: list[Any] = [("file", source.path.resolve(), source.member), ("text", stem, source.kind)]
        if sizes[source.size()] > 1 and source.size():
            with source.path.open("rb") if not source.member else source.open() as file:
                keys.append(("bytes", hashlib.file_digest(file, "sha256").hexdigest()))  # type: ignore[arg-type]
        first = next((firsts[key] for key in keys if key in firsts), None)
        if first:
            copies[source] = first
        for key in keys:
            firsts.setdefault(key, first or source)
    if copies:
        named = ", ".join(f"{Path(copy.name).name} (of {Path(of.name).name})" for copy, of in copies.items())
        _log_once(f"{dataset}: {len(copies)} of {len(taken)} files are copies, read once: {named[:500]}")
    return [source for source in taken if source not in copies]


@cache
def _log_once(line: str) -> None:
    """Log a line once per process: the files of a data set are listed several times."""
    log.info(line)


def _refuse_mixture(taken: list[Source], path: Path, dataset: str) -> None:
    if len({source.kind for source in taken}) < 2:
        return
    extensions = Counter("".join(source.extensions) for source in taken)
    common = extensions.most_common(1)[0][0]
    if path.is_dir():
        example = f"--dataset '{path}/**/*{common}'"
    elif path.is_file():
        example = f"extract it, and name one format: --dataset '{path.with_suffix('')}/**/*{common}'"
    else:
        above = os.path.commonpath([str(source.path.parent) for source in taken])
        example = f"--dataset '{above}/**/*{common}'"
    raise TextError(
        f"{dataset} holds files ending in {', '.join(sorted(extensions))}, must be of one format, such as {example}"
    )
