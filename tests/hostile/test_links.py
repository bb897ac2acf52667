"""No path leaves its folder: links that lead out are refused by name, pipes are not waited for, nothing is written through one."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from activations.disk import files
from activations.errors import RunError, StoreError, WorkbenchError
from activations.shard import shard_name
from activations.store import INDEX, Store, verify
from sae.features.effects import load_effect
from sae.features.feature import FeatureStore
from sae.features.latent_labels import Labels
from sae.runs.run import Run, find_runs
from sae.runs.saved_sae import load_sae

STORE: dict[str, Callable[[Path], object]] = {
    INDEX: Store,
    shard_name(0): lambda folder: Store(folder).read(0),
    shard_name(1): lambda folder: Store(folder).count(1),
}
RUN: dict[str, Callable[[Path], object]] = {
    "run.json": Run,
    "sae.json": load_sae,
    "sae.safetensors": load_sae,
    "log.jsonl": lambda folder: Run(folder).log,
    "eval.json": lambda folder: Run(folder).evaluation,
    "latents.safetensors": lambda folder: Run(folder).history,
    "features/features.json": lambda folder: FeatureStore(folder / "features"),
    "features/features.parquet": lambda folder: FeatureStore(folder / "features").table,
    "features/texts.parquet": lambda folder: FeatureStore(folder / "features").texts,
    "features/histograms.safetensors": lambda folder: FeatureStore(folder / "features").histogram(0),
    "features/examples.safetensors": lambda folder: FeatureStore(folder / "features").strongest(0),
    "features/vocabulary.json": lambda folder: FeatureStore(folder / "features").vocabulary,
    "features/spellings.safetensors": lambda folder: FeatureStore(folder / "features").token_text,
}
READ = [("store", name, act) for name, act in STORE.items()] + [("run", n, act) for n, act in RUN.items()]


@pytest.fixture
def folders(world: Path, tmp_path: Path) -> dict[str, Path]:
    """Copies of a store and a run, to be damaged."""
    return {
        "store": Path(shutil.copytree(world / "store", tmp_path / "store")),
        "run": Path(shutil.copytree(world / "runs" / "toy", tmp_path / "run")),
    }


def refused(act: Callable[[Path], object], folder: Path) -> str:
    with pytest.raises(WorkbenchError) as caught:
        act(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "act"), READ, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_file_that_is_a_link_out_of_its_folder_is_refused_by_name(folders, tmp_path, kind, name, act):
    path = folders[kind] / name
    outside = Path(shutil.move(path, tmp_path / "outside"))
    path.symlink_to(outside)
    said = refused(act, folders[kind])
    assert name in said
    assert "link that leads out" in said


@pytest.mark.parametrize(
    ("kind", "name", "act"), READ, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_pipe_in_a_file_s_place_is_refused_and_not_waited_for(folders, kind, name, act):
    path = folders[kind] / name
    path.unlink()
    os.mkfifo(path)
    assert name in refused(act, folders[kind])


def test_a_link_within_its_folder_is_read(folders):
    path = folders["run"] / "eval.json"
    path.rename(path.with_name("elsewhere.json"))
    path.symlink_to("elsewhere.json")
    assert Run(folders["run"]).evaluation


def test_a_folder_may_be_a_link_itself(folders, tmp_path):
    (tmp_path / "link").symlink_to(folders["run"])
    assert Run(tmp_path / "link").evaluation
    assert FeatureStore(tmp_path / "link" / "features").row(0)


def test_effects_in_a_folder_that_is_a_link_out_are_refused(folders, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "0.json").write_text("{}")
    (folders["run"] / "features" / "effects").symlink_to(tmp_path / "outside")
    features = FeatureStore(folders["run"] / "features")
    assert "link that leads out" in refused(lambda _: load_effect(features, 0), tmp_path)


def test_verify_names_a_shard_that_is_a_link_out_or_a_pipe(folders, tmp_path):
    for number in (0, 1):
        path = folders["store"] / shard_name(number)
        outside = Path(shutil.move(path, tmp_path / f"outside-{number}"))
        if number:
            os.mkfifo(path)
        else:
            path.symlink_to(outside)
    faults = {name: fault for name, fault in verify(Store(folders["store"])) if fault}
    assert faults.keys() == {shard_name(0), shard_name(1)}
    assert "link" in faults[shard_name(0)]


def test_no_run_is_looked_for_behind_links(folders, tmp_path):
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "linked").symlink_to(folders["run"])
    (tmp_path / "shown" / "half").mkdir()
    (tmp_path / "shown" / "half" / "run.json").symlink_to(folders["run"] / "run.json")
    assert find_runs(tmp_path / "shown") == []


def test_writing_never_goes_through_a_link(tmp_path):
    precious, path = tmp_path / "precious", tmp_path / "folder" / "labels.json"
    precious.write_text("precious")
    path.parent.mkdir()
    path.with_name(path.name + files.PART).symlink_to(precious)
    Labels(path, "0" * 64, 8).set(3, "cat")
    assert Labels(path, "0" * 64, 8).get(3).label == "cat"
    path.unlink()
    path.symlink_to(precious)
    files.write_json(path, {})
    assert not path.is_symlink()
    assert precious.read_text() == "precious"


def test_a_lock_that_is_a_link_is_not_written_through(tmp_path):
    precious, path = tmp_path / "precious", tmp_path / "folder" / "labels.json"
    precious.write_text("precious")
    path.parent.mkdir()
    path.with_name("labels.json.lock").symlink_to(precious)
    with pytest.raises((RunError, OSError)):
        Labels(path, "0" * 64, 8).set(3, "cat")
    assert precious.read_text() == "precious"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "a\0b", "shard-00001.safetensors/../x"]
)
def test_a_file_name_in_an_index_is_never_a_path(folders, name: str):
    """Names of files are made from numbers; one that is written into an index is no field of it, or is not looked at."""
    index = folders["store"] / INDEX
    content = json.loads(index.read_text())
    content["shards"][0]["file"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="file"):
        Store(folders["store"])
    about = folders["run"] / "features" / "features.json"
    content = json.loads(about.read_text())
    about.write_text(json.dumps({**content, "sha256": {**content["sha256"], name: "0"}}))
    assert FeatureStore(folders["run"] / "features").row(0)
