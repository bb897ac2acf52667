"""BatchTopK: the batch rule in training, the threshold in use."""

import torch
from torch.testing import assert_close

from sae.architectures import BatchTopK, BatchTopKConfig, TopKConfig, build
from sae.config import TrainConfig
from sae.training.trainer import Trainer

D, F = 8, 32
NONE_DEAD = torch.zeros(F, dtype=torch.bool)


def rows(n: int, seed: int) -> torch.Tensor:
    """Mixtures of 0 to 6 of 24 planted features: some rows need many latents, some none."""
    generator = torch.Generator().manual_seed(1)
    features = torch.nn.functional.normalize(torch.randn(24, D, generator=generator), dim=1)
    generator.manual_seed(seed)
    wanted = torch.randint(0, 7, (n, 1), generator=generator)
    on = torch.rand(n, 24, generator=generator).argsort(1).argsort(1) < wanted
    return (on * (torch.rand(n, 24, generator=generator) + 0.5)) @ features


def trainer(k: float = 3, steps: int = 400) -> Trainer:
    settings = TrainConfig(steps=steps, batch=256, lr=3e-3, dead_after_tokens=10**9, warmup_steps=10)
    made = Trainer(build(BatchTopKConfig(d_sae=F, k=k), D), settings)
    for step in range(steps):
        x = rows(256, seed=step)
        made.train_step(x, x)
    return made


def code_sizes(sae: BatchTopK, x: torch.Tensor) -> torch.Tensor:
    return sae.loss(x, x, NONE_DEAD).terms["l0"] * len(x)


def test_a_batch_keeps_exactly_k_times_its_rows_and_rounds_down():
    sae = build(BatchTopKConfig(d_sae=F, k=2.5), D)
    assert code_sizes(sae, rows(33, 0)) == 82


def test_a_batch_of_one_is_topk():
    batch, single = build(BatchTopKConfig(d_sae=F, k=4), D), build(TopKConfig(d_sae=F, k=4), D)
    batch.load_state_dict({**single.state_dict(), "threshold": torch.tensor(0.0)})
    x = rows(1, 5)
    assert torch.equal(batch.training_code(x).dense(), single.encode(x).dense())


def test_a_strong_row_takes_latents_from_others_in_training_but_not_in_use():
    sae = trainer(steps=50).sae.eval()
    x = rows(64, 3)
    strong = torch.cat([x, 100 * x[:1]])
    alone, beside = sae.loss(x, x, NONE_DEAD).terms["l0"] * 64, sae.loss(strong, strong, NONE_DEAD)
    assert beside.terms["l0"] * 65 == alone + 3
    assert torch.equal(sae.encode(strong).dense()[:64], sae.encode(x).dense())


def test_the_threshold_is_assigned_first_then_averaged_and_moves_in_training_only():
    sae = build(BatchTopKConfig(d_sae=F, k=3, threshold_rate=0.25), D).train()
    least = []
    for seed in (0, 1):
        x = rows(64, seed)
        u = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        least.append(u.detach().flatten().sort(descending=True).values[64 * 3 - 1])
        sae.loss(x, x, NONE_DEAD)
        if seed == 0:
            assert_close(sae.threshold, least[0])
    assert_close(sae.threshold, 0.75 * least[0] + 0.25 * least[1])
    before = sae.threshold.clone()
    sae.eval().loss(rows(64, 2), rows(64, 2), NONE_DEAD)
    assert torch.equal(sae.threshold, before)


def test_a_batch_without_a_positive_value_leaves_the_threshold():
    sae = build(BatchTopKConfig(d_sae=F, k=3), D).train()
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    sae.loss(rows(8, 0), rows(8, 0), NONE_DEAD)
    assert sae.threshold == 0


def test_in_use_as_many_latents_fire_as_in_training_within_a_tenth():
    sae = trainer().sae.eval()
    l0 = sae.encode(rows(20_000, 10**6)).l0().float()
    assert abs(l0.mean() - 3) < 0.3
    assert l0.std() > 1  # hard rows use more


def test_on_rows_of_varying_complexity_it_beats_a_fixed_k():
    settings = TrainConfig(steps=400, batch=256, lr=3e-3, dead_after_tokens=10**9, warmup_steps=10)
    fixed = Trainer(build(TopKConfig(d_sae=F, k=3), D), settings)
    for step in range(400):
        x = rows(256, seed=step)
        fixed.train_step(x, x)
    x = rows(20_000, 10**6)
    shared = trainer().sae.eval()
    spread = (x - x.mean(0)).square().sum()
    fvu_shared, fvu_fixed = ((sae(x) - x).square().sum() / spread for sae in (shared, fixed.sae))
    assert fvu_shared < 0.85 * fvu_fixed
