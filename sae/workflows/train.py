"""Train a sparse autoencoder on a store or a stream of activations, alone or with several ranks; resume a stopped run."""

import dataclasses
import signal
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path

from activations.disk import files
from activations.errors import RunError
from activations.parallel import ranks
from activations.progress import Progress, no_progress
from activations.store import Store
from activations.streaming.ring import Ring
from sae.config import RunConfig
from sae.runs.run import RING, Run
from sae.training import distributed
from sae.workflows.rings import RingSettings, clear_ring, open_ring
from sae.workflows.signals import Stopped, noted
from sae.workflows.training import Training, begin, existing


def train(
    cfg: RunConfig,
    out: Path | str,
    resume: bool = False,
    parallel: distributed.Parallel = "auto",
    progress: Progress = no_progress,
    ring: RingSettings | None = None,
) -> Run:
    """Train an SAE to the end, or until SIGINT or SIGTERM, which write a checkpoint and raise Stopped.

    Settings that `cfg` leaves out are resolved, and run.json records what they came to. With `resume`, a run in `out` goes
    on from its newest checkpoint, and a finished one is returned as it is. Within `ranks.group()` all ranks train one SAE:
    `parallel` says whether they share the batch or the latents. With `cfg.stream` the activations are made while training
    goes on, into a ring as `ring` says (when left out, 20 GB in the run's folder).

    Raises RunError when `out` holds another run, or one at all without `resume`; DivergedError when the loss is no longer
    finite, in which case every checkpoint can still be resumed; HarvestError when a stream ends, after a checkpoint."""
    out = Path(out)
    if cfg.stream is None:
        return _train(cfg, out, resume, parallel, progress, Store(cfg.store), ranks.alone_in(out))
    ring, run = ring or RingSettings(), existing_on_stream(cfg, out, resume)
    if run and run.finished:
        clear_ring(out, ring)
        if not ranks.rank():
            files.clear_lock(out)
        return run
    # The lock comes first: the producers of two trainers must not fill one ring.
    with ranks.alone_in(out):
        if not run:  # it may be what a command with other settings has left
            clear_ring(out, ring)
        with closing(open_ring({out: cfg}, out, ring)) as source:
            run = _train(cfg, out, resume, parallel, progress, source, nullcontext())
        clear_ring(out, ring)
    return run


def _train(
    cfg: RunConfig,
    out: Path,
    resume: bool,
    parallel: distributed.Parallel,
    progress: Progress,
    source: Store | Ring,
    alone: AbstractContextManager[None],
) -> Run:
    with ExitStack() as stack:
        training = begin(cfg, out, resume, parallel, progress, source, lambda: stack.enter_context(alone))
        if isinstance(training, Run):
            if not ranks.rank():
                files.clear_lock(out)
            return training
        if training.trainer.step:
            training.reader.wait(progress)
        _fit(training, progress)
    return training.run


def existing_on_stream(cfg: RunConfig, out: Path, resume: bool) -> Run | None:
    """Return the run in `out` as `existing` does, before any activation is made for it."""
    if not (out / "run.json").exists():
        if files.is_taken(out, besides=(RING,)):
            raise RunError(f"{out} is not empty: choose another --out")
        return None
    run = Run(out)
    filled = dataclasses.replace(
        cfg, hook=run.config.hook, train=run.config.train, shuffle_tokens=run.config.shuffle_tokens, labels=run.config.labels,
        arch=run.config.arch,
    )  # fmt: skip
    return existing(filled, out, resume)


def _fit(training: Training, progress: Progress) -> None:
    """Train to the last step. Raises Stopped after a signal."""
    trainer, reader = training.trainer, training.reader
    # A signal only leaves a note here, so that the current step and the checkpoint are whole before the process ends.
    with noted() as signals, progress("train", trainer.steps, "steps", done=trainer.step) as advance:
        batches = iter(reader)
        try:
            for _ in training.steps(batches, signals, advance):
                pass
        finally:
            reader.close()  # a thread that reads ahead may wait for a shard, and closing `batches` would wait for it
            del batches
    if signals or not trainer.finished:
        raise Stopped(signals[0] if signals else signal.SIGTERM)
