"""A source of activations, and a store made from one: the same shards, checks and resuming, whatever the source."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from activations.disk import files
from activations.errors import HarvestError
from activations.parallel import ranks
from activations.parallel.threads import BackgroundWriter, prefetch
from activations.store import INDEX, Store, StoreSpec, row_bytes
from activations.store_writer import StoreWriter, clear_unfinished
from activations.tokens import Window


class Rows(NamedTuple):
    """The activations of some windows, [n, T, D] by hook point, and labels: one per document, one per token [n, T], or None."""

    activations: dict[str, Tensor]
    labels: dict[int, float] | Tensor | None = None


class ActivationSource(Protocol):
    """Windows of tokens and the rows of activations for them: a language model that reads a text, or files.

    Everything else, from the shards of a store or a ring to training, is the same for every source."""

    spec: StoreSpec
    """What a store of these rows holds, and where they are from."""
    tokens: int
    """Tokens of all windows together, at most: a text may end earlier."""
    writers: int
    """Shards that may wait to be written while the next is made."""
    may_change: bool
    """Whether its windows may be others at the next reading although the spec is the same, as those of a file may."""
    in_step: bool
    """Whether it takes all ranks together to make the rows of a shard, so that each has to ask for every shard's."""

    def blocks(self) -> Iterator[list[Window]]:
        """Yield the windows of shard 0, 1, …, from the beginning; the last shard may have fewer.

        For each block in its turn, either `rows` or `skip` is called."""
        ...

    def check(self, block: list[Window]) -> None:
        """Raise HookError unless the rows of these windows are what the model computes, where that can be known.

        Called once, with the first block, before anything is written."""
        ...

    def rows(self, block: list[Window], advance: Callable[[int], None]) -> Callable[[], Rows]:
        """Begin to make the rows of a block and return what waits for them; `advance` hears of tokens as they are done.

        The rows may be overwritten once those of `writers` further blocks have been asked for and this one is written."""
        ...

    def skip(self, block: list[Window]) -> None:
        """Pass over a block whose rows are not needed."""
        ...

    def empty(self) -> HarvestError:
        """Return the error for a source without a single window."""
        ...


def make_store(source: ActivationSource, out: Path, advance: Callable[[int], None]) -> Store:
    """Fill the folder `out` with a store and return it, as `activations.harvest.harvest` describes."""
    spec = source.spec
    if (out / INDEX).exists():
        store = _finished(Store(out), source)
        if not ranks.rank():
            clear_unfinished(out)  # a crash may have left them behind after the index was written
            files.clear_lock(out)
        return store
    _check_space(out, source)
    with ranks.alone_in(out):
        n_windows, n_shards = _write_shards(source, out, advance)
        ranks.barrier()
        with ranks.first_goes_first():
            if ranks.rank() == 0:
                ended = n_windows < source.tokens // spec.packing.context
                StoreWriter(out, spec, source.tokens).finish(n_shards, text_ended=ended)
    return Store(out)


def _write_shards(source: ActivationSource, out: Path, advance: Callable[[int], None]) -> tuple[int, int]:
    """Write this rank's shards; return the numbers of windows and shards of all ranks."""
    writer = None  # made with the first block, so that a mistake in the text leaves no files behind
    total = shards = 0
    with BackgroundWriter(source.writers) as background, closing(prefetch(source.blocks(), 1)) as blocks:
        for number, block in enumerate(blocks):
            if writer is None:
                source.check(block)
                with ranks.first_goes_first():
                    if not ranks.rank():
                        # a shard that was being written when a harvest was killed takes room
                        files.sweep(out)
                    writer = StoreWriter(out, source.spec, source.tokens)
            total, shards = total + len(block), number + 1
            mine = number % ranks.world() == ranks.rank()
            needed = mine and not writer.has(number)
            if mine and not needed:
                writer.check(number, block)
            if not (ranks.on_any(needed) if source.in_step else needed):
                source.skip(block)
                advance(len(block) * source.spec.packing.context)
                continue
            rows = source.rows(block, advance)
            if needed:
                background.submit(write_shard, writer, number, block, rows)
    if writer is None:
        raise source.empty()
    return total, shards


def write_shard(writer: StoreWriter, number: int, block: list[Window], rows: Callable[[], Rows]) -> None:
    """Wait for a block's rows and write them as shard `number`."""
    writer.write(number, block, *rows())


def _finished(store: Store, source: ActivationSource) -> Store:
    if store.spec != source.spec:
        raise HarvestError(f"{store.path} is a finished store with other settings: choose another --out")
    wanted = source.tokens // source.spec.packing.context
    if store.windows != wanted and not (store.text_ended and store.windows < wanted):
        raise HarvestError(
            f"{store.path} is finished with {store.tokens:,} tokens and {source.tokens:,} are asked for: "
            f"choose another --out or delete it"
        )
    if source.may_change and not _made_from(store, source):
        raise HarvestError(
            f"{store.path} is a finished store of other text: {store.spec.dataset['dataset']} has changed since; choose "
            f"another --out or delete it"
        )
    return store


def _made_from(store: Store, source: ActivationSource) -> bool:
    """Return whether a store holds a source's windows, which are read to their end."""
    number = -1
    for number, block in enumerate(source.blocks()):
        source.skip(block)
        if number == len(store.shards) or not store.holds(number, block):
            return False
    return number + 1 == len(store.shards)


def _check_space(out: Path, source: ActivationSource) -> None:
    """Raise HarvestError, before hours are spent, when the disk cannot hold the whole store."""
    size = source.tokens * sum(row_bytes(source.spec.dtype, width) for width in source.spec.hooks.values())
    written = sum(file.stat().st_size for file in out.glob("shard-*.safetensors"))
    free = files.free_bytes(out)
    if size - written > free:
        raise HarvestError(
            f"{source.tokens:,} tokens take {size / 1e9:.1f} GB and {out} has {free / 1e9:.1f} GB free: "
            f"use fewer --tokens or hook points, --dtype int8 or float16, another disk, or train on a stream (sae train --ring)"
        )
