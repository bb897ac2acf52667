"""`sae plan scaling`: which width and L0 a budget of time buys, by the scaling laws that `sae sweep --fit` found."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from activations.errors import ConfigError, RunError, quoted
from sae.cli import arguments
from sae.cli.forecasts import Planned, check, here
from sae.plan import scaling
from sae.plan.forecast import duration
from sae.plan.rates import GPUS
from sae.plan.scaling import Bought
from sae.plan.training import Data, Job
from sae.report import scaling as scaling_report
from sae.runs.run import Run
from sae.runs.scaling import Scaling, changed, scaling_of


@dataclass(frozen=True)
class PlanScaling:
    """Say which width a budget of time buys at each L0, and which FVU to expect of it, with a 95 % interval.

    Training is planned on the rows and with the steps of the sweep's longest runs.

    Example: sae plan scaling runs/sweep --hours 8 --fvu 0.15"""

    sweep: tyro.conf.Positional[Path]
    """Folder of a sweep whose laws have been fitted: sae sweep FILE --fit."""
    hours: float
    """Time that one training may take."""
    fvu: float | None = None
    """Also name the sparsest SAE whose predicted FVU is at most this."""
    l0: tuple[float, ...] = ()
    """L0s to consider; when left out, those of the sweep."""
    arch: str | None = None
    """Architecture, where laws of several were fitted; the first when left out."""
    device: Literal["cpu", "h100", "h200"] = "cpu"
    """cpu: this machine, measured. h100, h200: computed from peak rates, with kernels in bf16."""
    plan: Annotated[Planned, tyro.conf.arg(name="")] = field(default_factory=Planned)

    def __post_init__(self) -> None:
        if not self.hours > 0:
            raise ConfigError(f"hours = {self.hours} must be above 0")
        if self.l0 and min(self.l0) < 1:
            raise ConfigError(f"l0 = {min(self.l0)} must be at least 1")


def main(args: list[str]) -> int:
    """Parse, plan, print."""
    command = arguments.parse(PlanScaling, "sae plan scaling", args)
    check(command.plan)
    fitted = _fitted(command)
    machine = here(command.plan.measure) if command.device == "cpu" else GPUS[command.device]
    job = _job(command, fitted)
    l0s = command.l0 or tuple(fitted.levels.tolist())
    choices = scaling.bought(fitted, job, machine, 3600 * command.hours, l0s, command.sweep)
    best = None if command.fvu is None else scaling.sparsest(choices, command.fvu)
    if command.plan.json:
        print(json.dumps([dataclasses.asdict(choice) for choice in choices], indent=1))
        return 0
    Console().print(
        _table(choices, f"{scaling_report.title(fitted)}: what {duration(3600 * command.hours)} buy")
    )
    for text in _remarks(command, fitted, job, choices, best):
        print(text)
    return 0


def _fitted(command: PlanScaling) -> Scaling:
    """Return the laws to plan by. Raises RunError where none were fitted or the runs have changed, ConfigError for another method."""
    record = scaling_of(command.sweep)
    if record is None:
        raise RunError(
            f"{command.sweep} has no scaling laws: run sae sweep FILE --fit, with the sweep's file"
        )
    if names := changed(record, command.sweep):
        raise RunError(
            f"{command.sweep}: {names[0]} is not the run any more that the laws were fitted to: fit them again"
        )
    by_arch = {fit.architecture: fit for fit in reversed(record.fits)}
    if command.arch is not None and command.arch not in by_arch:
        raise ConfigError(f"arch = {command.arch!r}: laws were fitted to {', '.join(by_arch)}")
    return by_arch[command.arch or record.fits[0].architecture]


def _job(command: PlanScaling, fitted: Scaling) -> Job:
    """Return the training of the longest of the fitted runs, whose width and L0 are still to be set."""
    longest = max((run for run in fitted.runs if run.joint), key=lambda run: run.tokens)
    run = Run(command.sweep / longest.run)
    # Rates follow from the width where the sweep did not set one.
    train = dataclasses.replace(run.config.train, lr=None)
    return Job(run.config.arch, train, Data.of(run.store, run.hook), ranks=command.plan.ranks)


def _table(choices: list[Bought], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("L0", "width", "time", "FVU", "95 % interval"):
        table.add_column(column, justify="right")
    for choice in choices:
        table.add_row(
            f"{choice.l0:.3g}", f"{choice.width:,}", duration(choice.seconds), f"{choice.fvu.value:.4f}",
            f"{choice.fvu.low:.4f} to {choice.fvu.high:.4f}",
        )  # fmt: skip
    return table


def _remarks(
    command: PlanScaling, fitted: Scaling, job: Job, choices: list[Bought], best: Bought | None
) -> list[str]:
    """Return what the table is of, what in it is extrapolated, and the choice for the FVU that was asked for."""
    said = [
        f"{job.train.steps:,} steps of {job.train.batch:,} tokens; laws of {scaling_report.basis(fitted)}"
    ]
    furthest = max(choice.extrapolated for choice in choices)
    if furthest > 1.01:
        said.append(f"widths of up to {furthest:.1f} times the widest run: the laws are extrapolated there")
    if furthest > 0.99 * scaling.BEYOND:
        said.append(f"widths end at {scaling.BEYOND} times the widest run: more time would buy more")
    said += [text for text in scaling_report.remarks(fitted) if "converged" in text]
    if best is not None:
        said.append(
            f"the sparsest SAE with an FVU of at most {command.fvu:g}: L0 {best.l0:.3g}, {best.width:,} latents; next: "
            f"sae plan train {fitted.architecture} --store {quoted(Run(command.sweep / fitted.runs[0].run).config.store)} "
            f"--arch.d-sae {best.width}{_k(job, best)}"
        )
    elif command.fvu is not None:
        said.append(f"no SAE of this budget is predicted to have an FVU of at most {command.fvu:g}")
    return said


def _k(job: Job, best: Bought) -> str:
    return f" --arch.k {round(best.l0)}" if "k" in job.arch.__dataclass_fields__ else ""
