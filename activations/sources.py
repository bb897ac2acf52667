"""Files of text: which ones a name stands for, each text once and one split of several, and their bytes unpacked."""

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

# Endings, and the reader that each goes to.
KINDS = {
    ".txt": "text", ".md": "text", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet",
    ".csv": "csv", ".tsv": "tsv", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
ABOUT = re.compile(r"(readme|licen[cs]e|notice|changelog|citation|contributing|authors)\b.*", re.IGNORECASE)
MADE_BY_DATASETS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "validation": "validation",
    "valid": "validation", "val": "validation", "dev": "validation", "eval": "test", "evaluation": "test",
}  # fmt: skip
SHARD = re.compile(
    r"(?:.*/)?([^/]+)-\d{5}-of-\d{5}[^/]*"
)  # train_sft-00000-of-00002.parquet, as the hub has it


@dataclass(frozen=True)
class Source:
    """One file, or one within a .zip file."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """Its path; within a .zip file, the path there behind the archive's."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def endings(self) -> tuple[str, str]:
        """What its content and its packing end in, in small letters, such as (".jsonl", ".gz"); "" for no packing."""
        path = Path(self.member or self.path.name)
        packing = path.suffix.lower() if path.suffix.lower() in PACKED else ""
        content = Path(path.stem).suffix.lower() if packing else path.suffix.lower()
        return content, packing

    @property
    def kind(self) -> str | None:
        """The reader it goes to; None for a file of another kind."""
        return KINDS.get(self.endings[0])

    @property
    def unpacked_name(self) -> str:
        """Its name without the ending of its packing."""
        return self.name[: len(self.name) - len(self.endings[1])]

    def open(self) -> IO[bytes]:
        """Its bytes, unpacked as they are read."""
        packing = self.endings[1]
        member = self.member
        raw: Any = zipfile.ZipFile(self.path).open(member) if member else self.path.open("rb")  # noqa: SIM115
        if packing == ".zst":
            import pyarrow as pa

            return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))  # type: ignore[arg-type]
        opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(packing)
        return opener(raw) if opener else raw

    def size(self) -> int:
        """Bytes on disk; within a .zip file, unpacked."""
        return (
            zipfile.ZipFile(self.path).getinfo(self.member).file_size
            if self.member
            else self.path.stat().st_size
        )


def is_named(dataset: str) -> bool:
    """Whether a name stands for files on this machine, there or not, and not for a data set of the hub."""
    path = Path(dataset).expanduser()
    ending = Source(path).kind or (path.suffix.lower() in PACKED)
    return bool(
        ending or path.is_absolute() or dataset.startswith((".", "~")) or path.exists() or _is_glob(dataset)
    )


def sources(dataset: str, split: str, quiet: bool = False) -> list[Source]:
    """The files to read, all of one kind, in order. `quiet` neither looks for equal files nor tells what is left out.

    Hidden files and folders are passed over, and so is what lies beside the data: README, LICENSE, what `datasets`
    notes. Of files named for several splits those of `split` are taken. A text that is there twice is read once.
    Raises TextError when there are none, or several kinds."""
    path = Path(dataset).expanduser()
    several = True
    if path.is_file():
        taken = _unpacked([path])
    elif path.is_dir():
        root = _root(path, split)
        if (saved := root / "state.json").is_file():
            return _saved(root, saved)
        taken = _unpacked(_visible(root))
        path = root
    else:
        taken, several = _unpacked(_globbed(path)), False
    if not [source for source in taken if source.kind]:
        endings = sorted({source.endings[0] or source.path.name for source in taken})
        there = f"it holds {', '.join(endings[:5])}" if endings else "nothing is there"
        raise TextError(
            f"no text at {dataset}: {there}, needed are files ending in {' '.join([*KINDS, *PACKED])}"
        )
    if path.is_file() and any(source.kind is None for source in taken) and not taken[0].member:
        raise TextError(f"no text at {dataset}: no file there ends in {' '.join(KINDS)}")
    taken = _data([source for source in taken if source.kind])
    if not path.is_file() or taken[0].member:
        taken = _of_split(taken, path, dataset, split, several, quiet)
    if not quiet:
        taken = _once(taken, dataset)
    _refuse_mixture(taken, path, dataset)
    return taken


def _root(path: Path, split: str) -> Path:
    """The folder that holds the files: of a hub's cache the newest state, of a saved DatasetDict the split."""
    if (path / "snapshots").is_dir() and (path / "blobs").is_dir():
        states = sorted(each for each in (path / "snapshots").iterdir() if each.is_dir())
        main = path / "refs" / "main"
        current = [s for s in states if main.is_file() and s.name == main.read_text().strip()]
        if not current and len(states) != 1:
            raise TextError(
                f"{path} holds {len(states)} states of a data set: name one, such as {states[-1] if states else path}"
            )
        path = (current or states)[0]
    if (path / "dataset_dict.json").is_file():
        splits = sorted(each.parent.name for each in path.glob("*/state.json"))
        if split not in splits:
            raise TextError(
                f"{path} has no split {split!r}: choose with --split {' or '.join(splits) or '(it has none)'}"
            )
        path /= split
    return path


def _saved(root: Path, state: Path) -> list[Source]:
    """The Arrow files of a data set that `save_to_disk` wrote, in its order."""
    try:
        names = [str(each["filename"]) for each in json.loads(state.read_text("utf-8"))["_data_files"]]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise TextError(f"{state} is damaged: {error!r}; save the data set again") from error
    found = [Source(root / name) for name in names]
    for source in found:
        if source.path.parent != root or not source.path.is_file() or source.kind != "arrow":
            raise TextError(
                f"{state} names {source.path.name!r}, which is no Arrow file of {root}: save it again"
            )
    if not found:
        raise TextError(f"{root} is empty: it was saved without a row")
    return found


def _visible(root: Path) -> list[Path]:
    """Files below a folder, by name; hidden ones and hidden folders are left out, links to folders not followed."""
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
    """Files that match, by name; hidden ones only where the pattern names them."""
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


def _unpacked(paths: Iterable[Path]) -> list[Source]:
    """A source for each file, and for each file within a .zip."""
    found = []
    for path in paths:
        if path.suffix.lower() != ".zip":
            found.append(Source(path))
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
        except (zipfile.BadZipFile, OSError) as error:
            raise TextError(f"{path} cannot be read: {error}") from error
        found += [Source(path, name) for name in names if not any(map(_is_hidden, name.split("/")))]
    return found


def _data(taken: list[Source]) -> list[Source]:
    """Leave out what is said about the data, where there is data beside it."""
    rest = [
        source
        for source in taken
        if Path(source.name).name not in MADE_BY_DATASETS
        and not (source.kind == "text" and ABOUT.fullmatch(Path(source.name).name))
    ]
    notes = all(source.endings[0] == ".md" for source in rest)  # a folder of notes may have one called README
    return taken if notes and {source.kind for source in taken} == {"text"} else rest or taken


def split_of(name: str) -> str | None:
    """The split that a file names by its path within its data set's folder; None where it names none.

    The hub's shards say it outright. Elsewhere the name begins or ends with it, as train_small or wiki.train does, or
    a folder is called so."""
    if shard := SHARD.fullmatch(name):
        return SPLITS.get(shard[1].lower(), shard[1])
    *folders, file = name.lower().split("/")
    for packing in PACKED:
        file = file.removesuffix(packing)
    stem = file[: file.rfind(".")] if "." in file else file
    words = [word for word in re.split(r"[-_.]", stem) if not word.isdigit()]
    likely = [*words[:1], *words[-1:], *stem.split("."), *reversed(folders)]
    return next((SPLITS[word] for word in likely if word in SPLITS), None)


def _of_split(
    taken: list[Source], path: Path, dataset: str, split: str, choose: bool, quiet: bool
) -> list[Source]:
    """The files of a split, where files are named for splits; of a pattern, only where it matches several."""
    above = (
        os.path.commonpath([str(source.path.parent) for source in taken])
        if _is_glob(str(path))
        else str(path)
    )
    named = {source: split_of(os.path.relpath(source.name, above).replace(os.sep, "/")) for source in taken}
    splits = {name for name in named.values() if name}
    if not splits or (not choose and set(named.values()) == splits and len(splits) == 1):
        return taken
    if "train" not in splits and None in named.values():
        named = {source: name or "train" for source, name in named.items()}
    wanted = SPLITS.get(split.lower(), split)
    chosen = [source for source, name in named.items() if name == wanted]
    if not chosen:
        there = sorted({name for name in named.values() if name})
        raise TextError(
            f"{dataset} has no files of the split {split!r}: choose with --split {' or '.join(there)}"
        )
    if not quiet and len(chosen) < len(taken):
        left = sorted({name or "no split" for name in named.values() if name != wanted})
        _tell(
            f"{dataset}: {len(chosen)} of {len(taken)} files are of the split {split}; those of {', '.join(left)} are not read"
        )
    return chosen


def _once(taken: list[Source], dataset: str) -> list[Source]:
    """Each text once: of links to one file, of a file and its packed copy, of two formats of one text and of files with
    equal bytes the first is kept, unpacked before packed."""
    kept: dict[Any, Source] = {}
    copies: dict[Source, Source] = {}
    sizes = Counter(source.size() for source in taken)
    for source in sorted(taken, key=lambda source: (source.endings[1] != "", source.name)):
        stem = source.unpacked_name.removesuffix(Path(source.unpacked_name).suffix)
        keys: list[Any] = [("file", source.path.resolve(), source.member), ("text", stem, source.kind)]
        if sizes[source.size()] > 1 and source.size():
            with source.path.open("rb") if not source.member else source.open() as file:
                keys.append(("bytes", hashlib.file_digest(file, "sha256").hexdigest()))  # type: ignore[arg-type]
        first = next((kept[key] for key in keys if key in kept), None)
        if first:
            copies[source] = first
        for key in keys:
            kept.setdefault(key, first or source)
    if copies:
        named = ", ".join(f"{Path(copy.name).name} (of {Path(of.name).name})" for copy, of in copies.items())
        _tell(f"{dataset}: {len(copies)} of {len(taken)} files are copies, read once: {named[:500]}")
    return [source for source in taken if source not in copies]


@cache
def _tell(line: str) -> None:
    """Say a line once, however often the files are listed."""
    log.info(line)


def _refuse_mixture(taken: list[Source], path: Path, dataset: str) -> None:
    if len({source.kind for source in taken}) < 2:
        return
    endings = Counter("".join(source.endings) for source in taken)
    common = endings.most_common(1)[0][0]
    if path.is_dir():
        example = f"--dataset '{path}/**/*{common}'"
    elif path.is_file():
        example = f"unpack it, and name one kind: --dataset '{path.with_suffix('')}/**/*{common}'"
    else:
        above = os.path.commonpath([str(source.path.parent) for source in taken])
        example = f"--dataset '{above}/**/*{common}'"
    raise TextError(
        f"{dataset} holds files ending in {', '.join(sorted(endings))}: needed is one kind, such as {example}"
    )
