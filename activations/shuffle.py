"""Store -> endless batches of shuffled rows in a seeded order, which can be saved and resumed exactly."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from activations import int8
from activations.disk.schema import build
from activations.errors import StoreError
from activations.parallel.threads import prefetch
from activations.progress import Progress
from activations.rows import Positions, Split
from activations.shard import Shard
from activations.store import Store, row_bytes
from activations.token_labels import LabelSet, choose

SPREAD = 8  # a sample of held-out rows is taken from this many times as many, so that it is of more documents
State = dict[str, int | str | list[str]]
"""The position of a reader and the settings that its order depends on; JSON."""


class Batch(NamedTuple):
    """The data of one training step: inputs x and targets y, [B, D] float32; in an autoencoder both are one tensor.

    `labels` [B] float32 are those of the rows or of their documents, NaN for none; None unless they were asked for.
    `divergence` returns what reconstructions [B, D] in the places of x cost the language model; None unless training is end
    to end."""

    x: Tensor
    y: Tensor
    labels: Tensor | None = None
    divergence: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Cursor:
    """A position in the endless stream: `row` rows of pass number `epoch` over the store have been yielded."""

    epoch: int = 0
    row: int = 0


class Reader(ABC):
    """Yields endless batches of exactly `batch` rows in a seeded order that can be saved and resumed exactly.

    Subclasses say in `_groups` which rows are permuted together and read them. A thread makes up to `prefetch` batches ahead;
    `cursor` is the position behind those already yielded. Where there is a GPU, batches lie in pinned memory, so that copies
    to it are asynchronous."""

    rows: int
    """Rows of one pass over the data, or about that many where the data is still being made."""

    def __init__(self, hooks: tuple[str, ...], batch: int, seed: int, labels: bool, prefetch: int):
        self.hooks, self.batch, self.seed = hooks, batch, seed
        self._labels, self._prefetch, self._rank, self._world = labels, prefetch, 0, 1
        self.cursor = Cursor()

    def share(self, rank: int, world: int) -> None:
        """From now on yield rows rank::world of every batch, so that ranks 0 to world - 1 together get the whole of it.

        Raises StoreError when `world` does not divide `batch`."""
        if self.batch % world:
            raise StoreError(
                f"a batch of {self.batch:,} rows cannot be shared by {world} ranks: use a multiple of {world}"
            )
        self._rank, self._world = rank, world

    def state(self) -> State:
        """Return the cursor and the settings that the order of rows depends on, as JSON for `restore`."""
        settings = {"seed": self.seed, "batch": self.batch, **self._order(), "hooks": list(self.hooks)}
        return {**asdict(self.cursor), **settings}

    def restore(self, state: Mapping[str, object]) -> None:
        """Continue where another reader was when it returned `state`.

        Raises StoreError if that reader's order was different, or the position is damaged."""
        mine = self.state()
        for key in mine.keys() - {"epoch", "row"}:
            if mine[key] != state.get(key):
                raise StoreError(
                    f"cannot resume: the checkpoint was read with {key} = {state.get(key)} and this reader has "
                    f"{key} = {mine[key]}, so batches would be different"
                )
        cursor = {"epoch": state.get("epoch"), "row": state.get("row")}
        try:
            self.cursor = build(Cursor, cursor)
        except TypeError as error:
            raise StoreError(f"cannot resume: the reader's saved position is damaged: {error}") from error

    def __iter__(self) -> Iterator[Batch]:
        with closing(prefetch(self._batches(self.cursor, self._prefetch), self._prefetch)) as batches:
            for batch, cursor in batches:
                self.cursor = cursor
                yield batch

    def held_out(self, rows: int) -> Tensor:
        """Return held-out rows [<= rows, D] of the first hook point, float32, at equal distances within the first of the text.

        They are taken from the first shards that hold eight times as many, or from those that are read together at first
        where these have fewer. The order of training does not matter, nor does the cursor move."""
        pieces: list[tuple[Shard, Tensor]] = []
        total = 0
        for shard, in_split in self._held_out_shards():
            pieces.append((shard, in_split.flatten().nonzero()[:, 0]))
            total += len(pieces[-1][1])
            if total >= SPREAD * rows:
                break
        wanted = torch.arange(rows) * total // rows if total > rows else torch.arange(total)
        counts = [len(chosen) for _, chosen in pieces]
        first = torch.tensor([0, *counts]).cumsum(0)
        return torch.cat(
            [
                shard.rows(self.hooks[0], chosen[wanted[(wanted >= start) & (wanted < stop)] - start])
                for (shard, chosen), start, stop in zip(pieces, first, first[1:], strict=False)
            ]
        )

    @property
    def first_rows(self) -> int:
        """Number of rows that can be read before training begins, and again when it does."""
        return self.rows

    @abstractmethod
    def wait(self, progress: Progress) -> None:
        """Wait, with progress, until the rows that training begins with are there, as those of a store always are."""
        ...

    @abstractmethod
    def finish(self) -> None:
        """Say that the last batch has been read."""
        ...

    @abstractmethod
    def close(self) -> None:
        """Stop waiting for rows that are still being made; there are none in a store."""
        ...

    @abstractmethod
    def mean_square_norm(self) -> float:
        """Return the mean squared norm of the rows of the first hook point, by which a run scales its inputs."""
        ...

    @abstractmethod
    def _order(self) -> dict[str, int | str]:
        """Return the settings, beside seed and batch, that the order of rows depends on."""
        ...

    @abstractmethod
    def _groups(self, start: Cursor) -> Iterator[tuple[Cursor, tuple[Tensor, ...], Tensor]]:
        """Yield endlessly, from `start` on: the cursor before a group's first row, its rows, the order in which to use them.

        Rows are one tensor per hook point (and the labels), in the store's type, with the scales of int8 behind it. A resumed reader reads its first group whole
        and leaves out the part of the order that was used."""
        ...

    @abstractmethod
    def _held_out_shards(self) -> Iterator[tuple[Shard, Tensor]]:
        """Yield the first shards of the text, as many as are read together, each with which of its rows are held out."""
        ...

    @abstractmethod
    def _reads_ahead(self) -> bool:
        """Whether a thread reads the next group while one is being used, which takes the memory twice."""
        ...

    def _batches(self, start: Cursor, ahead: int) -> Iterator[tuple[Batch, Cursor]]:
        """Yield endless batches from `start` on, and the cursor behind each."""
        pieces: list[tuple[Tensor, ...]] = []
        filled = 0
        with closing(prefetch(self._groups(start), min(ahead, 1) * self._reads_ahead())) as groups:
            for before, columns, order in groups:
                for first in range(
                    -filled, len(order), self.batch
                ):  # negative: the batch began in the group before
                    mine = order[max(first, 0) : first + self.batch]
                    pieces.append(self._share(columns, mine, filled))
                    filled += len(mine)
                    if filled == self.batch:
                        yield self._batch(pieces), Cursor(before.epoch, before.row + first + self.batch)
                        pieces, filled = [], 0

    def _share(self, columns: tuple[Tensor, ...], rows: Tensor, filled: int) -> tuple[Tensor, ...]:
        """Return this rank's part of rows that come at place `filled` of a batch, in the store's type."""
        mine = rows[(self._rank - filled) % self._world :: self._world]
        # `column[mine]` does the same and takes four times as long
        return tuple(column.index_select(0, mine) for column in columns)

    def _batch(self, pieces: list[tuple[Tensor, ...]]) -> Batch:
        whole = pieces[0] if len(pieces) == 1 else [torch.cat(parts) for parts in zip(*pieces, strict=True)]
        columns = int8.decoded(whole)
        if torch.cuda.is_available():
            columns = [column.pin_memory() for column in columns]
        labels = columns.pop() if self._labels else None
        return Batch(columns[0], columns[-1], labels)

    def _generator(self, epoch: int, group: int = 0) -> torch.Generator:
        """Return the generator that permutes the shards of a pass (group 0), or the rows of group 1, 2, … of it."""
        mixed = (self.seed * 1_000_003 + epoch) * 1_000_003 + group
        return torch.Generator().manual_seed(mixed % 2**63)


@dataclass(eq=False)
class _WholeStore:
    columns: tuple[Tensor, ...]  # all rows that a reader yields, in the store's order


# Readers of the same rows share them: each of many runs that train together would hold the store otherwise.
_WHOLE_STORES: WeakValueDictionary[Hashable, _WholeStore] = WeakValueDictionary()


class ShuffledReader(Reader):
    """Reads one split of a store in a two-level shuffle.

    Each pass over the store puts the shards in a fresh random order, takes them in groups (the shuffle window) and
    permutes all rows of a group together. When all rows fit into `memory` bytes, the group is the whole store and the
    shuffle is perfect. Otherwise a group is as many shards as fit, at least two, and the next group is read while one is
    being used, which takes the memory twice. Every row is yielded once per pass; a batch may span groups and passes.
    The order is a function of (seed, store, split, positions, batch, memory) alone, so a reader whose `cursor` is set to
    another's yields the same batches from there on.

    With `labels`, each batch has its rows' labels: those of a LabelSet, or, for True, those that `token_labels.choose`
    finds. `positions="last"` reads only the last row of each document in each window. Raises StoreError when there are
    fewer rows than a batch takes."""

    def __init__(
        self,
        store: Store,
        hook: str,
        batch: int,
        *,
        target_hook: str | None = None,
        seed: int = 0,
        split: Split = "train",
        with_bos: bool = False,
        positions: Positions | None = None,
        labels: bool | LabelSet = False,
        memory: int = 4 << 30,
        prefetch: int = 2,
    ):
        hooks = (hook,) if target_hook in (None, hook) else (hook, target_hook)
        super().__init__(hooks, batch, seed, bool(labels), prefetch)
        self.store = store
        self._split: Split = split
        self._with_bos = with_bos
        self._positions: Positions = positions or store.positions
        self.label_set = choose(store, None) if labels is True else (labels or None)
        bytes_per_row = sum(row_bytes(store.spec.dtype, store.width(name)) for name in self.hooks)
        self.rows_per_shard = [
            store.count(number, split, with_bos, self._positions) for number in range(len(store.shards))
        ]
        self.rows = sum(self.rows_per_shard)
        if self.rows < batch:
            raise StoreError(
                f"{store.path} has {self.rows:,} {split} rows and a batch takes {batch:,}: harvest more "
                f"tokens, or more documents (one document in ten is held out), or use smaller batches"
            )
        largest = max(self.rows_per_shard) * bytes_per_row
        self.shards_per_group = min(len(store.shards), max(2, memory // max(largest, 1)))
        self._all_rows: _WholeStore | None = None  # kept when one group holds the whole store

    def wait(self, progress: Progress) -> None:
        """Do nothing: a store has all its rows."""

    def finish(self) -> None:
        """Do nothing: a store is kept."""

    def close(self) -> None:
        """Do nothing: nobody makes rows."""

    def mean_square_norm(self) -> float:
        """Return that of all rows of the store that are not excluded, as its index has it."""
        return self.store.mean_square_norm(self.hooks[0])

    def _order(self) -> dict[str, int | str]:
        labels = {"labels": self.label_set.digest} if self.label_set else {}
        return {"shards_per_group": self.shards_per_group, **labels, "rows": self.rows}

    def _reads_ahead(self) -> bool:
        return self.shards_per_group < len(self.store.shards)

    def _held_out_shards(self) -> Iterator[tuple[Shard, Tensor]]:
        for number in range(self.shards_per_group):
            shard = self.store.read(number, self.hooks[:1])
            yield shard, self.store.rows(shard, "held-out", self._with_bos, self._positions)

    def _groups(self, start: Cursor) -> Iterator[tuple[Cursor, tuple[Tensor, ...], Tensor]]:
        epoch, row = start.epoch, start.row
        while True:
            shards = torch.randperm(len(self.store.shards), generator=self._generator(epoch)).tolist()
            before = 0
            for number, first in enumerate(range(0, len(shards), self.shards_per_group)):
                group = sorted(shards[first : first + self.shards_per_group])
                size = sum(self.rows_per_shard[shard] for shard in group)
                used = max(row - before, 0)
                if used < size:
                    order = torch.randperm(size, generator=self._generator(epoch, number + 1))
                    yield Cursor(epoch, before + used), self._rows(group), order[used:]
                before += size
            epoch, row = epoch + 1, 0

    @property
    def _which_rows(self) -> Hashable:
        """Everything that decides which rows this reader yields, apart from their order."""
        rows = (self.hooks, self._split, self._with_bos, self._positions, self._labels)
        return (self.store.path, self.store.fingerprint, *rows, self.label_set and self.label_set.digest)

    def _rows(self, group: list[int]) -> tuple[Tensor, ...]:
        """Return the rows of some shards, in the store's order."""
        if whole_store := len(group) == len(self.store.shards):
            self._all_rows = self._all_rows or _WHOLE_STORES.get(self._which_rows)
        if self._all_rows:
            return self._all_rows.columns
        rows: list[Tensor] = []
        size, start = sum(self.rows_per_shard[number] for number in group), 0
        for number in group:
            shard = self.store.read(number, self.hooks)
            columns = [part for hook in self.hooks for part in int8.columns(shard.activations, hook)]
            if self._labels:
                columns.append(self.label_set.read(number) if self.label_set else shard.labels)
            in_split = self.store.rows(shard, self._split, self._with_bos, self._positions)
            chosen = in_split.flatten().nonzero()[:, 0]
            stop = start + len(chosen)
            rows = rows or [column.new_empty((size, *column.shape[2:])) for column in columns]
            for whole, column in zip(rows, columns, strict=True):
                torch.index_select(column.flatten(0, 1), 0, chosen, out=whole[start:stop])
            start = stop
        if whole_store:
            self._all_rows = _WHOLE_STORES[self._which_rows] = _WholeStore(tuple(rows))
        return tuple(rows)


def sample(reader: Reader, rows: int) -> Batch:
    """Return about `rows` rows from the reader's cursor on, or this rank's share of them, without moving the cursor."""
    wanted = max(1, min(rows, reader.first_rows) // reader.batch)
    batches = [batch for batch, _ in islice(reader._batches(reader.cursor, ahead=0), wanted)]
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return Batch(
        torch.cat([batch.x for batch in batches]),
        torch.cat([batch.y for batch in batches]),
        torch.cat(labels) if labels else None,
    )
