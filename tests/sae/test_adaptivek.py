"""AdaptiveK: the probe, the map from score to k, the stages; the right k for the right row."""

import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError
from sae.architectures import AdaptiveK, AdaptiveKConfig, TopKConfig, build
from sae.architectures.adaptivek import cross_validated, ridge
from sae.config import TrainConfig
from sae.training.trainer import Trainer

D, F = 32, 64
NONE_DEAD = torch.zeros(F, dtype=torch.bool)


def rows(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of 1 to 10 features of 64 that share a component; and how many there are, the label."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.nn.functional.normalize(torch.randn(1, D, generator=generator), dim=1)
    own = torch.nn.functional.normalize(torch.randn(64, D, generator=generator), dim=1)
    features = torch.nn.functional.normalize(own + 0.5 * shared, dim=1)
    generator.manual_seed(seed)
    count = torch.randint(1, 11, (n, 1), generator=generator)
    on = torch.rand(n, 64, generator=generator).argsort(1).argsort(1) < count
    return (on * (torch.rand(n, 64, generator=generator) * 0.4 + 0.8)) @ features, count[:, 0].float()


def config(**changes) -> AdaptiveKConfig:
    return AdaptiveKConfig(**{"d_sae": F, "k_min": 1, "k_max": 10, **changes})


def fitted(**changes) -> AdaptiveK:
    """With a probe of rows and labels that belong together."""
    sae = build(config(**changes), D, seed=3)
    sae.fit_labels(*rows(2000, 99))
    return sae


def test_scores_give_the_authors_numbers_of_latents():
    scores = torch.arange(11.0)
    for k_max, wanted in {
        320: {0: 34, 1: 45, 2: 63, 3: 89, 4: 126, 5: 170, 6: 214, 7: 251, 8: 277, 9: 295, 10: 306},
        480: {0: 42, 5: 250, 10: 458},
        640: {0: 49, 5: 330, 10: 611},
    }.items():
        k = build(AdaptiveKConfig(d_sae=700, k_min=20, k_max=k_max), 4).k_of(scores)
        assert {score: int(k[score]) for score in wanted} == wanted


def test_another_scale_of_labels_gives_the_same_numbers_of_latents():
    scores = torch.linspace(0, 10, 50)
    assert torch.equal(build(config(), D).k_of(scores), build(config(score_max=1.0), D).k_of(scores / 10))
    assert (build(config(), D).k_of(scores).diff() >= 0).all()


def test_each_row_keeps_its_own_number_of_largest_positive_latents():
    sae, (x, _) = fitted(), rows(200, 5)
    k = sae.k_of(sae.score(x))
    assert len(k.unique()) > 4
    u = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    dense, l0 = sae.encode(x).dense(), sae.encode(x).l0()
    assert torch.equal(l0, torch.minimum(k, (u > 0).sum(1)))
    assert (l0 == k).any()
    for row, kept, n in zip(u, dense, k.tolist(), strict=True):
        assert_close(kept, torch.where(row >= row.sort(descending=True).values[n - 1], row, 0.0))


def test_a_row_is_encoded_alike_alone_and_in_a_batch_with_a_probe_too():
    sae, (x, _) = fitted(), rows(64, 6)
    assert_close(sae.encode(x).dense(), torch.cat([sae.encode(row[None]).dense() for row in x]))


def test_with_room_for_all_latents_it_is_a_relu_sae():
    sae, (x, _) = fitted(k_min=F, k_max=F), rows(64, 7)
    assert_close(sae.encode(x).dense(), ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu())


def test_with_k_min_equal_to_k_max_it_is_topk():
    sae, topk = fitted(k_min=4, k_max=4, l1_weight=0.0), build(TopKConfig(d_sae=F, k=4), D, seed=3)
    sae.load_state_dict(topk.state_dict(), strict=False)
    x, _ = rows(64, 8)
    assert torch.equal(sae.encode(x).dense(), topk.encode(x).dense())
    assert_close(sae.loss(x, x, NONE_DEAD).total, topk.loss(x, x, NONE_DEAD).total)


def test_the_reconstruction_says_nothing_to_the_probe():
    sae, (x, _) = fitted(), rows(64, 9)
    sae.loss(x, x, NONE_DEAD).total.backward()
    assert sae.probe_w.grad is None
    assert sae.probe_b.grad is None
    assert sae.W_enc.grad.norm() > 0


def test_l1_is_the_mean_norm_of_codes_over_the_mean_norm_of_inputs():
    sae, (x, _) = fitted(l1_weight=0.5), rows(64, 9)
    loss = sae.loss(x, x, NONE_DEAD)
    assert_close(loss.terms["l1"], sae.encode(x).dense().sum(1).mean() / x.norm(dim=1).mean())
    assert_close(loss.total, loss.terms["fvu"] + 0.5 * loss.terms["l1"])


def test_labels_move_the_probe_within_the_scale_and_not_beyond():
    sae, (x, labels) = fitted(), rows(64, 9)
    sae.begin_step(99, 100)
    sae.label_loss(x, labels)[0].backward()
    assert sae.probe_w.grad.norm() > 0
    for outside in (100.0, -100.0):  # every score is cut off at an end
        sae = fitted(ridge_lambdas=(1e-9,))
        sae.penalty.zero_()
        sae.probe_b.data.fill_(outside)
        sae.probe_b_start.fill_(outside)
        sae.begin_step(99, 100)
        sae.label_loss(x, labels)[0].backward()
        assert sae.probe_w.grad.norm() == 0
        assert sae.probe_b.grad == 0


def test_rows_without_a_label_take_no_part():
    sae, (x, labels) = fitted(), rows(64, 9)
    sae.eval().begin_step(99, 100)
    some = labels.clone()
    some[::2] = torch.nan
    assert_close(sae.label_loss(x, some)[0], sae.label_loss(x[1::2], labels[1::2])[0])
    total, terms = sae.label_loss(x, torch.full((64,), torch.nan))
    assert total == 0
    assert terms == {}


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_ridge_solves_the_normal_equations(penalty: float):
    x, y = (part.double() for part in rows(300, 11))
    (w,), (b,) = ridge(x, y, [penalty])
    # the same as least squares with rows sqrt(penalty) * e_i, target 0, below the data
    below = np.sqrt(penalty) * np.eye(D, D + 1)
    system = np.vstack([np.hstack([x.numpy(), np.ones((300, 1))]), below])
    wanted = np.linalg.lstsq(system, np.concatenate([y.numpy(), np.zeros(D)]), rcond=None)[0]
    assert_close(torch.cat([w, b[None]]), torch.from_numpy(wanted), rtol=1e-9, atol=1e-9)


def test_cross_validation_takes_the_penalty_that_holds_on_other_documents():
    """40 documents in 60 dimensions: a probe can remember them all, so rows apart would ask for no penalty."""
    generator = torch.Generator().manual_seed(0)
    document = torch.randn(40, 60, generator=generator)
    label = document[:, 0] + torch.randn(40, generator=generator)
    x = document.repeat_interleave(20, 0) + 0.01 * torch.randn(800, 60, generator=generator)
    assert cross_validated(x, label.repeat_interleave(20), (1e-6, 1e3)) == 1e3


def test_the_probe_finds_labels_in_rows_and_nothing_in_shuffled_ones():
    x, labels = rows(2000, 12)
    right, wrong = fitted(), build(config(), D)
    x_train, labels_train = rows(2000, 99)
    wrong.fit_labels(x_train, labels_train[torch.randperm(2000, generator=torch.Generator().manual_seed(0))])
    unexplained = [(sae.score(x) - labels).square().mean() / labels.var() for sae in (right, wrong)]
    assert unexplained[0] < 0.1
    assert unexplained[1] > 0.95


def test_the_tie_loosens_when_the_probe_improves_and_tightens_when_not():
    for losses, wanted in {
        (1.0, 1.0, 0.9): 0.16,
        (1.0, 1.0, 1.0): 0.24,
        (1.0, 1.0, 0.96): 0.24,
        (1.0, 0.97, 0.94): 0.16,  # over two steps, not one
        (1.0, 1.0): 0.2,
        (1.0,) * 20: 0.5,
        tuple(0.9**n for n in range(30)): 0.01,
    }.items():
        sae = fitted()
        for loss in losses:
            sae._follow(torch.tensor(loss))
        assert_close(sae.delta, torch.tensor(wanted))


def test_the_deviation_starts_at_zero_with_no_gradient():
    sae, (x, labels) = fitted(), rows(64, 9)
    sae.begin_step(99, 100)
    sae.delta.fill_(1e6)
    total, terms = sae.eval().label_loss(x, labels)
    total.backward()
    assert terms["probe_deviation"] == 0
    assert sae.probe_w.grad.norm() < 1e3


def trained(sae: AdaptiveK, steps: int, scale: float = 1.0, labelled: bool = True, until: int | None = None):
    settings = TrainConfig(steps=steps, batch=128, lr=3e-3, dead_after_tokens=10**9, warmup_steps=5)
    trainer = Trainer(sae, settings, scale)
    terms = []
    for step in range(until or steps):
        x, labels = rows(128, step)
        terms.append(trainer.train_step(x, x, labels if labelled else None)[0].terms)
    return trainer, terms


def test_the_probe_rests_in_stage_2_and_learns_in_stage_3():
    sae = fitted(joint_share=0.25)
    before = sae.probe_w.detach().clone(), sae.probe_b.detach().clone()
    trainer, terms = trained(sae, 40, until=30)
    assert torch.equal(sae.probe_w, before[0])
    assert torch.equal(sae.probe_b, before[1])
    assert sae.delta == torch.tensor(0.2)
    assert all("probe_mse" in row and "probe_deviation" not in row for row in terms)
    x, labels = rows(128, 31)
    terms = trainer.train_step(x, x, labels)[0].terms
    assert "probe_deviation" in terms
    assert not torch.equal(sae.probe_w, before[0])
    assert sae.recent.isfinite().tolist() == [False, True]


def test_evaluating_the_label_loss_changes_nothing():
    sae = fitted().eval()
    sae.begin_step(99, 100)
    before = copy.deepcopy(sae.state_dict())
    sae.label_loss(*rows(64, 1))
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())


def test_probe_and_sae_are_clipped_apart():
    sae = fitted(joint_share=1.0, probe_weight=1e4)
    plain = build(config(), D, seed=3)
    plain.load_state_dict(sae.state_dict())
    both, _ = trained(sae, 10, until=1)
    alone, _ = trained(plain, 10, until=1, labelled=False)
    assert torch.equal(both.sae.W_enc, alone.sae.W_enc)
    assert not torch.equal(both.sae.probe_w, plain.probe_w)


def test_folding_the_input_scale_keeps_scores_and_numbers_of_latents():
    sae, scale, (x, _) = build(config(), D, seed=3), 7.3, rows(200, 5)
    train_x, labels = rows(2000, 99)
    sae.fit_labels(train_x * scale, labels)
    trained(sae, 20, scale)
    folded = copy.deepcopy(sae)
    folded.fold_input_scale(scale)
    assert_close(folded.score(x), sae.score(x * scale), rtol=1e-4, atol=1e-4)
    assert len(sae.encode(x * scale).l0().unique()) > 4
    assert_close(folded.encode(x).dense(), sae.encode(x * scale).dense() / scale, rtol=1e-4, atol=1e-5)


def test_shifting_inputs_shifts_the_output_when_the_probe_is_moved_along():
    sae, (x, _) = fitted(), rows(50, 4)
    shift = torch.linspace(-2, 2, D)
    moved = copy.deepcopy(sae)
    with torch.no_grad():
        moved.b_dec.add_(shift)
        moved.probe_b.sub_(shift @ sae.probe_w)
    assert_close(moved(x + shift), sae(x) + shift, rtol=1e-4, atol=1e-4)


def test_each_row_with_the_k_of_its_own_beats_one_k_for_all_and_the_ks_of_other_rows():
    """It would tie with the second if masks were not per row, with the third if scores and rows were mixed up."""
    pool, labels = rows(24_000, 0)
    extreme = (labels < 3) | (labels > 8)
    x, labels = pool[extreme][:9000], labels[extreme][:9000]
    fresh, batches = x[8000:], list(zip(x[:8000].split(125), labels[:8000].split(125), strict=True))

    def fvu(sae: AdaptiveK) -> float:
        cfg = TrainConfig(steps=200, batch=125, lr=1e-2, dead_after_tokens=10**9, warmup_steps=5)
        trainer = Trainer(sae, cfg)
        for step in range(200):
            x, labels = batches[step % len(batches)]
            trainer.train_step(x, x, labels)
        return sae.loss(fresh, fresh, NONE_DEAD).terms["fvu"].item()

    own, fixed, shuffled = fitted(), fitted(k_min=6, k_max=6), fitted()
    k_of = shuffled.k_of
    shuffled.k_of = lambda score: k_of(score).flip(0)
    found = fvu(own)
    assert found < 0.92 * fvu(fixed)
    assert found < 0.8 * fvu(shuffled)
    assert abs(own.encode(fresh).l0().float().mean() - 6) < 0.2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k_max": F + 1}, f"d_sae = {F}"),
        ({"k_min": 0}, "k_min = 0"),
        ({"k_min": 11}, "k_min = 11 must lie between 1 and k_max = 10"),
        ({"score_max": 0}, "score_max = 0"),
        ({"joint_share": 1.5}, "joint_share = 1.5"),
        ({"ridge_lambdas": ()}, "ridge_lambdas"),
        ({"ridge_lambdas": (1.0, 0.0)}, "ridge_lambdas"),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        config(**wrong)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.full((50,), torch.nan), "0 of the sampled rows have a label"),
        (torch.full((50,), 3.0), "1 different values"),
        (torch.linspace(0, 100, 50), "between 0 and 100, outside 0 to score_max = 10.*--arch.score-max"),
        (torch.linspace(-1, 5, 50), "between -1 and 5"),
    ],
)
def test_labels_it_cannot_learn_from_are_one_line(labels: torch.Tensor, says: str):
    with pytest.raises(ConfigError, match=says) as caught:
        build(config(), D).fit_labels(rows(50, 0)[0], labels)
    assert "\n" not in str(caught.value)
