"""Train a sparse autoencoder on a store of activations, alone or with several ranks; resume a run that was stopped."""

import copy
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import torch

from activations.disk import locks
from activations.document_labels import unit_of
from activations.errors import ConfigError, DivergedError, RunError, StoreError
from activations.parallel import ranks
from activations.progress import Progress, no_progress
from activations.shuffle import Batch, ShuffledReader, sample
from activations.store import Store
from activations.token_labels import LabelSet, choose
from sae.architectures import SAE, build, name_of
from sae.architectures.shared import geometric_median
from sae.config import RunConfig
from sae.runs.run import Run
from sae.training import checkpoints, distributed, rates
from sae.training.loggers import Loggers
from sae.training.trainer import INIT_ROWS, Trainer, fit
from sae.workflows.signals import Stopped, noted


def train(
    cfg: RunConfig,
    out: Path | str,
    resume: bool = False,
    parallel: distributed.Parallel = "auto",
    progress: Progress = no_progress,
) -> Run:
    """Train an SAE to the end, or until SIGINT or SIGTERM, which write a checkpoint and raise Stopped.

    Settings that `cfg` leaves out are resolved, and run.json records what they came to. With `resume`, a run in `out` goes
    on from its newest checkpoint, and a finished one is returned as it is. Within `ranks.group()` all ranks train one SAE:
    `parallel` says whether they share the batch or the latents.

    Raises RunError when `out` holds another run, or one at all without `resume`; DivergedError when the loss is no longer
    finite, in which case every checkpoint can still be resumed."""
    out, store = Path(out), Store(cfg.store)
    cfg, reader = resolve(cfg, store)
    cfg, trials = _with_rate(cfg, store, out, progress)
    strategy = distributed.chosen(parallel, cfg.arch, store.width(reader.hooks[0]), cfg.train.batch)
    run = _existing(cfg, out, resume)
    if run and run.finished:
        if not ranks.rank():
            locks.clear(out)
        return run
    with ranks.alone_in(out):
        run, trainer = _prepare(run, cfg, out, reader, trials)
        if ranks.world() > 1:
            trainer = distributed.share(trainer, strategy, ranks.device())
        if strategy == "data":
            reader.share(ranks.rank(), ranks.world())
        _fit(trainer, reader, run, progress)
    return run


def resolve(cfg: RunConfig, store: Store) -> tuple[RunConfig, ShuffledReader]:
    """Return the configuration with everything that was left out filled in, as run.json records it, and the reader of its rows."""
    hook = cfg.hook or store.only_hook()
    labels = choose(store, cfg.labels) if cfg.arch.reads_labels else None
    reader = ShuffledReader(
        store, hook, cfg.train.batch,
        seed=cfg.train.seed, positions=cfg.positions, labels=labels or cfg.arch.reads_labels,
    )  # fmt: skip
    cfg = dataclasses.replace(cfg, hook=hook, train=cfg.train.resolved(reader.rows, cfg.arch))
    return _with_labels(cfg, store, labels), reader


def _with_labels(cfg: RunConfig, store: Store, labels: LabelSet | None) -> RunConfig:
    """Fill in which labels the run reads and their unit. Raises ConfigError when the architecture reads none."""
    if not cfg.arch.reads_labels:
        if cfg.labels is not None:
            raise ConfigError(
                f"--labels {cfg.labels}: {name_of(cfg.arch)} reads no labels, only adaptivek does; leave it out"
            )
        return cfg
    source = labels_source(cfg, store)
    arch = cfg.arch.reading(unit_of(source))
    return dataclasses.replace(cfg, arch=arch, labels=labels.name if labels else cfg.labels)


def labels_source(cfg: RunConfig, store: Store) -> str:
    """Return where the labels come from that a run with these settings reads. Raises LabelError when the store has none."""
    labels = choose(store, cfg.labels)
    source = labels.source if labels else store.spec.labels
    assert source is not None
    return source


def refuse_other(run: Run, cfg: RunConfig) -> None:
    """Raise RunError unless a run was begun with these resolved settings, StoreError if its store has changed."""
    _ = run.store
    differing = [
        field.name
        for field in dataclasses.fields(cfg)
        if getattr(run.config, field.name) != getattr(cfg, field.name)
    ]
    if differing:
        raise RunError(
            f"{run.path} was begun with other settings ({', '.join(differing)}): resume with the same settings, or choose another --out"
        )


def _with_rate(
    cfg: RunConfig, store: Store, out: Path, progress: Progress
) -> tuple[RunConfig, list[rates.Trial]]:
    """Measure the learning rate if the configuration asks for that; return it filled in, and the trials that measured it.

    A run that already exists keeps the rate it was begun with."""
    if cfg.train.lr != "auto":
        return cfg, []
    if (out / "run.json").exists():
        lr, trials = Run(out).config.train.lr, []
    else:
        # Rank 0 measures for all: the trials are too short to be worth sharing.
        measured = None if ranks.rank() else _measured_rate(cfg, store, progress)
        lr, trials = ranks.from_first(measured) or (None, [])
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, lr=lr)), trials


def _measured_rate(cfg: RunConfig, store: Store, progress: Progress) -> tuple[float, list[rates.Trial]]:
    assert cfg.hook is not None
    _, reader = resolve(cfg, store)
    scale = _scale(store, cfg.hook) if cfg.train.scale_inputs else 1.0
    sae = build(cfg.arch, store.width(cfg.hook), cfg.train.seed)
    _initialise(sae, reader, scale, cfg.train.seed)

    def batches() -> Iterator[Batch]:
        return iter(resolve(cfg, store)[1])

    with progress("learning rate", rates.MOST_TRIALS, "trials") as advance:
        return rates.try_rates(
            lambda: copy.deepcopy(sae).to(ranks.device()), cfg.train, cfg.arch, batches, scale,
            lambda trial: advance(1, note=f"{trial.lr:.3g}: loss {trial.loss:.4f}"),
        )  # fmt: skip


def _prepare(
    run: Run | None, cfg: RunConfig, out: Path, reader: ShuffledReader, trials: list[rates.Trial]
) -> tuple[Run, Trainer]:
    """Create the run if there is none yet; return it and its unsharded trainer, at the newest checkpoint or at step 0."""
    store, hook = reader.store, reader.hooks[0]
    scale = _scale(store, hook) if cfg.train.scale_inputs else 1.0
    sae = build(cfg.arch, store.width(hook), cfg.train.seed)
    if not (run and run.checkpoints):
        _initialise(
            sae, reader, scale, cfg.train.seed
        )  # before the run's folder exists: it may refuse the data
    if not run:
        with ranks.first_goes_first():
            run = Run(out) if ranks.rank() else Run.create(out, cfg, store, hook, scale, trials)
    alone = ranks.world() == 1
    trainer = Trainer(sae.to(ranks.device()) if alone else sae, cfg.train, scale)
    if run.checkpoints:
        reader.restore(checkpoints.resume(run, trainer))
    return run, trainer


def _scale(store: Store, hook: str) -> float:
    """Return the factor that scales activations to unit mean square per dimension."""
    mean_square_norm = store.mean_square_norm(hook)
    if not mean_square_norm:
        raise StoreError(
            f"{hook} of {store.path} is zero everywhere: there is nothing to train on; harvest another hook point"
        )
    return (store.width(hook) / mean_square_norm) ** 0.5


def _initialise(sae: SAE, reader: ShuffledReader, scale: float, seed: int) -> None:
    rows = sample(reader, INIT_ROWS)
    x = rows.x * scale
    sae.initialise(x, geometric_median(x), torch.Generator().manual_seed(seed))
    if rows.labels is not None:
        sae.fit_labels(x, rows.labels)


def _existing(cfg: RunConfig, out: Path, resume: bool) -> Run | None:
    """Return the run that already lies in `out`, if training may continue, or None when there is none."""
    if not (out / "run.json").exists():
        return None
    run = Run(out)
    if not resume:
        state = (
            "a finished run" if run.finished else "a run that stopped before its end (--resume continues it)"
        )
        raise RunError(f"{out} already holds {state}: choose another --out")
    refuse_other(run, cfg)
    return run


def _fit(trainer: Trainer, reader: ShuffledReader, run: Run, progress: Progress) -> None:
    """Train to the last step, logging and writing checkpoints. Raises Stopped after a signal, with a checkpoint written."""
    cfg, first = trainer.cfg, ranks.rank() == 0
    loggers = Loggers(run.path, run.config.loggers, run.record, resume_at=trainer.step) if first else None
    assert cfg.steps is not None
    # A signal only leaves a note here, so that the current step and the checkpoint are whole before the process ends.
    with noted() as signals, progress("train", cfg.steps, "steps", done=trainer.step) as advance:
        last = trainer.step

        def log(row: dict[str, float]) -> None:
            nonlocal last
            if not loggers:
                return
            loggers.log(row)
            note = f"FVU {row['fvu']:.3f}, L0 {row['l0']:.1f}, dead {row['dead']:.0f}"
            advance(trainer.step - last, note=note)
            last = trainer.step

        def save() -> None:
            # Every rank takes part in gathering the shards; only rank 0 gets the result and writes it.
            if unsharded := distributed.unsharded(trainer):
                checkpoints.save(run, unsharded, reader.state())

        try:
            finished = fit(trainer, iter(reader), log=log, save=save, stop=lambda: bool(signals))
        except DivergedError as error:
            last_good = (
                f"the last good checkpoint is {run.checkpoints[-1]}"
                if run.checkpoints
                else "no checkpoint was due yet"
            )
            raise DivergedError(f"{error} and train into another --out; {last_good}") from error
    ranks.barrier()  # until here rank 0 may still be writing the run
    if loggers:
        loggers.close()
    if signals or not finished:
        raise Stopped(signals[0] if signals else signal.SIGTERM)
