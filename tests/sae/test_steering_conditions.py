"""Conditional steering: changed where a condition holds and nowhere else, to the bit; the same for monitors; what is typed."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from activations.errors import ConfigError
from activations.generation import Sampling, generate
from activations.language_model import LanguageModel, load
from sae.architectures import SAE
from sae.probing.records import MONITOR_FORMAT, Monitor
from sae.steering.conditions import Condition, condition_of
from sae.steering.interventions import Intervention
from sae.steering.steering import remarks
from sae.steering.sweep import random_control
from tests import tiny
from tests.sae import steered
from tests.sae.small import SMALL


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return load(str(world / "model"))


@pytest.fixture(scope="module")
def sae(model) -> SAE:
    return steered.trained(model, SMALL["topk"])


@pytest.fixture(scope="module")
def values(model, sae) -> Tensor:
    """Every latent's value at every position of the toy texts, [6, 40, F]."""
    x = model.capture(steered.TOKENS, [tiny.HOOK])[tiny.HOOK]
    return sae.encode(x.flatten(0, 1)).dense().view(*x.shape[:2], -1)


def condition(values: Tensor) -> Condition:
    """A bound on a latent's value that a fifth of its firings exceed."""
    latent = int((values[:, 1:] != 0).float().mean((0, 1)).argmax())
    own = values[:, 1:, latent]
    return Condition(latent, 1, float(own[own != 0].quantile(0.8)))


def pushed(model, sae, when: Condition, mode="add", **settings):
    x = steered.activations(model)
    latent = next(n for n in steered.loudest(sae, x, 3) if n != when.latent)
    return steered.steer(sae, x, Intervention(latent, mode, 2.0), when=when, **settings)


@pytest.mark.parametrize("mode", ["add", "scale", "set", "project"])
@pytest.mark.parametrize("keep_error", [True, False])
def test_activations_change_where_it_holds_and_nowhere_else_not_by_a_bit(
    model, sae, values, mode, keep_error
):
    when = condition(values)
    conditional = pushed(model, sae, when, mode, keep_error=keep_error)
    always = replace(conditional, when=None)
    x = model.capture(steered.TOKENS, [tiny.HOOK])[tiny.HOOK]
    holds = values[..., when.latent] > when.threshold
    holds[:, 0] = False  # BOS is not steered
    (edit,), (everywhere,) = conditional.edits().values(), always.edits().values()
    out = edit(x)
    assert 0 < holds.sum() < holds.numel() / 4
    assert torch.equal(out[~holds], x[~holds])
    torch.testing.assert_close(out[holds], everywhere(x)[holds])
    if mode != "scale":  # of a latent that may be silent there
        assert not torch.equal(out[holds], x[holds])
    torch.testing.assert_close(conditional.apply(x[:, 1:].flatten(0, 1)), out[:, 1:].flatten(0, 1))


def test_logits_before_the_first_firing_are_those_of_the_model_to_the_bit_and_change_from_there(
    model, sae, values
):
    when = condition(values)
    steering = pushed(model, sae, when)
    clean, changed = model.logits(steered.TOKENS), model.logits(steered.TOKENS, steering.edits())
    holds = values[..., when.latent] > when.threshold
    holds[:, 0] = False
    seen = 0
    for row in range(len(holds)):
        where = holds[row].nonzero()[:, 0]
        first = int(where[0]) if len(where) else holds.shape[1]
        assert torch.equal(changed[row, :first], clean[row, :first])
        if len(where):
            seen += 1
            assert not torch.equal(changed[row, first], clean[row, first])
    assert seen


def test_a_text_on_which_it_never_holds_is_the_model_s_own(model, sae, values):
    when = condition(values)
    never = Condition(when.latent, 1, float(values[..., when.latent].max()) * 100)
    steering = pushed(model, sae, never)
    sampling, prompt = Sampling(6, 0.7), [0, 40, 60, 80]
    plain = generate(model, prompt, None, sampling, (3,))
    assert generate(model, prompt, steering.edits(len(prompt)), sampling, (3,)) == plain
    passing = model.capture(torch.tensor([[*prompt, *plain[0]]]), [tiny.HOOK])[tiny.HOOK][0]
    (line,) = remarks(steering, len(prompt), [passing], 6)
    assert "does not fire there as the condition asks" in line


def test_a_control_is_steered_at_the_same_positions(model, sae, values):
    when = condition(values)
    steering = pushed(model, sae, when)
    x = steered.activations(model)
    moved = steering.apply(x) - x
    control = random_control(steering).apply(x) - x
    torch.testing.assert_close(moved.norm(dim=1), control.norm(dim=1), rtol=1e-3, atol=1e-4)


def test_what_is_typed_becomes_the_condition(tmp_path):
    assert condition_of("  ") is None
    assert condition_of("17") == Condition(17, 1, 0.0)
    assert condition_of("17 > 2.5") == Condition(17, 1, 2.5)
    assert condition_of("17<-1") == Condition(17, -1, 1.0)
    for wrong in ("seventeen", "17>", "17>=2", "-3", "17 18", "17>1e999"):
        with pytest.raises(ConfigError, match="when"):
            condition_of(wrong)


def test_a_value_below_a_bound_counts_for_the_other_sign(sae):
    code = sae.encode(torch.randn(50, sae.d_model, generator=torch.Generator().manual_seed(1)))
    own = code.dense()[:, 3]
    assert torch.equal(Condition(3, 1, 0.2).holds(code), own > 0.2)
    below = condition_of("3<0.1")
    assert below is not None
    assert torch.equal(below.holds(code), own < 0.1)


def test_a_monitor_s_condition_is_its_latent_sign_and_threshold(world, tmp_path):
    import shutil
    from dataclasses import asdict

    from activations.disk import files
    from sae.runs.run import Run
    from sae.workflows.find import condition as resolved

    run = Run(shutil.copytree(world / "runs" / "toy", tmp_path / "run"))
    monitor = Monitor(
        MONITOR_FORMAT, "rain", run.digest, run.hook, 5, -1, "max", 24, 0.4, 0.05, 0.9, 0.9, 0.05, [9, 9], 9
    )
    (run.path / "monitors").mkdir()
    files.write_sealed(run.path / "monitors" / "rain.json", asdict(monitor))
    assert resolved(run, "monitor:rain") == Condition(5, -1, 0.4)
    assert resolved(run, "12>1") == Condition(12, 1, 1.0)


def test_a_latent_that_does_not_exist_is_refused(model, sae):
    with pytest.raises(ConfigError, match=f"feature {sae.d_sae} does not exist"):
        pushed(model, sae, Condition(sae.d_sae))
