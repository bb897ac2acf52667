"""Measuring the best peak learning rate: short trials on the run's own first batches (`train.lr = auto`)."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import torch

from activations.errors import DivergedError
from activations.progress import Advance, ignore
from sae.architectures import SAE, ArchConfig
from sae.config import STEPS_POWER, TrainConfig
from sae.training.trainer import Trainer

FACTOR = 2.0
MOST_TRIALS = 7
LEAST_STEPS, MOST_STEPS = 100, 400
JUDGED = 8  # batches after those trained on, whose loss judges a trial

Batches = Callable[[], Iterator[tuple[Any, ...]]]
"""Starts the run's batches from the first one, as `Trainer.train_step` takes them."""


class Trial(NamedTuple):
    """A peak rate, and the method's loss that a short run at it reached; infinite for one that diverged."""

    lr: float
    loss: float


def trial_steps(cfg: TrainConfig) -> int:
    """Return the steps of each trial: a twentieth of the run's, between 100 and 400, and at most the run's."""
    assert cfg.steps is not None
    return min(cfg.steps, max(LEAST_STEPS, min(MOST_STEPS, cfg.steps // 20)))


def try_rates(
    make: Callable[[], SAE],
    cfg: TrainConfig,
    arch: ArchConfig,
    batches: Batches,
    scale: float,
    advance: Advance = ignore,
) -> tuple[float, list[Trial]]:
    """Measure the best peak rate for `cfg`'s run. Return it, and the trials by rate. `advance` counts the trials.

    Each trial is a complete short run with warm-up and decay, from the same initial weights and on the same `batches`; the
    architecture's loss on the next few batches judges it. Rates are a factor of 2 apart, start at the default and extend to
    both sides until the best one has a worse neighbour on each. The minimum of the parabola through these three, loss over
    log rate, is the best rate of a run as long as a trial. Longer runs need lower rates, so it is scaled to the run's length
    by the power that the default was fitted with. Raises DivergedError when every rate diverges."""
    short = dataclasses.replace(
        cfg, steps=trial_steps(cfg), lr=None, warmup_steps=None, dead_after_tokens=None
    )
    start = short.resolved(0, arch).lr
    assert isinstance(start, float)
    losses: dict[float, float] = {}
    while len(losses) < MOST_TRIALS and (lr := next_rate(losses, start)) is not None:
        losses[lr] = _loss(make(), dataclasses.replace(short, lr=lr).resolved(0, arch), batches, scale)
        advance(1, note=f"{lr:.3g}: loss {losses[lr]:.4f}")
    if min(losses.values()) == math.inf:
        raise DivergedError(
            f"train.lr = auto: every rate from {min(losses):.2g} to {max(losses):.2g} diverged; give a lower one"
        )
    assert cfg.steps is not None
    assert short.steps is not None
    carried = minimum(losses) * (cfg.steps / short.steps) ** STEPS_POWER
    return carried, [Trial(rate, loss) for rate, loss in sorted(losses.items())]


def next_rate(losses: Mapping[float, float], first: float) -> float | None:
    """Return the next rate to try: `first`, then a factor of 2 beyond the best; None once the best has worse neighbours.

    `losses` are those of the rates tried, infinite for runs that diverged; while all are infinite, lower rates come next."""
    if not losses:
        return first
    best = min(losses, key=lambda rate: (losses[rate], rate))
    beside = (best * FACTOR, best / FACTOR) if losses[best] < math.inf else (best / FACTOR,)
    return next((rate for rate in beside if rate not in losses), None)


def minimum(losses: Mapping[float, float]) -> float:
    """Return the minimum of the parabola, loss over log rate, through the best rate and its neighbours a factor of 2 away.

    Return the best rate itself where a neighbour is missing or diverged."""
    best = min(losses, key=lambda rate: losses[rate])
    below, above = (losses.get(rate, math.inf) for rate in (best / FACTOR, best * FACTOR))
    bend = below - 2 * losses[best] + above
    if not 0 < bend < math.inf:
        return best
    return best * FACTOR ** ((below - above) / (2 * bend))


def _loss(sae: SAE, cfg: TrainConfig, batches: Batches, scale: float) -> float:
    assert cfg.steps is not None
    trainer = Trainer(sae, cfg, scale)
    state, rows = torch.get_rng_state(), batches()
    try:
        for batch in islice(rows, cfg.steps):
            trainer.train_step(*batch)
    except DivergedError:
        return math.inf
    finally:
        torch.set_rng_state(state)  # the run must draw the same numbers as without trials
    sae.eval()
    losses = []
    with torch.no_grad():
        for x, y, *_ in islice(rows, JUDGED):
            inputs, targets = (part.to(sae.device, sae.W_dec.dtype) * scale for part in (x, y))
            losses.append(sae.loss(inputs, targets, trainer.history.dead).total.item())
    loss = sum(losses) / len(losses)
    return loss if math.isfinite(loss) else math.inf
