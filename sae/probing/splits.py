"""Which examples train a probe and which test it, in four settings: normal, scarce, imbalanced, and with label noise.

The draws are those of sae-probes 0.4.2 (`utils_data.py`; Kantamneni et al. 2025, "Are Sparse Autoencoders Useful?",
arXiv:2502.16681), number for number, so that results can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from activations.errors import LabelError

Setting = Literal["normal", "scarce", "imbalanced", "noise"]
MOST_TRAIN = 1024
TEST = 100  # examples that are left for testing at least, where there are as many as that
LEAST = 6  # examples of each class
# What is varied in each setting: training examples, the share of the second class, the share of flipped labels
LEVELS: dict[Setting, tuple[float, ...]] = {
    "normal": (0,),
    "scarce": (8, 32, 128),
    "imbalanced": (0.05, 0.2),
    "noise": (0.2, 0.4),
}


@dataclass(frozen=True)
class Point:
    """One setting at one level: how many examples train and test, and how they are drawn."""

    setting: Setting
    level: float
    n_train: int
    n_test: int
    positive: float = 0.5
    """Share of the second class among the training examples, and among the test examples."""
    flipped: float = 0.0
    """Share of the training examples whose label is changed."""


class Split(NamedTuple):
    """The rows of a task that train and test, and the labels that the probe is trained on."""

    train: Int[np.ndarray, "n"]
    test: Int[np.ndarray, "m"]
    train_labels: Bool[np.ndarray, "n"]


def points(labels: Bool[np.ndarray, "n"], settings: Sequence[Setting], name: str = "the task") -> list[Point]:
    """Return every setting at each of its LEVELS that the task has enough examples for.

    Normally 1,024 examples train, or all but 100 of them, and the rest tests; below 200 examples two thirds train. Raises LabelError for
    a class of fewer than LEAST examples."""
    least = int(min(labels.sum(), (~labels).sum()))
    if least < LEAST:
        raise LabelError(f"{name} has a class of {least} examples, and needs at least {LEAST} of each")
    balanced = 2 * least
    train = min(balanced - TEST, MOST_TRAIN) if balanced >= 2 * TEST else 2 * balanced // 3
    test = balanced - train - 1
    made: list[Point] = []
    for setting in settings:
        for level in LEVELS[setting]:
            if setting == "normal":
                made.append(Point(setting, 0, train, test))
            elif setting == "scarce" and level <= train:
                made.append(Point(setting, level, int(level), balanced - int(level) - 1))
            elif setting == "noise":
                made.append(Point(setting, level, train, test, flipped=level))
            elif setting == "imbalanced" and (sizes := _imbalanced_sizes(labels)):
                made.append(Point(setting, level, *sizes, positive=level))
    return made


def _imbalanced_sizes(labels: Bool[np.ndarray, "n"]) -> tuple[int, int] | None:
    """Return the numbers of training and test examples with which any share from .05 to .95 can be drawn; None if too few."""
    n_positive, n_negative = int(labels.sum()), int((~labels).sum())
    most = int(min(n_negative / 0.95, n_positive / 0.95))
    train = min(most - TEST, MOST_TRAIN)
    return (train, max(TEST, most - train - 1)) if train >= TEST else None


def split(labels: Bool[np.ndarray, "n"], point: Point, seed: int) -> Split:
    """Draw the examples of a point, without replacement."""
    rng = np.random.RandomState(seed)
    sides = [np.flatnonzero(labels), np.flatnonzero(~labels)]
    drawn: list[Int[np.ndarray, "_"]] = []
    for count in (point.n_train, point.n_test):
        n_positive = int(np.ceil(point.positive * count))
        some = [
            rng.choice(side, size=size, replace=False)
            for side, size in zip(sides, (n_positive, count - n_positive), strict=True)
        ]
        sides = [np.setdiff1d(side, taken) for side, taken in zip(sides, some, strict=True)]
        drawn += some
    train, test = (rng.permutation(np.concatenate(pair)) for pair in (drawn[:2], drawn[2:]))
    return Split(train, test, _with_noise(labels[train], point.flipped, seed))


def _with_noise(labels: Bool[np.ndarray, "n"], share: float, seed: int) -> Bool[np.ndarray, "n"]:
    changed = np.random.RandomState(seed).choice(len(labels), size=int(len(labels) * share), replace=False)
    labels = labels.copy()
    labels[changed] = ~labels[changed]
    return labels
