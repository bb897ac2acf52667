"""`sae plan harvest|train|sweep|finetune|features|explain|scaling`: predict the disk, memory and time that a job takes, before hours are spent."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from activations import engines
from activations.document_labels import NEEDED
from activations.errors import ConfigError
from activations.harvest import HarvestConfig, with_hooks
from activations.language_model import LanguageModel
from activations.store import Store, row_bytes
from activations.streaming.folder import StreamConfig
from activations.text import make_ready
from sae.architectures import ARCHITECTURES, ArchConfig, TopKConfig
from sae.cli import arguments, plan_explain, plan_scaling
from sae.cli.forecasts import Planned, check, here, machine_name, show
from sae.cli.store import Harvest
from sae.config import TrainConfig
from sae.features.collect import FeaturesConfig
from sae.plan import features, finetune, harvest, stream, sweep, training
from sae.plan.rates import GPUS
from sae.plan.training import Data, Job
from sae.runs.run import Run
from sae.training.distributed import Parallel
from sae.workflows.finetune import FinetuneConfig, settings_of
from sae.workflows.harvest import refuse_other_hook
from sae.workflows.rings import SHUFFLE_TOKENS, bytes_of
from sae.workflows.sweep import load

USAGE = """usage: sae plan {harvest,train ARCH,sweep,finetune,features,explain,scaling} [OPTIONS]

What a job would take: disk, memory, time, and what limits it. Takes the job's own options; nothing of it is run.

  sae plan harvest --model embedded --tokens 10_000_000 --hooks blocks.10.hook_resid_post --dtype float16
  sae plan train topk --store stores/demo --arch.d-sae 16384 --train.steps 5000
  sae plan train topk --width 768 --tokens 10_000_000_000 --arch.d-sae 1048576 --device h200 --ranks 8
  sae plan train topk --ring 2TB --forward-parameters 35e9 --producers 6 --ranks 2 --width 8192 --tokens 10_000_000_000 --device h200
  sae plan sweep sweep.toml --together
  sae plan finetune runs/demo --tokens 25_000_000
  sae plan features runs/demo
  sae plan explain runs/demo --judge-model gpt-4o-mini --price-in 0.15 --price-out 0.60
  sae plan scaling runs/sweep --hours 8

The first time, this machine is measured, for some seconds; --measure does it again. Exit code 2 when it cannot be done."""


@dataclass(frozen=True)
class PlanHarvest(Harvest):
    """Predict what `sae harvest` takes. The model runs on a few windows of the text the first time.

    Example: sae plan harvest --model embedded --tokens 10_000_000 --dtype float16"""

    out: Path = Path()
    """Folder of the planned store; its disk is checked for free space."""
    plan: Planned = field(default_factory=Planned)


@dataclass(frozen=True, kw_only=True)
class PlanTrain:
    """Predict what `sae train` takes."""

    store: str | None = None
    """Store to train on; for one that does not exist yet, give --width and --tokens instead."""
    hook: str | None = None
    """Hook point to read; may be left out when the store has only one."""
    width: int | None = None
    """Width of the activations, without a store."""
    tokens: int | None = None
    """Number of tokens, without a store."""
    dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    """Format in which activations are stored, without a store; float16 when left out."""
    ring: str | None = None
    """Size of the ring, such as 20GB, of a run on a stream: the model runs while training does, and no store is needed."""
    forward_parameters: float | None = None
    """Parameters of the language model's layers up to the hook point, such as 35e9 for the lower half of a 70B model."""
    producers: int | None = None
    """Devices that run the model of a stream, beside the --ranks that train; one when left out."""
    out: Path = Path()
    """Folder of the planned run; its disk is checked for free space."""
    device: Literal["cpu", "h100", "h200"] = "cpu"
    """cpu: this machine, measured. h100, h200: computed from peak rates, with kernels in bf16."""
    l0: float | None = None
    """Latents that fire on a token; when left out, k, or an assumed number for architectures without k."""
    dead: float = 0.0
    """Share of latents that are dead, for which AuxK works."""
    parallel: Parallel = "auto"
    """What ranks share, as in `sae train`."""
    arch: ArchConfig = field(default_factory=TopKConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    plan: Annotated[Planned, tyro.conf.arg(name="")] = field(default_factory=Planned)


@dataclass(frozen=True)
class PlanSweep:
    """Predict what `sae sweep` takes: time, memory and disk of all runs.

    Example: sae plan sweep sweep.toml --together"""

    file: tyro.conf.Positional[Path]
    """The grid, a TOML file, as `sae sweep` reads it."""
    together: bool = False
    """Plan all runs at once, as with `sae sweep --together` and for every sweep on a stream."""
    width: int | None = None
    """Width of the model's activations, which a sweep on a stream does not say."""
    device: Literal["cpu", "h100", "h200"] = "cpu"
    """cpu: this machine, measured. h100, h200: computed from peak rates, with kernels in bf16."""
    plan: Annotated[Planned, tyro.conf.arg(name="")] = field(default_factory=Planned)


@dataclass(frozen=True)
class PlanFinetune:
    """Predict what `sae finetune` takes. The model runs on a few windows of the run's store the first time.

    Example: sae plan finetune runs/demo --tokens 25_000_000"""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    out: Path = Path()
    """Folder of the planned run; its disk is checked for free space."""
    config: FinetuneConfig = field(default_factory=FinetuneConfig)
    plan: Planned = field(default_factory=Planned)


@dataclass(frozen=True)
class PlanFeatures:
    """Predict what `sae features` takes.

    Example: sae plan features runs/demo --tokens 200000"""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    config: FeaturesConfig = field(default_factory=FeaturesConfig)
    plan: Planned = field(default_factory=Planned)


def main(args: list[str]) -> int:
    """Parse, plan, print."""
    jobs = {
        "harvest": _harvest,
        "train": _train,
        "sweep": _sweep,
        "finetune": _finetune,
        "features": _features,
        "explain": plan_explain.main,
        "scaling": plan_scaling.main,
    }
    if not args or args[0] in arguments.HELP:
        print(USAGE, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    arguments.choose(jobs, "job", "sae plan", args)
    return jobs[args[0]](args[1:])


def _harvest(args: list[str]) -> int:
    command = arguments.parse(PlanHarvest, "sae plan harvest", args, tyro.conf.OmitArgPrefixes)
    check(command.plan)
    if command.engine in ("tensor-parallel", "fsdp"):
        raise ConfigError(
            f"a plan runs the model in this process and the engine {command.engine} shares it among several: plan one "
            f"device with --engine transformers, or many with sae plan train --ring and --forward-parameters"
        )
    make_ready(command.config.text)

    def load() -> tuple[LanguageModel, HarvestConfig]:
        model = engines.load(command.engine, command.model, command.revision, command.model_dtype)
        return model, with_hooks(model, command.config)

    source = (command.engine, command.model, command.revision, command.model_dtype)
    key = harvest.key(machine_name(), *source, command.config)
    pace = harvest.pace(key, load, command.plan.measure)
    machine = here(command.plan.measure)
    labeller = None
    if (source := command.config.labels or "").startswith(NEEDED):
        labeller = Run(source.removeprefix(NEEDED))
        refuse_other_hook(labeller, dict(pace.widths), "the planned store")
    forecast = harvest.forecast(command.config, pace, machine, command.out, command.plan.ranks, labeller)
    return show(forecast, machine, command.plan)


def _train(args: list[str]) -> int:
    example = "Example: sae plan train {} --store stores/demo --arch.d-sae 16384 --train.steps 5000"
    arguments.choose(ARCHITECTURES, "architecture", "sae plan train", args)
    presets = {
        name: (
            f"{(sae.config.__doc__ or '').strip().splitlines()[0]}\n\n{example.format(name)}",
            PlanTrain(arch=sae.config()),
        )
        for name, sae in ARCHITECTURES.items()
    }
    command = arguments.parse_preset(presets, "sae plan train", args)
    check(command.plan)
    if not 0 <= command.dead < 1:
        raise ConfigError(f"dead = {command.dead} must be a share of the latents, from 0 to below 1")
    if command.l0 is not None and not 0 < command.l0 <= command.arch.d_sae:
        raise ConfigError(f"l0 = {command.l0} must lie between 0 and d_sae = {command.arch.d_sae}")
    data, streamed = _data(command), _streamed(command)
    machine = here(command.plan.measure) if command.device == "cpu" else GPUS[command.device]
    job = Job(
        command.arch, command.train, data, command.l0, command.dead, command.plan.ranks, command.parallel
    )
    if streamed is None:
        cost = training.forecast(job, machine, command.out)
    else:
        kept = StreamConfig().kept_tokens
        cost = stream.forecast(job, machine, command.out, *streamed, SHUFFLE_TOKENS, kept)
    return show(cost, machine, command.plan)


def _streamed(command: PlanTrain) -> tuple[int, stream.Producers] | None:
    """Return the bytes of the ring and who runs the model; None for a run on a store."""
    if command.ring is None:
        if command.forward_parameters is not None or command.producers is not None:
            raise ConfigError(
                "--forward-parameters and --producers describe a run on a stream: give --ring too, such as --ring 20GB"
            )
        return None
    if command.store is not None:
        raise ConfigError("--store and --ring: a run reads the one or the other")
    if not command.forward_parameters or command.forward_parameters <= 0:
        raise ConfigError(
            "--ring needs the model's size: give --forward-parameters, such as 35e9 for the lower half of a 70B model"
        )
    producers = 1 if command.producers is None else command.producers
    if producers < 1:
        raise ConfigError(f"producers = {producers} must be at least 1")
    return bytes_of(command.ring), stream.Producers(command.forward_parameters, producers)


def _sweep(args: list[str]) -> int:
    command = arguments.parse(PlanSweep, "sae plan sweep", args)
    check(command.plan)
    planned = load(command.file)
    streamed, file = planned.stream, planned.file
    if streamed and command.width is None:
        raise ConfigError(
            "the width of the model's activations is missing: give --width, such as --width 768"
        )
    store = None if streamed else Store(file.store)
    machine = here(command.plan.measure) if command.device == "cpu" else GPUS[command.device]
    jobs, orders, groups, kept = {}, set(), 0, 0
    for name, cfg in planned.runs.items():
        if store:
            data = Data.of(store, cfg.hook or store.only_hook())
        else:
            assert streamed
            assert command.width
            row = row_bytes(streamed.dtype, command.width)
            data = Data.planned(command.width, streamed.tokens, row)
            groups = (cfg.shuffle_tokens or SHUFFLE_TOKENS) * row
            kept = min(streamed.tokens, streamed.kept_tokens) * row
        jobs[name] = Job(cfg.arch, cfg.train, data, ranks=command.plan.ranks)
        orders.add((cfg.hook, cfg.train.seed, cfg.train.batch, cfg.arch.reads_labels))
    ring = file.ring_settings.size if streamed and not file.ring_folder else 0
    together = command.together or streamed is not None
    hooks = len({hook for hook, *_ in orders})
    # A shard has the rows of all hook points; a ring on another disk cannot be linked to, so that every run has a copy of what is kept
    kept *= hooks * (len(jobs) if file.ring_folder else 1)
    cost = sweep.forecast(jobs, machine, Path(file.out), together, len(orders), hooks, groups, ring, kept)
    return show(cost, machine, command.plan)


def _finetune(args: list[str]) -> int:
    command = arguments.parse(PlanFinetune, "sae plan finetune", args, tyro.conf.OmitArgPrefixes)
    check(command.plan)
    if command.plan.ranks > 1:
        raise ConfigError(f"ranks = {command.plan.ranks}: sae finetune runs in one process")
    run = Run(command.run)
    settings = settings_of(run, command.config)
    key = f"{machine_name()}: {_model_of(run)} twice and back from {run.hook}, {settings.train.batch} tokens of {run.store.context}"
    measured = finetune.passes(key, run, settings, run.language_model, command.plan.measure)
    machine = here(command.plan.measure)
    return show(finetune.forecast(run, settings, measured, machine, command.out), machine, command.plan)


def _features(args: list[str]) -> int:
    command = arguments.parse(PlanFeatures, "sae plan features", args, tyro.conf.OmitArgPrefixes)
    check(command.plan)
    run = Run(command.run)
    key = f"{machine_name()}: {_model_of(run)} to describe latents"
    reader = None if run.reads_files else features.reader(key, run.language_model, command.plan.measure)
    machine = here(command.plan.measure)
    forecast = features.forecast(run, command.config, reader, machine, command.plan.ranks)
    return show(forecast, machine, command.plan)


def _model_of(run: Run) -> str:
    """Return what the speed of a run's language model depends on, as the keys of measurements name it."""
    record = run.record
    by = "" if record.source == "bridge" else f" by {record.source}"
    return f"{record.model} {record.model_revision or ''} {record.model_dtype}{by}"


def _data(command: PlanTrain) -> Data:
    """Return the rows to train on: those of the store, or as many as the flags say."""
    if command.store is not None:
        if (command.width, command.tokens, command.dtype) != (None, None, None):
            raise ConfigError(
                "--store says what --width, --tokens and --dtype would: give the one or the others"
            )
        store = Store(command.store)
        return Data.of(store, command.hook or store.only_hook())
    if command.width is None or command.tokens is None:
        raise ConfigError(
            "what to train on is missing: give --store FOLDER, or --width 768 --tokens 10_000_000 for a store that is "
            "not there yet"
        )
    if command.width < 1 or command.tokens < command.train.batch:
        raise ConfigError(
            f"width = {command.width} must be at least 1, and tokens = {command.tokens} at least a batch "
            f"({command.train.batch})"
        )
    return Data.planned(command.width, command.tokens, row_bytes(command.dtype or "float16", command.width))
