"""Read shards in the order of the text, from a store or from a ring that is still being filled, and shuffle each group."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from activations import int8
from activations.errors import StoreError
from activations.progress import Progress
from activations.rows import HELD_OUT_ONE_IN, Positions, Split
from activations.shard import Shard
from activations.shuffle import Batch, Cursor, Reader
from activations.store import Store, StoreSpec


class ShardSequence(Protocol):
    """An endless sequence of shards in the order of the text, which begins again when it ends."""

    spec: StoreSpec

    @property
    def shards_per_pass(self) -> int:
        """Number of shards that the text fills, or is expected to fill while it is still being read."""
        ...

    @property
    def planned_shards(self) -> int:
        """Number of shards of a pass as it was asked for: it stays what it is when a text turns out to be shorter."""
        ...

    def shard(self, number: int, hooks: tuple[str, ...]) -> Shard:
        """Return a shard by its number in the endless sequence, waiting for it if it is still being made."""
        ...

    def rows(self, shard: Shard, split: Split, with_bos: bool, positions: Positions) -> Tensor:
        """Return which rows of a shard [n, T] belong to a split."""
        ...

    def begin(self, number: int) -> None:
        """Say that shards are read from `number` on, which may be an earlier one than before."""
        ...

    def pass_to(self, number: int) -> None:
        """Say that the shards before `number` are not needed any more."""
        ...

    def finish(self, number: int) -> None:
        """Say that nothing more is read, and that everything before shard `number` has been."""
        ...

    def close(self) -> None:
        """Make no more shards."""
        ...


class StoredShards:
    """The shards of a store, pass after pass."""

    def __init__(self, store: Store):
        self.store, self.spec, self.shards_per_pass = store, store.spec, len(store.shards)
        self.planned_shards, self.rows = self.shards_per_pass, store.rows

    def shard(self, number: int, hooks: tuple[str, ...]) -> Shard:
        """Return a shard of the store."""
        return self.store.read(number % self.shards_per_pass, hooks)

    def begin(self, number: int) -> None:
        """Do nothing: a store has all its shards."""

    def pass_to(self, number: int) -> None:
        """Do nothing: a store keeps its shards."""

    def finish(self, number: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: a store is finished."""


class View:
    """One of several readers' view of a sequence: a shard is passed once all readers have passed it.

    `views` is shared by the readers: where each reads. Closing or finishing a view leaves the sequence to the others."""

    def __init__(self, shards: ShardSequence, views: dict["View", int]):
        self.shards, self.spec, self._views = shards, shards.spec, views
        self.shard, self.rows = shards.shard, shards.rows

    @property
    def shards_per_pass(self) -> int:
        """Number of shards that the text fills, or is expected to fill while it is still being read."""
        return self.shards.shards_per_pass

    @property
    def planned_shards(self) -> int:
        """Number of shards of a pass as it was asked for."""
        return self.shards.planned_shards

    def begin(self, number: int) -> None:
        """Say that this reader reads from `number` on."""
        self._views[self] = number
        self.shards.begin(min(self._views.values()))

    def pass_to(self, number: int) -> None:
        """Say that this reader does not need the shards before `number` any more."""
        self._views[self] = number
        self.shards.pass_to(min(self._views.values()))

    def finish(self, number: int) -> None:
        """Say that this reader reads nothing more, and that it has read everything before shard `number`."""
        self.pass_to(number)
        self.close()

    def close(self) -> None:
        """Let the others pass what this reader has not."""
        self._views.pop(self, None)


class StreamReader(Reader):
    """Reads training rows group by group in the order of the text; a group is `shards_per_group` shards, permuted together.

    Shards are asked for one after the other and never twice, unless a reader is restored, so that they can be made while
    training goes on and be deleted afterwards. The order is a function of (seed, shards, positions, batch,
    shards_per_group) alone: a stored and a streamed run with equal settings read the same batches. `cursor.epoch` is the
    number of the group. `rows` is an estimate: one document in ten is held out.

    Raises StoreError when a whole pass over the text has no training row."""

    def __init__(
        self,
        shards: ShardSequence,
        hook: str,
        batch: int,
        *,
        shuffle_tokens: int,
        seed: int = 0,
        positions: Positions = "all",
        labels: bool = False,
        prefetch: int = 2,
    ):
        super().__init__((hook,), batch, seed, labels, prefetch)
        self.shards = shards
        self._positions: Positions = positions
        spec = shards.spec
        self.shards_per_group = shards_per_group(spec, shuffle_tokens)
        self.rows = planned_rows(spec, shards.planned_shards, positions)

    @property
    def first_rows(self) -> int:
        """Number of rows of the first group: a stream has no others for long."""
        shards = (self.shards.shard(number, ()) for number in range(self.shards_per_group))
        return sum(int(self.shards.rows(shard, "train", False, self._positions).sum()) for shard in shards)

    def mean_square_norm(self) -> float:
        """Return the mean squared norm of the training rows of the first group, in float64.

        A stream's own mean is not known before its end; this one is the same for a stored and a streamed run."""
        rows = self._rows(0)
        if not len(rows[0]):
            raise StoreError(
                "the first shuffle group has no training row: use more documents (one in ten is held out) or more --shuffle-tokens"
            )
        squares = 0.0
        for start in range(0, len(rows[0]), 4096):
            x, *_ = int8.decoded([column[start : start + 4096] for column in rows])
            squares += x.double().square().sum().item()
        return squares / len(rows[0])

    def wait(self, progress: Progress) -> None:
        """Wait, with progress, for the shards of the cursor's group: a slow model takes minutes for them.

        The cursor must already be where training goes on."""
        first = self.cursor.epoch * self.shards_per_group
        self.shards.begin(first)
        with progress("fill", self.shards_per_group, "shards") as advance:
            for number in range(first, first + self.shards_per_group):
                self.shards.shard(number, ())
                advance(1)

    def finish(self) -> None:
        """Say that the last batch has been read: the group it came from is kept as far as it should be."""
        self.shards.finish(self.group_end)

    @property
    def group_end(self) -> int:
        """Number of the shard after the group of the last batch."""
        return (self.cursor.epoch + 1) * self.shards_per_group

    def close(self) -> None:
        """Stop waiting for a shard: whoever waits for one, a thread that reads ahead included, raises HarvestError."""
        self.shards.close()

    def __iter__(self) -> Iterator[Batch]:
        first = self.cursor.epoch * self.shards_per_group
        self.shards.begin(first)
        for batch in super().__iter__():
            # The cursor, not the thread that reads ahead, says what is used up: a stopped run finds its group still there.
            if (used := self.cursor.epoch * self.shards_per_group) > first:
                self.shards.pass_to(first := used)
            yield batch

    def _order(self) -> dict[str, int | str]:
        return {"shards_per_group": self.shards_per_group, "order": "text"}

    def _reads_ahead(self) -> bool:
        return True

    def _held_out_shards(self) -> Iterator[tuple[Shard, Tensor]]:
        for number in range(self.shards_per_group):
            shard = self.shards.shard(number, self.hooks)
            yield shard, self.shards.rows(shard, "held-out", False, self._positions)

    def _groups(self, start: Cursor) -> Iterator[tuple[Cursor, tuple[Tensor, ...], Tensor]]:
        number, used, empty = start.epoch, start.row, 0
        while True:
            rows = self._rows(number)
            order = torch.randperm(len(rows[0]), generator=self._generator(number, 1))
            empty = 0 if len(order) else empty + 1
            if empty * self.shards_per_group > self.shards.shards_per_pass:
                raise StoreError(
                    "a whole pass over the text has no training row: use more documents (one document in ten is held out)"
                )
            if used < len(order):
                yield Cursor(number, used), rows, order[used:]
            number, used = number + 1, 0

    def _rows(self, group: int) -> tuple[Tensor, ...]:
        """Return the training rows of a group, in the order of the text."""
        pieces: list[list[Tensor]] = []
        for number in range(group * self.shards_per_group, (group + 1) * self.shards_per_group):
            shard = self.shards.shard(number, self.hooks)
            columns = [part for hook in self.hooks for part in int8.columns(shard.activations, hook)]
            if self._labels:
                columns.append(shard.labels)
            chosen = self.shards.rows(shard, "train", False, self._positions).flatten().nonzero()[:, 0]
            # A copy, so that nothing refers to the shard's file when it is deleted
            pieces.append([column.flatten(0, 1).index_select(0, chosen) for column in columns])
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def planned_rows(spec: StoreSpec, shards: int, positions: Positions) -> int:
    """Return about how many training rows some shards have: one document in ten is held out."""
    rows_per_window = 1 if positions == "last" else spec.packing.context - spec.excluded
    return int((1 - 1 / HELD_OUT_ONE_IN) * shards * spec.windows_per_shard * rows_per_window)


def shards_per_group(spec: StoreSpec, shuffle_tokens: int) -> int:
    """Return how many shards are shuffled together."""
    return max(1, shuffle_tokens // (spec.windows_per_shard * spec.packing.context))
