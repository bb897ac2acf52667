"""Store -> endless seeded batches of shuffled rows; its place can be saved and taken up exactly."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from activations.errors import StoreError
from activations.store import DTYPES, Positions, Shard, Split, Store


class Batch(NamedTuple):
    """What a training step reads: inputs and targets, [B, D] float32; the same tensor for an autoencoder.

    `labels` [B] float32 are those of the rows' documents, NaN for none; None when they were not asked for."""

    x: Tensor
    y: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Cursor:
    """A place in the endless stream: how many rows of which pass over the store have been given out."""

    epoch: int = 0
    row: int = 0


class ShuffledReader:
    """Endless batches of exactly `batch` rows of one split of a store, in a seeded two-level shuffle.

    Each pass over the store puts the shards in a fresh random order, takes them in groups (the mixing
    window) and permutes all rows of a group together. When all rows fit into `memory` bytes the group is
    the whole store and the shuffle is perfect; else a group is as many shards as fit, at least two. Every
    row is given out once a pass; a batch may span groups and passes. The order is a function of
    (seed, store, split, positions, batch, memory) alone, so a reader whose `cursor` is set to another's gives
    out the same batches from there on. With `labels`, each batch brings its rows' labels; `positions="last"`
    reads the last row of each document in each window only. Raises StoreError when there is too little."""

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
        positions: Positions = "all",
        labels: bool = False,
        memory: int = 4 << 30,
    ):
        self.store, self.batch, self.seed = store, batch, seed
        self.hooks = (hook,) if target_hook in (None, hook) else (hook, target_hook)
        self.cursor = Cursor()
        self._split: Split = split
        self._with_bos = with_bos
        self._positions: Positions = positions
        self._labels = labels
        row_bytes = sum(store.width(name) for name in self.hooks) * DTYPES[store.spec.dtype].itemsize
        self.rows_per_shard = [
            int(self._chosen(store.read(number)).sum()) for number in range(len(store.shards))
        ]
        self.rows = sum(self.rows_per_shard)
        if labels and store.spec.labels is None:
            raise StoreError(
                f"{store.path} holds no labels, and they are needed here: harvest again with --labels builtin, "
                f"column:NAME or module:function"
            )
        if self.rows < batch:
            raise StoreError(
                f"{store.path} has {self.rows:,} {split} rows and a batch takes {batch:,}: harvest more "
                f"tokens, or more documents (one document in ten is held out), or take smaller batches"
            )
        largest = max(self.rows_per_shard) * row_bytes
        self.shards_per_group = min(len(store.shards), max(2, memory // max(largest, 1)))
        self._group: tuple[Any, tuple[Tensor, ...], Tensor] | None = None

    def state(self) -> dict[str, Any]:
        """The cursor and what the order depends on, as JSON; `restore` takes it."""
        settings = {"seed": self.seed, "batch": self.batch, "shards_per_group": self.shards_per_group}
        return {**asdict(self.cursor), **settings, "rows": self.rows, "hooks": list(self.hooks)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where another reader was. Raises StoreError if its order was another than this one's."""
        mine = self.state()
        for key in mine.keys() - {"epoch", "row"}:
            if mine[key] != state[key]:
                raise StoreError(
                    f"the saved place is of a reader with {key} = {state[key]}, this one has {mine[key]}: "
                    f"the order of rows would be another"
                )
        self.cursor = Cursor(state["epoch"], state["row"])

    def __iter__(self) -> Iterator[Batch]:
        while True:
            pieces: list[tuple[Tensor, ...]] = []
            missing = self.batch
            epoch, row = self.cursor.epoch, self.cursor.row
            while missing:
                if row == self.rows:
                    epoch, row = epoch + 1, 0
                piece = self._rows(epoch, row, missing)
                pieces.append(piece)
                row += len(piece[0])
                missing -= len(piece[0])
            self.cursor = Cursor(epoch, row)
            columns = [torch.cat(parts).float() for parts in zip(*pieces, strict=True)]
            labels = columns.pop() if self._labels else None
            yield Batch(columns[0], columns[-1], labels)

    def _rows(self, epoch: int, start: int, count: int) -> tuple[Tensor, ...]:
        """Up to `count` rows from `start` on, not past the end of the group they lie in."""
        order = torch.randperm(len(self.store.shards), generator=self._generator(epoch)).tolist()
        groups = [order[i : i + self.shards_per_group] for i in range(0, len(order), self.shards_per_group)]
        place = 0
        while start >= (size := sum(self.rows_per_shard[number] for number in groups[place])):
            start, place = start - size, place + 1
        columns, permutation = self._load(epoch, place, groups[place])
        chosen = permutation[start : start + count]
        return tuple(column[chosen] for column in columns)

    def _load(self, epoch: int, place: int, group: list[int]) -> tuple[tuple[Tensor, ...], Tensor]:
        """The group's rows in the store's dtype and order, and the permutation to read them in; kept till the next."""
        if self._group is None or self._group[0] != (epoch, place):
            same = self._group is not None and len(group) == len(self.store.shards)
            columns = self._group[1] if same and self._group else self._read(sorted(group))
            generator = self._generator(epoch, place + 1)
            self._group = ((epoch, place), columns, torch.randperm(len(columns[0]), generator=generator))
        return self._group[1:]

    def _read(self, group: list[int]) -> tuple[Tensor, ...]:
        self._group = None  # frees the last group's rows before the next ones come
        parts = []
        for number in group:
            shard = self.store.read(number, self.hooks)
            columns = [shard.activations[hook] for hook in self.hooks] + [shard.labels] * self._labels
            chosen = self._chosen(shard).flatten().nonzero()[:, 0]
            parts.append([column.flatten(0, 1)[chosen] for column in columns])
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _chosen(self, shard: Shard) -> Tensor:
        return self.store.rows(shard, self._split, self._with_bos, self._positions)

    def _generator(self, epoch: int, place: int = 0) -> torch.Generator:
        mixed = (self.seed * 1_000_003 + epoch) * 1_000_003 + place
        return torch.Generator().manual_seed(mixed % 2**63)


def sample(reader: ShuffledReader, rows: int) -> Batch:
    """About `rows` rows from the start of the reader's order; the reader's place stays as it was."""
    cursor = reader.cursor
    batches = list(islice(iter(reader), max(1, min(rows, reader.rows) // reader.batch)))
    reader.cursor = cursor
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return Batch(
        torch.cat([batch.x for batch in batches]),
        torch.cat([batch.y for batch in batches]),
        torch.cat(labels) if labels else None,
    )
