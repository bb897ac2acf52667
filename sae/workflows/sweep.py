"""Read a sweep's file, a TOML grid over methods and settings, and train and evaluate its runs."""

import dataclasses
import itertools
import math
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from activations.disk import files
from activations.disk.schema import fits, named
from activations.errors import ConfigError, DivergedError, RunError
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress, part_of
from activations.store import Store
from activations.streaming.folder import StreamConfig
from activations.text import TextConfig
from activations.tokens import PackingConfig
from sae.architectures import ARCHITECTURES
from sae.config import RunConfig, Settings, TrainConfig
from sae.runs.run import Run, device
from sae.workflows.compare import Result, no_result, result
from sae.workflows.evaluate import evaluate
from sae.workflows.rings import RingSettings, bytes_of
from sae.workflows.together import train_together
from sae.workflows.train import existing_on_stream, train
from sae.workflows.training import refuse_other, resolve

MOST_RUNS = 10_000  # of a grid
MOST_BYTES = 2**20  # of a file: what a parser makes of a byte can take long


@dataclass(frozen=True)
class SweepFile:
    """The keys of a sweep's file, beside the tables [train], [[grid]] and [stream]."""

    out: str
    """Folder of the sweep; each run gets a folder in it."""
    store: str = ""
    """Activation store to train every run on; left out where the file has a [stream]."""
    ring: str = "20GB"
    """The most that a stream's activations may take on the disk."""
    ring_folder: str | None = None
    """Folder for the ring, such as one on a fast local disk; when left out, `out`."""
    producers: int = 1
    """Processes that run the model for the ring."""
    shuffle_tokens: int | None = None
    """Read the text in its order and shuffle this many tokens together at a time, as `sae train --shuffle-tokens`."""
    hook: str | None = None
    """Hook point to read; may be left out when the store has only one."""
    windows: int = 64
    """Held-out windows the language model reads to evaluate each run; 0 leaves the model out. A run that has
    been evaluated with the model is not evaluated again."""

    def __post_init__(self) -> None:
        if self.windows < 0:
            raise ConfigError(f"windows = {self.windows} must be at least 0, which leaves the model out")
        if self.producers < 1:
            raise ConfigError(f"producers = {self.producers} must be at least 1")

    @property
    def ring_settings(self) -> RingSettings:
        """Where a stream's activations lie. Raises ConfigError for a `ring` that is not a size."""
        folder = None if self.ring_folder is None else Path(self.ring_folder)
        return RingSettings(bytes_of(self.ring), folder, self.producers)


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, by names that say their place in the grid."""

    file: SweepFile
    runs: dict[str, RunConfig]

    @property
    def stream(self) -> StreamConfig | None:
        """What makes the activations, where the sweep reads no store; every run has the same."""
        return next(iter(self.runs.values())).stream


def load(path: Path) -> Sweep:
    """Read and expand a sweep's file, e.g.

        store = "stores/demo"
        out = "runs/sweep"
        [train]
        steps = 500
        [[grid]]
        arch = "topk"
        k = [16, 32, 64]
        d_sae = [4096]
        train.lr = [1e-3, 3e-4]

    [train] holds settings of TrainConfig for all runs. A [[grid]] names an architecture and settings of it,
    and with `train.` of its training; each list is swept over, so the above makes six runs, the first named
    topk-k16-d_sae4096-lr0.001. A setting that is a list itself is written as a list in a list. In place of store, a table
    [stream] has the settings of the options of `sae train --ring`, such as model, dataset and tokens, and `hook` may be swept
    over.

    Raises ConfigError, naming the place, for whatever cannot become a run."""
    content = _read(path)
    train, grids, stream = content.pop("train", {}), content.pop("grid", []), content.pop("stream", None)
    tables = all(isinstance(table, dict) for table in (train, stream or {}))
    if not tables or not isinstance(grids, list) or not all(map(_is_table, grids)):
        raise ConfigError(
            f"{path}: train and stream must be tables, [train] and [stream], and grid a list of tables, [[grid]]"
        )
    if not grids:
        raise ConfigError(f"{path} has no [[grid]]: expected one with at least an arch")
    file = SweepFile(**_checked(SweepFile, content, str(path)))
    if bool(file.store) == (stream is not None):
        raise ConfigError(f"{path} needs either a store, made by sae harvest, or a table [stream]")
    if stream is None and (
        unread := [name for name in ("ring", "ring_folder", "producers") if name in content]
    ):
        raise ConfigError(
            f"{path}: {', '.join(unread)} say where a [stream] lies and what makes it; it has a store"
        )
    source = None if stream is None else _stream(stream, f"{path}, stream")
    train = _checked(TrainConfig, train, f"{path}, train")
    runs: dict[str, RunConfig] = {}
    for number, grid in enumerate(grids, 1):
        for name, config in _expanded(grid, file, train, f"{path}, grid {number}"):
            if name in runs:
                raise ConfigError(f"{path}, grid {number}: {name} is there twice")
            runs[name] = dataclasses.replace(config, stream=source)
    return Sweep(file, runs)


def _stream(settings: Settings, where: str) -> StreamConfig:
    """Return a stream's settings, which a file names as the command line does: without the names of their groups."""
    groups = {"text": TextConfig, "packing": PackingConfig}
    parts: dict[str, Settings] = {name: {} for name in ("", *groups)}
    for name, value in settings.items():
        parts[next((group for group, kind in groups.items() if name in kind.__dataclass_fields__), "")][
            name
        ] = value
    if unknown := [
        name for name in parts[""] if name not in StreamConfig.__dataclass_fields__ or name in groups
    ]:
        kinds = (StreamConfig, *groups.values())
        names = [
            field.name for kind in kinds for field in dataclasses.fields(kind) if field.name not in groups
        ]
        raise ConfigError(f"{where}: unknown setting {unknown[0]!r}: choose from {', '.join(names)}")
    made = {group: kind(**_checked(kind, parts[group], where)) for group, kind in groups.items()}
    return StreamConfig(**_checked(StreamConfig, parts[""], where), **made)


def _is_table(grid: Any) -> bool:
    return isinstance(grid, dict) and isinstance(grid.get("train", {}), dict)


def _read(path: Path) -> Settings:
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1).decode("utf-8")
        if len(text) > MOST_BYTES:
            raise ConfigError(f"{path} is not a sweep: it is larger than {MOST_BYTES:,} bytes")
        return tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(f"no sweep at {path}: expected a TOML file with store, out and [[grid]]") from error
    except (ValueError, RecursionError) as error:  # TOML's and Unicode's errors are ones
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _expanded(
    grid: Settings, file: SweepFile, train: Settings, where: str
) -> Iterator[tuple[str, RunConfig]]:
    """Yield every combination of a grid's lists, named in the order in which the lists are written."""
    arch = grid.get("arch")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise ConfigError(f"{where}: arch = {arch!r} is unknown: choose from {', '.join(ARCHITECTURES)}")
    lists = {name: _choices(value, f"{where}, {name}") for name, value in _flat(grid).items()}
    if (count := math.prod(map(len, lists.values()))) > MOST_RUNS:
        raise ConfigError(f"{where} makes {count:,} runs: {MOST_RUNS:,} at most are taken")
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        name = "-".join([arch, *(_part(*setting) for setting in chosen.items())])
        yield name, _config(arch, chosen, file, train, f"{where} ({name})")


def _flat(grid: Settings) -> Settings:
    """Return the grid's settings except arch, with `train.` before the names of training settings."""
    own = {name: value for name, value in grid.items() if name not in ("arch", "train")}
    return own | {f"train.{name}": value for name, value in grid.get("train", {}).items()}


def _choices(value: Any, where: str) -> list[Any]:
    choices = value if isinstance(value, list) else [value]
    if not choices:
        raise ConfigError(f"{where} is an empty list: there is nothing to sweep over")
    return choices


def _part(name: str, value: Any) -> str:
    """Return a setting's part of a run's name, in characters that suit a folder."""
    text = f"{value:g}" if isinstance(value, float) else re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")
    return name.removeprefix("train.") + text


def _config(arch: str, chosen: Settings, file: SweepFile, train: Settings, where: str) -> RunConfig:
    own = {name: value for name, value in chosen.items() if not name.startswith("train.")}
    hook = own.pop("hook", file.hook)
    if not fits(hook, str | None):
        raise ConfigError(f"{where}: hook = {hook!r} is of type {type(hook).__name__}, expected str")
    training = {name[6:]: value for name, value in chosen.items() if name.startswith("train.")}
    config = ARCHITECTURES[arch].config
    own, training = _checked(config, own, where), _checked(TrainConfig, training, f"{where}, train")
    try:
        trained = TrainConfig(**{**train, **training})
        return RunConfig(file.store, hook, config(**own), trained, shuffle_tokens=file.shuffle_tokens)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _checked(config: type, settings: Settings, where: str) -> Settings:
    """Return the settings as `config` takes them.

    Raises ConfigError for a name it has not, a value of a wrong type, a required one that is missing."""
    kinds = {
        name: kind for name, kind in get_type_hints(config).items() if name in config.__dataclass_fields__
    }
    for name, value in settings.items():
        if name not in kinds:
            raise ConfigError(f"{where}: unknown setting {name!r}: choose from {', '.join(kinds)}")
        if not fits(value, kinds[name]):
            raise ConfigError(
                f"{where}: {name} = {value!r} is of type {type(value).__name__}, expected {named(kinds[name])}"
            )
    for field in dataclasses.fields(config):
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in settings:
            raise ConfigError(f"{where}: {field.name} is missing")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def plan_sweep(sweep: Sweep) -> dict[str, RunConfig]:
    """Return the settings of every run, resolved where there is a store to resolve them by.

    Raises before anything is trained what training would raise: for a store that cannot be used, batches larger than the
    store, or a folder in which something else lies."""
    store, plan = None if sweep.stream else Store(sweep.file.store), {}
    for name, cfg in sweep.runs.items():
        path = Path(sweep.file.out) / name
        plan[name] = cfg if store is None else resolve(cfg, store)[0]
        if store is None:
            existing_on_stream(cfg, path, resume=True)
        elif is_begun(path):
            refuse_other(Run(path), plan[name])
        elif files.is_taken(path):
            raise RunError(f"{path} is not empty and does not hold a run: move it, or choose another out")
    return plan


def run_sweep(
    sweep: Sweep, plan: dict[str, RunConfig], progress: Progress = no_progress, together: bool = False
) -> tuple[list[Result], list[str]]:
    """Train and evaluate every run of the plan; return their results, and what was said of runs that diverged.

    With `together`, and always on a stream, all runs are trained at once (`train_together`), otherwise one after the other.
    Interrupted and called again, it does nothing twice."""
    out, windows = Path(sweep.file.out), sweep.file.windows
    models: list[LanguageModel] = []  # loaded when the first run needs it

    def measure(path: Path) -> None:
        if is_begun(path) and _needs_evaluation(run := Run(path), windows):
            if windows and not models and not run.reads_files:
                models.append(run.language_model())
            evaluate(run, run.sae().to(device()), models[0] if models else None, windows)

    if together or sweep.stream:
        runs = {out / name: cfg for name, cfg in plan.items()}
        ring = sweep.file.ring_settings if sweep.stream else None
        failed = train_together(runs, out, progress, ring)
        diverged = [f"{path.name}: {message}" for path, message in failed.items()]
        with progress("evaluate", len(plan), "runs") as advance:
            for path in runs:
                measure(path)
                advance(1, note=path.name)
    else:
        diverged = _one_by_one(plan, out, measure, progress)
    return [
        result(Run(out / name)) if is_begun(out / name) else no_result(name, cfg.arch)
        for name, cfg in plan.items()
    ], diverged


def is_begun(path: Path) -> bool:
    """Return whether a run of a sweep is there; one for which no learning rate was found is not."""
    return (path / "run.json").exists()


def _one_by_one(
    plan: dict[str, RunConfig], out: Path, measure: Callable[[Path], None], progress: Progress
) -> list[str]:
    """Train and measure the runs one after the other; return what was said of those that diverged."""
    diverged: list[str] = []
    done = [name for name in plan if is_begun(out / name) and Run(out / name).finished]
    steps = {name: cfg.train.steps or 0 for name, cfg in plan.items()}
    with progress("sweep", sum(steps.values()), "steps", done=sum(steps[name] for name in done)) as advance:
        for number, (name, cfg) in enumerate(plan.items(), 1):
            note = f"run {number} of {len(plan)}: {name}"
            try:
                train(cfg, out / name, resume=True, progress=part_of(advance, "train", note))
            except DivergedError as error:
                diverged.append(f"{name}: {error}")
            measure(out / name)
    return diverged


def _needs_evaluation(run: Run, windows: int) -> bool:
    """Return whether a finished run lacks the evaluation that is asked for, with the language model or without it."""
    evaluation = run.evaluation
    spliced = windows > 0 and not run.reads_files
    return run.finished and (evaluation is None or (evaluation.splice is None and spliced))
