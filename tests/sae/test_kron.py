"""KronSAE: the latents are exactly the ANDs of their factors, and gradients those of a dense expansion."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from activations.errors import ConfigError
from sae.architectures import KronConfig, KronSAE, TopKConfig, build
from sae.architectures.kron import mand
from sae.config import TrainConfig
from sae.training.trainer import Trainer

D, HEADS, M, N = 6, 3, 2, 4
F = HEADS * M * N
NONE_DEAD = torch.zeros(F, dtype=torch.bool)


def made(k: int = F, seed: int = 0, **settings) -> KronSAE:
    """An SAE with biases, in float64."""
    sae = build(KronConfig(d_sae=F, k=k, m=M, n=N, **settings), D, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for bias in (sae.b_P, sae.b_Q, sae.b_dec):
            bias.copy_(0.05 * torch.randn(bias.shape, generator=generator))
    return sae


def rows(n: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)).double()


def squares_one_at_a_time(sae: KronSAE, x: torch.Tensor) -> torch.Tensor:
    """The square of every latent by its definition, in a triple loop."""
    squares = torch.zeros(len(x), F, dtype=torch.float64)
    for head in range(HEADS):
        for i in range(M):
            for j in range(N):
                u = (x - sae.b_dec) @ sae.P[:, head * M + i] + sae.b_P[head * M + i]
                v = (x - sae.b_dec) @ sae.Q[:, head * N + j] + sae.b_Q[head * N + j]
                squares[:, (head * M + i) * N + j] = u.relu() * v.relu()
    return squares


def test_every_latent_is_the_geometric_mean_of_its_two_factors():
    sae, x = made(), rows()
    expected = squares_one_at_a_time(sae, x).sqrt()
    assert 0.1 < (expected > 0).double().mean() < 0.5
    for ours in (sae.ands(x).dense(), sae.encode(x).dense(), sae.activations_of(x, torch.arange(F))):
        assert_close(ours, expected, rtol=0, atol=1e-12)
    chosen = torch.tensor([5, 17, 5 + N])
    assert_close(sae.activations_of(x, chosen), expected[:, chosen], rtol=0, atol=1e-12)


def test_a_head_s_latents_are_the_kronecker_product_of_its_factors():
    sae, x = made(), rows(1)
    ands = sae.ands(x)
    p, q = ands.u.dense.relu()[0].view(HEADS, M), ands.v.dense.relu()[0].view(HEADS, N)
    product = torch.cat([torch.kron(p[head], q[head]) for head in range(HEADS)])
    assert_close(ands.dense()[0].square(), product)


def test_squares_of_a_head_have_rank_one():
    blocks = made().ands(rows()).dense().square().view(-1, M, N)
    singular = torch.linalg.svdvals(blocks)
    assert singular[:, 0].max() > 0.1
    assert singular[:, 1].max() < 1e-12


def test_latents_are_homogeneous_of_degree_one():
    sae, x = made(), rows()
    with torch.no_grad():
        for factor in (sae.b_P, sae.b_Q, sae.b_dec):
            factor.zero_()
    assert_close(sae.encode(3 * x).dense(), 3 * sae.encode(x).dense())


def test_exchanging_the_two_groups_transposes_the_latents():
    sae, x = made(), rows()
    turned = build(KronConfig(d_sae=F, k=F, m=N, n=M), D).double()
    with torch.no_grad():
        for ours, theirs in (
            (turned.P, sae.Q),
            (turned.Q, sae.P),
            (turned.b_P, sae.b_Q),
            (turned.b_Q, sae.b_P),
        ):
            ours.copy_(theirs)
        turned.b_dec.copy_(sae.b_dec)
    latents = sae.ands(x).dense().view(-1, HEADS, M, N)
    assert_close(turned.ands(x).dense().view(-1, HEADS, N, M), latents.transpose(2, 3))


@pytest.mark.parametrize(("bias", "silenced"), [("b_P", N), ("b_Q", M)])
def test_shutting_a_factor_off_silences_its_own_latents_and_no_others(bias: str, silenced: int):
    sae, x = made(), rows()
    before = sae.ands(x).dense()
    with torch.no_grad():
        getattr(sae, bias)[3] = -1e3
    after = sae.ands(x).dense()
    off = (after == 0).all(0)
    assert off.sum() == silenced
    assert (before[:, off] > 0).any()
    assert torch.equal(before[:, ~off], after[:, ~off])


def test_mand_has_half_the_root_of_the_ratio_as_gradient_and_zero_where_it_is_off():
    u = torch.tensor([2.0, 0.0, 1.0, 0.0, -1.0, 1.0, 1e-30], requires_grad=True)
    v = torch.tensor([8.0, 1.0, 0.0, 0.0, 1.0, -1.0, 1e-30], requires_grad=True)
    z = mand(u, v)
    assert_close(z, torch.tensor([4.0, 0, 0, 0, 0, 0, 1e-30]))
    z.sum().backward()
    assert_close(u.grad, torch.tensor([1.0, 0, 0, 0, 0, 0, 0.5]))
    assert_close(v.grad, torch.tensor([0.25, 0, 0, 0, 0, 0, 0.5]))


def test_mand_passes_a_numerical_gradient_check():
    positive = torch.rand(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    assert gradcheck(mand, tuple(positive.requires_grad_()))


@pytest.mark.parametrize("select", ["topk", "batchtopk"])
def test_the_sparse_gradient_is_that_of_the_dense_expansion(select):
    """Latents of one head share factors: a factor selected twice in a row gets both gradients."""
    sae, twin, x = made(k=4, select=select), made(k=4, select=select), rows()
    code = sae.training_code(x)
    shared = torch.zeros(len(x), HEADS * M).index_put(
        (code.rows(), code.indices // N), (code.values.detach() != 0).float(), accumulate=True
    )
    assert shared.max() > 1
    upstream = torch.randn(len(x), F, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (code.dense() * upstream).sum().backward()
    on = code.dense() != 0
    squares_one_at_a_time(twin, x)[on].sqrt().mul(upstream[on]).sum().backward()
    for name in ("P", "Q", "b_P", "b_Q", "b_dec"):
        expected = twin.get_parameter(name).grad
        assert expected.norm() > 0
        assert_close(sae.get_parameter(name).grad, expected, msg=name)


def test_no_tensor_of_all_latents_is_kept_for_backward():
    sae, x = build(KronConfig(d_sae=4096, k=4), D), rows(64).float()
    largest = 0

    def note(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        sae.loss(x, x, torch.zeros(4096, dtype=torch.bool))
    assert 0 < largest <= 4096 * D  # the decoder is; 64 * 4096 latents are not


def test_no_more_than_k_latents_fire_and_none_is_filled_in():
    sae, x = made(k=9), rows(200)
    on = (sae.ands(x).dense() > 0).sum(1)
    assert torch.equal(sae.encode(x).l0(), on.clamp_max(9))
    assert (on < 9).any() and (on > 9).any()
    assert sae.encode(x).dense().min() == 0


def test_decoder_rows_start_as_unit_vectors_along_the_sum_of_their_factors():
    sae = build(KronConfig(d_sae=F, k=3, m=M, n=N), D, seed=3)
    for head in range(HEADS):
        for i in range(M):
            for j in range(N):
                along = sae.P[:, head * M + i] + sae.Q[:, head * N + j]
                assert_close(sae.W_dec[(head * M + i) * N + j], along / along.norm())


@pytest.mark.parametrize(("m", "n", "ratio"), [(2, 2, 1.0), (2, 4, 0.75), (4, 4, 0.5), (4, 8, 0.375)])
def test_the_encoder_s_cost_is_its_formula_and_falls_with_the_size_of_heads(m: int, n: int, ratio: float):
    d, f = 24, 128
    kron, dense = build(KronConfig(d_sae=f, m=m, n=n), d), build(TopKConfig(d_sae=f), d)
    heads = f // (m * n)
    assert kron.encoder_cost() == (d * heads * (m + n) + heads * (m + n), 2 * (d * heads * (m + n) + f))
    assert dense.encoder_cost() == (d * f + f, 2 * d * f)
    assert kron.encoder_cost().parameters == ratio * dense.encoder_cost().parameters
    assert kron.W_dec.numel() == f * d


def test_auxk_moves_the_factors_of_dead_latents():
    sae, x = made(k=2, aux_weight=1.0), rows()
    dead = ~sae.training_code(x).fired()
    dead[:4] = True
    loss = sae.loss(x, x, dead)
    assert loss.terms["auxk"] > 0
    loss.total.backward()
    assert sae.P.grad[:, 0].norm() > 0 and sae.Q.grad[:, 0].norm() > 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in sae.parameters())


def test_with_batchtopk_a_batch_keeps_k_times_its_rows_and_use_follows_a_threshold():
    settings = TrainConfig(steps=150, batch=256, lr=3e-3, dead_after_tokens=10**9, warmup_steps=0)
    cfg = KronConfig(d_sae=F, k=2, m=M, n=N, select="batchtopk", threshold_rate=0.05)
    trainer = Trainer(build(cfg, D), settings, scale=5.0)
    for step in range(150):
        x = rows(256, seed=step).float()
        trainer.train_step(x, x)
    sae, x = trainer.sae.eval(), rows(4000, seed=10**6).float()
    assert sae.training_code(x[:50]).l0().sum() == 100
    assert abs(sae.encode(5 * x).l0().float().mean() - 2) < 0.2
    assert sae.encode(5 * x).values.min() > sae.threshold * (1 - 1e-5) > 0
    expected = sae(5 * x) / 5
    sae.fold_input_scale(5.0)
    assert_close(sae(x), expected, rtol=1e-4, atol=1e-5)


def test_widths_that_heads_do_not_divide_are_named_with_the_nearest_that_they_do():
    with pytest.raises(ConfigError, match=r"d_sae = 100 .* m \* n = 8.* 96 or 104"):
        KronConfig(d_sae=100)
    with pytest.raises(ConfigError, match="d_sae = 5 .* would be 8$"):
        KronConfig(d_sae=5, k=2)
    with pytest.raises(ConfigError, match="m = 0"):
        KronConfig(m=0)
