"""Learning-rate schedules: step -> multiple of the peak."""

from collections.abc import Callable

GAO = 2e-4  # for 2^14 latents
LONG = 100_000
STEPS_POWER = -0.38
HIGHEST = 8e-3  # the best of the shortest runs measured, 100 steps of 1,024 latents


def warmup_then_decay(steps: int, warmup_steps: int, decay_share: float) -> Callable[[int], float]:
    """Linear from 1/warmup_steps to 1, constant, then linear towards 0 over the last share of all steps.

    The multiple is above 0 at every step from 0 to steps - 1."""
    decay_steps = round(steps * decay_share)

    def multiple(step: int) -> float:
        rising = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        falling = min(1.0, (steps - step) / (decay_steps + 1))
        return rising * falling

    return multiple


def peak_rate(width: int, steps: int) -> float:
    """The peak learning rate of Adam that suits a TopK of this width, fitted to `benchmarks/rates.py` (LOG.md).

    Short runs want a higher rate than the 2e-4 / sqrt(width / 2^14) of Gao et al. 2024 (section 2.4), which was made for
    runs of some 10^5 steps; the fit ends there and stays there for longer ones."""
    longer = (min(steps, LONG) / LONG) ** STEPS_POWER
    return min(HIGHEST, GAO * (2**14 / width) ** 0.5 * longer)
