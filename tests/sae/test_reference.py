"""Latents and reconstructions against each method's definition, written densely in float64 on copied weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sae.architectures import SAE, build
from tests.sae.small import SMALL, D

TOLERANCE = 1e-6  # of the largest value, in float32


def centred(sae: Any, x: Tensor) -> Tensor:
    return (x - sae.b_dec) @ sae.W_enc + sae.b_enc


def k_largest(u: Tensor, sizes: Tensor, k: int) -> Tensor:
    """u where its size is among the k largest of the row, else 0."""
    return u * (sizes >= sizes.sort(dim=1, descending=True).values[:, k - 1 : k])


def gated(sae: Any, x: Tensor) -> Tensor:
    v = (x - sae.b_dec) @ sae.W_enc
    return (v * sae.r_mag.exp() + sae.b_mag).clamp_min(0) * (v + sae.b_enc > 0)


def uncentred(sae: Any, x: Tensor, threshold: Tensor | float) -> Tensor:
    y = x @ sae.W_enc + sae.b_enc
    return y * (y > threshold)


DEFINITIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "topk": lambda sae, x: k_largest(centred(sae, x), centred(sae, x), sae.cfg.k).clamp_min(0),
    "abstopk": lambda sae, x: k_largest(centred(sae, x), centred(sae, x).abs(), sae.cfg.k),
    "batchtopk": lambda sae, x: centred(sae, x) * (centred(sae, x) > sae.threshold),
    "matryoshka": lambda sae, x: centred(sae, x) * (centred(sae, x) > sae.threshold),
    "relu": lambda sae, x: uncentred(sae, x, 0.0),
    "jumprelu": lambda sae, x: uncentred(sae, x, sae.log_threshold.exp()),
    "gated": gated,
}


@torch.no_grad()
def random_weights(name: str) -> SAE:
    """An SAE whose every parameter and threshold is random."""
    sae, generator = build(SMALL[name], D), torch.Generator().manual_seed(3)
    for tensor in sae.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
    if name in ("batchtopk", "matryoshka"):
        sae.get_buffer("threshold").fill_(0.7)
    return sae.eval()


@pytest.mark.parametrize("name", DEFINITIONS)
@torch.no_grad()
def test_latents_and_reconstruction_are_those_of_the_definition(name: str):
    sae = random_weights(name)
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(4))
    exact: Any = copy.deepcopy(sae).double()
    expected = DEFINITIONS[name](exact, x.double())
    code = sae.encode(x)
    assert 0 < code.l0().float().mean() < sae.d_sae
    assert torch.equal(code.dense() != 0, expected != 0)
    for ours, theirs in (
        (code.dense(), expected),
        (sae.decode(code), expected @ exact.W_dec + exact.b_dec),
    ):
        assert (ours.double() - theirs).abs().max() <= TOLERANCE * theirs.abs().max()
