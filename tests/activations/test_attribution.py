"""Direct logit attribution against the formula in float64, on three kinds of final norm."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from activations.language_model import LanguageModel, load
from activations.readout import norm_gain

GENERATOR = torch.Generator().manual_seed(4)


@pytest.fixture(params=["llama", "gpt2"])
def uneven(request: pytest.FixtureRequest) -> LanguageModel:
    """A model whose final norm multiplies every dimension by a different gain."""
    made = request.getfixturevalue(request.param)
    again = load(made.plain.config.name_or_path)
    norm = plain_norm(again)
    norm.weight.data.copy_(torch.linspace(-1.5, 2.5, len(norm.weight)))
    return again


def plain_norm(lm: LanguageModel) -> Any:
    return lm.plain.model.norm if lm.plain.config.model_type == "llama" else lm.plain.transformer.ln_f


def float64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def frozen(lm: LanguageModel, residual: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Return the logits of `moved` when the final norm divides by the scale it has for `residual`."""
    norm, unembed = plain_norm(lm), float64(lm.plain.get_output_embeddings().weight)
    if lm.plain.config.model_type == "llama":
        divisor = np.sqrt((residual**2).mean(1, keepdims=True) + norm.variance_epsilon)
        return moved / divisor * float64(norm.weight) @ unembed.T
    divisor = np.sqrt(residual.var(1, keepdims=True) + norm.eps)
    normed = (moved - moved.mean(1, keepdims=True)) / divisor * float64(norm.weight) + float64(norm.bias)
    return normed @ unembed.T


def test_a_direction_s_effect_is_the_change_of_the_logit_with_the_norm_frozen(uneven: LanguageModel):
    width = uneven.plain.config.hidden_size
    residual, d = 3 * torch.randn(2, 6, width, generator=GENERATOR) + 0.5
    tokens = torch.tensor([0, 1, 7, 7, 200, 257])
    x = float64(residual)
    change = frozen(uneven, x, x + float64(d)) - frozen(uneven, x, x)
    expected = change[range(6), tokens] - change.mean(1)
    assert uneven.readout is not None
    directions = uneven.readout.next_token_directions(residual, tokens)
    assert directions is not None
    np.testing.assert_allclose((directions * d).sum(1).numpy(), expected, rtol=2e-4, atol=1e-5)


def test_the_frozen_logits_of_what_is_there_are_the_model_s_own(uneven: LanguageModel):
    """Check the formula above: without a move, it gives the model's logits."""
    tokens = torch.randint(0, 258, (2, 9), generator=GENERATOR)
    logits, found = uneven.observe(tokens, [uneven.last_residual])
    x = float64(found[uneven.last_residual].flatten(0, 1))
    np.testing.assert_allclose(logits.flatten(0, 1).numpy(), frozen(uneven, x, x), rtol=1e-3, atol=1e-4)


def test_what_is_observed_is_what_is_captured(uneven: LanguageModel):
    tokens = torch.randint(0, 258, (2, 9), generator=GENERATOR)
    hooks = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]
    logits, found = uneven.observe(tokens, hooks)
    torch.testing.assert_close(logits, uneven.logits(tokens))
    for hook, captured in uneven.capture(tokens, hooks).items():
        torch.testing.assert_close(found[hook], captured)


@pytest.mark.parametrize("width", [7, 8])
@pytest.mark.parametrize("centred", [True, False])
def test_the_gain_of_a_norm_is_found_however_it_is_kept(width: int, centred: bool):
    kept = torch.linspace(-2, 3, width)  # as Gemma stores it: the gain minus 1

    def norm(x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if centred else x
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + kept) + 0.25

    gain, takes_mean_off = norm_gain(norm, torch.empty(0, width))
    assert takes_mean_off is centred
    torch.testing.assert_close(gain, 1 + kept, rtol=1e-4, atol=1e-4)
