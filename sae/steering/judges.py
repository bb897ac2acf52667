"""Judge steered texts with probes they were not made with, and say what an arm does beyond random directions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from sae.evaluation import bootstrap
from sae.evaluation.measures import Estimate
from sae.probing import probes
from sae.runs.arms import Level, Nulls, Verdict
from sae.steering.arms import Outcome

LOWEST, HIGHEST = -1.0, 2.0
"""Scores beyond these say no more than these: a broken text can project anywhere."""
RELATED = 0.15  # from an AUC of one half, from which on two concepts count as related
CONFIDENCE = 0.95
Array = NDArray[np.float64]


class Judge(NamedTuple):
    """A probe for a concept. Its score is 0 where the texts that test it lie without the concept on average, and 1 with it."""

    weights: Float[np.ndarray, "D"]
    zero: float
    scale: float
    """Not above 0 where a few texts outweigh the order of the others: such a judge has no unit to score in."""
    auc: float
    """On the texts that test it."""

    @classmethod
    def taught(
        cls,
        x: Float[np.ndarray, "n D"],
        y: Bool[np.ndarray, "n"],
        x_test: Float[np.ndarray, "m D"],
        y_test: Bool[np.ndarray, "m"],
        seed: int,
    ) -> "Judge":
        """Fit a logistic regression on the mean activations of texts, and set its scale on others."""
        weights = probes.weights(x, y, seed).astype(np.float64)
        scores = x_test @ weights
        zero, one = float(scores[~y_test].mean()), float(scores[y_test].mean())
        return cls(weights, zero, one - zero, probes.auc(y_test, scores))

    def scores(self, pooled: Float[Tensor, "n D"] | Float[np.ndarray, "n D"]) -> Array:
        """Return the score of each text, held within LOWEST and HIGHEST."""
        raw = (np.asarray(pooled, np.float64) @ self.weights - self.zero) / self.scale
        return np.clip(raw, LOWEST, HIGHEST)

    def is_unrelated(self, x: Float[np.ndarray, "n D"], y: Bool[np.ndarray, "n"]) -> bool:
        """Return whether it hardly tells another concept's texts apart: an AUC within RELATED of one half."""
        return abs(probes.auc(y, np.asarray(x, np.float64) @ self.weights) - 0.5) < RELATED


class Beside(NamedTuple):
    """An arm beside random directions of equal strength."""

    better_by: Estimate
    smallest: float
    verdict: Verdict


def gains(judge: Judge, outcomes: Sequence[Outcome], plain: Outcome) -> Float[np.ndarray, "levels n"]:
    """Return how much higher the judge scores each text than the unsteered text of the same beginning and seed."""
    base = judge.scores(plain.pooled)
    return np.stack([judge.scores(outcome.pooled) - base for outcome in outcomes])


def beside_random(own: Float[np.ndarray, "n"], random: Float[np.ndarray, "R n"]) -> Beside:
    """Compare an arm's gains with those of R random directions on the same n texts, each a mean over levels.

    Two sources of noise, and a difference counts when it exceeds both. The texts: a paired bootstrap interval of the
    difference from the mean of the random directions leaves out 0. The directions: the difference is larger than the
    smallest reliable one, t s √(1 + 1/R), within which another random direction stays in 95 of 100 cases; s is the standard
    deviation of the directions' mean gains, and t the 97.5th percentile of Student's distribution with R - 1 degrees of freedom."""
    count = len(random)
    assert count > 1, "one direction has no spread"
    ones = np.ones(len(own))
    better_by = bootstrap.difference((own, ones), (random.mean(0), ones))
    spread = float(random.mean(1).std(ddof=1))
    smallest = float(student.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread * float(np.sqrt(1 + 1 / count))
    verdict: Verdict = "not distinguishable"
    if not better_by.low <= 0 <= better_by.high and abs(better_by.value) > smallest:
        verdict = "above random" if better_by.value > 0 else "below random"
    return Beside(Estimate(*better_by), smallest, verdict)


def nulls(random: Float[np.ndarray, "R n"]) -> Nulls:
    """Judge every random direction as if it were an arm, beside all the others; at least three are needed."""
    found = [beside_random(random[r], np.delete(random, r, 0)).verdict for r in range(len(random))]
    return Nulls(len(found), sum(verdict != "not distinguishable" for verdict in found))


def level(
    strength: float,
    outcomes: Sequence[Outcome],
    plain: Outcome,
    judge: Judge,
    unrelated: Sequence[Judge],
) -> Level:
    """Return what an arm did at one strength; of several outcomes, those of random directions, the mean."""
    concept = gains(judge, outcomes, plain).mean(0)
    nll = np.mean([np.asarray(outcome.nll - plain.nll, np.float64) for outcome in outcomes], 0)
    kl = np.mean([np.asarray(outcome.kl, np.float64) for outcome in outcomes], 0)
    return Level(
        strength,
        mean(concept),
        mean(kl),
        mean(nll),
        _moved(outcomes, plain, unrelated) if unrelated else None,
        float(np.mean([float(outcome.repetition.mean()) for outcome in outcomes])),
    )


def mean(values: Float[np.ndarray, "n"]) -> Estimate:
    """Return a mean with its bootstrap interval."""
    return Estimate(*bootstrap.ratio(values, np.ones(len(values))))


def _moved(outcomes: Sequence[Outcome], plain: Outcome, unrelated: Sequence[Judge]) -> Estimate:
    """Return the mean over judges, and over outcomes, of |mean change of the score over the texts|, with a bootstrap interval."""
    changes = np.stack([gains(judge, outcomes, plain) for judge in unrelated])  # [judges, outcomes, n]
    counts = bootstrap.draws(changes.shape[-1])
    resampled = np.abs(changes @ counts.T / changes.shape[-1]).mean((0, 1))
    low, high = bootstrap.limits(resampled[:, None])
    return Estimate(float(np.abs(changes.mean(-1)).mean()), float(low[0]), float(high[0]))


def unrelated_to(
    name: str, judges: Mapping[str, Judge], x: Float[np.ndarray, "n D"], y: Bool[np.ndarray, "n"]
) -> list[str]:
    """Return the concepts whose judges hardly tell the texts x of the concept `name` apart."""
    return [other for other, judge in judges.items() if other != name and judge.is_unrelated(x, y)]
