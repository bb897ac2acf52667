"""Say which width and L0 a budget of time buys, by the fitted scaling laws of a sweep and the forecast of a training's time."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from activations.errors import ConfigError
from sae.evaluation.scaling import joint_loss
from sae.plan import training
from sae.plan.forecast import duration, total
from sae.plan.rates import Machine
from sae.plan.training import Job
from sae.runs.records import Estimate
from sae.runs.scaling import Scaling

STEP = 2**0.25  # between the widths that are tried
ROUND = 16  # widths are multiples of this
BEYOND = 16  # times the widest run: no further, because the law is not known to hold there


@dataclass(frozen=True)
class Bought:
    """The widest dictionary of one L0 that a budget of time trains, and what the law predicts of it."""

    l0: float
    width: int
    fvu: Estimate
    seconds: float
    extrapolated: float
    """Width as a multiple of the widest run's; above 1 the law is extrapolated."""


def bought(
    scaling: Scaling, job: Job, machine: Machine, seconds: float, l0s: Iterable[float], out: Path
) -> list[Bought]:
    """Return, for each L0, the widest dictionary that trains within `seconds` and the memory, on `job`'s rows and steps.

    An L0 for which not even the narrowest run's width does is left out. `job.arch` gives all other settings; its k is the L0 where
    it has one. Raises ConfigError when L(N, K) was not fitted, or when nothing fits the budget."""
    if scaling.joint is None:
        raise ConfigError(f"L(N, K) was not fitted to these runs: {'; '.join(scaling.left_out)}")
    widths = [run.width for run in scaling.runs if run.joint]
    found = []
    for l0 in l0s:
        affordable = _widest(job, machine, seconds, l0, min(widths), BEYOND * max(widths), out)
        if affordable is not None:
            found.append(_predicted(scaling, l0, *affordable, max(widths)))
    if not found:
        raise ConfigError(
            f"{duration(seconds)} buy nothing: not even {min(widths):,} latents, the narrowest width of the sweep, train in that "
            f"time and the memory of {machine.name}"
        )
    return found


def sparsest(choices: Iterable[Bought], fvu: float) -> Bought | None:
    """Return the choice of the smallest L0 whose predicted FVU is at most `fvu`; None where none is."""
    good = [choice for choice in choices if (choice.fvu.value or 0.0) <= fvu]
    return min(good, key=lambda choice: choice.l0, default=None)


def _widest(
    job: Job, machine: Machine, seconds: float, l0: float, low: int, high: int, out: Path
) -> tuple[int, float] | None:
    """Return the widest dictionary within the budget, and its time; time and memory rise with the width."""
    found, wanted = None, float(low)
    while wanted <= high:
        width = ROUND * round(wanted / ROUND)
        wanted *= STEP
        try:
            cost = _cost(_at(job, width, l0), machine, out)
        except ConfigError:  # fewer than k latents, or a number that the architecture cannot have
            continue
        if cost is None or cost > seconds:
            return found
        found = width, cost
    return found


def _at(job: Job, width: int, l0: float) -> Job:
    """Return the job with another width and L0."""
    changes: dict[str, int] = {"d_sae": width}
    if "k" in job.arch.__dataclass_fields__:
        changes["k"] = max(1, round(l0))
    return dataclasses.replace(job, arch=dataclasses.replace(job.arch, **changes), l0=l0)


def _cost(job: Job, machine: Machine, out: Path) -> float | None:
    """Return the seconds that a job takes, None where it does not fit the machine."""
    cost = training.forecast(job, machine, out)
    return None if cost.refusals else total(cost.seconds)


def _predicted(scaling: Scaling, l0: float, width: int, seconds: float, widest: int) -> Bought:
    assert scaling.joint is not None
    fit = scaling.joint.fit
    low, high = fit.interval(lambda constants: joint_loss(constants, width, l0))
    fvu = Estimate(float(joint_loss(fit.constants, width, l0)), float(low), float(high))
    return Bought(l0, width, fvu, seconds, width / widest)
