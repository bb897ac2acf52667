"""MFR: peers pulled together through matched rows only; the first of them is the SAE in use."""

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError
from sae.architectures import MFR, MFRConfig, build
from sae.architectures.mfr import mean_agreement
from sae.config import TrainConfig
from sae.losses import fvu, matched_mean
from sae.training.trainer import Trainer

D, F = 6, 12
NONE_DEAD = torch.zeros(F, dtype=torch.bool)


def rows(n: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def units(n: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(rows(n, seed), dim=1)


def made(**changes) -> MFR:
    return build(MFRConfig(**{"d_sae": F, "k": 3, **changes}), D, seed=1)


def trained(sae: MFR, steps: int = 10) -> MFR:
    # a gradient clipped as a whole would tie peers together
    settings = TrainConfig(
        steps=steps, batch=64, lr=1e-2, warmup_steps=0, dead_after_tokens=10**9, clip_norm=1e9
    )
    trainer = Trainer(sae, settings)
    for step in range(steps):
        trainer.train_step(rows(seed=step), rows(seed=step))
    return sae


def test_matched_agreement_is_one_for_permuted_copies_and_never_above_the_best_cosines():
    a, b = units(F, 1), units(F, 2)
    assert_close(matched_mean(a @ a[torch.randperm(F)].T), torch.tensor(1.0))
    assert matched_mean(a @ b.T) <= (a @ b.T).max(1).values.mean()
    assert_close(matched_mean(a @ b.T), matched_mean(b @ a.T))
    flipped = a.clone()
    flipped[0] *= -1
    assert matched_mean(a @ flipped.T) < 1 - 1 / F


def test_matched_agreement_is_the_best_over_all_permutations():
    import itertools

    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    best = max(sum(scores[i, p[i]] for i in range(5)) for p in itertools.permutations(range(5)))
    assert_close(matched_mean(scores), best / 5)


def test_rows_without_a_partner_count_zero():
    assert_close(matched_mean(torch.tensor([[1.0], [0.5], [0.2]])), torch.tensor(1 / 3))


def test_the_gradient_of_agreement_reaches_both_peers_through_matched_entries_only():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    matched_mean(scores).backward()
    assert (scores.grad != 0).sum(0).tolist() == [1] * 5
    assert (scores.grad != 0).sum(1).tolist() == [1] * 5
    peers = torch.stack([units(F, 1), units(F, 2)]).requires_grad_()
    mean_agreement(peers).backward()
    assert (peers.grad.abs().sum(2) > 0).all()


def test_agreement_is_the_mean_over_all_pairs():
    peers = torch.stack([units(F, seed) for seed in range(3)])
    pairs = [matched_mean(peers[i] @ peers[j].T) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert_close(mean_agreement(peers), sum(pairs) / 3)


def test_the_penalty_warms_as_half_a_cosine():
    sae = made()
    warmth = []
    for step in (0, 25, 50, 100, 5000):
        sae.begin_step(step, 10_000)
        warmth.append(sae.warmth)
    assert warmth == pytest.approx([0, 0.5 - 0.5**1.5, 0.5, 1, 1])


def test_the_loss_is_the_peers_errors_and_the_warm_penalty():
    sae, x = made(penalty_weight=0.7), rows()
    sae.warmth = 0.25
    loss = sae.loss(x, x, NONE_DEAD)
    alone = [sae.member(i).loss(x, x, NONE_DEAD).terms for i in range(2)]
    assert_close(loss.terms["fvu_others"], alone[1]["fvu"])
    expected = alone[0]["fvu"] + alone[1]["fvu"] + 0.7 * 0.25 * (1 - loss.terms["agreement"])
    assert_close(loss.total.detach(), expected)


def test_without_a_penalty_a_peer_trains_as_if_alone_bit_for_bit():
    ours, other = made(penalty_weight=0.0), made(penalty_weight=0.0)
    with torch.no_grad():
        other.weights[1].copy_(rows(F, 77))
    assert torch.equal(trained(ours).weights[0], trained(other).weights[0])


def test_with_a_penalty_peers_come_to_agree_more_than_without():
    def agreement(weight: float) -> float:
        sae = trained(made(penalty_weight=weight, penalty_warmup_steps=10), steps=80)
        return sae.loss(rows(), rows(), NONE_DEAD).terms["agreement"].item()

    assert agreement(1.0) > agreement(0.0) + 0.1


def test_negative_values_are_kept_and_equals_at_the_last_place_too():
    sae = made()
    with torch.no_grad():
        sae.biases.fill_(-100.0)
    values = sae.encode(rows()).values
    assert len(values) == 3 * 64
    assert (values < 0).all()
    with torch.no_grad():
        sae.biases[0] = torch.arange(F) // 4 - 100.0
        sae.weights[0].zero_()
    assert sae.encode(rows()).l0().tolist() == [4] * 64  # k = 3 of four that are equal


def test_lengths_of_rows_matter_to_the_encoder_and_not_to_the_decoder():
    sae, x = made(), rows()
    before = sae(x)
    with torch.no_grad():
        sae.weights.mul_(3)
    sae.refresh()
    assert_close(sae(x) - sae.b_dec, 3 * (before - sae.b_dec))
    assert_close(sae.loss(x, x, NONE_DEAD).terms["fvu"], fvu(x, sae(x)).detach())


def test_decoder_rows_are_the_first_peers_rows_at_unit_norm_after_every_step():
    sae = trained(made(), steps=3)
    assert_close(sae.W_dec, torch.nn.functional.normalize(sae.weights[0].detach(), dim=1))
    assert_close(sae.encoder_directions() / sae.weights[0].norm(dim=1, keepdim=True), sae.W_dec)
    assert torch.equal(sae.encoder_bias(), sae.biases[0])


def test_a_member_is_the_peer_as_an_sae_of_its_own():
    sae = trained(made(peers=3))
    second, x = sae.member(2), rows()
    assert torch.equal(second.weights[0], sae.weights[2])
    u = (x - sae.b_dec) @ sae.weights[2].T + sae.biases[2]
    kept = u * (u >= u.topk(3, dim=1).values[:, -1:])
    assert_close(second.encode(x).dense(), kept.detach())
    assert torch.equal(sae.member(0)(x), sae(x))
    with torch.no_grad():
        second.weights.zero_()
    assert sae.weights[2].abs().sum() > 0
    with pytest.raises(ConfigError, match="member 3.*0 to 2"):
        sae.member(3)


def test_peers_begin_as_different_orthogonal_matrices():
    first, second = made().weights.detach()
    assert_close(first.T @ first, torch.eye(D), atol=1e-5, rtol=0)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"peers": 1}, "peers = 1"),
        ({"penalty_weight": -1.0}, "penalty_weight"),
        ({"penalty_warmup_steps": 0}, "penalty_warmup_steps = 0"),
    ],
)
def test_settings_out_of_range_are_named(setting, words):
    with pytest.raises(ConfigError, match=words):
        MFRConfig(**setting)
