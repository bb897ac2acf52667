"""`sae open` goes from a name to everything that the pages need, and does not repeat finished work."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from sae.runs.run import Run
from tests import tiny
from tests.hub.conftest import contents
from tests.hub.fake_hub import Repository

SMALL = ("--tokens", 1600, "--context", 16, "--windows", 4, "--no-app")


@pytest.fixture
def shared(hub, world):
    """Put a run of ours on the hub, whose model is a folder on this machine."""
    hub.models["me/mine"] = Repository(contents(world / "runs/toy"))


def test_a_name_leads_to_features_and_numbers_once(hub, shared, asking, world, tmp_path):
    command = ("open", "hf:me/mine", "--text", world / "text.jsonl", *SMALL)
    ended = asking(*command)
    assert ended.code == 0, ended.err
    run = Run(tmp_path / "runs/me-mine")
    assert run.record.imported.hub["repository"] == "me/mine"
    assert run.hook == tiny.HOOK
    assert run.evaluation
    assert (run.path / "features/features.json").is_file()
    assert "sae app runs/me-mine" in ended.out
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    again = asking(*command, url="http://127.0.0.1:9")
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before


def test_a_name_or_text_other_than_that_of_the_folder_is_refused(hub, shared, asking, world, tmp_path):
    hub.models["you/mine"] = hub.models["me/mine"]
    command = ("open", "hf:me/mine", "--out", "runs/one", "--text", world / "text.jsonl", *SMALL)
    assert asking(*command).code == 0
    for changed, said in (
        ({"hf:me/mine": "hf:you/mine"}, "of another SAE (hf:me/mine"),
        ({"hf:me/mine": "nowhere"}, "of another SAE (hf:me/mine"),
        ({world / "text.jsonl": "embedded"}, "another text"),
        ({16: 32}, "another --context, 16 and not 32"),
        ({1600: 800}, "another --tokens, 1600 and not 800"),
    ):
        line = asking(*(changed.get(each, each) for each in command)).complaint
        assert said in line
        assert "choose another --out" in line
    assert asking(*command).code == 0


def test_a_folder_of_another_tool_is_opened_too(asking, world, tmp_path):
    made = asking("export", "saelens", world / "runs/toy", "--out", "lens")
    assert made.code == 0, made.err
    ended = asking("open", "lens", "--text", world / "text.jsonl", *SMALL)
    assert ended.code == 0, ended.err
    run = Run(tmp_path / "runs/lens")
    assert run.record.imported.format == "saelens"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "lens").rename(tmp_path / "elsewhere/lens")
    command = ("open", "elsewhere/lens", "--text", world / "text.jsonl", "--out", "runs/lens", *SMALL)
    assert asking(*command).code == 0  # the same files, wherever they lie
    shutil.copytree(tmp_path / "elsewhere/lens", tmp_path / "lens")
    weights = load_file(tmp_path / "lens/sae_weights.safetensors")
    save_file({**weights, "b_dec": weights["b_dec"] + 1}, tmp_path / "lens/sae_weights.safetensors")
    line = asking("open", "lens", "--text", world / "text.jsonl", *SMALL).complaint
    assert "lens has changed since" in line and "choose another --out" in line


def test_a_model_can_be_named_and_one_that_is_missing_is_told(asking, world, tmp_path):
    assert asking("export", "gemma_scope", world / "runs/relu", "--out", "bare").code == 2  # no such run
    line = asking("open", "nowhere", *SMALL).complaint
    assert "there is no file or folder nowhere" in line
    assert "hf:OWNER/REPOSITORY" in line
    assert not (tmp_path / "runs").exists()
