"""The course of the learning rate over a run, as a multiple of its peak."""

from collections.abc import Callable


def warmup_then_decay(steps: int, warmup_steps: int, decay_share: float) -> Callable[[int], float]:
    """Return the multiple of the peak rate by step: linear from 1/warmup_steps to 1, constant, then linear towards 0.

    It falls over the last `decay_share` of all steps and is above 0 at every step from 0 to steps - 1."""
    decay_steps = round(steps * decay_share)

    def multiple(step: int) -> float:
        rising = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        falling = min(1.0, (steps - step) / (decay_steps + 1))
        return rising * falling

    return multiple
