"""`sae train ARCH`: a store -> a sparse autoencoder."""

import copy
import dataclasses
import inspect
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from activations.disk import locks
from activations.document_labels import per_token, unit_of
from activations.errors import ConfigError, DivergedError, RunError, StoreError
from activations.moments import geometric_median
from activations.parallel import ranks
from activations.shuffle import Batch, ShuffledReader, sample
from activations.store import Store
from activations.token_labels import LabelSet, choose
from sae.architectures import ARCHITECTURES, SAE, ArchConfig, build, name_of
from sae.cli import arguments
from sae.cli.progress import progress
from sae.cli.signals import Stopped, noted
from sae.config import RunConfig
from sae.runs.log import Loggers
from sae.runs.run import Run
from sae.training import checkpoints, distributed, rates, sharing
from sae.training.trainer import INIT_ROWS, Trainer, fit


@dataclass(frozen=True, kw_only=True)
class Train(RunConfig):
    """Train a sparse autoencoder on a store.

    By several processes: torchrun --nproc-per-node 8 -m sae.cli.main train topk …, with --max-restarts 3 to go on by
    itself from the newest checkpoint when one of them is lost. The run is the same, up to rounding."""

    out: Path
    """Folder of the run."""
    resume: bool = False
    """Go on from the newest checkpoint of the run in --out, with any number of processes; begin where there is none."""
    parallel: distributed.Parallel = "auto"
    """What processes share: each batch (data), or the dictionary (latents: topk, abstopk, batchtopk), which needs less
    memory in each; auto is what moves fewer bytes. A process alone has both."""


def main(args: list[str]) -> int:
    """Parse and run."""
    presets = {
        name: (_summary(name, config), Train(store=tyro.MISSING, out=tyro.MISSING, arch=config()))
        for name, (config, _) in ARCHITECTURES.items()
    }
    command = arguments.parse_preset(presets, "architecture", "sae train", args)
    fields = {field.name: getattr(command, field.name) for field in dataclasses.fields(RunConfig)}
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    with ranks.group():
        run = train(RunConfig(**fields), command.out, command.resume or restarted, parallel=command.parallel)
    if not ranks.rank():
        say_problems(run)
        print(f"{run.path}: trained; next: sae evaluate {run.path}")
    return 0


def say_problems(run: Run) -> None:
    """Print what makes the run's SAE useless as it is, if anything does."""
    for line in run.problems:
        print(f"{run.path}: {line}")


def train(
    cfg: RunConfig,
    out: Path | str,
    resume: bool = False,
    on_steps: Callable[[int], None] = lambda n: None,
    parallel: distributed.Parallel = "auto",
) -> Run:
    """Train to the end, or until SIGINT or SIGTERM, which write a checkpoint and raise Stopped.

    `cfg` may leave settings out; what they came to is in the run's run.json. A finished run is returned as it
    is when `resume` is set. `on_steps` hears of steps done, first of those done before a resumed run's stop.
    Within `ranks.group()` the ranks train one SAE together, `parallel` in one way or the other.

    Raises DivergedError when the loss is no longer finite; every checkpoint there is can then be gone on from."""
    out, store = Path(out), Store(cfg.store)
    cfg, reader = settled(cfg, store)
    cfg, trials = _with_rate(cfg, store, out)
    way = distributed.chosen(parallel, cfg.arch, store.width(reader.hooks[0]), cfg.train.batch)
    run = _begun(cfg, out, resume)
    if run and run.finished:
        if not ranks.rank():
            locks.clear(out)
        return run
    with ranks.alone_in(out):
        run, trainer = _set_out(run, cfg, out, reader, trials)
        if ranks.world() > 1:
            trainer = sharing.share(trainer, way, ranks.device())
        if way == "data":
            reader.share(ranks.rank(), ranks.world())
        on_steps(trainer.step)
        if cfg.arch.reads_labels and not ranks.rank():
            say_labels(cfg, store)
        _fit(trainer, reader, run, on_steps)
    return run


def settled(cfg: RunConfig, store: Store) -> tuple[RunConfig, ShuffledReader]:
    """The configuration with what it leaves out filled in, as run.json has it, and the reader of its rows."""
    hook = cfg.hook or store.only_hook()
    labels = choose(store, cfg.labels) if cfg.arch.reads_labels else None
    reader = ShuffledReader(
        store, hook, cfg.train.batch,
        seed=cfg.train.seed, positions=cfg.positions, labels=labels or cfg.arch.reads_labels,
    )  # fmt: skip
    cfg = dataclasses.replace(cfg, hook=hook, train=cfg.train.resolved(reader.rows, cfg.arch))
    return _with_labels(cfg, store, labels), reader


def _with_labels(cfg: RunConfig, store: Store, labels: LabelSet | None) -> RunConfig:
    """Fill in which labels are read and what they count. Raises ConfigError for labels that nothing would read."""
    if not cfg.arch.reads_labels:
        if cfg.labels is not None:
            raise ConfigError(
                f"--labels {cfg.labels}: {name_of(cfg.arch)} reads no labels, adaptivek does; leave it out"
            )
        return cfg
    source = labels.source if labels else store.spec.labels
    assert source is not None
    arch = cfg.arch.reading(unit_of(source))
    return dataclasses.replace(cfg, arch=arch, labels=labels.name if labels else cfg.labels)


def say_labels(cfg: RunConfig, store: Store) -> None:
    """Print which labels a run learns from; of those that belong to whole documents, that they do."""
    labels = choose(store, cfg.labels)
    source = labels.source if labels else store.spec.labels
    if per_token(source):
        print(f"labels: {source}, one for each token")
    else:
        print(
            f"labels: {source}, one number for a whole document, the same for all its tokens; labels for each token: "
            f"sae store label {store.path} --labels needed:RUN"
        )


def refuse_other(run: Run, cfg: RunConfig) -> None:
    """Raise RunError unless a run was begun with these (settled) settings, StoreError if its store has changed."""
    _ = run.store
    differing = [
        field.name
        for field in dataclasses.fields(cfg)
        if getattr(run.config, field.name) != getattr(cfg, field.name)
    ]
    if differing:
        raise RunError(
            f"{run.path} was begun with other settings ({', '.join(differing)}): resume with the same, or choose another --out"
        )


def _with_rate(cfg: RunConfig, store: Store, out: Path) -> tuple[RunConfig, list[rates.Trial]]:
    """The configuration with the learning rate measured if it asks for that, and the trials that measured it.

    A run that is in the folder already keeps the rate it was begun with."""
    if cfg.train.lr != "auto":
        return cfg, []
    if (out / "run.json").exists():
        lr, trials = Run(out).config.train.lr, []
    else:
        lr, trials = ranks.from_first(None if ranks.rank() else _measured_rate(cfg, store)) or (None, [])
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, lr=lr)), trials


def _measured_rate(cfg: RunConfig, store: Store) -> tuple[float, list[rates.Trial]]:
    assert cfg.hook is not None
    _, reader = settled(cfg, store)
    scale = _scale(store, cfg.hook) if cfg.train.scale_inputs else 1.0
    sae = build(cfg.arch, store.width(cfg.hook), cfg.train.seed)
    _initialise(sae, reader, scale, cfg.train.seed)

    def batches() -> Iterator[Batch]:
        return iter(settled(cfg, store)[1])

    def say(trial: rates.Trial) -> None:
        print(
            f"learning rate {trial.lr:.3g}: loss {trial.loss:.4f} after {rates.trial_steps(cfg.train)} steps"
        )

    lr, trials = rates.try_rates(
        lambda: copy.deepcopy(sae).to(ranks.device()), cfg.train, cfg.arch, batches, scale, say
    )
    print(f"learning rate {lr:.3g} for the run's {cfg.train.steps:,} steps")
    return lr, trials


def _set_out(
    run: Run | None, cfg: RunConfig, out: Path, reader: ShuffledReader, trials: list[rates.Trial]
) -> tuple[Run, Trainer]:
    """The run, made if there is none, and the whole trainer where the run's newest checkpoint is, or at step 0."""
    store, hook = reader.store, reader.hooks[0]
    scale = _scale(store, hook) if cfg.train.scale_inputs else 1.0
    sae = build(cfg.arch, store.width(hook), cfg.train.seed)
    if not (run and run.checkpoints):
        _initialise(sae, reader, scale, cfg.train.seed)  # before there is a run: it may refuse the data
    if not run:
        with ranks.first_goes_first():
            run = Run(out) if ranks.rank() else Run.create(out, cfg, store, hook, scale, trials)
    alone = ranks.world() == 1
    trainer = Trainer(sae.to(ranks.device()) if alone else sae, cfg.train, scale)
    if run.checkpoints:
        reader.restore(checkpoints.resume(run, trainer))
    return run, trainer


def _scale(store: Store, hook: str) -> float:
    """What brings the activations to unit mean square per dimension."""
    mean_square_norm = store.mean_square_norm(hook)
    if not mean_square_norm:
        raise StoreError(
            f"{hook} of {store.path} is zero everywhere: there is nothing to train on; harvest another"
        )
    return (store.width(hook) / mean_square_norm) ** 0.5


def _initialise(sae: SAE, reader: ShuffledReader, scale: float, seed: int) -> None:
    found = sample(reader, INIT_ROWS)
    x = found.x * scale
    sae.initialise(x, geometric_median(x), torch.Generator().manual_seed(seed))
    if found.labels is not None:
        sae.fit_labels(x, found.labels)


def _begun(cfg: RunConfig, out: Path, resume: bool) -> Run | None:
    """The run that is in the folder already, if it may go on."""
    if not (out / "run.json").exists():
        return None
    run = Run(out)
    if not resume:
        state = "a finished run" if run.finished else "a run that stopped before its end (--resume goes on)"
        raise RunError(f"{out} holds {state}: choose another --out")
    refuse_other(run, cfg)
    return run


def _fit(trainer: Trainer, reader: ShuffledReader, run: Run, on_steps: Callable[[int], None]) -> None:
    cfg, first = trainer.cfg, ranks.rank() == 0
    loggers = Loggers(run.path, run.config.loggers, run.about, resume_at=trainer.step) if first else None
    assert cfg.steps is not None
    with noted() as stop, progress("train", cfg.steps, "steps", done=trainer.step) as advance:
        last = trainer.step

        def log(row: dict[str, float]) -> None:
            nonlocal last
            if not loggers:
                return
            loggers.log(row)
            advance(
                trainer.step - last, note=f"FVU {row['fvu']:.3f}, L0 {row['l0']:.1f}, dead {row['dead']:.0f}"
            )
            on_steps(trainer.step - last)
            last = trainer.step

        def save() -> None:
            if whole := sharing.whole(trainer):
                checkpoints.save(run, whole, reader.state())

        try:
            finished = fit(
                trainer,
                iter(reader),
                log=log,
                save=save,
                stop=lambda: bool(stop),
            )
        except DivergedError as error:
            kept = (
                f"the last good checkpoint is {run.checkpoints[-1]}"
                if run.checkpoints
                else "no checkpoint was due yet"
            )
            raise DivergedError(f"{error} and train into another --out; {kept}") from error
    ranks.barrier()  # the run is on the disk
    if loggers:
        loggers.close()
    if stop or not finished:
        raise Stopped(stop[0] if stop else signal.SIGTERM)


def _summary(name: str, config: type[ArchConfig]) -> str:
    """What a method is for, where it comes from (its module says), which settings suit which budget, and an example."""
    what = (config.__doc__ or "").strip().splitlines()[0]
    source = " ".join((inspect.getdoc(inspect.getmodule(config)) or "").split("\n\n", 1)[-1].split())
    example = f"Example: sae train {name} --store stores/demo --out runs/mine --arch.d-sae 16384"
    return f"{what}\n\n{source}\n\nSettings: {config.advice}\n\n{example}"
