"""Every kind of file, damaged in every region, is refused by name in one line or rewritten with the right bytes.

A command meets the damaged file as its user would. Nothing else in the folder may change when it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from activations.disk.files import LOCK
from activations.shard import shard_name
from sae.features.effects import FOLDER
from tests.cli.commands import Server, contents, harvest, train
from tests.faults.damage import Damage, everywhere
from tests.faults.jobs import FEATURES, bare, differences, end_state, features

NEWEST, BEFORE = "checkpoints/step-00000030", "checkpoints/step-00000020"


@dataclass(frozen=True)
class Scene:
    """A folder to be damaged and the command that then reads it."""

    make: Callable[[Server, Path, Path], object]
    """Makes the folder from the toy world."""
    words: Callable[[Path, Path], list[object]]
    """(toy world, folder) -> the command."""
    files: tuple[str, ...]
    out: str = "."
    """The folder -> what the command makes."""
    fix: str = ""
    """The remedy that a refusal names; FOLDER stands for the folder."""


def copy_of(what: str) -> Callable[[Server, Path, Path], object]:
    return lambda sae, world, folder: shutil.copytree(world / what, folder)


def unfinished_run(sae: Server, world: Path, folder: Path) -> None:
    """Make a run of 40 steps that stopped after its checkpoint at step 30."""
    assert sae(*train(world, folder, **{"train.keep-checkpoints": 9})).code == 0
    for name in ("sae.json", "sae.safetensors", "latents.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints/step-00000040")


def unfinished_harvest(sae: Server, world: Path, folder: Path) -> None:
    """Make a harvest whose last shard is missing."""
    ended = sae.start(*harvest(world, folder), kill_at=(1, folder / shard_name(3))).wait()
    assert ended.code == -9


def unfinished_features(sae: Server, world: Path, folder: Path) -> None:
    """Make features whose pass is done but of which nothing is written yet."""
    bare(world, folder)
    ended = sae.start(*features(world, folder), kill_at=(1, folder / "features/features.parquet")).wait()
    assert ended.code == -9


def two_runs(sae: Server, world: Path, folder: Path) -> None:
    """Make a run with a comparison, an effect and a report on dead latents."""
    shutil.copytree(world / "runs" / "toy", folder)
    assert sae("dead", folder, "--off-tokens", 0).code == 0
    assert sae("features", folder, *FEATURES, "--effects", 3).code == 0


FEATURE_FILES = (
    "features.json", "features.parquet", "histograms.safetensors", "examples.safetensors", "vocabulary.json",
    "spellings.safetensors", "texts.parquet",
)  # fmt: skip
SCENES = {
    "a store, trained on": Scene(
        copy_of("store"),
        lambda world, folder: train(world, folder / "run", store=folder, **{"train.steps": 5}),
        ("index.json", shard_name(3)),
        out="run",
    ),
    "an int8 store, trained on": Scene(
        lambda sae, world, folder: sae(*harvest(world, folder, dtype="int8")),
        lambda world, folder: train(world, folder / "run", store=folder, **{"train.steps": 5}),
        ("index.json", shard_name(3)),
        out="run",
    ),
    "an unfinished harvest, gone on with": Scene(
        unfinished_harvest, harvest, ("harvest.json", "shard-00001.json", shard_name(1))
    ),
    "an unfinished run, gone on with": Scene(
        unfinished_run,
        lambda world, folder: train(world, folder, "--resume", **{"train.keep-checkpoints": 9}),
        ("run.json", "log.jsonl"),
    ),
    "its newest checkpoint": Scene(
        unfinished_run,
        lambda world, folder: train(world, folder, "--resume", **{"train.keep-checkpoints": 9}),
        tuple(
            f"{NEWEST}/{name}"
            for name in ("sae.json", "sae.safetensors", "training.json", "training.safetensors")
        ),
        fix=f"--resume continues from FOLDER/{BEFORE}",
    ),
    "a finished run, measured": Scene(
        copy_of("runs/toy"),
        lambda world, folder: ["evaluate", folder, "--windows", 0],
        ("sae.json", "sae.safetensors"),
        out="eval.json",
        fix="rm FOLDER/sae.json && sae resume FOLDER",
    ),
    "a finished run, looked into": Scene(
        copy_of("runs/toy"),
        lambda world, folder: ["dead", folder, "--off-tokens", 0],
        ("latents.safetensors",),
        out="dead",
        fix="rm FOLDER/sae.json && sae resume FOLDER",
    ),
    "unfinished features, gone on with": Scene(
        unfinished_features,
        features,
        ("features/codes/job.json", f"features/codes/{shard_name(3)}"),
        out="features",
    ),
    "features, made again": Scene(
        copy_of("runs/toy"), features, tuple(f"features/{name}" for name in FEATURE_FILES), out="features"
    ),
    "features, exported": Scene(
        copy_of("runs/toy"),
        lambda world, folder: ["export", "html", folder, "--features", 3, "--out", folder / "page.html"],
        tuple(f"features/{name}" for name in FEATURE_FILES),
        out="page.html",
        fix="sae features FOLDER",
    ),
    "a report, made again": Scene(
        two_runs,
        lambda world, folder: ["dead", folder, "--off-tokens", 0],
        ("dead/dead.json", "dead/latents.parquet"),
        out="dead",
    ),
    "a measured effect": Scene(
        two_runs,
        lambda world, folder: ["features", folder, *FEATURES, "--effects", 3],
        (f"features/{FOLDER}/3.json",),
        out="features",
        fix=f"rm FOLDER/features/{FOLDER}/3.json",
    ),
    "an evaluation, shown": Scene(
        copy_of("runs/toy"),
        lambda world, folder: ["compare", folder, world / "runs" / "toy"],
        ("eval.json",),
        fix="sae evaluate FOLDER",
    ),
}


@pytest.mark.parametrize("regions", [1, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_damaged_files_are_refused_by_name_or_made_again(
    sae: Server, world: Path, tmp_path: Path, scene: Scene, regions: int
):
    kept, folder = tmp_path / "kept", tmp_path / "folder"
    scene.make(sae, world, folder)
    folder.rename(kept)
    shutil.copytree(kept, folder)
    assert sae(*scene.words(world, folder)).code == 0
    good, wrong = state(folder, scene.out), {}
    for file in scene.files:
        for damage in everywhere(kept / file, regions):
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
            (folder / file).write_bytes(damage.of((kept / file).read_bytes()))
            if found := fault(sae, scene, world, folder, file, good):
                wrong[file, damage] = found
    assert not wrong


def state(folder: Path, out: str) -> dict[str, object]:
    """Return the end state of what a command made: a folder, or a single file."""
    place = folder / out
    return end_state(place) if place.is_dir() else {out: place.read_bytes() if place.exists() else None}


def fault(
    sae: Server, scene: Scene, world: Path, folder: Path, file: str, good: dict[str, object]
) -> list[str]:
    """Return what is wrong with the command's reaction to the damage; empty when it refuses or ends as it should."""
    before = contents(folder)
    ended = sae(*scene.words(world, folder))
    if ended.code == 0:
        found = differences(state(folder, scene.out), good)
        return [
            name for name in found if name not in ("log.jsonl", LOCK)
        ]  # a changed digit of a row is not noticed
    line = ended.complaint
    found = [] if str(folder / file) in line else [f"not named in: {line}"]
    if scene.fix.replace("FOLDER", str(folder)) not in line:
        found.append(f"no fix in: {line}")
    return found + [
        f"{name} has changed" for name in differences(before, contents(folder)) if LOCK not in name
    ]


@pytest.mark.parametrize("file", ["sae.safetensors", "training.json"])
def test_when_several_checkpoints_are_damaged_the_newest_whole_one_is_named(
    sae: Server, world: Path, tmp_path: Path, file: str
):
    run = tmp_path / "run"
    unfinished_run(sae, world, run)
    again = train(world, run, "--resume", **{"train.keep-checkpoints": 9})
    assert sae(*train(world, tmp_path / "whole", **{"train.keep-checkpoints": 9})).code == 0
    newest, middle, oldest = sorted((run / "checkpoints").iterdir(), reverse=True)
    for checkpoint in (newest, middle):
        (checkpoint / file).write_bytes((checkpoint / file).read_bytes()[:-9])
    line = sae(*again).complaint
    assert f"{newest} is damaged" in line
    assert f"--resume continues from {oldest}" in line
    for checkpoint in (newest, middle):
        shutil.rmtree(checkpoint)
    assert sae(*again).code == 0
    assert not differences(end_state(run), end_state(tmp_path / "whole"))


def test_when_all_checkpoints_are_damaged_training_can_begin_again(sae: Server, world: Path, tmp_path: Path):
    run = tmp_path / "run"
    unfinished_run(sae, world, run)
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "training.safetensors").write_bytes(b"")
    again = train(world, run, "--resume", **{"train.keep-checkpoints": 9})
    assert "delete them all, and --resume begins at step 0" in sae(*again).complaint
    shutil.rmtree(run / "checkpoints")
    assert sae(*again).code == 0


def test_a_damaged_finished_sae_is_made_again_as_the_line_says(sae: Server, run: Path, world: Path):
    whole = contents(run)
    (run / "sae.safetensors").write_bytes(whole["sae.safetensors"][:-1])
    line = sae("evaluate", run, "--windows", 0).complaint
    assert f"rm {run / 'sae.json'} && sae resume {run}" in line
    (run / "sae.json").unlink()
    assert sae("resume", run).code == 0
    assert contents(run) == whole


def test_a_file_edited_on_purpose_is_taken_once_its_checksum_is_out(sae: Server, run: Path):
    text = (run / "run.json").read_text()
    assert text.splitlines()[1].startswith(' "checksum": ')
    edited = text.replace('"log_every": 5', '"log_every": 6')
    (run / "run.json").write_text(edited)
    assert 'delete its line "checksum"' in sae("evaluate", run, "--windows", 0).complaint
    (run / "run.json").write_text("".join(line for line in edited.splitlines(True) if "checksum" not in line))
    assert json.loads((run / "run.json").read_text())["config"]["train"]["log_every"] == 6
    assert sae("evaluate", run, "--windows", 0).code == 0


def test_damage_is_tried_in_every_region(tmp_path: Path):
    whole = bytes(range(96))
    (tmp_path / "a").write_bytes(whole)
    tried = list(everywhere(tmp_path / "a", 24))
    assert all(damage.of(whole) != whole for damage in tried)
    assert {damage.place // 4 for damage in tried if damage.kind == "bit"} == set(range(24))
    assert {damage.place // 16 for damage in tried if damage.kind == "cut"} == set(range(6))
    assert Damage("bit", 1, 2).of(b"ab") == b"af"
