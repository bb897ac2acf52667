"""Planted causes of death are named, what-ifs come true when they are done, and numbers equal a brute force."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sae.architectures import (
    SAE,
    AbsTopKConfig,
    AdaptiveKConfig,
    BatchTopKConfig,
    GatedConfig,
    JumpReLU,
    JumpReLUConfig,
    MatryoshkaConfig,
    ReLUConfig,
    TopKConfig,
    build,
    name_of,
)
from sae.config import TrainConfig
from sae.diagnosis import what_if
from sae.diagnosis.causes import CAUSES, training_of
from sae.diagnosis.diagnose import Trained, examine
from sae.diagnosis.evidence import ranks
from sae.training.trainer import Trainer
from tests.sae import planted as world
from tests.sae.planted import (
    DUPLICATE,
    HIGH,
    LIVING,
    LOW_BIAS,
    NOISE,
    SPARE,
    SPECIAL,
    STRANGE,
    TINY,
    TRAINED,
    TURNED,
    WEAK,
    D,
    F,
    PlantedRows,
    diagnosed,
    planted,
)
from tests.sae.small import every_architecture

BY_RANK = [TopKConfig(d_sae=F, k=1), AdaptiveKConfig(d_sae=F, k_min=1, k_max=1)]
BY_THRESHOLD = [
    BatchTopKConfig(d_sae=F, k=1),
    MatryoshkaConfig(d_sae=F, k=1, prefixes=(0.5, 1.0)),
    JumpReLUConfig(d_sae=F),
]
UNSIGNED = pytest.mark.parametrize("cfg", [*BY_RANK, *BY_THRESHOLD], ids=name_of)


@UNSIGNED
def test_planted_causes_are_named(cfg):
    sae, _, summary, table = diagnosed(cfg)
    assert not any(table.get(latent, {"kind": ""})["kind"] == "dead" for latent in range(LIVING))
    cause = {latent: row["cause"] for latent, row in table.items() if row["kind"] == "dead"}
    assert cause[LOW_BIAS] == "bias too low"
    assert cause[TURNED] == "turned away from the mean"
    assert cause[TINY] == "encoder collapsed"
    assert cause[DUPLICATE] == "duplicate"
    assert table[DUPLICATE]["near_decoder"] == 5
    assert cause[WEAK] == ("outcompeted" if cfg in BY_RANK else "encoder short")
    if cfg in BY_THRESHOLD:
        assert cause[NOISE] == ("below its threshold" if isinstance(sae, JumpReLU) else "outcompeted")
    assert cause[SPECIAL] == "turned to special positions"
    assert cause[STRANGE] == "unexplained"
    if isinstance(sae, JumpReLU):
        assert cause[HIGH] == "threshold too high"
    assert summary.kinds["dead"] == len(cause) == sum(summary.dead_by.cause.values())


@UNSIGNED
def test_what_dead_latents_fire_on_is_told_apart_from_why_they_are_dead(cfg):
    *_, table = diagnosed(cfg)
    assert table[SPECIAL]["fires_on"] == "special positions only"
    assert table[STRANGE]["fires_on"] == "off-distribution only"
    assert table[LOW_BIAS]["fires_on"] == "nothing"
    assert table[SPECIAL]["fired_special"] == 5
    assert table[STRANGE]["fired_random"] == 7


def test_negative_latents_are_alive_and_causes_are_named_by_size():
    sae, rows, _, table = diagnosed(AbsTopKConfig(d_sae=F, k=1), signed=True)
    values = sae.encode(rows.x).dense()[:, 1]
    assert (values < 0).sum() > 20
    assert 1 not in table or table[1]["kind"] == "dense"
    for latent, cause in {TINY: "encoder collapsed", DUPLICATE: "duplicate", WEAK: "outcompeted"}.items():
        assert (table[latent]["kind"], table[latent]["cause"]) == ("dead", cause)
    turned = copy.deepcopy(sae)
    turned.W_enc[:, DUPLICATE] *= -1
    turned.W_dec[DUPLICATE] *= -1
    _, again = examine(turned, rows, {}, TRAINED)
    row = next(row for row in again if row["latent"] == DUPLICATE)
    assert (row["cause"], row["near_decoder"]) == ("duplicate", 5)
    assert row["margin"] == pytest.approx(table[DUPLICATE]["margin"], abs=1e-6)


@pytest.mark.parametrize("cfg", [ReLUConfig(d_sae=F), GatedConfig(d_sae=F)], ids=name_of)
def test_where_every_positive_latent_fires_the_bias_the_mean_and_the_norm_are_still_told_apart(cfg):
    *_, table = diagnosed(cfg)
    causes = {latent: table[latent]["cause"] for latent in (LOW_BIAS, TURNED, TINY)}
    assert list(causes.values()) == ["bias too low", "turned away from the mean", "encoder collapsed"]


def test_a_latent_of_which_nothing_is_wrong_is_unexplained_and_two_causes_are_both_told():
    *_, table = diagnosed(TopKConfig(d_sae=F, k=1))
    assert table[STRANGE]["also"] == []
    assert "outcompeted" in table[DUPLICATE]["also"]
    assert "Latent 5 fires in its place" in table[DUPLICATE]["evidence"]
    assert "AuxK gives it no gradient" in table[LOW_BIAS]["evidence"]
    assert all(row["cause"] in CAUSES for row in table.values() if row["kind"] == "dead")


@every_architecture
def test_every_architecture_is_examined_and_says_what_a_brute_force_says(cfg):
    sae, rows = build(replace(cfg, d_sae=F), D).requires_grad_(False), PlantedRows()
    summary, table = examine(sae, rows, world.strange(), TRAINED)
    code = sae.encode(rows.x).dense() != 0
    fired = code.sum(0)
    assert {r["latent"] for r in table if r["kind"] == "dead"} == set((fired == 0).nonzero()[:, 0].tolist())
    pre = sae.dense_pre_activations(rows.x)
    level = pre.abs() if sae.signed else pre
    margin = sae.firing(rows.x, torch.arange(F)).margin
    for row in table:
        j = row["latent"]
        assert row["fired_train"] == int(code[~rows.held_out, j].sum())
        assert row["fired_held_out"] == int(code[rows.held_out, j].sum())
        assert row["density"] == pytest.approx(float(code[:, j].float().mean()))
        if row["kind"] == "dense":
            continue
        assert row["margin"] == pytest.approx(float(margin[:, j].max()), abs=1e-5)
        assert row["positive_share"] == pytest.approx(float((level[:, j] > 0).float().mean()))
        assert row["mean_drive"] == pytest.approx(float(pre[:, j].mean()), abs=1e-4)
        assert row["encoder_norm"] == pytest.approx(float(sae.encoder_directions()[j].norm()), rel=1e-4)
    assert summary.kinds["dead"] == int((fired == 0).sum())


def test_a_rank_is_one_more_than_how_many_are_above():
    level = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    own = level[:, [3, 7, 9]]
    expected = torch.tensor([[sum(v > o for v in row) + 1 for o in mine] for row, mine in zip(level.tolist(), own.tolist(), strict=True)])  # fmt: skip
    assert torch.equal(ranks(level, own), expected)


def dead_of(table: dict[int, dict]) -> list[int]:
    return [latent for latent, row in table.items() if row["kind"] == "dead"]


def fire(sae: SAE, rows: PlantedRows, latents: list[int]) -> int:
    """Return how many of these latents fire on some row of text."""
    return int((sae.encode(rows.x).dense()[:, latents] != 0).any(0).sum())


ALL = pytest.mark.parametrize("cfg", [*BY_RANK, *BY_THRESHOLD, AbsTopKConfig(d_sae=F, k=1)], ids=name_of)


@ALL
def test_biases_moved_as_far_as_a_what_if_says_wake_as_many_as_it_says(cfg):
    sae, rows, summary, table = diagnosed(cfg)
    curve = summary.changes.bias
    assert curve.fire[-1] > 0
    assert curve.fire[0] < curve.fire[-1]
    for by, expected in zip(curve.by, curve.fire, strict=True):
        woken = 0
        for latent in dead_of(table):
            directions = (1, -1) if sae.signed else (1,)
            fired = 0
            for sign in directions:
                changed = copy.deepcopy(sae)
                changed.b_enc[latent] += sign * by * curve.unit
                fired |= fire(changed, rows, [latent])
            woken += fired
        assert woken == expected, by


@pytest.mark.parametrize("config", [TopKConfig, AbsTopKConfig])
def test_a_larger_k_wakes_as_many_as_the_what_if_says(config):
    sae, rows, summary, table = diagnosed(config(d_sae=F, k=1))
    curve = summary.changes.k
    assert curve.k == 1
    assert len(set(curve.fire)) > 2
    for extra, expected in zip(curve.extra, curve.fire, strict=True):
        larger = config(d_sae=F, k=1 + extra)
        changed = build(larger, D).requires_grad_(False)
        changed.load_state_dict(sae.state_dict())
        assert fire(changed, rows, dead_of(table)) == expected, extra


@pytest.mark.parametrize("cfg", BY_THRESHOLD, ids=name_of)
def test_lower_thresholds_wake_as_many_as_the_what_if_says(cfg):
    sae, rows, summary, table = diagnosed(cfg)
    curve = summary.changes.threshold
    assert summary.changes.k is None
    assert curve.fire[0] == 0 or curve.fire[0] < curve.fire[-1]
    for share, expected in zip(curve.share, curve.fire, strict=True):
        changed = copy.deepcopy(sae)
        if isinstance(changed, JumpReLU):
            changed.log_threshold.add_(torch.tensor(share).log())
        else:
            changed.threshold *= share
        assert fire(changed, rows, dead_of(table)) == expected, share


@ALL
def test_resampled_latents_are_counted_by_doing_it(cfg):
    sae, rows, summary, table = diagnosed(cfg)
    curve, dead = summary.changes.resample, torch.tensor(dead_of(table))
    assert curve.scale[0] == 0.2  # as in the paper
    assert curve.fire[-1] > 0
    x = what_if._badly_reconstructed(sae, rows, len(dead))
    for scale, expected, dense in zip(curve.scale, curve.fire, curve.dense, strict=True):
        changed = what_if.with_encoders(sae, dead, x, scale * curve.norm)
        assert_close(changed.W_enc[:, dead].norm(dim=0), torch.full((len(dead),), scale * curve.norm))
        read = (x - sae.b_dec) / (x - sae.b_dec).norm(dim=1, keepdim=True)
        own = changed.dense_pre_activations(rows.x)[:, dead]
        assert_close(own, scale * curve.norm * (rows.x - sae.b_dec) @ read.T, atol=1e-4, rtol=1e-4)
        fired = changed.encode(rows.x[rows.held_out]).dense()[:, dead] != 0
        assert int(fired.any(0).sum()) == expected
        assert int((fired.float().mean(0) > 0.1).sum()) == dense
        assert torch.equal(changed.W_enc[:, :LIVING], sae.W_enc[:, :LIVING])


def test_badly_reconstructed_rows_are_drawn_and_well_rebuilt_ones_are_not():
    sae, rows = planted(TopKConfig(d_sae=F, k=1)), PlantedRows()
    rows.x[17] = 500.0
    assert (what_if._badly_reconstructed(sae, rows, 1) == 500.0).all()


def shifted(present: str, cfg: TrainConfig) -> tuple[SAE, Trainer]:
    """Train on data that contains latent 0's axis at step t where character t is x."""
    trainer = Trainer(planted(TopKConfig(d_sae=F, k=1)).requires_grad_(True), cfg)
    rows = PlantedRows(n=64)
    for there in present:
        x = rows.x.clone()
        if there != "x":
            x = x[rows.tokens != 0].repeat(2, 1)[:64]
            x[:, 0] = 0
        trainer.train_step(x, x)
    return trainer.sae.requires_grad_(False), trainer


@pytest.mark.parametrize(
    ("present", "training", "numbers"),
    [
        (
            "xxxxxx............",
            "died",
            {"first_death": 9, "last_death": 9, "times_revived": 0, "last_fired": 6 * 64},
        ),
        ("xx.....xx.........", "revived and lost", {"first_death": 5, "last_death": 12, "times_revived": 1}),
        ("..................", "never fired", {"last_fired": None, "first_death": 3}),
        ("x................x", "alive at the end", {"times_died": 1, "times_revived": 1}),
    ],
)
def test_what_became_of_a_latent_when_the_data_shifted_is_told(present, training, numbers):
    dead_after = 3 * 64
    cfg = TrainConfig(
        steps=18, batch=64, lr=1e-9, warmup_steps=0, dead_after_tokens=dead_after, scale_inputs=False
    )
    sae, trainer = shifted(present, cfg)
    tokens = cfg.batch * trainer.step
    trained = Trained(dead_after, tokens, trainer.history.tensors())
    rows = PlantedRows()
    rows.x[:, 0] = 0
    rows.x[rows.tokens == 0] = rows.x[rows.tokens == 1][0]
    _, table = examine(sae, rows, {}, trained)
    row = next(row for row in table if row["latent"] == 0)
    assert row["kind"] == "dead"
    assert row["training"] == training
    assert numbers.items() <= row.items()
    assert training_of(None, 1, 1, 0).training == "not recorded"


def test_what_features_saw_keeps_a_latent_from_being_called_dead():
    sae, rows = planted(TopKConfig(d_sae=F, k=1)), PlantedRows()
    fired = torch.zeros(F, dtype=torch.int64)
    fired[SPARE[0]] = 2
    trained = replace(TRAINED, dead_after_tokens=1000, fired=fired, fired_rows=10_000)
    _, table = examine(sae, rows, {}, trained)
    kinds = {row["latent"]: row["kind"] for row in table}
    assert kinds[SPARE[0]] == "rare"
    rare = next(row for row in table if row["latent"] == SPARE[0])
    assert rare["cause"] == "rare"
    assert "2 times where features were collected" in rare["evidence"]
    assert rare["also"], "and why it does not fire here"
    assert kinds[SPARE[1]] == "dead"


def test_a_latent_that_fires_in_training_text_only_is_told():
    sae, rows = planted(TopKConfig(d_sae=F, k=1)), PlantedRows(n=1200)
    memorised = (rows.tokens == 0) & rows.held_out
    rows.x[memorised] = rows.x[rows.tokens == 1][0]
    _, table = examine(sae, rows, {}, TRAINED)
    row = next(row for row in table if row["latent"] == 0)
    assert (row["cause"], row["also"]) == ("only in training text", [])
    assert (row["kind"], row["fires_on"], row["fired_held_out"]) == ("training only", "training text only", 0)
