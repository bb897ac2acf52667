"""When a run counts as different from a control: beyond the bootstrap interval, and beyond what equal runs differ by."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from sae.evaluation.bootstrap import Estimate
from sae.runs.trust import UNEQUAL, Verdict

CONFIDENCE = 0.95


def smallest_reliable_difference(equal_runs: Sequence[float]) -> float:
    """Return the difference that two runs which differ in nothing but the seed stay below in 95 of 100 cases.

    `equal_runs` are the values of at least two such runs. Their standard deviation s estimates that of one run, so that a
    difference of two has s sqrt(2); with n runs it is multiplied by the 97.5th percentile of Student's t with n - 1 degrees of
    freedom, which is 4.3 for three runs and 2.3 for nine: few seeds make the spread itself uncertain."""
    n = len(equal_runs)
    assert n > 1, "a single run has no spread"
    spread = np.std(np.asarray(equal_runs, np.float64), ddof=1)
    return float(student.ppf((1 + CONFIDENCE) / 2, n - 1) * spread * np.sqrt(2))


def judged(better_by: Estimate, smallest: float, l0: tuple[float, float] = (1.0, 1.0)) -> Verdict:
    """Return what can be said of a run that is better than a control by this much; below 0 it is worse.

    Documents are one source of noise and seeds are another, and a difference counts when it exceeds both: its interval leaves
    out 0, and it is larger than the smallest reliable difference. Of a single document nothing is known of the first: its
    interval has no width.

    `l0` are the latents per row of the run and of the control. An SAE with more of them reconstructs more: where they differ by
    more than a tenth, the comparison only tells when the one with fewer is the better one."""
    own, control = l0
    found = _at_equal_sparsity(better_by, smallest)
    unequal = abs(control - own) > UNEQUAL * own
    if (
        unequal
        and not (found == "beats" and control > own)
        and not (found == "falls short" and control < own)
    ):
        return "other sparsity"
    return found


def _at_equal_sparsity(better_by: Estimate, smallest: float) -> Verdict:
    if better_by.low <= 0 <= better_by.high or better_by.low == better_by.high:
        return "not distinguishable"
    if abs(better_by.value) <= smallest:
        return "too small"
    return "beats" if better_by.value > 0 else "falls short"
