"""What the benchmarks of training stand on: the step they time ours against does the same, and times are paired by round."""

import pytest
import torch
from torch.testing import assert_close

from benchmarks.exact import side_by_side
from benchmarks.naive import NaiveTopK
from benchmarks.timing import Shape, Times, by_turns, mixture
from benchmarks.trained import silence, trainer

SMALL = Shape(8, 48, 4, 64)


@pytest.mark.parametrize(("dead", "clip_norm"), [(0.0, 1.0), (0.5, 1.0), (0.5, 0.1)])
def test_naive_torch_does_the_same_step(dead, clip_norm):
    found = side_by_side(SMALL, steps=3, dead=dead, clip_norm=clip_norm)
    assert max(found.apart.values()) < 1e-5 < found.moved
    assert found.one_sided == found.miscounted == 0
    assert found.steps == 3
    assert found.most_dead == dead * SMALL.latents
    assert found.chosen > 0


def test_naive_torch_lets_dead_latents_explain_the_residual():
    """So that a step without AuxK would be seen to differ from ours."""
    x = mixture(SMALL.batch, SMALL.width)
    made = trainer(SMALL, x)
    with_dead, without = (NaiveTopK(made.sae, made.cfg) for _ in range(2))
    silence(with_dead.silent_tokens, 0.5, made)
    assert with_dead.train_step(x) > without.train_step(x)
    assert (with_dead.W_dec - without.W_dec).abs().max() > 1e-5


def test_ratios_are_of_times_in_the_same_round():
    """Rounds give 2, 2.5 and 1.5; the ratio of medians would be 2.5."""
    own, other = Times([2.0, 5.0, 30.0], [1.0] * 3), Times([1.0, 2.0, 20.0], [4.0] * 3)
    assert own.over(other) == (2.0, 0.25)


def test_contestants_take_turns_and_the_first_rounds_do_not_count():
    calls = []
    times = by_turns({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3, unmeasured=1)
    assert "".join(calls) == "abababab"
    assert all(len(own.wall) == len(own.cpu) == 3 for own in times.values())


def test_the_mixture_is_the_same_every_time():
    assert_close(mixture(16, 8), mixture(16, 8), rtol=0, atol=0)
    assert torch.isfinite(mixture(16, 8)).all()
