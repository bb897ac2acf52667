"""The file scaling.json of a folder of runs (FORMAT.md, Scaling): the scaling laws that were fitted to them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from activations.errors import RunError, quoted
from sae.evaluation.scaling import COMPUTE, JOINT, Fit, by_level
from sae.runs.records import Estimate
from sae.runs.run import Run
from sae.runs.saved_sae import read_record

FORMAT = 1
INDEX = "scaling.json"
PLOT = "scaling.html"


@dataclass(frozen=True)
class FittedRun:
    """A run that took part in a fit."""

    run: str
    """Path of the run within the folder."""
    sae_sha256: str
    width: int
    """Latents in the dictionary, n."""
    l0: float
    """Latents that fire on a held-out token, k."""
    fvu: float
    """Held-out fraction of variance unexplained, the loss."""
    tokens: int
    """Tokens trained on."""
    flops: float
    """Six operations for each parameter and token, as if every product were dense."""
    converged: bool | None
    """Whether its held-out FVU fell by less than one in a hundred in the last quarter of its steps; None if its log lacks that."""
    joint: bool
    """Whether L(N, K) was fitted to it."""
    frontier: bool
    """Whether it is on the compute frontier of its L0."""


@dataclass(frozen=True)
class Law:
    """The constants of a law that was fitted to `runs` runs."""

    constants: dict[str, Estimate]
    resampled: list[list[float]]
    """The constants of each bootstrap resample, in the order of `constants`."""
    spread: float
    """Standard deviation of the runs around the law, as a share of the loss."""
    runs: int

    @cached_property
    def fit(self) -> Fit:
        """The law as arrays, for `joint_loss` and `compute_loss`."""
        values = np.array([estimate.value for estimate in self.constants.values()], np.float64)
        return Fit(values, np.array(self.resampled, np.float64), self.spread)


@dataclass(frozen=True)
class ComputeLaw:
    """L(C) of the runs of one level of L0."""

    l0: float
    """Geometric mean of the runs' L0."""
    law: Law


@dataclass(frozen=True)
class Scaling:
    """The laws of the runs of one architecture at one hook point of one store."""

    architecture: str
    hook: str
    d_model: int
    runs: list[FittedRun]
    joint: Law | None
    compute: list[ComputeLaw]
    left_out: list[str]
    """Reasons why a law is missing, in words."""

    @property
    def levels(self) -> NDArray[np.float64]:
        """The L0s of the runs in L(N, K), one for each level (`l0_levels`)."""
        return np.array([level for level, _ in l0_levels([run for run in self.runs if run.joint])])


@dataclass(frozen=True)
class ScalingRecord:
    """The content of scaling.json."""

    fits: list[Scaling]


def l0_levels(runs: list[FittedRun]) -> list[tuple[float, list[FittedRun]]]:
    """Return the runs by levels of L0 (`by_level`), rising: the geometric mean of each level's, and its runs."""
    levels = by_level(runs, lambda run: run.l0)
    return [(float(np.exp(np.mean([np.log(run.l0) for run in level]))), level) for level in levels]


def scaling_of(folder: Path) -> ScalingRecord | None:
    """Return the laws fitted to the runs in a folder, None where none were. Raises RunError when the file is damaged."""
    path = folder / INDEX
    if not path.exists():
        return None
    fix = f"rm {quoted(path)}"
    record = read_record(path, "scaling", FORMAT, ScalingRecord, fix)
    for scaling in record.fits:
        laws = [(scaling.joint, JOINT), *((one.law, COMPUTE) for one in scaling.compute)]
        if not all(law is None or _is_whole(law, names) for law, names in laws):
            raise RunError(f"{path} is damaged: a law lacks constants or resamples", fix=fix)
    return record


def changed(record: ScalingRecord, folder: Path) -> list[str]:
    """Return the names of the runs whose weights are not those that the laws were fitted to, or that are gone."""
    return [one.run for fit in record.fits for one in fit.runs if _digest(folder / one.run) != one.sae_sha256]


def _digest(path: Path) -> str | None:
    try:
        return Run(path).digest
    except RunError:
        return None


def _is_whole(law: Law, names: tuple[str, ...]) -> bool:
    values = [estimate.value for estimate in law.constants.values()]
    rows = law.resampled
    return (
        tuple(law.constants) == names
        and None not in values
        and bool(rows)
        and all(len(row) == len(names) for row in rows)
    )
