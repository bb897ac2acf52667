"""top-AFA: the choice of k by norms, against brute force, and the term that pulls the code's norm."""

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError
from sae.architectures import TopAFA, TopAFAConfig, build
from sae.architectures.topafa import nearest_norm, row_norms
from sae.config import TrainConfig
from sae.training.trainer import Trainer
from tests.sae.codes import from_dense

D = 8
NONE_DEAD = torch.zeros(D, dtype=torch.bool)


def orthonormal(afa_weight: float = 1 / 16, norms: torch.Tensor | None = None) -> TopAFA:
    """An SAE whose latents are the coordinates; decoder rows may be given other norms."""
    sae = build(TopAFAConfig(d_sae=D, afa_weight=afa_weight), D)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D))
        sae.W_dec.copy_(torch.eye(D) * (1.0 if norms is None else norms[:, None]))
    return sae.eval()


def sparse_rows(n: int, most: int, seed: int = 0, d: int = D) -> torch.Tensor:
    """Rows [n, d] with 1 to `most` coordinates of U(0.5, 1.5), the others 0."""
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randint(1, most + 1, (n, 1), generator=generator)
    on = torch.rand(n, d, generator=generator).argsort(1).argsort(1) < wanted
    return on * (torch.rand(n, d, generator=generator) + 0.5)


def brute_force(values: torch.Tensor, norm: torch.Tensor) -> list[set[int]]:
    """The authors' rule, a row at a time: sort, cumulate squares, put the sentinel last, take the nearest."""
    kept = []
    for row, target in zip(values.double(), norm.double(), strict=True):
        order = row.argsort(descending=True)
        squares = row[order].square().cumsum(0)
        squares[-1] = 1e8
        kept.append(set(order[: int((squares.sqrt() - target).abs().argmin()) + 1].tolist()))
    return kept


def sets(pattern) -> list[set[int]]:
    return [set(row.tolist()) for row in pattern.indices.tensor_split(pattern.offsets[1:-1])]


@pytest.mark.parametrize(("width", "size"), [(10, 0.1), (10, 1.0), (10, 3.0), (1500, 5.0), (3000, 35.0)])
def test_the_choice_is_that_of_the_authors_rule(width: int, size: float):
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(60, width, generator=generator, dtype=torch.float64) - 0.1).relu()
    norm = size * torch.rand(60, generator=generator)
    assert sets(nearest_norm(values, norm)) == brute_force(values, norm)


def test_k_is_at_least_one_and_never_all():
    values = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
    pattern = nearest_norm(values, torch.tensor([0.0, 1e6, 1.0]))
    assert pattern.offsets.diff().tolist() == [1, 2, 1]


def test_over_an_orthonormal_dictionary_it_finds_how_many_features_are_on():
    x = sparse_rows(200, most=7)
    assert torch.equal(orthonormal().encode(x).l0(), (x != 0).sum(1))
    assert_close(orthonormal()(x), x)
    assert orthonormal().encode(torch.ones(1, D)).l0() == D - 1


def test_scaling_input_and_code_together_keeps_the_choice_and_scaling_the_decoder_does_not():
    x = sparse_rows(50, most=7)
    plain = orthonormal().encode(x)
    assert torch.equal(orthonormal().encode(1000 * x).indices, plain.indices)
    doubled = orthonormal(norms=torch.full((D,), 2.0)).encode(x)
    assert (doubled.l0() < plain.l0()).any()
    assert (doubled.l0() <= plain.l0()).all()


def test_latents_are_ranked_by_what_they_write_and_kept_at_what_they_are():
    sae = orthonormal(norms=torch.tensor([1.0, 9.0] + [1.0] * 6))
    code = sae.encode(torch.tensor([[2.0, 0.5, 0, 0, 0, 0, 0, 0]]))
    assert (code.indices.tolist(), code.values.tolist()) == ([1], [0.5])


def test_no_gradient_passes_through_the_choice():
    """With the choice held fixed, gradients are those of the kept values alone: row norms get none."""
    sae, x = orthonormal(), sparse_rows(20, most=7)
    code = sae.encode(x)
    code.values.sum().backward()
    assert sae.W_dec.grad is None
    assert_close(sae.b_dec.grad, -(code.dense() != 0).float().sum(0))


def test_the_afa_term_is_its_formula_blind_to_units():
    sae, x = orthonormal(afa_weight=0.25), sparse_rows(40, most=8)
    with torch.no_grad():
        sae.b_dec.fill_(0.3)  # the term's |x| keeps it
    loss = sae.loss(x, x, NONE_DEAD)
    gap = sae.encode(x).dense().norm(dim=1) - x.norm(dim=1)
    expected = gap.square().mean() / x.square().sum(1).mean()
    assert_close(loss.terms["afa"], expected)
    assert_close(loss.total, loss.terms["fvu"] + 0.25 * D * expected)
    sae.fold_input_scale(1 / 100)
    assert_close(sae.loss(100 * x, 100 * x, NONE_DEAD).total, loss.total, rtol=1e-4, atol=0)


def test_at_unit_mean_square_the_term_is_the_authors():
    sae, x = orthonormal(afa_weight=1.0), sparse_rows(40, most=8)
    x = x / x.square().mean().sqrt()
    loss = sae.loss(x, x, NONE_DEAD)
    gap = sae.encode(x).dense().norm(dim=1) - x.norm(dim=1)
    assert_close(loss.total - loss.terms["fvu"], gap.square().mean())


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_the_afa_term_pulls_the_norm_of_the_code_to_that_of_the_input(size: float):
    sae, x = orthonormal(), sparse_rows(40, most=6)
    with torch.no_grad():
        sae.W_enc.mul_(size)
    code = sae.encode(x)
    (row_norms(code) - x.norm(dim=1)).square().mean().backward()
    with torch.no_grad():
        sae.W_enc.sub_(0.1 * sae.W_enc.grad)
    before, after = row_norms(code), row_norms(sae.encode(x))
    assert (after > before).all() if size < 1 else after.sum() < before.sum()


def test_the_norm_of_an_empty_or_zero_row_is_zero_with_gradient_zero():
    code = from_dense(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]]))
    values = code.values.clone().requires_grad_()
    norms = row_norms(code._replace(values=values))
    assert_close(norms, torch.tensor([5.0, 0.0, 2.0]))
    norms.sum().backward()
    assert_close(values.grad, torch.tensor([0.6, 0.8, 1.0]))
    zero = torch.zeros(1, requires_grad=True)
    kept_at_zero = code._replace(values=zero, indices=torch.tensor([0]), offsets=torch.tensor([0, 1]))
    row_norms(kept_at_zero).sum().backward()
    assert zero.grad == 0


def test_training_leaves_the_bias_at_zero_and_finds_how_many_features_are_on():
    """The orthonormal toy, shortened: L0 follows the number of features that are on."""
    d = 16
    turn = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(3))).Q
    settings = TrainConfig(steps=600, batch=64, lr=1e-2, dead_after_tokens=10**9, warmup_steps=0)
    trainer = Trainer(build(TopAFAConfig(d_sae=d, afa_weight=0.0), d), settings)
    for step in range(600):
        x = sparse_rows(64, most=4, seed=step, d=d) @ turn
        trainer.train_step(x, x)
    truth = sparse_rows(2000, most=4, seed=10**6, d=d)
    sae = trainer.sae.eval()
    l0, s = sae.encode(truth @ turn).l0().float(), (truth != 0).sum(1).float()
    assert torch.corrcoef(torch.stack([l0, s]))[0, 1] > 0.7 * 0.955
    assert abs(l0.mean() - s.mean()) < 0.3 * s.mean()
    assert torch.equal(sae.b_enc, torch.zeros(d))


def test_far_from_the_origin_a_code_does_not_shrink_to_one_latent():
    """There |x| and |x - b_dec| differ, and the term asks for a longer code than the choice does."""
    d, generator = 16, torch.Generator().manual_seed(0)
    offset = torch.full((d,), 0.6)
    settings = TrainConfig(steps=300, batch=256, lr=3e-3, dead_after_tokens=10**9, warmup_steps=0)
    sae = build(TopAFAConfig(d_sae=48), d)
    sae.initialise(sparse_rows(2000, 4, d=d) + offset, offset, generator)
    trainer = Trainer(sae, settings)
    for step in range(300):
        x = sparse_rows(256, 4, seed=step, d=d) + offset
        trainer.train_step(x, x)
    x = sparse_rows(1000, 4, seed=10**6, d=d) + offset
    terms = sae.loss(x, x, torch.zeros(48, dtype=torch.bool)).terms
    assert terms["l0"] > 4
    assert terms["fvu"] < 0.45


def test_there_is_no_bias_to_train():
    sae = orthonormal()
    assert {name for name, _ in sae.named_parameters()} == {"W_enc", "W_dec", "b_dec"}
    assert sae.encoder_cost().parameters == D * D


def test_settings_out_of_range_are_named():
    with pytest.raises(ConfigError, match="d_sae = 1"):
        TopAFAConfig(d_sae=1)
    with pytest.raises(ConfigError, match="afa_weight = -1"):
        TopAFAConfig(afa_weight=-1)
