"""Fit scaling laws to the runs of a sweep, and write them beside its other results."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from activations.disk import files
from activations.errors import ConfigError
from sae.architectures import name_of
from sae.config import RunConfig
from sae.evaluation import scaling
from sae.evaluation.scaling import FEWEST_LEVELS, FEWEST_RUNS, Fit
from sae.report import scaling as scaling_report
from sae.runs.records import Estimate
from sae.runs.run import Run
from sae.runs.scaling import (
    FORMAT,
    INDEX,
    PLOT,
    ComputeLaw,
    FittedRun,
    Law,
    Scaling,
    ScalingRecord,
    l0_levels,
)

OPERATIONS = 6  # for each parameter and token: a multiply-add forward, and two backward
STILL_FALLING = 0.01  # of the held-out FVU, in the last quarter of the steps


def fit_scaling(runs: Iterable[Run], folder: Path) -> ScalingRecord:
    """Fit L(N, K) and L(C) to the evaluated runs in a folder; write scaling.json and scaling.html into it.

    Runs of each architecture and hook point are fitted by themselves. L(N, K) is of the longest runs: of those that differ in
    training alone, except for the seed, the one of the lowest FVU among the longest. L(C) is of the runs on the frontier of each
    level of L0, where there are runs of several lengths. Runs without an evaluation, or of which no latent fires, take no part.

    Raises ConfigError when no law can be fitted, saying what is missing."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run.finished and not run.record.imported and _is_measured(run):
            kind = name_of(run.config.arch), run.hook, run.record.store_fingerprint or ""
            groups.setdefault(kind, []).append(run)
    fits = [_fitted(group, folder) for group in groups.values()]
    if not any(fit.joint or fit.compute for fit in fits):
        reasons = [f"{fit.architecture}, {fit.hook}: {why}" for fit in fits for why in fit.left_out]
        raise ConfigError(
            f"{folder}: no scaling law can be fitted ({'; '.join(reasons) or 'no run is finished and evaluated'})"
        )
    record = ScalingRecord(fits)
    files.write_sealed(folder / INDEX, {"format": FORMAT, **dataclasses.asdict(record)})
    page = scaling_report.page(record)
    files.write_atomically(folder / PLOT, lambda part: part.write_text(page, encoding="utf-8"))
    return record


def refuse_too_small(plan: Mapping[str, RunConfig]) -> None:
    """Raise ConfigError when the planned runs cannot be enough for any law, before anything is trained."""
    widths: dict[str, list[float]] = {}
    for cfg in plan.values():
        widths.setdefault(name_of(cfg.arch), []).append(cfg.arch.d_sae)
    if not any(len(of) >= FEWEST_RUNS and scaling.levels(of) >= FEWEST_LEVELS for of in widths.values()):
        there = ", ".join(
            f"{name} has {len(of)} of {scaling.levels(of)} widths" for name, of in widths.items()
        )
        raise ConfigError(
            f"--fit needs {FEWEST_RUNS} runs of one architecture at least, of {FEWEST_LEVELS} widths and {FEWEST_LEVELS} L0s: "
            f"{there}"
        )


def _fitted(runs: Sequence[Run], folder: Path) -> Scaling:
    """Return the laws of runs of one architecture, hook point and store."""
    longest = {run.path for run in _longest(runs)}
    points = [_point(run, folder, run.path in longest) for run in runs]
    left_out: list[str] = []
    joint = None
    try:
        of = [point for point in points if point.joint]
        fit = scaling.fit_joint([p.width for p in of], [p.l0 for p in of], [p.fvu for p in of])
        joint = _law(fit, scaling.JOINT, len(of))
    except ConfigError as error:
        left_out.append(f"L(N, K): {error.message}")
    compute, efficient = _compute_laws(points, left_out)
    points = [dataclasses.replace(point, frontier=point.run in efficient) for point in points]
    first = runs[0]
    return Scaling(
        name_of(first.config.arch), first.hook, first.record.d_model, points, joint, compute, left_out
    )


def _compute_laws(points: list[FittedRun], left_out: list[str]) -> tuple[list[ComputeLaw], set[str]]:
    """Return L(C) for each level of L0, and the names of the runs on a frontier. Reasons for missing laws go into `left_out`."""
    if len({point.tokens for point in points}) < 2:
        left_out.append("L(C): all runs are of one length; sweep over train.steps too")
        return [], set()
    laws, efficient = [], set()
    for l0, level in l0_levels(points):
        best = [level[i] for i in scaling.frontier([p.flops for p in level], [p.fvu for p in level])]
        try:
            fit = scaling.fit_compute([point.flops for point in best], [point.fvu for point in best])
        except ConfigError as error:
            left_out.append(f"L(C) at L0 {l0:.3g}: {error.message}")
            continue
        laws.append(ComputeLaw(l0, _law(fit, scaling.COMPUTE, len(best))))
        efficient |= {point.run for point in best}
    return laws, efficient


def _law(fit: Fit, names: Sequence[str], runs: int) -> Law:
    low, high = fit.interval(lambda constants: constants)
    columns = zip(names, fit.constants.tolist(), low.tolist(), high.tolist(), strict=True)
    constants = {name: Estimate(*values) for name, *values in columns}
    return Law(constants, np.round(fit.resampled, 6).tolist(), fit.spread, runs)


def _is_measured(run: Run) -> bool:
    """Return whether a run has an evaluation whose FVU and L0 have logarithms."""
    return run.evaluation is not None and min(_value(run, "fvu"), _value(run, "l0")) > 0


def _longest(runs: Sequence[Run]) -> list[Run]:
    """Return the longest run of each architecture's settings and seed; of several as long the one of the lowest FVU."""
    best: dict[tuple[object, int], Run] = {}
    for run in runs:
        key = run.config.arch, run.config.train.seed
        if key not in best or (_tokens(run), -_value(run, "fvu")) > (
            _tokens(best[key]),
            -_value(best[key], "fvu"),
        ):
            best[key] = run
    return list(best.values())


def _point(run: Run, folder: Path, joint: bool) -> FittedRun:
    evaluation, d_sae, d_model = run.evaluation, run.config.arch.d_sae, run.record.d_model
    assert evaluation is not None
    # an eval.json of an older release does not have the encoder's size
    parameters = evaluation.encoder.get("parameters", d_model * d_sae) + d_model * d_sae
    return FittedRun(
        run.path.relative_to(folder).as_posix(),
        run.digest,
        d_sae,
        _value(run, "l0"),
        _value(run, "fvu"),
        _tokens(run),
        float(OPERATIONS * parameters * _tokens(run)),
        _converged(run),
        joint,
        frontier=False,
    )


def _value(run: Run, measure: str) -> float:
    assert run.evaluation is not None
    value = run.evaluation.estimates[measure].value
    assert value is not None, f"{measure} is measured in every evaluation"
    return value


def _tokens(run: Run) -> int:
    steps = run.config.train.steps
    assert steps is not None, "a trained run's steps are resolved"
    return steps * run.config.train.batch


def _converged(run: Run) -> bool | None:
    """Return whether the held-out FVU hardly fell in the last quarter of the steps, None where it was not measured before and in it."""
    steps = run.config.train.steps or 0
    measured = [(row["step"], row["held_out_fvu"]) for row in run.log if "held_out_fvu" in row]
    before = [fvu for step, fvu in measured if step <= 0.75 * steps]
    if not before or measured[-1][0] <= 0.75 * steps:
        return None
    return before[-1] - measured[-1][1] < STILL_FALLING * before[-1]
