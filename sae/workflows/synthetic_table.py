"""Train every method on one planted world and measure them alike: what each recovers, and what it does to a hierarchy."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from activations.disk import files
from activations.errors import ConfigError, quoted
from activations.progress import Advance, Progress, no_progress, part_of
from sae import chance
from sae.architectures import ARCHITECTURES, SAE, ArchConfig, TopKConfig
from sae.chance import Purpose
from sae.config import Settings, TrainConfig
from sae.evaluation.measures import Estimate
from sae.evaluation.recovery import recovery
from sae.evaluation.synthetic import World
from sae.runs.saved_sae import read_results
from sae.trust.planted import HierarchyVerdict, Verdict, judge
from sae.workflows.synthetic import random_control, train, train_controls

FORMAT = 2
"""Of synthetic.json; 1 planted features from the numbers that an SAE of the same seed starts from."""
INDEX = "synthetic.json"
FROZEN_TOPK = "topk, frozen decoder"
ROWS = 4000  # drawn to count the features that are active on a row, and the latents that fire
POWERS = (-3.0, -0.2)
"""The powers of the price that L0 is taken to follow, where trials say otherwise: a flatter one would leap too far."""
TRIALS, CLOSE = 5, 0.05
"""Trainings at most of a method whose L0 follows from a price, and the distance from the L0 asked for, as a share of it, that ends
the search."""


@dataclass(frozen=True)
class TableConfig:
    """What a table over methods compares."""

    methods: tuple[str, ...] = ()
    """Methods to train; all when left out."""
    d_sae: int | None = None
    """Latents of each SAE; as many as there are planted features when left out."""
    l0: float | None = None
    """Latents that are to fire on a row, rounded for methods that need a whole number; when left out, the mean number of features
    active on a row. Where a price decides (relu, gated, jumprelu), up to five trainings seek the price."""
    controls: bool = False
    """Also train each method's own controls, with a frozen decoder or encoder, which it must beat: about four times the work. Random
    directions are always a control."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.methods if name not in ARCHITECTURES]:
            raise ConfigError(f"unknown method {unknown[0]!r}: choose from {', '.join(ARCHITECTURES)}")
        if self.d_sae is not None and self.d_sae < 2:
            raise ConfigError(f"d_sae = {self.d_sae} must be at least 2")
        if self.l0 is not None and not 0 < self.l0 < math.inf:
            raise ConfigError(f"l0 = {self.l0} must be a number above 0")


@dataclass(frozen=True)
class Line:
    """What one SAE recovered."""

    settings: Settings
    """The settings of its architecture."""
    seconds: float
    """Time that its training took, trials and controls included."""
    measures: dict[str, float | None]
    """The fields of `sae.evaluation.recovery.Recovery`; null where one is not defined."""
    verdict: Verdict
    found: Estimate
    better_by: dict[str, Estimate]
    """How much more of the features it found than each control."""
    hierarchy: HierarchyVerdict | None
    """None in a world without a hierarchy, as is the next."""
    kept: Estimate | None
    """Share of parents that are found and whose latent fires beside their children's."""


@dataclass(frozen=True)
class SyntheticRecord:
    """The content of synthetic.json: a table over methods."""

    config: dict[str, Any]
    """The world, the training, and the TableConfig but its methods: what all lines have in common."""
    d_sae: int
    l0: float
    """Latents that were to fire on a row."""
    features_active: float
    """Mean number of planted features that are active on a row."""
    lines: dict[str, Line] = field(default_factory=dict)
    """Methods by name, in the order of the table of architectures."""
    controls: dict[str, Line] = field(default_factory=dict)
    """A TopK with a frozen decoder and a dictionary of random directions, which stand for all methods."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Methods that cannot be had at these sizes, with the reason."""


def synthetic_table(
    world: World,
    settings: TrainConfig,
    cfg: TableConfig | None = None,
    out: Path | None = None,
    progress: Progress = no_progress,
) -> SyntheticRecord:
    """Train methods on a planted world and measure what each recovers.

    With a folder `out` each finished method is kept there, in synthetic.json, and the same call goes on after an interruption; a
    later call may ask for other methods. Raises ConfigError where `out` holds a table of another world or other settings, and
    BusyError where another process works in it."""
    cfg = cfg or TableConfig()
    record = _begin(world, settings, cfg)
    with files.alone_in(out) if out else nullcontext():
        record = _continued(record, out) if out else record
        table = _Table(world, settings, cfg, record, out)
        jobs, left_out = table.jobs()
        table.record = replace(record, left_out=left_out)
        done = sum(job.steps for job in jobs if table.has(job.name))
        total = sum(job.steps for job in jobs)
        with progress("synthetic", total, "steps", done=done) as advance:
            for job in jobs:
                if not table.has(job.name):
                    table.add(job, advance)
        table.save()
    return table.record


def _begin(world: World, settings: TrainConfig, cfg: TableConfig) -> SyntheticRecord:
    _, codes = world.draw(ROWS, torch.Generator().manual_seed(settings.seed))
    active = (codes != 0).sum(1).double().mean().item()
    common = {
        "world": {"kind": type(world).__name__.lower(), **asdict(world)},
        "train": asdict(settings),
        "d_sae": cfg.d_sae,
        "l0": cfg.l0,
        "controls": cfg.controls,
    }
    return SyntheticRecord(common, cfg.d_sae or len(world.features), cfg.l0 or active, active)


def _continued(record: SyntheticRecord, out: Path) -> SyntheticRecord:
    """Return the record that lies in a folder, or this one if none does. Raises ConfigError for one of other settings."""
    path = out / INDEX
    earlier = read_results(
        path, "synthetic", FORMAT, SyntheticRecord, f"sae synthetic all --out {quoted(out)}"
    )
    if earlier is None:
        return record
    if earlier.config != record.config:
        names = [name for name, value in record.config.items() if earlier.config.get(name) != value]
        raise ConfigError(
            f"{path} is a table with other settings ({', '.join(names)}): choose another folder with --out"
        )
    return earlier


@dataclass(frozen=True)
class _Job:
    """A line of the table that is to be made."""

    name: str
    make: Callable[[Progress], tuple[Settings, SAE, dict[str, SAE]]]
    """Trains it; returns its settings, the SAE, and the controls that it is judged beside."""
    steps: int
    """Optimizer steps that this takes at most."""
    control: bool = False


class _Table:
    """The table while it is made."""

    def __init__(
        self, world: World, settings: TrainConfig, cfg: TableConfig, record: SyntheticRecord, out: Path | None
    ):
        self.world, self.cfg, self.record, self.out = world, cfg, record, out
        self.settings = settings
        self.random = random_control(world, record.d_sae, settings)

    def has(self, name: str) -> bool:
        return name in self.record.lines or name in self.record.controls

    def jobs(self) -> tuple[list[_Job], dict[str, str]]:
        """Return what to make, controls first, and the methods that these sizes rule out."""
        steps = self.settings.resolved(0, TopKConfig(d_sae=self.record.d_sae, k=1)).steps
        assert steps is not None
        jobs = [
            _Job("random dictionary", lambda _: ({}, self.random, {}), 0, control=True),
            _Job(FROZEN_TOPK, self._frozen_topk, steps, control=True),
        ]
        left_out: dict[str, str] = {}
        for name in self.cfg.methods or ARCHITECTURES:
            try:
                arch = method(name, self.record.d_sae, self.record.l0)
            except ConfigError as error:
                left_out[name] = error.message
                continue
            times = (TRIALS if arch.price else 1) + 3 * self.cfg.controls
            jobs.append(_Job(name, lambda progress, arch=arch: self._method(arch, progress), times * steps))
        return jobs, left_out

    def add(self, job: _Job, advance: Advance) -> None:
        """Make a line, measure it and keep it."""
        counted, counting = _counting(part_of(advance, "train", job.name))
        began = time.perf_counter()
        arch, sae, controls = job.make(counting)
        seconds = time.perf_counter() - began
        judged = judge(sae, controls, self.world)
        measures = recovery(sae, self.world)._asdict()
        line = Line(
            settings=arch,
            seconds=round(seconds, 1),
            measures={name: None if math.isnan(value) else value for name, value in measures.items()},
            verdict=judged.verdict,
            found=Estimate(*judged.found),
            better_by={name: Estimate(*value) for name, value in judged.better_by.items()},
            hierarchy=judged.hierarchy,
            kept=Estimate(*judged.kept) if judged.kept else None,
        )
        kind = "controls" if job.control else "lines"
        self.record = replace(self.record, **{kind: {**getattr(self.record, kind), job.name: line}})
        self.save()
        advance(job.steps - counted(), note=job.name)  # trials that were not needed

    def save(self) -> None:
        """Write the record, methods in the order of the table of architectures."""
        order = {name: place for place, name in enumerate(ARCHITECTURES)}
        lines = dict(sorted(self.record.lines.items(), key=lambda item: order.get(item[0], len(order))))
        self.record = replace(self.record, lines=lines)
        if self.out:
            files.write_sealed(self.out / INDEX, {"format": FORMAT, **asdict(self.record)})

    def _frozen_topk(self, progress: Progress) -> tuple[Settings, SAE, dict[str, SAE]]:
        arch = method("topk", self.record.d_sae, self.record.l0)
        sae = train(self.world, arch, replace(self.settings, frozen="decoder"), progress)
        return asdict(arch), sae, {"random-dictionary": self.random}

    def _method(self, arch: ArchConfig, progress: Progress) -> tuple[Settings, SAE, dict[str, SAE]]:
        if arch.price:
            arch, sae = at_l0(self.world, arch, self.settings, self.record.l0, progress)
        else:
            sae = train(self.world, arch, self.settings, progress)
        controls = {"random-dictionary": self.random}
        if self.cfg.controls:
            controls = train_controls(self.world, arch, self.settings, progress)
        return asdict(arch), sae, controls


def method(name: str, d_sae: int, l0: float) -> ArchConfig:
    """Return a method's settings at which about l0 of d_sae latents fire, as far as a setting decides that.

    Raises ConfigError for sizes that the method cannot have."""
    config = ARCHITECTURES[name].config
    settings: dict[str, Any] = config.small(d_sae, max(1, round(l0)))
    for field_name, one in config.__dataclass_fields__.items():
        if field_name in ("k", "l0") and one.type in (
            float,
            float | None,
        ):  # a mean over rows may be a fraction
            settings[field_name] = l0
    return config(**settings)


def at_l0(
    world: World, arch: ArchConfig, settings: TrainConfig, l0: float, progress: Progress = no_progress
) -> tuple[ArchConfig, SAE]:
    """Train a method whose L0 follows from its price until about l0 latents fire; return the nearest of at most TRIALS SAEs, with
    its settings."""
    assert arch.price
    x, _ = world.draw(ROWS, chance.generator(settings.seed, Purpose.MEASURED_ROWS))
    tried: list[tuple[float, float]] = []
    made: list[tuple[ArchConfig, SAE]] = []
    price = 1.0
    for _ in range(TRIALS):
        priced = replace(arch, **{arch.price: price})
        sae = train(world, priced, settings, progress)
        fire = sae.encode(x.to(sae.device)).l0().double().mean().item()
        made.append((priced, sae))
        tried.append((price, max(fire, 0.01 * l0)))
        if abs(fire / l0 - 1) <= CLOSE:
            break
        price = next_price(tried, l0)
    nearest = min(range(len(tried)), key=lambda trial: abs(math.log(tried[trial][1] / l0)))
    return made[nearest]


def next_price(tried: Sequence[tuple[float, float]], l0: float) -> float:
    """Return the price to try next, from (price, L0) of those tried, all above 0: L0 is taken for a power of the price.

    Between two trials on either side of l0 the power that leads through them is used. Where all are on one side it is the power
    through the two nearest to l0, within POWERS, or -1 after a single trial, and the price changes by a factor of 8 at most."""
    above = min((trial for trial in tried if trial[1] > l0), key=lambda trial: trial[1], default=None)
    below = max((trial for trial in tried if trial[1] <= l0), key=lambda trial: trial[1], default=None)
    if above and below and above[1] > below[1]:
        share = math.log(above[1] / l0) / math.log(above[1] / below[1])
        return above[0] * (below[0] / above[0]) ** share
    near = sorted(tried, key=lambda trial: abs(math.log(trial[1] / l0)))
    power = -1.0
    if len(near) > 1 and near[0][0] != near[1][0]:
        power = math.log(near[0][1] / near[1][1]) / math.log(near[0][0] / near[1][0])
    price, fire = near[0]
    change = (l0 / fire) ** (1 / min(max(power, POWERS[0]), POWERS[1]))
    return price * min(max(change, 1 / 8), 8.0)


def _counting(progress: Progress) -> tuple[Callable[[], int], Progress]:
    """Return a function that says how many units were reported, and a Progress that reports them on."""
    reported = 0

    @contextmanager
    def counting(stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        with progress(stage, total, unit, done) as advance:

            def counted(n: int, note: str = "") -> None:
                nonlocal reported
                reported += n
                advance(n, note=note)

            yield counted

    return lambda: reported, counting
