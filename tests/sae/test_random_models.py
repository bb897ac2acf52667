"""The SAE of a model with random weights: what is done to the weights, the same text read again, and what is said of it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from activations.disk import files
from activations.errors import StoreError
from activations.harvest import harvest
from activations.language_model import load
from activations.reharvest import reharvest
from activations.store import INDEX, Store
from sae.report import trust as trust_report
from sae.runs.run import Run
from sae.trust import random_models
from sae.trust.plan import TrustConfig, plan_trust
from sae.workflows.trust import trust
from tests import tiny


@pytest.fixture(scope="module")
def store(world: Path) -> Store:
    return Store(world / "store")


def test_drawn_weights_have_the_mean_and_deviation_and_shuffled_ones_the_numbers():
    weights = torch.randn(400, 50, generator=torch.Generator().manual_seed(0)) * 3 + 1
    drawn = random_models.redrawn(weights, torch.Generator().manual_seed(1))
    assert drawn.mean().item() == pytest.approx(weights.mean().item(), abs=0.1)
    assert drawn.std().item() == pytest.approx(weights.std().item(), rel=0.02)
    mixed = random_models.shuffled(weights, torch.Generator().manual_seed(1))
    assert torch.equal(mixed.flatten().sort().values, weights.flatten().sort().values)
    assert abs(np.corrcoef(mixed.flatten(), weights.flatten())[0, 1]) < 0.03


def test_every_parameter_of_the_model_is_replaced_and_its_hash_with_it(world: Path):
    model, other = load(str(world / "model")), load(str(world / "model"))
    before = model.weights_hash
    random_models.randomise(model, "shuffled-model", 0)
    assert model.weights_hash != before == other.weights_hash
    moved = [
        name
        for name, p in model.plain.named_parameters()
        if not torch.equal(p, dict(other.plain.named_parameters())[name])
    ]
    kept = {name for name, _ in model.plain.named_parameters()} - set(moved)
    assert all("norm" in name for name in kept), "of a toy's norms, all ones, every order is the same"


def test_the_model_of_the_store_gives_its_rows_again(world: Path, store: Store, tmp_path: Path):
    again = reharvest(load(str(world / "model")), store, tiny.HOOK, tmp_path / "again")
    assert (again.windows, len(again.shards), again.text_ended) == (
        store.windows,
        len(store.shards),
        store.text_ended,
    )
    for number in range(len(store.shards)):
        one, other = (s.read(number, (tiny.HOOK,)) for s in (store, again))
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.documents, other.documents)
        assert torch.equal(one.positions, other.positions)
        torch.testing.assert_close(
            one.activations[tiny.HOOK], other.activations[tiny.HOOK], rtol=1e-4, atol=1e-4
        )


def test_an_interrupted_one_keeps_its_shards(world: Path, store: Store, tmp_path: Path):
    model = load(str(world / "model"))

    def stop(n: int, note: str = "") -> None:
        if (tmp_path / "part" / "shard-00001.safetensors").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reharvest(model, store, tiny.HOOK, tmp_path / "part", stop)
    kept = (tmp_path / "part" / "shard-00000.safetensors").stat().st_mtime_ns
    finished = reharvest(model, store, tiny.HOOK, tmp_path / "part")
    assert (tmp_path / "part" / "shard-00000.safetensors").stat().st_mtime_ns == kept
    assert finished.fingerprint == reharvest(model, store, tiny.HOOK, tmp_path / "whole").fingerprint


def test_a_store_of_another_model_or_of_other_text_is_not_taken_for_the_one_asked_for(
    world: Path, store: Store, tmp_path: Path
):
    out = tmp_path / "store"
    model, other = load(str(world / "model")), load(str(world / "model"))
    random_models.randomise(other, "shuffled-model", 0)
    made = reharvest(model, store, tiny.HOOK, out)
    assert reharvest(model, store, tiny.HOOK, out).fingerprint == made.fingerprint
    with pytest.raises(StoreError, match="holds another store .weights_sha256: ") as refused:
        reharvest(other, store, tiny.HOOK, out)
    assert "\n" not in str(refused.value)
    index = files.read_json(world / "store" / INDEX)
    harvest(
        model,
        tmp_path / "changed",
        tiny.harvest_config(tiny.text_file(tmp_path / "text.jsonl", seed=1)),
    )
    changed = files.read_json(tmp_path / "changed" / INDEX)
    files.write_sealed(tmp_path / "changed" / INDEX, changed | {"dataset": index["dataset"]})
    with pytest.raises(StoreError, match="its windows are of other text"):
        reharvest(model, Store(tmp_path / "changed"), tiny.HOOK, out)


def test_trust_trains_the_run_s_sae_on_random_models_and_says_what_a_measure_tells(
    world: Path, tmp_path: Path
):
    run = Run(shutil.copytree(world / "runs" / "toy", tmp_path / "toy"))
    cfg = TrustConfig(windows=2, random_models=True)
    record = trust(run, cfg, run.language_model()).record
    assert {name: record.controls[name].kind for name in random_models.CHANGES} == dict.fromkeys(
        random_models.CHANGES, "random-model"
    )
    for name in random_models.CHANGES:
        own = Run(run.path / "trust" / name)
        assert own.store.fingerprint != run.store.fingerprint
        assert own.config.train == run.config.train
    assert list(record.measures["fvu"].random_models) == list(random_models.CHANGES)
    assert record.measures["kl"].random_models == {}
    assert not record.measures["fvu"].controls.keys() & random_models.CHANGES.keys()
    assert record.measures["fvu"].closest == "pca", "random models are not among what a run has to beat"
    told = " ".join(trust_report.conclusions(record))
    assert "model re-drawn" in told
    assert "model shuffled" in trust_report.page(record, "toy")
    assert plan_trust(run, cfg).missing == []
    shutil.rmtree(run.path / "trust" / "stores" / "shuffled-model")
    assert plan_trust(run, cfg).stores == ["shuffled-model"]
    assert trust(run, cfg, None).record.measures["fvu"] == record.measures["fvu"], (
        "it is made again, the same"
    )
