"""Steering's measures, each recomputed by hand in float64, and the laws of a sweep on the toy model."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from activations.errors import ConfigError
from activations.generation import Sampling, generate
from activations.language_model import LanguageModel, load
from sae.features.feature import FeatureStore
from sae.runs.run import Run
from sae.steering.interventions import Calibration, Intervention
from sae.steering.measure import Measures, compare, divergence, repetition
from sae.steering.steering import Steering
from sae.steering.sweep import ROWS, SweepConfig, dose_response, random_control, shuffled_control
from tests import tiny

PROMPT = [0, 61, 90, 101, 77]
DRAWN = Sampling(tokens=16, temperature=0.9)
SEEDS = (0, 1)
SMALL = SweepConfig(doses=(1.0, -1.0, 0.0), random=2, shuffled=1)


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return load(str(world / "model"))


@pytest.fixture(scope="module")
def steering(world) -> Steering:
    """Return a steering that adds to two latents of the toy run."""
    run = Run(world / "runs/toy")
    features = FeatureStore(run.path / "features")
    best = np.argsort(features.table["density"].to_numpy())[::-1][3:5]
    pushed = tuple(Intervention(int(latent), "add", 2.0) for latent in best)
    return Steering(run.sae(), run.hook, pushed, Calibration.of(features))


@pytest.fixture(scope="module")
def pair(model, steering):
    return compare(model, steering, PROMPT, DRAWN, SEEDS)[1]


def by_hand(model, steering, text, push: float) -> np.ndarray:
    """Return log-probabilities [n, V], float64, from the plain model with a hook that adds `push` times the directions."""

    def hook(module, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        for i in steering.interventions:
            d = steering.sae.W_dec[i.latent]
            hidden[:, 1:] += push * i.strength * steering.calibration.highest[i.latent] * d
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with model.plain.model.layers[0].register_forward_hook(hook), torch.no_grad():
        logits = model.plain(torch.tensor([PROMPT + text]), use_cache=False).logits[0]
    return log_softmax(logits.double().numpy(), axis=-1)[len(PROMPT) - 1 : -1]


def test_both_models_log_probabilities_and_kl_of_every_token_are_those_of_a_hand_written_hook(
    model, steering, pair
):
    assert pair.baseline.tokens != pair.steered.tokens
    for text in (pair.baseline, pair.steered):
        clean, after = (by_hand(model, steering, text.tokens, push) for push in (0.0, 1.0))
        at = np.arange(len(text.tokens)), text.tokens
        np.testing.assert_allclose(text.log_probability, clean[at], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(text.steered_log_probability, after[at], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(text.change, after[at] - clean[at], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(text.kl, (np.exp(clean) * (clean - after)).sum(1), rtol=1e-3, atol=1e-5)
        assert text.text == model.tokenizer.decode(text.tokens, skip_special_tokens=True)
        assert text.measures.perplexity == pytest.approx(math.exp(-clean[at].mean()), rel=1e-4)


def test_kl_and_the_gain_of_peak_tokens_are_taken_along_the_unsteered_text(model, steering, pair):
    clean, after = (by_hand(model, steering, pair.baseline.tokens, push) for push in (0.0, 1.0))
    kl = (np.exp(clean) * (clean - after)).sum(1).mean()
    assert pair.steered.measures.kl == pytest.approx(kl, rel=1e-3)

    def gain(peaks: dict[int, list[int]]) -> float:
        return np.mean([(after - clean)[:, peaks[latent]].mean() for latent in steering.latents]).item()

    assert pair.steered.measures.peak_gain == pytest.approx(gain(steering.calibration.peaks), rel=1e-3)
    many, one = {steering.latents[0]: [5, 9, 33, 70]}, {steering.latents[1]: [12]}
    unequal = replace(steering, calibration=replace(steering.calibration, peaks=many | one))
    [other] = compare(model, unequal, PROMPT, DRAWN, SEEDS[1:])
    assert other.steered.measures.peak_gain == pytest.approx(gain(many | one), rel=1e-3)
    assert (pair.baseline.measures.kl, pair.baseline.measures.peak_gain) == (0, 0)
    unknown = replace(steering, calibration=replace(steering.calibration, peaks={}))
    (one,) = compare(model, unknown, PROMPT, DRAWN)
    assert one.steered.measures.peak_gain is None


def test_the_concept_is_what_the_sae_reads_where_nothing_is_steered(model, steering, pair):
    for text in (pair.baseline, pair.steered):
        x = model.capture(torch.tensor([PROMPT + text.tokens]), [tiny.HOOK])[tiny.HOOK][0, len(PROMPT) :]
        values = steering.sae.encode(x).dense()[:, steering.latents].double().numpy()
        shares = values / steering.calibration.highest[steering.latents].double().numpy()
        measured = text.measures
        assert measured.concept == pytest.approx(shares.mean(), rel=1e-4)
        assert measured.fires == pytest.approx((values != 0).mean())
        assert measured.peak == pytest.approx(shares.max(0).mean(), rel=1e-4)


def test_repetition_counts_runs_of_three_seen_before():
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
    assert repetition([7] * 10) == pytest.approx(7 / 8)
    assert repetition([1, 2]) == 0


def test_the_divergence_of_equal_predictions_is_zero_and_of_others_above():
    p = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    q = torch.randn(30, 50, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    assert (divergence(p, p) == 0).all()
    assert (divergence(p, q) > 0.1).all()


def test_steering_that_does_nothing_writes_the_same_text_and_measures_nothing(model, steering):
    for one in compare(model, steering.dosed(0), PROMPT, DRAWN, SEEDS):
        assert one.steered == one.baseline
        assert set(one.steered.kl) == {0.0}
        assert set(one.steered.change) == {0.0}


def test_the_same_seed_compares_alike_and_progress_ends_at_all(model, steering, pair):
    told = tiny.Told()
    assert compare(model, steering, PROMPT, DRAWN, SEEDS, told)[1] == pair
    assert min(told.steps["steer"]) >= 0
    assert sum(told.steps["steer"]) == told.totals["steer"] == 2 * DRAWN.tokens
    assert list(dict.fromkeys(told.notes)) == ["as it is", "steered", "reading"]


@pytest.fixture(scope="module")
def swept(model, steering):
    return dose_response(model, steering, [PROMPT, PROMPT[:3]], DRAWN, SEEDS, SMALL)


def test_a_sweep_has_every_kind_dose_direction_prompt_and_seed_once(swept):
    assert [(p.kind, p.dose) for p in swept.points] == [
        (kind, dose) for kind in ("latent", "random", "shuffled") for dose in (-1.0, 0.0, 1.0)
    ]
    for point in swept.points:
        directions = {"latent": 1, "random": 2, "shuffled": 1}[point.kind]
        found = [(trial.prompt, trial.seed, trial.control) for trial in point.trials]
        expected = [(p, s, c) for p in (0, 1) for c in range(directions) for s in SEEDS]
        assert sorted(found) == sorted(expected)


def test_a_sweep_s_latent_is_the_comparison_and_its_controls_are_the_controls(model, steering, swept):
    tried = {
        "latent": steering,
        "random": random_control(steering, 1),
        "shuffled": shuffled_control(steering, 0),
    }
    for kind, control in (("latent", 0), ("random", 1), ("shuffled", 0)):
        one = compare(model, tried[kind], PROMPT, DRAWN, SEEDS)
        trials = [t for t in swept.curves()[kind][2].trials if (t.prompt, t.control) == (0, control)]
        for trial, pair in zip(trials, one, strict=True):
            assert trial.text == pair.steered.text
            np.testing.assert_allclose(trial.measures, pair.steered.measures, rtol=1e-3, atol=1e-5)
            assert trial.seed == pair.seed


def test_at_dose_zero_every_kind_is_the_unsteered_model(model, swept):
    texts = [generate(model, prompt, None, DRAWN, SEEDS) for prompt in (PROMPT, PROMPT[:3])]
    for kind in ("latent", "random", "shuffled"):
        point = swept.curves()[kind][1]
        for trial in point.trials:
            assert trial.text == model.tokenizer.decode(
                texts[trial.prompt][trial.seed], skip_special_tokens=True
            )
        assert point.mean("kl") == point.spread("kl") == point.mean("peak_gain") == 0
    assert all(point.mean("kl") > 0 for point in swept.points if point.dose)


def test_mean_and_spread_are_over_all_texts(swept):
    point = swept.points[0]
    for name in Measures._fields:
        values = np.array([getattr(trial.measures, name) for trial in point.trials])
        assert point.mean(name) == pytest.approx(values.mean())
        assert point.spread(name) == pytest.approx(values.std())
    nameless = point._replace(
        trials=[t._replace(measures=t.measures._replace(peak_gain=None)) for t in point.trials]
    )
    assert nameless.mean("peak_gain") is nameless.spread("peak_gain") is None


def test_a_sweep_gives_the_same_numbers_again_and_is_json(model, steering, swept):
    told = tiny.Told()
    args = model, steering, [PROMPT, PROMPT[:3]], DRAWN, SEEDS, SMALL, told
    assert dose_response(*args) == swept
    assert min(told.steps["steer"]) >= 0
    assert sum(told.steps["steer"]) == told.totals["steer"]
    assert json.loads(json.dumps(swept.to_json(), allow_nan=False))[0]["kind"] == "latent"


def test_directions_that_do_not_fit_one_batch_are_tried_after_one_another(model, steering):
    many = SweepConfig(doses=(1.0,), random=ROWS + 1, shuffled=0)
    found = dose_response(model, steering, [PROMPT], Sampling(tokens=2), (0,), many)
    assert [trial.control for trial in found.curves()["random"][0].trials] == list(range(ROWS + 1))
    assert [point.kind for point in found.points] == ["latent", "random"]


def test_what_hears_of_progress_can_end_the_work(model, steering):
    stop = tiny.Told(end_at=0.3)
    with pytest.raises(KeyboardInterrupt):
        dose_response(model, steering, [PROMPT], DRAWN, SEEDS, SMALL, stop)
    with pytest.raises(KeyboardInterrupt):
        compare(model, steering, PROMPT, DRAWN, SEEDS, stop)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"doses": ()}, "doses = "),
        ({"doses": (1.0, float("inf"))}, "finite"),
        ({"doses": (1.0, 1.0)}, "each must be given once"),
        ({"random": -1}, "random = -1"),
        ({"shuffled": -2}, "shuffled = -2"),
    ],
)
def test_settings_out_of_range_are_named(settings, says):
    with pytest.raises(ConfigError, match=says):
        SweepConfig(**settings)
