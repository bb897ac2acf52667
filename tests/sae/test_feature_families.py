"""`sae.families` of a run: costs are those of leaving latents out, work resumes, damage is one line, other features have none."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from activations.disk import files
from activations.errors import ConfigError, RunError
from sae.architectures import AbsTopKConfig
from sae.features.families import FORMAT, INDEX, MEASURES, TABLE, Families, families_of
from sae.features.feature import FeatureStore
from sae.features.firings import Firings, by_latent
from sae.features.parents import NONE, Rules, parents, shuffled
from sae.report import families as report
from sae.runs.run import Run
from sae.workflows import families as workflow
from sae.workflows.families import SCRATCH, Costs, FamiliesConfig, families
from tests import tiny

CFG = FamiliesConfig(split="all", shuffles=2, batch=100, rules=Rules(coverage=0.5, share=0.01))


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(shutil.copytree(world / "runs" / "toy", tmp_path_factory.mktemp("families") / "toy"))


@pytest.fixture(scope="module")
def found(run: Run) -> Families:
    return families(run, CFG)


def describe(latent: int) -> tuple[str, list[str]]:
    return ("", [f"token{latent}"])


def test_the_toy_run_has_families(found: Families):
    assert found.record.found.edges > 1 and found.roots


def test_costs_are_what_the_error_rises_by_without_a_latent(world: Path, tmp_path: Path):
    signed = tiny.run(world, arch=AbsTopKConfig(d_sae=24, k=3), out=tmp_path / "signed")
    for made in (Run(world / "runs" / "toy"), signed):
        sae = made.sae()
        x = made.store.read(0, (made.hook,)).rows(made.hook, torch.arange(60))
        code, costs = sae.encode(x).dense(), Costs(sae).encode(x).dense().double()
        assert (costs != 0).equal(code != 0)
        error = (x.double() - sae.decode(sae.encode(x)).double()).square().sum(1)
        for latent in range(sae.d_sae):
            without = x.double() - sae.b_dec.double()
            kept = code.double()
            kept[:, latent] = 0
            without = without - kept @ sae.W_dec.double()
            rise = torch.where(code[:, latent] != 0, without.square().sum(1) - error, 0.0)
            torch.testing.assert_close(costs[:, latent], rise, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("split", ["held-out", "all", "train"])
def test_the_rows_are_those_of_the_split_one_after_the_other(run: Run, tmp_path: Path, split: Any):
    mine = Run(shutil.copytree(run.path, tmp_path / "toy"))
    cfg = FamiliesConfig(split=split, shuffles=1, batch=64, rules=CFG.rules)
    made, store, sae = families(mine, cfg), run.store, run.sae()
    rows, windows = [], []
    for number in range(len(store.shards)):
        shard = store.read(number, (run.hook,))
        chosen = store.rows(shard, split).flatten().nonzero()[:, 0]
        rows.append(shard.rows(run.hook, chosen))
        windows += [(number, row // store.context) for row in chosen.tolist()]
    x = torch.cat(rows)
    costs = Costs(sae).encode(x)
    firings = by_latent(costs.rows(), costs.indices, costs.values, sae.d_sae)
    forest = parents(firings, np.unique(windows, axis=0, return_inverse=True)[1], cfg.rules)
    assert (made.record.rows, made.record.windows) == (len(x), len(set(windows)))
    assert made.parents.tolist() == forest.parent.tolist()
    assert made.table["fired"].to_pylist() == firings.starts.diff().tolist()
    for child in np.flatnonzero(forest.parent != NONE).tolist():
        link = made.link(child)
        assert link is not None and link.parent == forest.parent[child]
        for name in MEASURES:
            assert getattr(link, name) == pytest.approx(getattr(forest, name)[child], rel=1e-4)


def test_kin_are_told_from_either_side(found: Families):
    child = int(np.flatnonzero(found.parents != NONE)[0])
    family = found.of(child)
    assert family.parent is not None
    parent = family.parent.parent
    of_parent = [link.child for link in found.of(parent).children]
    assert sorted([child, *(link.child for link in family.siblings)]) == sorted(of_parent)
    assert of_parent == found.children(parent)
    below = sum(found.descendants(root) for root in found.roots)
    assert below == found.record.found.edges == (found.parents != NONE).sum()
    sizes = [found.descendants(root) for root in found.roots]
    assert sizes == sorted(sizes, reverse=True)
    told = report.tree(found, found.roots[0], describe, most=100)
    assert len(told) == 1 + sizes[0] and found.depth(found.roots[0]) >= 1
    assert report.tree(found, parent, describe, most=0)[1].strip() == f"and {len(of_parent)} more"
    shown = report.kin(family, describe, "runs/toy")
    assert f'feature={parent}"' in shown and "token" in shown
    alone = next(latent for latent in range(32) if not found.of(latent).parent and not found.children(latent))
    assert report.kin(found.of(alone), describe, None) == ""
    assert "no parent" in report.alone(found.record, 3)


def test_what_the_report_says(found: Families):
    rows = [*report.lines(found.record)]
    assert [row[1] for row in rows] == [
        f"{getattr(found.record.found, name):,}"
        for name in ("covered", "beyond_chance", "reconstructed", "edges")
    ]
    assert "have a parent" in report.conclusion(found.record)
    assert len(found.record.shuffled) == 2


def test_an_interrupted_search_goes_on_and_a_finished_one_is_kept(run: Run, tmp_path: Path, found: Families):
    mine = Run(shutil.copytree(run.path, tmp_path / "toy", ignore=shutil.ignore_patterns("families*")))

    def stop(stage: str, total: int, unit: str, done: int = 0):
        return tiny.Told(end_at=0.5)(stage, total, unit, done)

    with pytest.raises(KeyboardInterrupt):
        families(mine, CFG, stop)
    assert families_of(FeatureStore(mine.path / "features")) is None
    kept = sorted((mine.path / "features" / SCRATCH).glob("shard*"))
    assert kept, "finished shards are kept"
    before = [path.stat().st_mtime_ns for path in kept]
    told = tiny.Told()

    def look(stage: str, total: int, unit: str, done: int = 0):
        if stage == "pairs":
            assert [path.stat().st_mtime_ns for path in kept] == before, "no shard is encoded twice"
        return told(stage, total, unit, done)

    again = families(mine, CFG, look)
    assert (again.path / TABLE).read_bytes() == (found.path / TABLE).read_bytes()
    assert again.record == found.record
    assert not (again.path / SCRATCH).exists()
    silent = tiny.Told()
    families(mine, CFG, silent)
    assert not silent.totals, "it is done"


def test_a_few_rows_are_whole_shards_spread_over_the_store(run: Run, tmp_path: Path):
    mine = Run(shutil.copytree(run.path, tmp_path / "toy", ignore=shutil.ignore_patterns("families*")))
    some = families(mine, FamiliesConfig(rows=600, split="all", shuffles=1)).record
    counts = {mine.store.count(number) for number in range(len(mine.store.shards))}
    assert 600 <= some.rows <= 600 + max(counts)


def test_damage_is_one_line_and_other_features_have_no_families(tmp_path: Path, found: Families):
    folder = shutil.copytree(found.path, tmp_path / "features")

    def opened() -> Families:
        made = families_of(FeatureStore(folder))
        assert made is not None
        return made

    table = (folder / TABLE).read_bytes()
    (folder / TABLE).write_bytes(table[:-9])
    with pytest.raises(RunError, match=r"families\.parquet is damaged") as caught:
        opened().of(3)
    assert caught.value.fix and "sae families" in caught.value.fix
    about = json.loads((folder / INDEX).read_text())
    about.pop("checksum")
    root = found.roots[0]
    for parent in (
        len(found.parents),
        -2,
        root,
        found.children(root)[0],
    ):  # beyond both ends, itself, a circle
        changed = found.parents.copy()
        changed[root] = parent
        rows = pq.read_table(found.path / TABLE).set_column(0, "parent", pa.array(changed))
        pq.write_table(rows, folder / TABLE)
        files.write_sealed(folder / INDEX, {**about, "sha256": {TABLE: files.sha256(folder / TABLE)}})
        with pytest.raises(RunError, match="do not make a forest"):
            _ = opened().table
    files.write_sealed(folder / INDEX, {**about, "features_sha256": "other"})
    assert families_of(FeatureStore(folder)) is None


def test_a_result_of_an_older_format_does_not_count(
    tmp_path: Path, found: Families, caplog: pytest.LogCaptureFixture
):
    folder = shutil.copytree(found.path, tmp_path / "features")
    about = json.loads((folder / INDEX).read_text())
    about.pop("checksum")
    files.write_sealed(folder / INDEX, {**about, "format": FORMAT - 1})
    assert families_of(FeatureStore(folder)) is None
    assert f"families format {FORMAT - 1}" in caplog.text and "sae families" in caplog.text
    files.write_sealed(folder / INDEX, {**about, "format": FORMAT + 1})
    with pytest.raises(RunError, match=f"families format {FORMAT + 1}"):
        families_of(FeatureStore(folder))


def test_one_shuffle_is_in_memory_at_a_time(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mine = Run(shutil.copytree(run.path, tmp_path / "toy", ignore=shutil.ignore_patterns("families*")))
    made: list[weakref.ref[torch.Tensor]] = []

    def watched(*args: Any) -> Firings:
        assert all(values() is None for values in made)
        one = shuffled(*args)
        made.append(weakref.ref(one.values))
        return one

    monkeypatch.setattr(workflow, "shuffled", watched)
    families(mine, CFG)
    assert len(made) == CFG.shuffles


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"shuffles": 0}, {"batch": 0}, {"seed": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FamiliesConfig(**wrong)
