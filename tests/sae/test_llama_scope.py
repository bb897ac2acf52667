"""Llama Scope's files in both layouts against their formula written out in float64; what is not an SAE is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from activations.errors import ForeignError
from sae.foreign import FORMATS, llama_scope
from tests.sae.exchanged import apart, rows
from tests.sae.small import D, F

HOOK, NORM = "blocks.8.hook_resid_post", 6.3125
RAW_THRESHOLD = 0.2021484375


def linear(seed: int = 0) -> dict[str, Tensor]:
    """Return encoder (F, D), decoder (D, F) with latents of different norms, and biases."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F), "decoder.bias": (D,)}
    return {name: torch.randn(*shape, generator=generator) / 2 for name, shape in shapes.items()}


def first(folder, tensors, **changes):
    """Write the layout of 2024, with the settings of the published Llama3_1-8B-Base-L8R-8x."""
    about = {
        "d_model": D,
        "d_sae": F,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "act_fn": "jumprelu",
        "jump_relu_threshold": RAW_THRESHOLD,
        "top_k": 5,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": NORM, "out": NORM},
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
    }
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "hyperparams.json").write_text(json.dumps({**about, **changes}))
    save_file(tensors, folder / "checkpoints/final.safetensors")
    return folder


def later(folder, tensors, **changes):
    """Write the layout of llamascopium."""
    about = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": F / D,
        "act_fn": "jumprelu",
        "top_k": 5,
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": False,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "use_glu_encoder": False,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**about, **changes}))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def parts(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W_enc, b_enc, W_dec, b_dec = (tensors[name].double() for name in linear())
    return W_enc.T, b_enc, W_dec.T, b_dec


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("subtracted", [True, False])
def test_the_first_layout_is_its_formula(tmp_path, by_norm, subtracted):
    """x is scaled to a norm of sqrt(D), and so is the threshold, which the file gives in units of raw activations."""
    tensors = linear()
    options = {"sparsity_include_decoder_norm": by_norm, "apply_decoder_bias_to_pre_encoder": subtracted}
    folder = first(tmp_path / "Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L8R-8x", tensors, **options)
    sae, origin, notes = llama_scope.read(folder)
    x, (W_enc, b_enc, W_dec, b_dec), factor = rows(), parts(tensors), D**0.5 / NORM
    u = (x.double() * factor - (b_dec if subtracted else 0)) @ W_enc + b_enc
    score = u * W_dec.norm(dim=1) if by_norm else u
    fires = score > RAW_THRESHOLD * factor
    x_hat = (u * fires @ W_dec + b_dec) / factor
    assert torch.equal(sae.encode(x).dense() != 0, fires)
    assert 0.05 < fires.double().mean() < 0.95
    assert apart(sae(x), x_hat) < 1e-6
    assert (origin.model, origin.hook) == ("meta-llama/Llama-3.1-8B", HOOK)
    assert any(f"{factor:.6g}" in note for note in notes)
    assert [name for name, form in FORMATS.items() if form.recognises(folder)] == ["llama_scope"]


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("names", ["encoder", "W_E"])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_later_layout_is_its_formula(tmp_path, by_norm, names, scaled):
    """Each latent has its own threshold, for scaled inputs."""
    tensors = linear(1)
    W_enc, b_enc, W_dec, b_dec = parts(tensors)
    log_threshold = torch.linspace(-2, 0, F)
    stored = {**tensors, "log_jumprelu_threshold": log_threshold}
    if names == "W_E":
        stored = {
            "W_E": tensors["encoder.weight"].T.contiguous(),
            "b_E": tensors["encoder.bias"],
            "W_D": tensors["decoder.weight"].T.contiguous(),
            "b_D": tensors["decoder.bias"],
            "activation_function.log_jumprelu_threshold": log_threshold,
        }
    if scaled:
        stored[f"dataset_average_activation_norm.{HOOK}"] = torch.tensor(NORM)
    how = "dataset-wise" if scaled else "inference"
    folder = later(tmp_path / "a", stored, sparsity_include_decoder_norm=by_norm, norm_activation=how)
    sae = llama_scope.read(folder).sae
    x, factor = rows(), D**0.5 / NORM if scaled else 1.0
    u = x.double() * factor @ W_enc + b_enc
    fires = (u * W_dec.norm(dim=1) if by_norm else u) > log_threshold.double().exp()
    assert torch.equal(sae.encode(x).dense() != 0, fires)
    assert apart(sae(x), (u * fires @ W_dec + b_dec) / factor) < 1e-6


@pytest.mark.parametrize("act_fn", ["topk", "relu"])
def test_other_activations_are_their_formula(tmp_path, act_fn):
    """TopK ranks pre-activations times the norms of their decoder rows."""
    tensors = linear(2)
    folder = first(tmp_path / "a", tensors, act_fn=act_fn)
    sae = llama_scope.read(folder).sae
    x, (W_enc, b_enc, W_dec, b_dec), factor = rows(), parts(tensors), D**0.5 / NORM
    score = ((x.double() * factor @ W_enc + b_enc) * W_dec.norm(dim=1)).relu()
    if act_fn == "topk":
        score = score * (score >= score.topk(5, dim=1).values[:, -1:])
    assert apart(sae(x), (score / W_dec.norm(dim=1) @ W_dec + b_dec) / factor) < 1e-6


NOT_AN_SAE = {
    "transcoder": (
        {"hook_point_out": "blocks.8.hook_mlp_out"},
        "is a transcoder from blocks.8.hook_resid_post",
    ),
    "gated linear": ({"use_glu_encoder": True}, "use_glu_encoder"),
    "crosscoder": ({"sae_type": "crosscoder"}, "is a crosscoder"),
    "lorsa": ({"sae_type": "lorsa"}, "is a low-rank sparse attention"),
    "clt": ({"sae_type": "clt"}, "is a cross-layer transcoder"),
    "molt": ({"sae_type": "molt"}, "is a mixture of linear transforms"),
    "novel": ({"sae_type": "novel"}, "is a 'novel', which is not known"),
    "token norm": ({"norm_activation": "token-wise"}, "'token-wise': rows are scaled by their own norms"),
    "no norm": ({"dataset_average_activation_norm": {}}, "mean norm .* is None"),
    "norm 0": ({"dataset_average_activation_norm": {"in": 0}}, "mean norm .* is 0"),
    "batch": ({"act_fn": "batchtopk"}, "'batchtopk', which chooses latents within a batch"),
    "no threshold": ({"jump_relu_threshold": None}, "jump_relu_threshold is missing"),
    "k": ({"act_fn": "topk", "top_k": F + 1}, f"k = {F + 1}"),
    "width": ({"d_model": D + 1}, r"encoder.weight has shape"),
}


@pytest.mark.parametrize("case", NOT_AN_SAE)
def test_what_has_no_exact_form_is_told(tmp_path, case):
    changes, said = NOT_AN_SAE[case]
    with pytest.raises(ForeignError, match=said) as error:
        llama_scope.read(first(tmp_path / "a", linear(), **changes))
    assert "\n" not in str(error.value)
