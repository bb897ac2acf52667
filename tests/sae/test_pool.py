"""`sae pool`: what the seeds have in common is kept, latents are the means of their members, and runs that do not fit are refused."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from activations.errors import ConfigError, RunError
from activations.store import Store
from sae.architectures import (
    SAE,
    AbsTopK,
    AbsTopKConfig,
    GBAConfig,
    JumpReLU,
    JumpReLUConfig,
    KronConfig,
    TopK,
    TopKConfig,
    build,
)
from sae.config import RunConfig, TrainConfig
from sae.evaluation.matching import nearest
from sae.evaluation.pooling import ALONE, Pooled, refuse
from sae.evaluation.pooling import pool as pooled_of
from sae.evaluation.recovery import cosines
from sae.evaluation.similarity import correlation, encoded
from sae.evaluation.synthetic import Independent
from sae.runs.pool import members_of, pool_of
from sae.runs.run import Run, find_runs
from sae.workflows.pool import PoolConfig, check, pool
from sae.workflows.train import train
from tests import tiny
from tests.cli.commands import Server

D, F, COMMON = 32, 32, 20
WORLD = Independent(d_model=D, n_features=COMMON, least=3, most=3, orthonormal=True)
X = WORLD.draw(4000, torch.Generator().manual_seed(1))[0]
TRAIN = TrainConfig(steps=20, batch=64, lr=3e-3, log_every=5, checkpoint_minutes=1)
CFG = PoolConfig(steps=6, tokens=512, seed=9)


def with_noise(seed: int, kind: type[SAE] = TopK, signs: bool = False) -> SAE:
    """Return an SAE of one seed: the planted features in an order of its own, each slightly off, and 12 latents that only it has."""
    generator = torch.Generator().manual_seed(seed)
    off = 0.05 * torch.randn(COMMON, D, generator=generator)
    own = torch.randn(F - COMMON, D, generator=generator)
    rows = normalize(torch.cat([WORLD.features + off, own]), dim=1)[torch.randperm(F, generator=generator)]
    if signs:
        rows = rows * (2 * torch.randint(0, 2, (F, 1), generator=generator) - 1)
    config = AbsTopKConfig(d_sae=F, k=3) if kind is AbsTopK else TopKConfig(d_sae=F, k=3)
    sae = kind(D, config, seed=None).requires_grad_(False)
    sae.W_dec.copy_(rows)
    sae.W_enc.copy_(rows.T)
    return sae


def made(saes: list[SAE], near: float = 0.3) -> Pooled:
    return pooled_of(saes, [encoded(sae, X.split(500)) for sae in saes], near)


def test_a_pool_of_three_seeds_keeps_the_features_that_all_have_and_has_them_first():
    saes = [with_noise(seed) for seed in (1, 2, 3)]
    pooled = made(saes)
    assert pooled.found_in()[:COMMON].eq(3).all()
    best = cosines(WORLD.features, pooled.sae.W_dec)
    assert best[:, :COMMON].max(1).values.min() > 0.95
    assert sorted(best.argmax(1).tolist()) == [*range(COMMON)]
    # A mean of three is nearer to what they have in common than any of them
    alone = torch.stack([cosines(WORLD.features, sae.W_dec).max(1).values.mean() for sae in saes])
    assert best.max(1).values.mean() > alone.max()


def test_two_pools_share_more_than_two_seeds_do():
    saes = [with_noise(seed) for seed in range(6)]
    pools = [made(saes[:3]).sae, made(saes[3:]).sae]

    def mean_similarity(a: SAE, b: SAE) -> float:
        similarity = correlation(encoded(a, X.split(500)), encoded(b, X.split(500)))
        return nearest(similarity, 1)[0].similarities[:COMMON, 0].mean().item()

    assert mean_similarity(*pools) > max(mean_similarity(a, b) for a, b in pairwise(saes))


def test_each_latent_is_the_mean_of_its_members():
    saes = [with_noise(seed) for seed in (1, 2, 3)]
    pooled = made(saes)
    for latent in (0, COMMON - 1, F - 1):
        members = [(sae, int(m)) for sae, m in zip(saes, pooled.members[latent], strict=True) if m != ALONE]
        rows = torch.stack([sae.W_dec[m] for sae, m in members]).double()
        torch.testing.assert_close(
            pooled.sae.W_dec[latent].double(), normalize(rows.mean(0), dim=0), rtol=1e-5, atol=1e-6
        )
        reading = torch.stack([sae.W_enc[:, m] for sae, m in members]).mean(0)
        torch.testing.assert_close(pooled.sae.W_enc[:, latent], reading, rtol=1e-5, atol=1e-6)
    for which in range(3):  # no latent is in two groups
        used = pooled.members[:, which]
        used = used[used != ALONE]
        assert len(used.unique()) == len(used)


def test_groups_are_those_of_their_definition_computed_from_the_whole_matrices():
    saes = [with_noise(seed) for seed in (4, 5)]
    codes = [encoded(sae, X.split(500)) for sae in saes]
    dense = [code.dense().double() for code in codes]
    alike = torch.corrcoef(torch.cat([each.T for each in dense])).nan_to_num(0)[:F, F:]
    explained = [each.square().sum(0) for each in dense]
    has = [(alike.max(1).values >= 0.3), (alike.max(0).values >= 0.3)]
    order = sorted(
        ((which, j) for which in (0, 1) for j in range(F)),
        key=lambda at: (-int(has[at[0]][at[1]]), -float(explained[at[0]][at[1]])),
    )
    free, expected = [{*range(F)}, {*range(F)}], []
    for which, j in order:
        if j not in free[which] or len(expected) == F:
            continue
        free[which].remove(j)
        group = [ALONE, ALONE]
        group[which] = j
        row = alike[j] if which == 0 else alike[:, j]
        others = [(float(row[m]), m) for m in free[1 - which] if row[m] >= 0.3]
        if others:
            group[1 - which] = max(others)[1]
            free[1 - which].remove(group[1 - which])
        expected.append(group)
    assert pooled_of(saes, codes, 0.3).members.tolist() == expected


def test_signed_latents_of_opposite_signs_are_turned_before_they_are_averaged():
    saes = [with_noise(seed, AbsTopK, signs=True) for seed in (1, 2, 3)]
    pooled = made(saes)
    assert pooled.found_in()[:COMMON].eq(3).all()
    assert cosines(WORLD.features, pooled.sae.W_dec, signed=True)[:, :COMMON].max(1).values.min() > 0.95
    errors = [(sae(X) - X).square().sum().item() for sae in (pooled.sae, *saes)]
    assert errors[0] < min(errors[1:])


def test_thresholds_are_those_of_the_members_alone():
    config = JumpReLUConfig(d_sae=F)
    saes = []
    for seed in (1, 2):
        toy = with_noise(seed)
        sae = JumpReLU(D, config).requires_grad_(False)
        sae.load_state_dict(
            {**sae.state_dict(), **{n: t for n, t in toy.state_dict().items() if n in sae.state_dict()}}
        )
        sae.log_threshold.fill_(-1.0 if seed == 1 else -torch.inf)
        saes.append(sae)
    pooled = made(saes, near=0.9)
    only_first = (pooled.members[:, 1] == ALONE) & (pooled.members[:, 0] != ALONE)
    assert only_first.any()
    thresholds = pooled.sae.state_dict()["log_threshold"]
    assert thresholds[only_first].eq(-1.0).all()
    assert not thresholds.isnan().any()


@pytest.mark.parametrize(("config", "shared"), [(KronConfig(d_sae=32), "P"), (GBAConfig(d_sae=32), "")])
def test_methods_whose_latents_share_weights_are_refused(config, shared: str):
    with pytest.raises(ConfigError, match=f"cannot be pooled: its {shared}"):
        refuse(build(config, D))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("seeds")
    store = tiny.store(folder)
    cfg = RunConfig(str(store.path), arch=TopKConfig(d_sae=32, k=4), train=TRAIN)
    return [
        train(replace(cfg, train=replace(TRAIN, seed=seed)), folder / f"seed-{seed}") for seed in (0, 1, 2)
    ]


def test_a_pool_is_an_ordinary_run_that_says_what_it_was_made_of(seeds: list[Run], tmp_path: Path):
    told = tiny.Told()
    run = pool(seeds, tmp_path / "pooled", CFG, progress=told)
    assert run.finished
    assert (run.store.fingerprint, run.hook) == (seeds[0].store.fingerprint, seeds[0].hook)
    assert run.config.arch == seeds[0].config.arch
    assert (run.config.train.steps, run.config.train.seed) == (6, 9)
    assert run.config.train.lr == pytest.approx(0.4 * 3e-3)
    start = Run(run.path / "pool")
    record = pool_of(start)
    assert [(each.run, each.sae_sha256, each.seed) for each in record.runs] == [
        (str(one.path), one.digest, one.config.train.seed) for one in seeds
    ]
    members = members_of(start)
    assert sum(record.found_in) == 32
    assert record.found_in == (members != ALONE).sum(1).bincount(minlength=4)[1:].tolist()
    assert start.record.imported and start.record.imported.format == "pool"
    assert [one.path for one in find_runs(tmp_path)] == [run.path]
    assert {"encode", "match", "train"} <= told.totals.keys()
    assert told.totals["encode"] == 3 * 512


def test_an_interrupted_pool_goes_on_to_the_same_bits(seeds: list[Run], tmp_path: Path):
    whole = pool(seeds, tmp_path / "whole", CFG)
    with pytest.raises(KeyboardInterrupt):
        pool(seeds, tmp_path / "stopped", CFG, progress=tiny.Told(end_at=0.6))
    resumed = pool(seeds, tmp_path / "stopped", CFG, resume=True)
    for name, tensor in whole.sae().state_dict().items():
        assert torch.equal(tensor, resumed.sae().state_dict()[name]), name
    with pytest.raises(RunError, match="not empty"):
        pool(seeds, tmp_path / "stopped", CFG)
    with pytest.raises(RunError, match="other runs or with other settings"):
        pool(seeds[:2], tmp_path / "stopped", CFG, resume=True)
    assert pool(seeds, tmp_path / "stopped", CFG, resume=True).digest == whole.digest


def test_a_run_that_is_no_pool_is_not_resumed_as_one(seeds: list[Run], tmp_path: Path):
    other = shutil.copytree(seeds[0].path, tmp_path / "other")
    before = sorted(other.rglob("*"))
    with pytest.raises(RunError, match="not empty"):
        pool(seeds, other, CFG, resume=True)
    assert sorted(other.rglob("*")) == before


def test_runs_that_do_not_belong_together_are_refused_by_name(seeds: list[Run], tmp_path: Path):
    def refused(*runs: Run) -> str:
        with pytest.raises(RunError) as caught:
            pool(runs, tmp_path / "out", CFG)
        assert not (tmp_path / "out").exists()
        return caught.value.message

    assert "at least 2" in refused(seeds[0])
    same = Run(shutil.copytree(seeds[0].path, tmp_path / "same"))
    assert "hold the same SAE" in refused(seeds[0], same)
    wider = train(replace(seeds[0].config, arch=TopKConfig(d_sae=40, k=4)), tmp_path / "wider")
    assert "another number of latents than" in refused(seeds[0], wider)
    assert "(40, not 32)" in refused(seeds[0], wider)
    for name, setting, change in (
        ("shorter", "train.steps than {} (18, not 20)", {"steps": 18}),
        ("faster", "train.lr than {} (0.004, not 0.003)", {"lr": 4e-3}),
        ("frozen", "train.frozen than {} (decoder, not None)", {"frozen": "decoder"}),
    ):
        other = train(replace(seeds[1].config, train=replace(TRAIN, seed=1, **change)), tmp_path / name)
        assert f"another {setting.format(seeds[0].path)}" in refused(seeds[0], other)
    last = train(replace(seeds[1].config, positions="last"), tmp_path / "last")
    assert f"another positions than {seeds[0].path} (last, not all)" in refused(seeds[0], last)
    begun_from = train(replace(seeds[1].config, start_from=str(seeds[0].path)), tmp_path / "from")
    assert "another start than" in refused(seeds[0], begun_from)
    logged = train(replace(seeds[1].config, train=replace(TRAIN, seed=1, log_every=7)), tmp_path / "logged")
    check([seeds[0], logged])
    (tmp_path / "other").mkdir()
    store: Store = tiny.store(tmp_path / "other", tokens=3000)
    elsewhere = train(replace(seeds[1].config, store=str(store.path)), tmp_path / "elsewhere")
    assert "another store than" in refused(seeds[0], elsewhere)
    begun = Run(shutil.copytree(seeds[1].path, tmp_path / "begun"))
    (begun.path / "sae.json").unlink()
    assert "not finished" in refused(seeds[0], begun)


def test_the_command_says_what_was_found_in_how_many_runs(sae: Server, seeds: list[Run], tmp_path: Path):
    out = tmp_path / "pooled"
    ended = sae("pool", *(run.path for run in seeds), "--out", out, "--steps", 4, "--tokens", 512)
    assert "32 latents, found in how many of the 3 runs:" in ended.out
    assert json.loads((out / "run.json").read_text())["config"]["start_from"] == str(out / "pool")
    assert "at least 2" in sae("pool", seeds[0].path, "--out", tmp_path / "one").complaint
    zero = sae("pool", *(run.path for run in seeds), "--out", tmp_path / "zero", "--lr", 0)
    assert "lr = 0.0 must be a number above 0" in zero.complaint
    assert not (tmp_path / "zero").exists()
    assert "near = 0" in sae("pool", *(run.path for run in seeds), "--out", out, "--near", 0).complaint
