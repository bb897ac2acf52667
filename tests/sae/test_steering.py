"""Interventions: each does what its formula says, on every architecture, where it should and nowhere else."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from activations.errors import ConfigError
from activations.language_model import LanguageModel, load
from sae.architectures import AbsTopKConfig, TopKConfig, build
from sae.features.feature import FeatureStore
from sae.steering.interventions import Calibration, Intervention
from sae.steering.steering import Steering
from sae.steering.sweep import random_control, shuffled_control
from tests import tiny
from tests.sae import steered
from tests.sae.codes import from_dense
from tests.sae.small import SMALL, every_architecture

NEUTRAL = [("add", 0.0), ("ablate", 0.0), ("project", 0.0), ("scale", 1.0)]
MODES = ("add", "set", "clamp", "scale", "ablate", "project")
SIGNED = AbsTopKConfig(d_sae=24, k=3)
N_PROMPT = 7


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return load(str(world / "model"))


@pytest.fixture(scope="module")
def x(model) -> Tensor:
    return steered.activations(model)


def exact(sae, x: Tensor, latent: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return h, the latent's value on each row, and its decoder row, in float64."""
    return x.double(), sae.encode(x).dense()[:, latent].double(), sae.W_dec[latent].double()


@every_architecture
@pytest.mark.parametrize(("mode", "strength"), NEUTRAL)
def test_the_neutral_strength_changes_no_logit_not_by_a_bit(model, x, cfg, mode, strength):
    sae = steered.trained(model, cfg)
    interventions = [Intervention(latent, mode, strength) for latent in steered.loudest(sae, x)]
    steering = steered.steer(sae, x, *interventions, first_token=True)
    assert steering.changes_nothing
    assert torch.equal(model.logits(steered.TOKENS, steering.edits(N_PROMPT)), model.logits(steered.TOKENS))
    more = steered.steer(sae, x, *(replace(i, strength=0.5) for i in interventions))
    assert not more.changes_nothing
    assert not torch.equal(model.logits(steered.TOKENS, more.edits(N_PROMPT)), model.logits(steered.TOKENS))


@every_architecture
def test_each_mode_is_its_formula_in_float64(model, x, cfg):
    sae = steered.trained(model, cfg)
    (latent,) = steered.loudest(sae, x, 1)
    h, f, d = exact(sae, x, latent)
    top, low = f.max().clamp_min(0), (-f.min()).clamp_min(0)
    above, below = (top or low), (low or top)
    expected = {
        ("add", 1.5): h + 1.5 * above * d,
        ("add", -1.5): h - 1.5 * below * d,
        ("set", 2.0): h + (2 * above - f)[:, None] * d,
        ("set", -0.5): h + (-0.5 * below - f)[:, None] * d,
        ("clamp", 0.3): h + (f.clamp(-0.3 * below, 0.3 * above) - f)[:, None] * d,
        ("scale", 3.0): h + (2 * f)[:, None] * d,
        ("scale", -1.0): h - (2 * f)[:, None] * d,
        ("ablate", 1.0): h - f[:, None] * d,
        ("project", 1.0): h - (h @ d)[:, None] * d / (d @ d),
        ("project", 0.25): h - 0.25 * (h @ d)[:, None] * d / (d @ d),
    }
    for (mode, strength), wanted in expected.items():
        found = steered.steer(sae, x, Intervention(latent, mode, strength)).apply(x)
        assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4, msg=f"{mode} {strength}")
        assert not torch.equal(found, x), f"{mode} {strength} does something"


@every_architecture
def test_a_strength_in_units_of_the_norm_moves_by_that_share_of_it(model, x, cfg):
    sae = steered.trained(model, cfg)
    steering = steered.steer(sae, x, Intervention(3, "add", -0.2, "norm"))
    moved = (steering.apply(x) - x).norm(dim=1)
    rms = x.double().square().sum(1).mean().sqrt().float()
    assert_close(moved, (0.2 * rms).expand(len(x)), rtol=1e-3, atol=0.0)


@every_architecture
def test_dropping_the_error_is_decoding_the_changed_code(model, x, cfg):
    sae = steered.trained(model, cfg)
    one, two = steered.loudest(sae, x)
    dense, top = sae.encode(x).dense(), steered.calibration(sae, x)
    steering = steered.steer(
        sae, x, Intervention(one, "set", 0.5), Intervention(two, "ablate"), keep_error=False
    )
    dense[:, one], dense[:, two] = 0.5 * top.extreme(one, 1), 0
    assert_close(steering.apply(x), sae.decode(from_dense(dense)), rtol=1e-4, atol=1e-4)
    nothing = steered.steer(sae, x, Intervention(one, "ablate", 0.0), keep_error=False)
    assert torch.equal(nothing.apply(x), sae(x))
    assert not nothing.changes_nothing


@every_architecture
def test_several_interventions_add_their_changes(model, x, cfg):
    sae = steered.trained(model, cfg)
    one, two = steered.loudest(sae, x)
    both = Intervention(one, "scale", 2.0), Intervention(two, "add", -1.0)
    changes = [steered.steer(sae, x, i).apply(x) - x for i in both]
    assert_close(steered.steer(sae, x, *both).apply(x), x + changes[0] + changes[1], rtol=1e-4, atol=1e-4)


@every_architecture
def test_projection_leaves_nothing_of_any_of_its_directions_whatever_is_added(model, x, cfg):
    sae = steered.trained(model, cfg)
    one, two = steered.loudest(sae, x)
    third = next(latent for latent in range(24) if latent not in (one, two))
    steering = steered.steer(
        sae, x, Intervention(one, "project"), Intervention(third, "add", 0.3, "norm"), Intervention(two, "project")
    )  # fmt: skip
    found, rows = steering.apply(x), sae.W_dec[[one, two]]
    assert (found @ rows.T).abs().max() < 1e-3 * (x @ rows.T).abs().max()
    added = x + 0.3 * steering.calibration.norm * sae.W_dec[third] / sae.W_dec[third].norm()
    q, _ = torch.linalg.qr(rows.double().T)
    rest = added.double() - added.double() @ q @ q.T
    assert_close(found.double(), rest, rtol=1e-3, atol=1e-3)


def test_ablation_equals_a_hand_written_hook(model, x):
    sae = steered.trained(model, SIGNED)
    (latent,) = steered.loudest(sae, x, 1)

    def hook(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        f = sae.encode(hidden[:, 1:]).dense()[:, latent].view(*hidden[:, 1:].shape[:2], 1)
        hidden = torch.cat([hidden[:, :1], hidden[:, 1:] - f * sae.W_dec[latent]], 1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with model.plain.model.layers[0].register_forward_hook(hook), torch.no_grad():
        expected = model.plain(steered.TOKENS, use_cache=False).logits
    steering = steered.steer(sae, x, Intervention(latent, "ablate"))
    found = model.logits(steered.TOKENS, steering.edits())
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, model.logits(steered.TOKENS), atol=1e-3)


def test_set_makes_the_encoder_read_what_was_set_where_latents_do_not_overlap():
    """With an orthonormal dictionary that fires fully, the code after steering is the code with one value replaced."""
    sae = build(AbsTopKConfig(d_sae=16, k=16), 16)
    with torch.no_grad():
        sae.W_dec.copy_(torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0])
        sae.W_enc.copy_(sae.W_dec.T)
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    before = sae.encode(x).dense()
    top = before.max(0).values, -before.min(0).values
    for strength, unit in ((1.5, top[0][4]), (-1.5, top[1][4])):
        after = sae.encode(steered.steer(sae, x, Intervention(4, "set", strength)).apply(x)).dense()
        before[:, 4] = strength * unit
        assert_close(after, before, rtol=1e-4, atol=1e-4)
    limited = sae.encode(steered.steer(sae, x, Intervention(2, "clamp", 0.5)).apply(x)).dense()[:, 2]
    assert limited.max() <= 0.5 * top[0][2] + 1e-4
    assert limited.min() >= -0.5 * top[1][2] - 1e-4
    assert (limited.sign() == before[:, 2].sign()).all()


def test_a_signed_latent_has_a_maximum_of_either_sign_and_an_unsigned_one_lends_its_own(model, x):
    sae = steered.trained(model, SIGNED)
    dense = sae.encode(x).dense()
    both = ((dense > 0).any(0) & (dense < 0).any(0)).nonzero()[:, 0].tolist()
    assert both, "or the test shows nothing"
    for latent in both:
        top, low = dense[:, latent].max(), -dense[:, latent].min()
        up = steered.steer(sae, x, Intervention(latent, "add", 1.0)).apply(x) - x
        down = steered.steer(sae, x, Intervention(latent, "add", -1.0)).apply(x) - x
        assert_close(up, (top * sae.W_dec[latent]).expand_as(x), rtol=1e-3, atol=1e-4)
        assert_close(down, (-low * sae.W_dec[latent]).expand_as(x), rtol=1e-3, atol=1e-4)
    known = Calibration(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0]), 1.0, {})
    assert [known.extreme(0, s) for s in (1, -1)] == [2.0, 2.0]
    assert [known.extreme(1, s) for s in (1, -1)] == [3.0, 3.0]
    assert [known.largest(latent) for latent in range(3)] == [2.0, 3.0, 0.0]
    assert known.living() == [0, 1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("positions", "first_token", "expected"),
    [
        ("all", False, range(1, 40)),
        ("all", True, range(40)),
        ("after prompt", False, range(N_PROMPT - 1, 40)),
        ((2, 30, 99), False, (2, 30)),
        ((0, 5), False, (5,)),
        ((0, 5), True, (0, 5)),
    ],
)
def test_only_the_positions_asked_for_are_touched(model, x, mode, positions, first_token, expected):
    sae = steered.trained(model, SMALL["topk"])
    h = model.capture(steered.TOKENS, [tiny.HOOK])[tiny.HOOK]
    fires = sae.encode(h).dense().view(*h.shape[:2], -1) != 0
    latent = int(fires[:, list(expected)].sum((0, 1)).argmax())
    steering = steered.steer(
        sae, x, Intervention(latent, mode, 0.5), positions=positions, first_token=first_token
    )  # fmt: skip
    (edit,) = steering.edits(N_PROMPT).values()
    touched = (edit(h) != h).any(-1)
    allowed = torch.zeros(40, dtype=torch.bool)
    allowed[list(expected)] = True
    assert not touched[:, ~allowed].any()
    assert touched.any()
    if mode == "add":
        assert touched[:, allowed].all()
    late = torch.cat([edit(h[:, :9]), edit(h[:, 9:10], 9), edit(h[:, 10:], 10)], 1)
    assert_close(late, edit(h), rtol=1e-5, atol=1e-5)
    logits, clean = model.logits(steered.TOKENS, steering.edits(N_PROMPT)), model.logits(steered.TOKENS)
    first = min(expected)
    assert torch.equal(logits[:, :first], clean[:, :first])


@pytest.mark.parametrize("control", [random_control, shuffled_control])
@pytest.mark.parametrize("mode", MODES)
def test_a_control_moves_every_activation_exactly_as_far_in_another_direction(model, x, control, mode):
    sae = steered.trained(model, SIGNED)
    for n in (1, 2):
        latents = steered.loudest(sae, x, n)
        steering = steered.steer(sae, x, *(Intervention(latent, mode, 0.7) for latent in latents))
        own = steering.apply(x) - x
        other = control(steering, seed=5).apply(x) - x
        assert_close(other.norm(dim=1), own.norm(dim=1), rtol=1e-3, atol=1e-4)
        moved = own.norm(dim=1) > 1e-3
        cosine = torch.cosine_similarity(own[moved], other[moved]).abs()
        assert cosine.mean() < 0.9
        assert torch.equal(control(steering, seed=5).apply(x) - x, other)
        assert not torch.allclose(control(steering, seed=6).apply(x) - x, other, atol=1e-3)


def test_the_shuffled_control_takes_living_latents_that_are_not_steered(model, x):
    sae = steered.trained(model, SMALL["topk"])
    steering = steered.steer(sae, x, *(Intervention(latent) for latent in steered.loudest(sae, x)))
    units = torch.nn.functional.normalize(sae.W_dec, dim=1)
    seen = set()
    for seed in range(200):
        directions = shuffled_control(steering, seed).directions
        assert directions is not None
        cosines = torch.nn.functional.normalize(directions, dim=1) @ units.T
        assert (cosines.max(1).values > 1 - 1e-5).all()
        seen |= set(cosines.argmax(1).tolist())
    assert seen == set(steering.calibration.living()) - set(steering.latents)
    alone = replace(steering, calibration=replace(steering.calibration, highest=torch.eye(24)[0] * 5, lowest=torch.zeros(24)),
                    interventions=(Intervention(0),))  # fmt: skip
    with pytest.raises(ConfigError, match="needs 1 other latents that fire and has 0"):
        shuffled_control(alone)


def test_a_dose_multiplies_every_strength(model, x):
    sae = steered.trained(model, SMALL["topk"])
    steering = steered.steer(sae, x, Intervention(1, "add", 2.0), Intervention(4, "project", 0.5))
    assert [i.strength for i in steering.dosed(-0.5).interventions] == [-1.0, -0.25]
    assert steering.dosed(0).changes_nothing


def test_calibration_is_read_from_features(world):
    features = FeatureStore(world / "runs/toy/features")
    found, table = Calibration.of(features), features.table.to_pylist()
    assert found.norm == features.record.unit
    assert found.highest.tolist() == pytest.approx([max(row["max"] or 0, 0) for row in table])
    assert not found.lowest.any()
    assert found.living() == [row["latent"] for row in table if row["fired"]]
    for row in table:
        assert {features.vocabulary[token] for token in found.peaks[row["latent"]]} == set(row["peak_tokens"])


def unfired(steering: Steering) -> Calibration:
    return replace(steering.calibration, highest=torch.zeros(24), lowest=torch.zeros(24))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda s: Intervention(-1), "feature -1"),
        (lambda s: Intervention(1, "push"), "mode = 'push' must be one of add, set, clamp"),
        (lambda s: Intervention(1, unit="volts"), "unit = 'volts'"),
        (lambda s: Intervention(1, "add", float("nan")), "strength = nan"),
        (lambda s: Intervention(1, "clamp", -1.0), "strength = -1.0: clamp"),
        (lambda s: replace(s, interventions=()), "no feature to steer"),
        (lambda s: replace(s, interventions=(Intervention(24),)), "feature 24 does not exist: this SAE has 0 to 23"),
        (lambda s: replace(s, interventions=(Intervention(2), Intervention(2, "ablate"))), "feature 2 is named 2 times"),
        (lambda s: replace(s, positions="some"), "positions = 'some'"),
        (lambda s: replace(s, positions=()), "positions = ()"),
        (lambda s: replace(s, positions=(3, -1)), r"positions = \(3, -1\)"),
        (lambda s: replace(s, calibration=unfired(s)), "feature 1 never fired.*unit norm"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(model, x, make, says):
    steering = steered.steer(
        steered.trained(model, TopKConfig(d_sae=24, k=3)), x, Intervention(1, unit="norm")
    )
    steering = replace(steering, calibration=replace(steering.calibration, highest=torch.ones(24)))
    steering = replace(steering, interventions=(Intervention(1),))
    with pytest.raises(ConfigError, match=says.replace("()", r"\(\)")) as caught:
        make(steering)
    assert "\n" not in str(caught.value)


def test_a_latent_that_never_fired_can_be_steered_in_other_units(model, x):
    steering = steered.steer(steered.trained(model, SMALL["topk"]), x, Intervention(1, unit="norm"))
    for intervention in (
        Intervention(1, "add", 0.1, "norm"),
        Intervention(1, "project"),
        Intervention(1, "ablate"),
    ):
        assert (
            replace(steering, calibration=unfired(steering), interventions=(intervention,))
            .apply(x)
            .isfinite()
            .all()
        )


def test_its_repr_is_a_line_whatever_the_number_of_latents():
    n = 5000
    peaks = {latent: [latent] for latent in range(n)}
    sae = build(TopKConfig(d_sae=n, k=3), d_model=8)
    steering = Steering(
        sae, "hook", (Intervention(1),), Calibration(torch.ones(n), torch.zeros(n), 2.0, peaks)
    )
    assert "latent=1" in repr(steering)
    assert len(repr(steering)) < 400
