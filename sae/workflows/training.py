"""A run in training: settings resolved against its rows, the folder made or resumed, and the steps, one by one."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from activations import precision
from activations.document_labels import unit_of
from activations.errors import ConfigError, DivergedError, HarvestError, RunError, StoreError
from activations.parallel import ranks
from activations.progress import Advance, Progress
from activations.shuffle import Batch, Reader, ShuffledReader, sample
from activations.store import Store
from activations.streaming.reader import StoredShards, StreamReader
from activations.streaming.ring import Ring
from activations.token_labels import LabelSet, choose
from sae.architectures import SAE, JumpReLU, build, name_of
from sae.architectures.jumprelu import LEAST
from sae.architectures.shared import geometric_median
from sae.config import Precision, RunConfig, TrainConfig
from sae.runs.run import Run
from sae.training import checkpoints, distributed, rates
from sae.training.end_to_end import SplicedReader
from sae.training.loggers import Loggers
from sae.training.trainer import INIT_ROWS, Trainer, fitting
from sae.workflows.rings import SHUFFLE_TOKENS

log = logging.getLogger(__name__)


@dataclass
class Training:
    """A run that is being trained: the folder, the SAE with its optimizer, and where its rows come from."""

    run: Run
    trainer: Trainer
    reader: Reader
    strategy: Literal["data", "latents"]
    """How ranks share the work."""
    finish: Callable[[], None]
    """Called before the last checkpoint is written, when no further row will be read."""

    def steps(self, batches: Iterator[Batch], signals: list[int], advance: Advance) -> Iterator[None]:
        """Train to the last step, logging and writing checkpoints, and yield between two steps; `advance` hears of each row
        of the log. A signal ends it early, with a checkpoint written.

        When the stream of activations ends, a single process writes a checkpoint too, before the error is raised; several
        cannot, because gathering a sharded SAE takes all of them."""
        run, trainer = self.run, self.trainer
        loggers = (
            None
            if ranks.rank()
            else Loggers(run.path, run.config.loggers, run.record, resume_at=trainer.step)
        )
        last, held_out = trainer.step, ""

        def log(row: dict[str, float]) -> None:
            nonlocal last, held_out
            if not loggers:
                return
            loggers.log(row)
            if "held_out_fvu" in row:
                held_out = f" ({row['held_out_fvu']:.3f} held out)"
            kl = f"KL {row['kl']:.3f}, " if "kl" in row else ""
            note = f"{kl}FVU {row['fvu']:.3f}{held_out}, L0 {row['l0']:.1f}, dead {row['dead']:.0f}"
            advance(trainer.step - last, note=note)
            last = trainer.step

        def save() -> None:
            # Every rank takes part in gathering the shards; only rank 0 gets the result and writes it.
            if trainer.finished:
                self.finish()
            if unsharded := distributed.unsharded(trainer):
                checkpoints.save(run, unsharded, self.reader.state())

        try:
            yield from fitting(trainer, batches, log=log, save=save, stop=lambda: bool(signals))
        except (HarvestError, StoreError):
            if ranks.world() == 1:
                save()
            raise
        except DivergedError as error:
            kept = run.checkpoints
            last_good = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was due yet"
            raise DivergedError(f"{error} and train into another --out; {last_good}") from error
        ranks.barrier()  # until here rank 0 may still be writing the run
        if loggers:
            loggers.close()


def begin(
    cfg: RunConfig,
    out: Path,
    resume: bool,
    parallel: distributed.Parallel,
    progress: Progress,
    source: Store | Ring,
    lock: Callable[[], object],
) -> Training | Run:
    """Return a run ready to be trained, at its newest checkpoint or at step 0, or the Run in `out` that is finished.

    `lock` is called when nothing of what was asked for can be refused any more, before anything is written."""
    if (cfg.loss or cfg.train.frozen) and ranks.world() > 1:
        raise ConfigError("training end to end or with a frozen part takes one process: leave torchrun out")
    cfg, reader = resolve(cfg, source)
    cfg = _with_precision(cfg, source.width(reader.hooks[0]), out)
    cfg, trials = _with_rate(cfg, source, out, progress)
    strategy = distributed.chosen(parallel, cfg.arch, source.width(reader.hooks[0]), cfg.train.batch)
    run = existing(cfg, out, resume)
    if run and run.finished:
        return run
    lock()
    run, trainer = _prepare(run, cfg, out, source, reader, trials, progress)
    if ranks.world() > 1:
        trainer = distributed.share(trainer, strategy, ranks.device())
    if strategy == "data":
        reader.share(ranks.rank(), ranks.world())
    return Training(run, trainer, reader, strategy, reader.finish)


def resolve(cfg: RunConfig, source: Store | Ring) -> tuple[RunConfig, Reader]:
    """Return the configuration with everything that was left out filled in, as run.json records it, and the reader of its rows."""
    hook = cfg.hook or source.only_hook()
    if isinstance(source, Ring):
        if cfg.train.lr == "auto":
            raise ConfigError(
                "--train.lr auto reads its first rows several times, which a stream does not keep: leave it out"
            )
        cfg = dataclasses.replace(cfg, shuffle_tokens=cfg.shuffle_tokens or SHUFFLE_TOKENS)
    if cfg.loss:
        assert isinstance(source, Store)
        assert cfg.start_from is not None
        labels, model = None, Run(cfg.start_from).language_model()
        reader: Reader = SplicedReader(
            source, hook, model, max(1, cfg.train.batch // source.context), seed=cfg.train.seed, positions=cfg.positions
        )  # fmt: skip
    elif cfg.shuffle_tokens is None:
        assert isinstance(source, Store)
        labels = choose(source, cfg.labels) if cfg.arch.reads_labels else None
        reader = ShuffledReader(
            source, hook, cfg.train.batch,
            seed=cfg.train.seed, positions=cfg.positions, labels=labels or cfg.arch.reads_labels,
        )  # fmt: skip
    else:
        labels = None
        reader = StreamReader(
            StoredShards(source) if isinstance(source, Store) else source, hook, cfg.train.batch,
            shuffle_tokens=cfg.shuffle_tokens, seed=cfg.train.seed, positions=cfg.positions,
            labels=cfg.arch.reads_labels,
        )  # fmt: skip
    cfg = dataclasses.replace(cfg, hook=hook, train=cfg.train.resolved(reader.rows, cfg.arch))
    return cfg if cfg.loss else _with_labels(cfg, source, labels), reader


def _with_labels(cfg: RunConfig, source: Store | Ring, labels: LabelSet | None) -> RunConfig:
    """Fill in which labels the run reads and their unit. Raises ConfigError when the architecture reads none."""
    if not cfg.arch.reads_labels:
        if cfg.labels is not None:
            raise ConfigError(
                f"--labels {cfg.labels}: {name_of(cfg.arch)} reads no labels, only adaptivek does; leave it out"
            )
        return cfg
    if isinstance(source, Ring) or cfg.shuffle_tokens is not None:
        written = source.spec.labels
        if written is None or cfg.labels not in (None, written):
            raise ConfigError(
                f"--labels {cfg.labels}: in the order of the text only the labels of the harvest can be read, here {written}"
            )
    else:
        written = labels_source(cfg, source)
    arch = cfg.arch.reading(unit_of(written))
    return dataclasses.replace(cfg, arch=arch, labels=labels.name if labels else cfg.labels)


def labels_source(cfg: RunConfig, store: Store) -> str:
    """Return where the labels come from that a run with these settings reads. Raises LabelError when the store has none."""
    labels = choose(store, cfg.labels)
    source = labels.source if labels else store.spec.labels
    assert source is not None
    return source


def refuse_other(run: Run, cfg: RunConfig) -> None:
    """Raise RunError unless a run was begun with these resolved settings, StoreError if its store has changed.

    A precision that is left to a measurement is the run's."""
    if cfg.train.precision == "auto":
        cfg = _in_precision(cfg, run.config.train.precision)
    if not run.config.stream:
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


def _with_precision(cfg: RunConfig, width: int, out: Path) -> RunConfig:
    """Choose the precision of products if the configuration leaves it to a measurement; a run that exists keeps its own."""
    if cfg.train.precision != "auto":
        return cfg
    begun = _begun_with(out)
    return _in_precision(cfg, begun.precision if begun else _measured_precision(width, cfg.arch.d_sae))


def _begun_with(out: Path) -> TrainConfig | None:
    """Return the settings that the run in `out` was begun with, or None when there is none, the same on every rank."""
    # Rank 0 may be ahead of the others and have created the run by the time they look
    return Run(out).config.train if ranks.from_first((out / "run.json").exists()) else None


def _in_precision(cfg: RunConfig, chosen: Precision) -> RunConfig:
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, precision=chosen))


def _measured_precision(width: int, d_sae: int) -> Precision:
    """Return the faster precision for products of an SAE of this size, on this rank's device."""
    if ranks.device().type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    low, ratio = precision.faster(width, d_sae)
    precision.tell("training", low, ratio)
    return "bfloat16" if low == torch.bfloat16 else "float32"


def _with_rate(
    cfg: RunConfig, source: Store | Ring, out: Path, progress: Progress
) -> tuple[RunConfig, list[rates.Trial]]:
    """Measure the learning rate if the configuration asks for that; return it filled in, and the trials that measured it.

    A run that already exists keeps the rate it was begun with."""
    if cfg.train.lr != "auto":
        return cfg, []
    assert isinstance(source, Store)
    if begun := _begun_with(out):
        lr, trials = begun.lr, []
    else:
        # Rank 0 measures for all: the trials are too short to be worth sharing.
        measured = None if ranks.rank() else _measured_rate(cfg, source, progress)
        lr, trials = ranks.from_first(measured) or (None, [])
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, lr=lr)), trials


def _measured_rate(cfg: RunConfig, store: Store, progress: Progress) -> tuple[float, list[rates.Trial]]:
    assert cfg.hook is not None
    _, reader = resolve(cfg, store)
    scale = _scale(store, reader) if cfg.train.scale_inputs else 1.0
    sae = build(cfg.arch, store.width(cfg.hook), cfg.train.seed)
    _start(sae, cfg, reader, scale)

    def batches() -> Iterator[Batch]:
        return iter(resolve(cfg, store)[1])

    with progress("learning rate", rates.MOST_TRIALS, "trials") as advance:
        return rates.try_rates(
            lambda: copy.deepcopy(sae).to(ranks.device()), cfg.train, cfg.arch, batches, scale, advance,
        )  # fmt: skip


def _prepare(
    run: Run | None,
    cfg: RunConfig,
    out: Path,
    source: Store | Ring,
    reader: Reader,
    trials: list[rates.Trial],
    progress: Progress,
) -> tuple[Run, Trainer]:
    """Create the run if there is none yet; return it and its unsharded trainer, at the newest checkpoint or at step 0."""
    hook, begun = reader.hooks[0], bool(run and run.checkpoints)
    if not begun:
        reader.wait(progress)
    # A run that goes on has its scale already, and the first rows of a stream may be gone.
    scale = run.record.input_scale if run else _scale(source, reader) if cfg.train.scale_inputs else 1.0
    sae = build(cfg.arch, source.width(hook), cfg.train.seed)
    if not begun:
        # before the run's folder exists: it may refuse the data
        _start(sae, cfg, reader, scale)
    if not run:
        with ranks.first_goes_first():
            run = Run(out) if ranks.rank() else Run.create(out, cfg, source, hook, scale, trials)
    alone = ranks.world() == 1
    trainer = Trainer(sae.to(ranks.device()) if alone else sae, cfg.train, scale)
    if begun:
        reader.restore(checkpoints.resume(run, trainer))
    elif cfg.train.held_out_every:
        trainer.held_out_rows = reader.held_out(cfg.train.batch)
    return run, trainer


def _scale(source: Store | Ring, reader: Reader) -> float:
    """Return the factor that scales activations to unit mean square per dimension."""
    hook, mean_square_norm = reader.hooks[0], reader.mean_square_norm()
    if not mean_square_norm:
        raise StoreError(
            f"{hook} of {source.path} is zero everywhere: there is nothing to train on; harvest another hook point"
        )
    return (source.width(hook) / mean_square_norm) ** 0.5


def _start(sae: SAE, cfg: RunConfig, reader: Reader, scale: float) -> None:
    """Give an SAE in training its first weights: those of another run, or those that its method draws."""
    if cfg.start_from is None:
        _initialise(sae, reader, scale, cfg.train.seed)
        return
    run = Run(cfg.start_from)
    other = run.sae()
    shapes, theirs = ({name: tuple(t.shape) for name, t in one.state_dict().items()} for one in (sae, other))
    if (name_of(other.cfg), theirs) != (name_of(cfg.arch), shapes):
        raise ConfigError(
            f"--start-from {run.path} is a {name_of(other.cfg)} of {other.d_sae:,} latents for width {other.d_model:,}, and what "
            f"is to be trained is a {name_of(cfg.arch)} of {sae.d_sae:,} for width {sae.d_model:,}: both must have the same "
            f"method and sizes"
        )
    other.fold_input_scale(1 / scale)  # a saved SAE reads raw activations, one in training scaled ones
    sae.load_state_dict(other.state_dict())
    if isinstance(sae, JumpReLU) and (raised := sae.raise_zero_thresholds()):
        log.warning("%d thresholds of 0, whose logarithm cannot be trained, start at %g", raised, LEAST)


def _initialise(sae: SAE, reader: Reader, scale: float, seed: int) -> None:
    rows = sample(reader, INIT_ROWS)
    x = rows.x * scale
    sae.initialise(x, geometric_median(x), torch.Generator().manual_seed(seed))
    if rows.labels is not None:
        sae.fit_labels(x, rows.labels)


def existing(cfg: RunConfig, out: Path, resume: bool) -> Run | None:
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
