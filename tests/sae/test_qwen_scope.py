"""Qwen-Scope's files against the code on the models' cards, in float64; names are parsed, mistakes refused."""

import pytest
import torch
from torch import Tensor

from activations.errors import ForeignError
from sae.foreign import FORMATS, qwen_scope
from tests.sae.exchanged import apart, rows
from tests.sae.small import D

F, K = 1024, 50  # latents as the repository's name has them: 1K
REPOSITORY = "SAE-Res-Qwen3-8B-Base-W1K-L0_50"


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (F, D), "W_dec": (D, F), "b_enc": (F,), "b_dec": (D,)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def file(folder, content, layer=20):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / f"layer{layer}.sae.pt")
    return folder / f"layer{layer}.sae.pt"


def test_it_is_the_formula_of_the_cards(tmp_path):
    """The k largest of x W_enc^T + b_enc; about half of all pre-activations here are positive, so no ReLU takes part."""
    content = tensors()
    path = file(tmp_path / REPOSITORY, content)
    sae, origin, notes = qwen_scope.read(path)
    x, s = rows(), {name: tensor.double() for name, tensor in content.items()}
    u = x.double() @ s["W_enc"].T + s["b_enc"]
    values, places = u.topk(K, dim=1)
    z = torch.zeros_like(u).scatter(1, places, values)
    assert torch.equal(sae.encode(x).dense() != 0, z != 0)
    assert apart(sae(x), z @ s["W_dec"].T + s["b_dec"]) < 1e-6
    assert (origin.model, origin.hook) == ("Qwen/Qwen3-8B-Base", "blocks.20.hook_resid_post")
    assert any(f"fewer than {K} positive" in note for note in notes)
    for found in (path, path.parent):
        assert [name for name, form in FORMATS.items() if form.recognises(found)] == ["qwen_scope"]


@pytest.mark.parametrize(
    ("place", "model", "k"),
    [
        (
            "models--Qwen--SAE-Res-Qwen3.5-35B-A3B-Base-W1K-L0_100/snapshots/0",
            "Qwen/Qwen3.5-35B-A3B-Base",
            100,
        ),
        ("SAE-Res-Qwen3.5-27B-W1K-L0_50", "Qwen/Qwen3.5-27B", 50),
    ],
)
def test_the_model_and_k_come_from_the_repositorys_name(tmp_path, place, model, k):
    sae, origin, _ = qwen_scope.read(file(tmp_path / place, tensors(), layer=0))
    assert (origin.model, origin.hook, vars(sae.cfg)["k"]) == (model, "blocks.0.hook_resid_post", k)


def test_a_folder_with_one_file_is_that_file_and_with_two_is_asked_about(tmp_path):
    folder = file(tmp_path / REPOSITORY, tensors()).parent
    assert qwen_scope.read(folder).origin.hook == "blocks.20.hook_resid_post"
    file(folder, tensors(), layer=21)
    assert not qwen_scope.recognises(folder)
    with pytest.raises(ForeignError, match="name the file of one block"):
        qwen_scope.read(folder)


def test_a_width_other_than_the_names_is_noted(tmp_path):
    path = file(tmp_path / REPOSITORY.replace("W1K", "W2K"), tensors())
    assert any("2K latents, the file has 1,024" in note for note in qwen_scope.read(path).notes)


WRONG = {
    "no repository": ("here", tensors(), "does not give its k"),
    "k above the width": (REPOSITORY.replace("_50", "_5000"), tensors(), "k = 5000"),
    "missing": (REPOSITORY, {"W_enc": torch.zeros(F, D)}, "lacks the tensor b_enc"),
    "transposed": (REPOSITORY, {**tensors(), "W_dec": torch.zeros(F, D)}, "W_dec has shape"),
    "more": (REPOSITORY, {**tensors(), "threshold": torch.zeros(F)}, "not understood here: threshold"),
    "list": (REPOSITORY, [1, 2], "holds a list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_told(tmp_path, case):
    place, content, said = WRONG[case]
    with pytest.raises(ForeignError, match=said) as error:
        qwen_scope.read(file(tmp_path / place, content))
    assert "\n" not in str(error.value)
