"""The limits of steering and sampling: strengths that overflow, positions that do not occur, latents that never fire."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from activations.errors import ConfigError, GenerationError
from activations.generation import Sampling, generate
from activations.language_model import LanguageModel, load
from sae.architectures import AbsTopKConfig, TopKConfig
from sae.steering.interventions import Intervention, Mode
from sae.steering.measure import LARGEST_PERPLEXITY, compare, perplexity
from sae.steering.sweep import SweepConfig, dose_response
from tests.sae import steered

SIGNED = AbsTopKConfig(d_sae=24, k=3)
PROMPT = [0, 40, 41, 42]
SHORT = Sampling(4, temperature=0.7)


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return load(str(world / "model"))


@pytest.fixture(scope="module")
def x(model):
    return steered.activations(model)


@pytest.mark.parametrize("unit", ["max", "norm"])
@pytest.mark.parametrize("strength", [1e17, 1e30, 1e40, 1e300, -1e30])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_strength_that_overflows_is_refused_with_the_largest_that_is_useful(model, x, mode, strength, unit):
    if mode == "clamp":
        strength = abs(strength)
    sae = steered.trained(model, SIGNED)
    (latent,) = steered.loudest(sae, x, 1)
    intervention = Intervention(latent, mode, strength, unit)
    if mode == "clamp":  # limits values to more than they are
        assert torch.equal(steered.steer(sae, x, intervention).apply(x), x)
        return
    with pytest.raises(ConfigError, match="overflow") as caught:
        steered.steer(sae, x, intervention)
    useful = float(str(caught.value).split("is about ")[1].split(",")[0])
    most = steered.steer(sae, x, replace(intervention, strength=math.copysign(useful, strength)))
    moved = most.apply(x)
    again = most.dosed(10.0).apply(x)
    assert moved.isfinite().all()
    far = moved.norm(dim=1) > 1e5 * x.norm(dim=1)  # scale and ablate move only where the latent fires
    assert far.any() and (far.all() or mode in ("scale", "ablate", "project"))
    same = torch.cosine_similarity(moved[far].double(), again[far].double())
    assert torch.allclose(same, torch.ones_like(same), atol=1e-6)
    assert model.logits(steered.TOKENS, most.edits()).isfinite().all()


def test_activations_that_overflow_only_while_the_model_runs_are_told(model, x):
    """By the corpus' maxima the strength fits; the activations are far larger."""
    sae = steered.trained(model, SIGNED)
    (latent,) = steered.loudest(sae, x, 1)
    edit = steered.steer(sae, x, Intervention(latent, "scale", 1e13)).edits()
    ((_, change),) = edit.items()
    with pytest.raises(ConfigError, match="overflow"):
        change(1e6 * x[None])
    with pytest.raises(ConfigError, match="not finite"):
        change(torch.full_like(x, torch.nan)[None])
    with pytest.raises(ConfigError, match="overflow"):
        change((1e3 * x[None]).half())  # fits float32, not the model's float16


def test_logits_that_are_not_numbers_choose_no_token(model):
    for value in (torch.nan, torch.inf):
        with pytest.raises(GenerationError, match="not finite"):
            generate(model, PROMPT, {"blocks.1.hook_resid_post": lambda h, first=0, v=value: h * v}, SHORT)


@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e-40])
def test_a_temperature_of_almost_nothing_takes_the_likeliest_token(model, temperature):
    cold = generate(model, PROMPT, None, Sampling(6, temperature=0.0))
    assert generate(model, PROMPT, None, Sampling(6, temperature=temperature, top_p=0.9), (3,)) == cold


def test_a_huge_temperature_draws_evenly_and_a_tiny_top_p_the_likeliest(model):
    drawn = generate(model, PROMPT, None, Sampling(12, temperature=1e300), range(40))
    assert len({token for text in drawn for token in text}) > 100  # of 258
    cold = generate(model, PROMPT, None, Sampling(6, temperature=0.0))
    assert generate(model, PROMPT, None, Sampling(6, temperature=1.0, top_p=1e-300)) == cold


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
def test_a_seed_no_generator_takes_is_refused(model, seed):
    with pytest.raises(GenerationError, match=str(seed)):
        generate(model, PROMPT, None, SHORT, (seed,))
    assert generate(model, PROMPT, None, SHORT, (2**64 - 1,))


def test_a_continuation_longer_than_any_model_reads_is_refused():
    with pytest.raises(GenerationError, match="1000000000000"):
        Sampling(10**12)


@pytest.mark.parametrize(
    ("positions", "first", "occurs"),
    [
        ((500,), False, False),
        ((0,), False, False),
        ((0,), True, True),
        ((7,), False, False),
        ((6,), False, True),
    ],
)
def test_positions_that_never_occur_are_refused(model, x, positions, first, occurs):
    """A prompt of 4 tokens and 4 new ones: the model reads positions 0 to 6 to write them."""
    sae = steered.trained(model, SIGNED)
    steering = steered.steer(
        sae, x, Intervention(1, "add", 0.5, "norm"), positions=positions, first_token=first
    )
    if occurs:
        assert compare(model, steering, PROMPT, SHORT)[0].remarks == []
        return
    for run in (compare, lambda m, s, p, a: dose_response(m, s, [p], a, cfg=SweepConfig((1.0,), 0, 0))):
        with pytest.raises(ConfigError, match=f"positions = {positions[0]}"):
            run(model, steering, PROMPT, SHORT)


def test_what_does_nothing_is_told_and_what_does_something_is_not(model, x):
    sae = steered.trained(model, TopKConfig(d_sae=24, k=3))
    texts = generate(model, PROMPT, None, SHORT)
    rows = model.capture(torch.tensor([PROMPT + texts[0]]), ["blocks.1.hook_resid_pre"])[
        "blocks.1.hook_resid_pre"
    ][0, 1:]
    fires = sae.encode(rows).dense().ne(0).sum(0)
    resting, firing = int((fires == 0).nonzero()[0]), int(fires.argmax())
    for mode in ("ablate", "scale"):
        both = [Intervention(latent, mode, 0.5) for latent in (resting, firing)]
        (pair,) = compare(model, steered.steer(sae, x, both[0]), PROMPT, SHORT)
        assert pair.baseline.tokens == pair.steered.tokens
        assert (
            len(pair.remarks) == 1
            and f"feature {resting}" in pair.remarks[0]
            and "never fires" in pair.remarks[0]
        )
        (pair,) = compare(model, steered.steer(sae, x, *both, positions=(2, 3, 500)), PROMPT, SHORT)
        assert [f"feature {firing}" in line for line in pair.remarks] == [False] * len(pair.remarks)
        assert any("500" in line for line in pair.remarks)
        swept = dose_response(
            model, steered.steer(sae, x, both[0]), [PROMPT], SHORT, cfg=SweepConfig((1.0, 2.0), 0, 0)
        )
        assert any("never fires" in line for line in swept.remarks)
    assert (
        compare(model, steered.steer(sae, x, Intervention(firing, "ablate")), PROMPT, SHORT)[0].remarks == []
    )


def test_perplexity_beyond_all_numbers_is_the_largest():
    assert perplexity(torch.tensor([-1e5, -1e5], dtype=torch.float64)) == pytest.approx(LARGEST_PERPLEXITY)


def test_a_decoder_row_of_zeros_is_refused(model, x):
    sae = steered.trained(model, TopKConfig(d_sae=24, k=3))
    with torch.no_grad():
        kept = sae.W_dec[5].clone()
        sae.W_dec[5] = 0
        try:
            with pytest.raises(ConfigError, match="feature 5"):
                steered.steer(sae, x, Intervention(5, "add", 1.0, "norm"))
        finally:
            sae.W_dec[5] = kept


def test_a_dose_response_grows_outwards_from_no_steering(model, x):
    sae = steered.trained(model, TopKConfig(d_sae=24, k=3))
    steering, shown = steered.steer(sae, x, Intervention(0, "add")), []
    cfg = SweepConfig((-1.0, -0.5, 0.0, 0.5, 1.0, 1.5), random=1, shuffled=0)
    whole = dose_response(
        model,
        steering,
        [PROMPT],
        SHORT,
        cfg=cfg,
        on_points=lambda done: shown.append({point.dose for point in done.points}),
    )
    new = [after - before for before, after in zip([set(), *shown[:-1]], shown, strict=True)]
    assert new == [{0.0}, {0.5}, {-0.5}, {1.0}, {-1.0}, {1.5}]
    assert [point.dose for point in whole.curves()["latent"]] == sorted(cfg.doses)
