"""A run that was trained on the last row of each document: whatever measures it counts those rows and no other."""

import json
from pathlib import Path

import pytest
import torch

from activations.errors import StoreError
from activations.language_model import load
from activations.rows import ends_a_run
from activations.shuffle import ShuffledReader
from activations.store import Store
from sae.evaluation.held_out import reconstruction
from sae.features.feature import FeatureStore, features_of
from sae.runs.run import Run
from sae.training.end_to_end import SplicedReader
from sae.workflows.compare import kept
from tests.cli.commands import Server, harvest
from tests.hostile.repairs import rewrite

OFTEN = ("--least-firings", 3, "--controls", 2)


@pytest.fixture(scope="module")
def run(sae: Server, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the last rows, described, diagnosed, explained and compared with the run of all rows."""
    folder = tmp_path_factory.mktemp("last")
    store, out = folder / "store", folder / "run"
    commands = [
        harvest(world, store, tokens=4000),
        ["train", "topk", "--store", store, "--positions", "last", "--out", out, "--arch.d-sae", 32, "--arch.k", 4,
         "--train.steps", 20, "--train.batch", 16],
        ["features", out],
        ["dead", out],
        ["explain", out, *OFTEN],
        ["families", out],
        ["compare", out, world / "runs/toy"],
    ]  # fmt: skip
    for command in commands:
        ended = sae(*command)
        assert ended.code == 0, (command, ended.err)
    return Run(out)


@pytest.fixture(scope="module")
def last(run: Run) -> torch.Tensor:
    """Rows of the whole store that end a document in their window [windows, T], found from its documents alone."""
    shards = [run.store.read(number).documents for number in range(len(run.store.shards))]
    found = ends_a_run(torch.cat(shards))
    assert 30 < found.sum() < found.numel() / 3
    return found


def test_the_store_of_the_run_gives_the_rows_that_it_was_trained_on(run: Run, last: torch.Tensor):
    everything = Store(run.store.path)
    assert (run.store.positions, everything.positions) == ("last", "all")
    for number, first in enumerate(run.store.first_windows):
        shard = run.store.read(number)
        chosen = run.store.rows(shard)
        assert torch.equal(chosen, last[first : first + len(chosen)])
        assert run.store.count(number) == chosen.sum() < everything.count(number)
        assert torch.equal(run.store.rows(shard, positions="all"), everything.rows(shard))


def test_features_are_of_these_rows(run: Run, last: torch.Tensor):
    features = FeatureStore(run.path / "features")
    fired = torch.zeros(32, dtype=torch.int64)
    for x, *_ in run.store.batches(run.hook, 100):
        fired += torch.bincount(run.sae().encode(x).without_zeros().indices, minlength=32)
    assert features.record.tokens == int(last.sum())
    assert features.table["fired"].to_pylist() == fired.tolist()
    for latent in range(32):
        for example in features.strongest(latent):
            owners = torch.from_numpy(example.owners.copy())[None]
            assert set(example.values.nonzero()[0]) <= set(ends_a_run(owners)[0].nonzero()[:, 0].tolist())


def test_dead_latents_explanations_families_and_comparisons_are_of_these_rows(run: Run, last: torch.Tensor):
    dead, explained, families = (
        json.loads((run.path / name).read_text())
        for name in ("dead/dead.json", "features/explanations.json", "features/families.json")
    )
    rows = int(last.sum())
    assert dead["positions"] == "last"
    assert dead["rows"]["train"] + dead["rows"]["held_out"] == dead["features_rows"] == rows
    assert 0 < sum(explained["tokens"].values()) <= rows
    assert families["rows"] <= rows
    held_out = sum(run.store.count(number, "held-out") for number in range(len(run.store.shards)))
    (written,) = run.path.glob("compare-*.json")
    comparison = json.loads(written.read_text())
    assert (comparison["tokens"], comparison["positions"]) == (held_out, "last")
    second = Run(comparison["second"]["run"])
    assert kept(run, second)
    rewrite(written, lambda content: content.pop("positions"))
    assert kept(run, second) is None, "a comparison of all rows, as 0.1.0 made it"


def test_controls_are_measured_on_the_rows_of_the_run(run: Run, sae: Server):
    assert sae("trust", run.path, "--windows", 0).code == 0
    told = json.loads((run.path / "trust/trust.json").read_text())["measures"]["fvu"]["controls"]
    for name in ("pca", "random-dictionary", "frozen-encoder"):
        control = Run(run.path / "trust" / name)
        assert control.config.positions == "last"
        alone = reconstruction(control.sae(), run.store, run.hook)["estimates"]["fvu"]["value"]
        assert told[name]["value"]["value"] == pytest.approx(alone, rel=1e-9)


def test_an_evaluation_says_that_the_model_was_measured_on_other_tokens(run: Run, sae: Server, world: Path):
    def told(path: Path) -> str:
        ended = sae("evaluate", path, "--windows", 2)
        assert ended.code == 0, ended.err
        return " ".join(ended.out.split())

    said = "which the SAE was trained on"
    assert said in told(run.path)
    assert said not in told(world / "runs/toy")


def test_an_imported_run_keeps_its_positions(run: Run, sae: Server, tmp_path: Path):
    alone, stored = tmp_path / "alone", tmp_path / "stored"
    assert sae("import", "workbench", run.path, "--out", alone).code == 0
    assert sae("import", "workbench", run.path, "--out", stored, "--store", run.store.path).code == 0
    assert len(features_of(Run(alone))) == 32
    assert Run(stored).store.positions == "last"


def test_training_reads_the_rows_of_the_store_and_refuses_batches_without_two(
    run: Run, sae: Server, world: Path, tmp_path: Path, last: torch.Tensor
):
    assert ShuffledReader(run.store, run.hook, 8, split="all").rows == last.sum()
    one_a_window = harvest(world, tmp_path / "documents", packing="document", separator="none")
    assert sae(*one_a_window).code == 0
    store, model = Store(tmp_path / "documents", "last"), load(str(world / "model"))
    with pytest.raises(StoreError, match="no 1 windows together have 2 rows"):
        next(iter(SplicedReader(store, run.hook, model, 1)))
    assert next(iter(SplicedReader(store, run.hook, model, 4))).x.shape[0] in (2, 3, 4)


def test_features_of_all_rows_are_refused_and_made_again(run: Run, sae: Server):
    index = run.path / "features/features.json"
    own = json.loads(index.read_text())
    rewrite(index, lambda content: content.pop("positions"))
    refused = sae("explain", run.path, *OFTEN)
    assert refused.code == 2
    assert f"sae features {run.path}" in refused.err
    assert sae("features", run.path).code == 0
    assert json.loads(index.read_text())["sha256"] == own["sha256"]
