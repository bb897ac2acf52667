"""A model folder runs nothing it brings along, asks nothing, and does not come half-empty."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from activations.errors import ModelError
from activations.language_model import load


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "ran"))


@pytest.fixture
def folder(world: Path, tmp_path: Path) -> Path:
    """A copy of the toy model."""
    return Path(shutil.copytree(world / "model", tmp_path / "model"))


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_code_in_the_folder_is_neither_run_nor_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch):
    ran = folder / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).write_text('ran')\nclass Own: ...\n"
    (folder / "own.py").write_text(code)
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    change(folder / "config.json", auto_map=own, model_type="of-its-own")
    change(folder / "tokenizer_config.json", auto_map=own)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(ModelError):
        load(str(folder))
    change(folder / "config.json", model_type="llama")
    load(str(folder))  # a known type: its own code is left aside
    assert not ran.exists()


def test_pickled_weights_run_nothing(folder: Path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    load(str(folder))  # plain tensors are read
    ran = folder / "ran"
    torch.save({**weights, "bomb": Bomb(ran)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(ran)))
    with pytest.raises(ModelError):
        load(str(folder))
    assert not ran.exists()


def test_a_model_that_lacks_weights_is_refused_not_filled_with_noise(folder: Path):
    weights = load_file(folder / "model.safetensors")
    gone = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(folder))
    assert gone.numel()
