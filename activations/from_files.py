"""Activations that another program has written into files: vLLM, nnsight, a vision or a protein model (FORMAT.md)."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from activations.activation_source import Rows
from activations.disk import files
from activations.disk.schema import parse
from activations.errors import HarvestError, ModelError
from activations.store import Store, StoreSpec
from activations.token_text import TokenText
from activations.tokens import NOWHERE, PackingConfig, Window, tokenizer_hash
from activations.vocabulary import Vocabulary

ABOUT, FORMAT = "activations.json", 1
COLUMNS = ("tokens", "documents", "positions")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MOST_IDS = 2**24  # token ids without a tokenizer: each is named by its number
LARGEST = 2**31 - 1  # what a store's int32 holds


@dataclass(frozen=True)
class About:
    """The content of activations.json."""

    format: int
    hook: str
    """Name of the hook point, such as blocks.6.hook_resid_post or whatever the model's own tool calls it."""
    model: str
    """Name of the model; it is shown, never loaded."""
    width: int
    """Numbers in a row, D."""
    tokenizer: str | None = None
    """Tokenizer that made the token ids: a hub name, or a folder, relative to this one or absolute; null without one."""


class _File(NamedTuple):
    path: Path
    first: int
    """Number of its first row, counted through all files."""
    rows: int


class FilesSource:
    """The rows of a folder of safetensors files, in order (`activation_source.ActivationSource`).

    Windows hold `context` rows, whatever their documents; the last is padded. Rows of a negative document are left out.
    `dtype` None keeps the files' own. All files are read once for their SHA-256, which the store's spec records. Raises
    HarvestError for a folder that does not have the layout, ModelError when its tokenizer cannot be loaded."""

    writers = 1
    in_step = False
    may_change = False  # the spec has the SHA-256 of every file

    def __init__(
        self,
        folder: Path,
        *,
        context: int = 128,
        dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None,
        shard_tokens: int = 32_768,
    ):
        self._folder, self._about = folder, _about(folder)
        self._places: deque[NDArray[np.int64]] = deque()
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise HarvestError(f"{folder} has no .safetensors file beside its {ABOUT}")
        self._files: list[_File] = []
        self._has, own = _header(paths[0], self._about.width, None)[1:]
        for path in paths:
            first = sum(self._files[-1][1:]) if self._files else 0
            self._files.append(
                _File(path, first, _header(path, self._about.width, (paths[0], self._has, own))[0])
            )
        tokenizer = None if self._about.tokenizer is None else _tokenizer(self._tokenizer_name)
        limit = MOST_IDS if tokenizer is None else _ids(tokenizer)
        largest = kept = 0
        for columns in self._columns():
            kept += columns.shape[1]
            largest = max(largest, int(columns[0].max(initial=0)))
        if not kept:
            raise HarvestError(f"{folder} holds no row of a document: at least one is needed")
        if largest >= limit:
            whose = "without a tokenizer ids" if tokenizer is None else f"{self._tokenizer_name} has ids that"
            raise HarvestError(f"{folder} has the token id {largest:,}, {whose} end at {limit - 1:,}")
        digests = {path.name: files.sha256(path) for path in paths}
        made_of = {"dataset": f"files:{folder}", "ids": largest + 1, "sha256": digests}
        self.spec = StoreSpec(
            model=self._about.model,
            model_revision=None,
            weights_sha256=None,
            tokenizer_sha256=None if tokenizer is None else tokenizer_hash(tokenizer),
            dataset=made_of | ({} if tokenizer is None else {"tokenizer": self._tokenizer_name}),
            dataset_revision=None,
            packing=PackingConfig(context=context, bos=False, separator="none"),
            bos_token=None,
            hooks={self._about.hook: self._about.width},
            dtype=dtype or own,
            windows_per_shard=max(1, shard_tokens // context),
            source="files",
        )
        self.tokens = -(-kept // context) * context

    def blocks(self) -> Iterator[list[Window]]:
        """Yield the windows of one shard after the other."""
        size = self.spec.windows_per_shard * self.spec.packing.context
        self._places.clear()
        waiting = np.empty((4, 0), np.int64)
        for columns in self._columns():
            waiting = np.concatenate([waiting, columns], axis=1)
            while waiting.shape[1] >= size:
                yield self._block(waiting[:, :size])
                waiting = waiting[:, size:]
        if waiting.shape[1]:
            yield self._block(waiting)

    def check(self, block: list[Window]) -> None:
        """Do nothing: there is no model to compare the rows with."""

    def rows(self, block: list[Window], advance: Callable[[int], None]) -> Callable[[], Rows]:
        """Read the rows of a block."""
        numbers = self._places.popleft()
        context, width = self.spec.packing.context, self._about.width
        x: torch.Tensor | None = None
        for file in self._files:
            start, stop = np.searchsorted(numbers, [file.first, file.first + file.rows])
            if start == stop:
                continue
            inside = numbers[start:stop] - file.first
            with _opened(file.path) as opened:
                part = opened.get_slice("rows")[inside[0] : inside[-1] + 1]
            if x is None:
                x = torch.zeros(len(block) * context, width, dtype=part.dtype)
            x[start:stop] = part[torch.from_numpy(inside - inside[0])]
        assert x is not None
        rows = Rows({self._about.hook: x.view(len(block), context, width)})
        advance(len(block) * context)
        return lambda: rows

    def skip(self, block: list[Window]) -> None:
        """Pass over the block's rows."""
        self._places.popleft()

    def empty(self) -> HarvestError:
        """Never needed: files without rows are refused at once."""
        raise AssertionError

    @property
    def _tokenizer_name(self) -> str:
        name = self._about.tokenizer
        assert name is not None
        return str(self._folder / name) if (self._folder / name).is_dir() else name

    def _block(self, stream: NDArray[np.int64]) -> list[Window]:
        """Cut columns [4, m] into windows, the last of which is padded, and remember which rows they are."""
        self._places.append(stream[3])
        missing = -stream.shape[1] % self.spec.packing.context
        tokens = np.pad(stream[0], (0, missing), mode="edge")
        origin = np.pad(stream[1:3], ((0, 0), (0, missing)), constant_values=NOWHERE)
        columns = np.stack([tokens, *origin]).astype(np.int32)
        return [Window(*part) for part in np.split(columns, columns.shape[1] // self.spec.packing.context, 1)]

    def _columns(self) -> Iterator[NDArray[np.int64]]:
        """Yield for each file (token, document, position, number) [4, m] of its rows that belong to a document.

        A row's number counts through all files. Without documents each row is one of its own; without positions the rows
        of a document are counted as long as they follow each other; without tokens positions stand in for them."""
        last, count = (
            NOWHERE,
            0,
        )  # the document that the file before ends with, and how many of its rows have been
        for file in self._files:
            numbers = np.arange(file.first, file.first + file.rows)
            with _opened(file.path) as opened:
                given = {name: _whole(file, name, opened.get_tensor(name)) for name in self._has}
            documents = given.get("documents", numbers)
            begins = np.flatnonzero(np.diff(documents, prepend=documents[:1] - 1))
            run = np.repeat(begins, np.diff(begins, append=file.rows))
            counted = np.arange(file.rows) - run
            if file.rows and documents[0] == last:
                counted[run == 0] += count
            if file.rows:
                last, count = int(documents[-1]), int(counted[-1]) + 1
            positions = given.get("positions", counted)
            columns = np.stack([given.get("tokens", positions), documents, positions, numbers])
            kept = columns[:, documents >= 0]
            if kept.size and (kept[:3].min() < 0 or kept[:3].max() > LARGEST):
                raise HarvestError(
                    f"{file.path} has numbers from {kept[:3].min():,} to {kept[:3].max():,} in {', '.join(COLUMNS)}: they "
                    f"must lie between 0 and {LARGEST:,}; only a document may be negative, which leaves its row out"
                )
            yield kept


def token_text(store: Store) -> TokenText:
    """Return the spellings of a store of files: those of its tokenizer, or the number of each id.

    Raises ModelError when the tokenizer cannot be loaded or is another one now."""
    name = store.spec.dataset.get("tokenizer")
    if name is None:
        return TokenText([f" {number}".encode() for number in range(store.spec.dataset["ids"])])
    tokenizer = _tokenizer(name)
    if tokenizer_hash(tokenizer) != store.spec.tokenizer_sha256:
        raise ModelError(f"{name} is another tokenizer than when {store.path} was made: restore it")
    return Vocabulary(tokenizer, _ids(tokenizer), name).text


def _about(folder: Path) -> About:
    path = folder / ABOUT
    if not path.exists():
        raise HarvestError(
            f'{folder} has no {ABOUT}: expected beside the .safetensors files {{"format": 1, "hook": …, "model": …, '
            f'"width": …, "tokenizer": … or null}}'
        )
    try:
        about = parse(About, files.read_json(path))
    except (TypeError, ValueError, OSError) as error:
        raise HarvestError(f"{path} cannot be used: {error}") from error
    if about.format != FORMAT:
        raise HarvestError(f"{path} has format {about.format}, this release reads {FORMAT}")
    if (
        about.width < 1
        or not (about.hook and about.hook.isprintable())
        or about.hook in (*COLUMNS, "segments")
    ):
        raise HarvestError(f"{path} names the hook point {about.hook!r} of width {about.width:,}")
    return about


def _header(
    path: Path, width: int, like: tuple[Path, tuple[str, ...], Any] | None
) -> tuple[int, tuple[str, ...], Any]:
    """Return a file's number of rows, which of COLUMNS it has, and the type of its rows, the same as in the file `like`."""
    with _opened(path) as file:
        names = file.keys()
        shapes = {name: file.get_slice(name).get_shape() for name in names}
        kind = file.get_slice("rows").get_dtype() if "rows" in shapes else None
    if kind not in DTYPES or len(shapes["rows"]) != 2 or shapes["rows"][1] != width:
        what = (
            f"rows of type {kind} and shape {shapes['rows']}" if kind else f"{', '.join(names) or 'nothing'}"
        )
        raise HarvestError(
            f"{path} has {what}, expected rows [n, {width}] in {', '.join(DTYPES.values())}, as {ABOUT} says"
        )
    has = tuple(name for name in COLUMNS if name in shapes)
    for name in has:
        if shapes[name] != shapes["rows"][:1]:
            raise HarvestError(f"{path} has {name} of shape {shapes[name]} for {shapes['rows'][0]:,} rows")
    if like is not None and (has, DTYPES[kind]) != like[1:]:
        raise HarvestError(
            f"{path} has {', '.join(('rows', *has))} in {DTYPES[kind]}, and {like[0].name} {', '.join(('rows', *like[1]))} in "
            f"{like[2]}: all files of a folder must have the same"
        )
    return shapes["rows"][0], has, DTYPES[kind]


def _whole(file: _File, name: str, column: torch.Tensor) -> NDArray[np.int64]:
    if column.is_floating_point() or column.is_complex() or column.dtype == torch.bool:
        raise HarvestError(f"{file.path} has {name} of type {column.dtype}, expected whole numbers")
    return column.numpy().astype(np.int64)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file within the block. Raises HarvestError when it is damaged or cannot be read."""
    try:
        with safe_open(files.plain(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise HarvestError(f"{path} cannot be read: {error}") from error


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the library raises every kind of error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:500]
        raise ModelError(
            f"cannot load the tokenizer {name!r}: {reason} Expected a hub name or a folder; null in {ABOUT} does without"
        ) from error


def _ids(tokenizer: Any) -> int:
    """Return the number of ids up to the tokenizer's largest."""
    return max(tokenizer.get_vocab().values()) + 1
