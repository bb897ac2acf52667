"""A finished run of this tool is read like any other tool's file: every architecture, to the last bit."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from activations.errors import ForeignError
from sae import config
from sae.config import RunConfig
from sae.foreign import FORMATS, Origin, workbench
from sae.runs import run as run_folder
from sae.runs.run import made_by
from sae.runs.saved_sae import save_sae
from tests.sae.exchanged import trained
from tests.sae.small import SMALL, D


def run(folder, name="topk"):
    """Write a run as an import without a store does, and return its SAE."""
    sae = trained(SMALL[name])
    folder.mkdir()
    save_sae(folder, sae, {"hook": "a.hook", "model": "gpt2", "step": None})
    settings = config.to_json(RunConfig("", "a.hook", sae.cfg))
    about = {
        **made_by(), "config": settings, "hook": "a.hook", "d_model": D, "input_scale": 1.0, "model": "gpt2",
        "model_revision": None, "weights_sha256": None, "store_fingerprint": None,
        "imported": {"format": "saelens", "path": "theirs", "notes": [], "facts": {"a": 1}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(about))
    return sae


@pytest.mark.parametrize("name", SMALL)
def test_every_architecture_comes_back_as_it_was(tmp_path, name):
    sae = run(tmp_path / "a", name)
    found = workbench.read(tmp_path / "a")
    assert vars(found.sae.cfg) == vars(sae.cfg)
    assert all(torch.equal(found.sae.state_dict()[key], t) for key, t in sae.state_dict().items())
    assert found.origin == Origin("gpt2", "a.hook", {"a": 1})
    assert [form for form, module in FORMATS.items() if module.recognises(tmp_path / "a")] == ["workbench"]


def test_damage_is_told(tmp_path):
    run(tmp_path / "a")
    (tmp_path / "a" / "sae.safetensors").write_bytes(b"")
    with pytest.raises(ForeignError, match="damaged"):
        workbench.read(tmp_path / "a")


def test_a_run_names_the_commit_of_this_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It names none without git, and none where the code lies in the repository of another project."""
    assert re.fullmatch(r"[0-9a-f]{40}\+?", str(made_by()["git_commit"]))
    identity = ("-c", "user.name=me", "-c", "user.email=me@example.com")
    for command in (("init", "--quiet"), (*identity, "commit", "--quiet", "--allow-empty", "-m", "other")):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    copy = tmp_path / ".venv" / "run.py"
    copy.parent.mkdir()
    shutil.copyfile(run_folder.__file__, copy)
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "__file__", str(copy))
        assert made_by()["git_commit"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert made_by()["git_commit"] is None
