"""Train several runs at once: one reading of a store, or one pass of the language model over the text, feeds them all."""

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import torch

from activations.errors import ConfigError, DivergedError, HarvestError, StoreError
from activations.parallel import ranks
from activations.progress import Advance, Progress, no_progress
from activations.shuffle import Batch, Reader
from activations.store import Store
from activations.streaming.reader import StreamReader, View
from activations.streaming.ring import Ring
from sae.config import RunConfig
from sae.runs.run import STORE
from sae.workflows.rings import RingSettings, clear_ring, open_ring
from sae.workflows.signals import Stopped, noted
from sae.workflows.train import existing_on_stream
from sae.workflows.training import Training, begin


def train_together(
    runs: Mapping[Path, RunConfig],
    out: Path,
    progress: Progress = no_progress,
    ring: RingSettings | None = None,
) -> dict[Path, str]:
    """Train one run in each folder, all on one store or all on one stream; return what was said of those that diverged.

    Every run ends with the bits that `sae.train` alone gives it, on the CPU with equal numbers of threads, and either can
    resume it. Runs that exist go on from their newest checkpoints; finished ones stay as they are. All SAEs and their
    optimizers are in memory at once. On a stream, the runs may read different hook points, and the ring lies in `out`, as
    `ring` says.

    SIGINT and SIGTERM write a checkpoint of every run and raise Stopped. Raises ConfigError when the runs cannot be trained
    together, HarvestError when a stream ends, after checkpoints, and whatever else `sae.train` raises."""
    sources = {cfg.store if cfg.stream is None else "a stream" for cfg in runs.values()}
    if len(sources) != 1:
        raise ConfigError(
            f"runs that train together need one store or one stream, these have {sorted(sources)}"
        )
    if "a stream" not in sources:
        return _train(runs, Store(sources.pop()), progress)
    ring = ring or RingSettings()
    with ranks.alone_in(out):  # the producers of two trainers must not fill one ring
        begun = {path: existing_on_stream(cfg, path, resume=True) for path, cfg in runs.items()}
        unfinished = {path: cfg for path, cfg in runs.items() if not ((run := begun[path]) and run.finished)}
        if not any(begun.values()):  # it may be what a command with other settings has left
            clear_ring(out, ring)
        diverged: dict[Path, str] = {}
        if unfinished:
            with closing(open_ring(unfinished, out, ring)) as source:
                diverged = _train(unfinished, source, progress)
        clear_ring(out, ring)
    return diverged


def _train(runs: Mapping[Path, RunConfig], source: Store | Ring, progress: Progress) -> dict[Path, str]:
    random = torch.get_rng_state()
    with ExitStack() as stack:
        if isinstance(source, Ring):
            # A thread that reads ahead may wait for a shard, and a reader that is dropped would wait for the thread.
            stack.callback(source.close)
        turns: list[_Turn] = []
        diverged: dict[Path, str] = {}
        for path, cfg in runs.items():
            torch.set_rng_state(random)
            lock = partial(stack.enter_context, ranks.alone_in(path))
            try:
                training = begin(cfg, path, True, "auto", progress, source, lock)
            except DivergedError as error:  # at every rate that was tried: there is no run to train
                diverged[path] = str(error)
                continue
            if isinstance(training, Training):
                turns.append(_Turn(training))
        _share_readers(turns, source)
        total, done = (
            sum(getattr(turn.training.trainer, name) for turn in turns) for name in ("steps", "step")
        )
        signals = stack.enter_context(noted())
        advance = stack.enter_context(progress("train", total, "steps", done=done))
        diverged |= _take_turns(turns, signals, advance)
        if signals or not all(turn.training.trainer.finished or turn.path in diverged for turn in turns):
            raise Stopped(signals[0] if signals else signal.SIGTERM)
    return diverged


class _Batches:
    """The batches of one reader, each of which several runs take before the next one is read."""

    def __init__(self, reader: Reader, step: int):
        self.reader, self.start, self.runs = reader, step, 0
        self._next, self._iterator = step, iter(reader)
        self._batch: Batch | None = None
        self._error: HarvestError | StoreError | None = None

    def at(self, step: int) -> Batch:
        """Return the batch of a step: the next one, or once more the last one. Raises HarvestError when there are no more."""
        if step == self._next:
            if self._error:  # the iterator that raised it is at its end
                raise self._error
            try:
                self._batch = next(self._iterator)
            except (HarvestError, StoreError) as error:
                self._error = error
                raise
            self._next += 1
        assert step == self._next - 1, "the run that is furthest back goes first"
        assert self._batch is not None
        return self._batch


class _Turn:
    """A run among those that take turns."""

    batches: _Batches

    def __init__(self, training: Training):
        self.training, self.path = training, training.run.path
        self.place = _place(training.reader)
        self.random = torch.get_rng_state()  # as a checkpoint has left it; each run draws as if it were alone

    def steps(self, signals: list[int], advance: Advance) -> Iterator[None]:
        """Train as `Training.steps` does, after passing over the batches that only the runs further back have yet to see.

        Passing over them itself, the run needs nobody to read them: the others may end or diverge before they reach it."""
        for step in range(self.batches.start, self.training.trainer.step):
            if signals:  # its newest checkpoint is the place it has come from
                return
            self.batches.at(step)
            yield
        yield from self.training.steps(self._rows(), signals, advance)

    def _rows(self) -> Iterator[Batch]:
        """Yield the batches of this run's next steps."""
        while True:
            yield self.batches.at(self.training.trainer.step)

    def end(self) -> None:
        """Leave the reader to the other runs, or pass what it has read where there are none."""
        self.batches.runs -= 1
        if self.batches.runs:
            return
        if self.training.trainer.finished:
            self.batches.reader.finish()
        else:
            self.batches.reader.close()


def _place(reader: Reader) -> tuple[int, int]:
    return reader.cursor.epoch, reader.cursor.row


def _share_readers(turns: list[_Turn], source: Store | Ring) -> None:
    """Give runs that read the same rows in the same order one reader, that of the run which is furthest back."""
    views: dict[View, int] = {}
    groups: dict[str, _Batches] = {}
    for turn in sorted(turns, key=lambda turn: turn.place):
        training, cfg = turn.training, turn.training.run.config
        order = {
            name: value for name, value in training.reader.state().items() if name not in ("epoch", "row")
        }
        key = json.dumps([order, cfg.positions, cfg.arch.reads_labels, training.strategy], sort_keys=True)
        if key not in groups:
            if isinstance(training.reader, StreamReader) and isinstance(source, Ring):
                training.reader.shards = View(source, views)
            groups[key] = _Batches(training.reader, training.trainer.step)
        turn.batches = groups[key]
        turn.batches.runs += 1
        training.reader, turn.place = turn.batches.reader, _place(turn.batches.reader)
        training.finish = partial(_keep_store, turn, source)


def _keep_store(turn: _Turn, source: Store | Ring) -> None:
    """Make a store of what a finished run keeps of a stream."""
    if isinstance(source, Ring):
        assert isinstance(turn.batches.reader, StreamReader)
        source.finish_store(turn.path / STORE, turn.batches.reader.group_end)


def _take_turns(turns: list[_Turn], signals: list[int], advance: Advance) -> dict[Path, str]:
    """Let the run that is furthest back in the rows take a step, until none is left; return what was said of those that diverged.

    Runs with one reader thus ask for each batch one after the other, and several readers stay within one group of shards.
    Raises the first HarvestError or StoreError when each run has written its checkpoint."""
    diverged: dict[Path, str] = {}
    failed: HarvestError | StoreError | None = None

    def named(name: str) -> Advance:
        return lambda n, note="": advance(n, note=f"{name}: {note}")

    steps = {turn: turn.steps(signals, named(turn.path.name)) for turn in turns}
    while steps:
        turn = min(steps, key=lambda turn: turn.place)
        torch.set_rng_state(turn.random)
        try:
            next(steps[turn])
            turn.random, turn.place = torch.get_rng_state(), _place(turn.batches.reader)
            continue
        except StopIteration:
            pass
        except DivergedError as error:
            diverged[turn.path] = str(error)
        except (HarvestError, StoreError) as error:
            failed = failed or error
        del steps[turn]
        turn.end()
    if failed:
        raise failed
    return diverged
