"""What training starts from: an error of at most the mean's, and reconstructions that are not too large, for every method."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from sae import chance
from sae.architectures import SAE, ArchConfig, GBAConfig, KronConfig, TopKConfig, build
from sae.architectures.shared import gain, geometric_median
from sae.chance import Purpose
from sae.evaluation.synthetic import Gaussian, Independent
from sae.losses import fvu
from tests.sae.small import architectures, every_architecture

D, F, K = 64, 256, 4


def rows(n: int = 2000) -> Tensor:
    """Rows with a mean, of uneven variance, at unit mean square per dimension as the trainer scales them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, D, generator=generator) * torch.linspace(1.5, 0.5, D) + torch.randn(
        D, generator=generator
    )
    return x * (x.numel() / x.square().sum()) ** 0.5


def wide(cfg: ArchConfig) -> ArchConfig:
    """Return the method's configuration with a dictionary wider than its input."""
    own = {name: K for name in ("k", "l0") if getattr(cfg, name, None)}
    return dataclasses.replace(cfg, d_sae=F, **own)


def started(cfg: ArchConfig, x: Tensor) -> SAE:
    sae = build(cfg, D)
    sae.initialise(x, geometric_median(x), torch.Generator().manual_seed(0))
    return sae


@torch.no_grad()
def first(sae: SAE, x: Tensor) -> tuple[float, float]:
    """FVU of a first batch, and by which factor its reconstructions would have to be multiplied to be best."""
    x_hat = sae.decode(sae.training_code(x))
    wanted, size = x - sae.b_dec, x_hat - sae.b_dec
    return fvu(x, x_hat).item(), ((wanted * size).sum() / size.square().sum()).item()


def too_large(sae: SAE, x: Tensor) -> bool:
    error, factor = first(sae, x)
    return error > 1 or factor < 0.7


@every_architecture
def test_training_starts_from_reconstructions_that_are_not_too_large_unless_the_method_says_so(cfg):
    x = rows()
    assert too_large(started(wide(cfg), x), x[:512]) is not build(cfg, 8).start_is_small


def test_gba_from_biases_of_zero_says_that_it_starts_large():
    x = rows()
    sae = started(GBAConfig(d_sae=1024, start="zero"), x)
    assert not sae.start_is_small
    assert first(sae, x[:512])[0] > 1


@architectures("k", "aux_weight")
def test_a_gain_left_in_a_choice_by_rank_is_too_large(cfg):
    """openai/sparse_autoencoder's start, and KronSAE's here until version 0.1.0."""
    x = rows()
    sae = started(wide(cfg), x)
    reads = [p for name, p in sae.named_parameters() if name in ("W_enc", "P", "Q")]
    size = gain(sae, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weights in reads:
            weights.div_(size)
    assert reads
    assert too_large(sae, x[:512])


@pytest.mark.parametrize(("m", "n"), [(2, 4), (4, 4), (1, 2)])
def test_kron_s_factors_start_with_the_paper_s_variance(m: int, n: int):
    """Appendix H: N(0, 1) / sqrt(2 F), whatever the gain is, so columns of norm sqrt(D / 2 F)."""
    sae = build(KronConfig(d_sae=512, m=m, n=n, k=K), D)
    for factor in (sae.P, sae.Q):
        assert factor.std().item() == pytest.approx((2 * 512) ** -0.5, rel=0.05)
        assert factor.norm(dim=0).mean().item() == pytest.approx((D / 1024) ** 0.5, rel=0.05)


def test_the_demo_s_method_starts_at_its_own_scale():
    assert build(TopKConfig(d_sae=F, k=K), D).W_enc.norm(dim=0).mean().item() == pytest.approx(
        3**-0.5, rel=0.02
    )


@every_architecture
def test_random_directions_of_controls_are_none_of_those_that_training_starts_from(cfg):
    """Both are drawn from seed 0: the same numbers would make a cosine of 1, or of -.35 where rows start as uniform numbers."""
    rows_of = torch.nn.functional.normalize(started(wide(cfg), rows()).W_dec.detach(), dim=1)
    cosines = rows_of @ chance.directions(F, D, seed=0).T
    assert (
        cosines.diagonal().mean().abs() < 5 / (F * D) ** 0.5
    )  # 5 standard errors of a mean of independent ones


@every_architecture
def test_planted_features_are_none_of_those_that_training_starts_from(cfg):
    """So seeds of a world and of a training may be equal, as they are by default."""
    rows_of = torch.nn.functional.normalize(started(wide(cfg), rows()).W_dec.detach(), dim=1)
    for world in (Independent(d_model=D, n_features=F), Gaussian(d_model=D, n_features=F)):
        features = torch.nn.functional.normalize(world.features, dim=1)
        assert (rows_of * features).sum(1).mean().abs() < 5 / (F * D) ** 0.5


def test_no_two_purposes_share_a_generator_for_seeds_within_a_hundred_million_of_each_other():
    """Modulo 2^32, at which torch's generator on the CPU looks; 0 is what training draws from."""
    places = sorted(purpose % 2**32 for purpose in [0, *Purpose])
    round_ = [*places, places[0] + 2**32]
    assert min(after - before for before, after in itertools.pairwise(round_)) >= 10**8
