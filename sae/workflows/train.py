"""Train a sparse autoencoder on a store or a stream of activations, alone or with several ranks; resume a stopped run."""

import dataclasses
import hashlib
import signal
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from activations.disk import files
from activations.document_labels import SURPRISE
from activations.errors import RunError
from activations.parallel import ranks
from activations.progress import Progress, no_progress
from activations.store import Store
from activations.streaming.folder import RingFolder
from activations.streaming.ring import Ring
from sae.config import RunConfig
from sae.runs.run import RING, STORE, Run
from sae.training import distributed
from sae.workflows.signals import Stopped, noted
from sae.workflows.training import SHUFFLE_TOKENS, Training, begin, existing


@dataclass(frozen=True)
class RingSettings:
    """Where a stream's activations lie while they are needed, and who makes them: it does not change a run's numbers."""

    size: int = 20_000_000_000
    """Bytes that they may take."""
    folder: Path | None = None
    """Folder in which the ring gets one of its own, and which every process must be able to read; when left out, the run's."""
    producers: int = 1
    """Processes that run the language model, each on a device of its own where there are enough."""

    def path(self, out: Path) -> Path:
        """Return the folder of the ring of the run in `out`."""
        if self.folder is None:
            return out / RING
        place = hashlib.sha256(
            str(out.absolute()).encode()
        ).hexdigest()  # runs of one name may share the folder
        return self.folder / f"{out.absolute().name}-{place[:8]}"


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
    ring, run = ring or RingSettings(), _existing_stream(cfg, out, resume)
    if run and run.finished:
        _clear_ring(out, ring)
        if not ranks.rank():
            files.clear_lock(out)
        return run
    # The lock comes first: the producers of two trainers must not fill one ring.
    with ranks.alone_in(out):
        if not run:  # it may be what a command with other settings has left
            _clear_ring(out, ring)
        with closing(_open_ring(cfg, out, ring)) as source:
            run = _train(cfg, out, resume, parallel, progress, source, nullcontext())
        _clear_ring(out, ring)
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


def _existing_stream(cfg: RunConfig, out: Path, resume: bool) -> Run | None:
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


def _open_ring(cfg: RunConfig, out: Path, ring: RingSettings) -> Ring:
    """Return the ring that a run on a stream reads."""
    assert cfg.stream is not None
    stream = cfg.stream
    if (out / "run.json").exists():  # it keeps the model's precision, whatever a new measurement would choose
        stream = dataclasses.replace(stream, model_dtype=Run(out).record.model_dtype)
    labels = (cfg.labels or SURPRISE) if cfg.arch.reads_labels else None
    return Ring(
        ring.path(out), stream, kept=out / STORE, size=ring.size, producers=ring.producers,
        shuffle_tokens=cfg.shuffle_tokens or SHUFFLE_TOKENS, hook=cfg.hook, labels=labels,
    )  # fmt: skip


def _clear_ring(out: Path, ring: RingSettings) -> None:
    """Remove the ring of a run that is finished or has not begun."""
    with ranks.first_goes_first():
        if not ranks.rank():
            RingFolder(ring.path(out)).remove()
