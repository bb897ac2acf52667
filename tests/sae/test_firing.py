"""A latent's margin to firing agrees with `encode`, and adding what it lacks makes it fire."""

import pytest
import torch
from torch.testing import assert_close

from sae.architectures import (
    MFR,
    SAE,
    AbsTopKConfig,
    ArchConfig,
    Gated,
    KronConfig,
    KronSAE,
    TopAFA,
    TopKConfig,
    build,
)
from tests.sae.small import SMALL, D, F
from tests.sae.test_laws import rows, trained

ALL = torch.arange(F)
TIE = 1e-5  # margins smaller than this are ties up to rounding
CASES: dict[str, ArchConfig] = {
    **SMALL,
    "abstopk-batch": AbsTopKConfig(d_sae=F, k=3, per="batch"),
    "kron-batchtopk": KronConfig(d_sae=F, k=3, select="batchtopk"),
    "topk-whole": TopKConfig(d_sae=F, k=F),
    "abstopk-whole": AbsTopKConfig(d_sae=F, k=F),
}
every_case = pytest.mark.parametrize("cfg", CASES.values(), ids=CASES.keys())


@every_case
def test_the_margin_is_above_0_exactly_where_the_code_is_not_0(cfg):
    sae, x = trained(cfg)[0], rows(128, seed=99)
    margin = sae.firing(x, ALL).margin
    sure = margin.abs() > TIE
    assert sure.float().mean() > 0.9
    assert torch.equal((margin > 0)[sure], (sae.encode(x).dense() != 0)[sure])
    assert (margin > 0).float().mean() > 0


@every_case
def test_some_latents_are_judged_as_among_all(cfg):
    sae, x = trained(cfg)[0], rows(16, seed=99)
    whole, some = sae.firing(x, ALL), sae.firing(x, torch.tensor([5, 2]))
    for all_of_them, few in zip(whole, some, strict=True):
        assert torch.equal(all_of_them[:, [5, 2]], few)


@every_case
def test_the_margin_is_the_pre_activation_less_what_is_needed(cfg):
    sae, x = trained(cfg)[0], rows(16, seed=99)
    firing = sae.firing(x, ALL)
    level = firing.pre_activation.abs() if sae.signed else firing.pre_activation
    assert torch.equal(firing.margin, level - firing.needed)


def raise_bias(sae: SAE, latent: int, by: float) -> None:
    """Add to one latent's encoder bias, and to the bias of its magnitude where it is gated."""
    bias = sae.encoder_bias()
    assert bias is not None
    bias[latent] += by
    if isinstance(sae, Gated):
        sae.b_mag[latent] += by * sae.r_mag[latent].exp()


@every_case
def test_a_bias_raised_by_what_is_missing_makes_it_fire_and_by_a_little_less_does_not(cfg):
    sae = trained(cfg)[0].requires_grad_(False)
    if isinstance(sae, KronSAE):
        assert sae.encoder_bias() is None
        return
    if isinstance(sae, TopAFA):
        return  # how many a row keeps follows the latent: the margin is for as many as it keeps now
    x = rows(1, seed=99)
    found = sae.firing(x, ALL)
    silent = (found.margin[0] < -1e-3).nonzero()[:, 0].tolist()
    for latent in silent[:4]:
        sign = -1.0 if sae.signed and found.pre_activation[0, latent] < 0 else 1.0
        missing = -float(found.margin[0, latent])
        for share, fires in ((0.99, False), (1.01, True)):
            raise_bias(sae, latent, sign * share * missing)
            assert bool(sae.encode(x).dense()[0, latent] != 0) == fires
            raise_bias(sae, latent, -sign * share * missing)


@pytest.mark.parametrize("name", ["topk", "abstopk", "mfr"])
def test_what_is_needed_is_the_kth_largest_of_the_others(name):
    cfg = SMALL[name]
    sae, x = build(cfg, D, seed=1).double().requires_grad_(False), rows(20, seed=5).double()
    found = sae.firing(x, ALL)
    pre_activation = ((x - sae.b_dec) @ (sae.encoder_directions().T)) + sae.encoder_bias()
    assert_close(found.pre_activation, pre_activation)
    for b in range(20):
        for j in range(F):
            others = [float(v) for i, v in enumerate(pre_activation[b]) if i != j]
            others = sorted((abs(v) for v in others) if name == "abstopk" else others)
            floor = -torch.inf if isinstance(sae, MFR) else 0.0
            assert_close(float(found.needed[b, j]), max(floor, others[-cfg.k]))
