"""`sae train` and its user's mistakes: one line that says what, found and needed; exit code 2; nothing made."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from activations.shard import shard_name
from sae.runs.run import Run
from tests.cli.commands import Server, contents, harvest, train

MISTAKES = {
    "a store that is not there": ({"store": "/nowhere"}, ["/nowhere", "sae harvest"]),
    "a hook point the store has not": (
        {"hook": "blocks.0.hook_mlp_out"},
        ["blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre"],
    ),
    "more latents a token than there are": ({"arch.k": 33}, ["k = 33", "d_sae = 32"]),
    "no latents at all": ({"arch.d-sae": 0}, ["0"]),
    "a batch larger than the store": ({"train.batch": 10**6}, ["1,000,000", "train rows"]),
    "no step": ({"train.steps": 0}, ["train.steps = 0"]),
    "checkpoints before the last": ({"train.checkpoint-minutes": -1}, ["train.checkpoint_minutes = -1"]),
    "checkpoints never": ({"train.checkpoint-minutes": "inf"}, ["train.checkpoint_minutes = inf"]),
    "a learning rate below zero": ({"train.lr": -1}, ["train.lr = -1"]),
    "a learning rate that is no number": ({"train.lr": "nan"}, ["train.lr = nan"]),
    "an infinite learning rate": ({"train.lr": "inf"}, ["train.lr = inf"]),
    "a warm-up below zero": ({"train.warmup-steps": -1}, ["train.warmup_steps = -1"]),
    "gradients cut to nothing": ({"train.clip-norm": 0}, ["train.clip_norm = 0"]),
    "a decay longer than the run": ({"train.decay-share": 1.5}, ["train.decay_share = 1.5"]),
}


@pytest.mark.parametrize(("changes", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_makes_nothing(
    sae: Server, world: Path, tmp_path: Path, changes: dict[str, object], says: list[str]
):
    line = sae(*train(world, tmp_path / "run", **changes)).complaint
    assert line.startswith("sae train: ")
    assert all(part in line for part in says), line
    assert not (tmp_path / "run").exists()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [cut_short, Path.unlink], ids=["cut short", "missing"])
def test_a_damaged_shard_is_one_line_that_names_it(
    sae: Server, world: Path, store: Path, tmp_path: Path, damage: Callable[[Path], None]
):
    damage(store / shard_name(3))
    line = sae(*train(world, tmp_path / "run", store=store)).complaint
    assert str(store / shard_name(3)) in line
    assert not (tmp_path / "run").exists()


def test_an_unfinished_harvest_is_not_trained_on(sae: Server, world: Path, tmp_path: Path):
    out = tmp_path / "store"
    sae.start(*harvest(world, out, tokens=5000), kill_at=(9, out)).wait()
    assert (out / "harvest.json").exists()
    assert "unfinished harvest" in sae(*train(world, tmp_path / "run", store=out)).complaint


def test_a_store_of_several_hook_points_needs_one_chosen(sae: Server, world: Path, tmp_path: Path):
    hooks = "blocks.0.hook_mlp_out,blocks.1.hook_resid_post"
    assert sae(*harvest(world, tmp_path / "store", tokens=4000, hooks=hooks)).code == 0
    line = sae(*train(world, tmp_path / "run", store=tmp_path / "store")).complaint
    assert "--hook" in line
    assert "blocks.1.hook_resid_post" in line
    chosen = train(world, tmp_path / "run", store=tmp_path / "store", hook="blocks.1.hook_resid_post")
    assert sae(*chosen).code == 0


def test_a_finished_run_is_not_trained_again_and_with_resume_is_as_it_was(
    sae: Server, world: Path, tmp_path: Path
):
    out = tmp_path / "run"
    assert sae(*train(world, out)).code == 0
    before = contents(out)
    assert "holds a finished run: choose another --out" in sae(*train(world, out)).complaint
    assert sae(*train(world, out, "--resume")).code == 0
    assert contents(out) == before


def test_an_unfinished_run_needs_resume(sae: Server, run: Path, world: Path):
    unfinish(run)
    before = contents(run)
    assert "--resume" in sae(*as_toy(world, run)).complaint
    assert contents(run) == before
    assert sae(*as_toy(world, run), "--resume").code == 0


def test_a_run_resumes_with_the_settings_in_its_folder(sae: Server, world: Path, run: Path, tmp_path: Path):
    whole = contents(run)
    unfinish(run)
    assert sae("resume", run).code == 0
    assert {
        name: content for name, content in contents(run).items() if name in ("sae.safetensors", "sae.json")
    } == {name: whole[name] for name in ("sae.safetensors", "sae.json")}
    after = contents(run)
    assert sae("resume", run).code == 0  # finished
    assert contents(run) == after
    assert "trains on a store: leave out --ring" in sae("resume", run, "--ring", "1GB").complaint
    assert "no run at" in sae("resume", tmp_path / "none").complaint


def test_an_evaluation_of_a_checkpoint_does_not_speak_for_the_finished_run(
    sae: Server, world: Path, run: Path
):
    evaluate = ("evaluate", run, "--windows", 0)
    unfinish(run)
    assert f"measures {Run(run).newest_checkpoint}" in sae(*evaluate).out
    assert Run(run).evaluation is not None
    assert sae(*as_toy(world, run), "--resume").code == 0
    assert Run(run).evaluation is None
    assert "finished training" not in sae(*evaluate).out
    assert Run(run).evaluation is not None


def unfinish(run: Path) -> None:
    """Take a finished run back to its last checkpoint but one."""
    for name in ("sae.json", "sae.safetensors", "eval.json"):
        (run / name).unlink()
    shutil.rmtree(run / "features")
    shutil.rmtree(max((run / "checkpoints").iterdir()))


def as_toy(world: Path, out: Path, **changes: object) -> list[object]:
    """The command line whose settings are the toy run's."""
    return train(world, out, **{"train.steps": 30, "train.lr": 3e-3, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"train.lr": 1e-3}, "train"), ({"arch.k": 5}, "arch"), ({"train.steps": 60}, "train")],
)
def test_resuming_with_other_settings_is_refused(
    sae: Server, world: Path, run: Path, changes: dict, says: str
):
    unfinish(run)
    before = contents(run)
    line = sae(*as_toy(world, run, **changes), "--resume").complaint
    assert f"other settings ({says})" in line
    assert contents(run) == before


@pytest.mark.parametrize("hooks", ["blocks.1.hook_resid_pre", "blocks.1.mlp.hook_post"])
def test_resuming_on_a_store_made_again_of_other_activations_is_refused(
    sae: Server, world: Path, tmp_path: Path, hooks: str
):
    store, out = tmp_path / "store", tmp_path / "run"
    assert sae(*harvest(world, store, tokens=4000)).code == 0
    assert sae(*train(world, out, store=store)).code == 0
    shutil.rmtree(store)
    assert sae(*harvest(world, store, tokens=4000 if "mlp" in hooks else 3600, hooks=hooks)).code == 0
    settings = train(world, out, "--resume", store=store, hook=hooks)
    for command in (settings, ["evaluate", out, "--windows", 0], ["features", out]):
        line = sae(*command).complaint
        assert str(store) in line or "hook" in line
        assert str(out) in line


@pytest.mark.parametrize("file", ["sae.json", "sae.safetensors", "training.json", "training.safetensors"])
@pytest.mark.parametrize(
    "damage", [cut_short, lambda path: path.write_bytes(b"")], ids=["cut short", "empty"]
)
def test_resuming_from_a_damaged_checkpoint_is_one_line_that_names_it(
    sae: Server, world: Path, run: Path, file: str, damage: Callable[[Path], None]
):
    unfinish(run)
    checkpoint = max((run / "checkpoints").iterdir())
    damage(checkpoint / file)
    line = sae(*as_toy(world, run), "--resume").complaint
    assert str(checkpoint) in line


def test_a_log_with_a_damaged_line_is_one_line_that_names_it(sae: Server, world: Path, run: Path):
    unfinish(run)
    (run / "log.jsonl").write_text('{"step": 5\n{"step": 10}\n')
    assert str(run / "log.jsonl") in sae(*as_toy(world, run), "--resume").complaint


@pytest.mark.parametrize("content", ["{}", "[]", "null", "", '{"format": 1'])
def test_a_damaged_run_file_is_one_line_that_names_it(sae: Server, world: Path, run: Path, content: str):
    (run / "run.json").write_text(content)
    for command in (
        as_toy(world, run, resume=True)[:-1],
        ["evaluate", run, "--windows", 0],
        ["features", run],
    ):
        assert str(run / "run.json") in sae(*command).complaint


def test_a_newer_run_is_refused_by_name(sae: Server, run: Path):
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "format": 2}))
    line = sae("evaluate", run, "--windows", 0).complaint
    assert "format 2" in line
    assert "up to 1" in line
