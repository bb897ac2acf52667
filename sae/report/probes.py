"""What `sae probe` measured, over all tasks: each method's mean AUC with its interval, and how often it is good enough."""

from typing import NamedTuple

import numpy as np

from sae.evaluation.held_out import ratio
from sae.probing.records import METHODS, Method, ProbesRecord, Score
from sae.runs.records import Estimate


class Row(NamedTuple):
    """One method with one k in one setting, over all tasks that have it."""

    method: Method
    k: int | None
    setting: str
    level: float
    tasks: int
    auc: Estimate
    """Mean over tasks; with two tasks or more, with a 95 % bootstrap interval over tasks."""
    wins: int | None
    """Tasks on which its AUC is at least that of logistic regression on the activation; None for that one itself."""


def summary(record: ProbesRecord) -> list[Row]:
    """Return a row for each setting, method and k, in the order of METHODS."""
    scores: dict[tuple[str, float, Method, int | None], dict[str, Score]] = {}
    for task in record.tasks:
        for score in task.scores:
            scores.setdefault((score.setting, score.level, score.method, score.k), {})[task.name] = score
    order = [*METHODS]
    rows = []
    for (setting, level, method, k), by_task in scores.items():
        base = scores.get((setting, level, "logistic", None), {})
        values = {name: score.auc.value or 0.0 for name, score in by_task.items()}
        wins = sum(value >= (base[name].auc.value or 0.0) for name, value in values.items() if name in base)
        estimate = _mean([*values.values()])
        rows.append(
            Row(method, k, setting, level, len(values), estimate, None if method == "logistic" else wins)
        )
    place = {setting: n for n, setting in enumerate(dict.fromkeys((row.setting, row.level) for row in rows))}
    return sorted(rows, key=lambda row: (place[row.setting, row.level], order.index(row.method), row.k or 0))


def _mean(values: list[float]) -> Estimate:
    if len(values) < 2:
        return Estimate(values[0], None, None)
    return Estimate(**ratio(np.array(values), np.ones(len(values)))._asdict())
