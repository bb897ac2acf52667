"""Gemma Scope's files of both versions against the formula, ours written and read back, mistakes refused."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from activations.errors import ForeignError
from sae.foreign import gemma_scope
from tests.sae.exchanged import ORIGIN, apart, rows, trained
from tests.sae.small import SMALL, D, F

THRESHOLDED = ("relu", "jumprelu", "jumprelu-tanh", "batchtopk", "matryoshka", "gated")


def tensors():
    generator = torch.Generator().manual_seed(0)
    encoder, decoder, bias, b_dec, threshold = (
        torch.randn(*shape, generator=generator) for shape in ((D, F), (F, D), (F,), (D,), (F,))
    )
    return {
        "W_enc": encoder / 2,
        "W_dec": normalize(decoder, dim=1),
        "b_enc": bias / 4,
        "b_dec": b_dec,
        "threshold": threshold / 2,  # some below 0, which is 0
    }


def formula(x, s, factor=1.0):
    s = {name.lower(): tensor.double() for name, tensor in s.items()}
    u = x.double() / factor @ s["w_enc"] + s["b_enc"]
    z = (u > s["threshold"]) * u.relu()
    return factor * z, factor * (z @ s["w_dec"] + s["b_dec"])


def lower(content):
    return {name.lower(): tensor for name, tensor in content.items()}


def first(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in content.items()})
    return folder


def second(folder, content, **about):
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-pt",
        "hf_hook_point_in": "model.layers.7.output",
    }
    (folder / "config.json").write_text(json.dumps({**cfg, **about}))
    save_file(content, folder / "params.safetensors")
    return folder


@pytest.mark.parametrize("spelled", [dict, lower])
@pytest.mark.parametrize("version", [first, second])
def test_read_as_its_formula(tmp_path, version, spelled):
    content, x = tensors(), rows()
    sae = gemma_scope.read(version(tmp_path, spelled(content))).sae
    z, x_hat = formula(x, content)
    assert apart(sae.encode(x).dense(), z) < 1e-5
    assert apart(sae(x), x_hat) < 1e-5


def test_an_embedding_sae_reads_embeddings_as_the_model_scales_them(tmp_path):
    content, x = tensors(), 3 * rows()
    read = gemma_scope.read(first(tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k", content))
    z, x_hat = formula(x, content, factor=D**0.5)
    assert apart(read.sae.encode(x).dense(), z) < 1e-5
    assert apart(read.sae(x), x_hat) < 1e-5
    assert read.origin.hook == "hook_embed"
    assert "folded in" in read.notes[0]


@pytest.mark.parametrize(
    ("place", "model", "hook"),
    [
        (
            "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
            "google/gemma-2-2b",
            "blocks.20.hook_resid_post",
        ),
        (
            "gemma-scope-9b-it-mlp/layer_3/width_16k/average_l0_71",
            "google/gemma-2-9b-it",
            "blocks.3.hook_mlp_out",
        ),
        (
            "gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_71",
            "google/gemma-2-2b",
            "blocks.3.attn.hook_z",
        ),
        ("downloads", None, None),
    ],
)
def test_a_path_says_where_it_belongs(tmp_path, place, model, hook):
    origin = gemma_scope.read(first(tmp_path / place, tensors())).origin
    assert (origin.model, origin.hook) == (model, hook)
    assert origin.facts == ({"average_l0": 71} if model else {})


@pytest.mark.parametrize(
    ("source", "hook"),
    [
        ("model.layers.7.output", "blocks.7.hook_resid_post"),
        ("model.layers.7.self_attn.o_proj.input", "blocks.7.attn.hook_z"),
        ("model.layers.7.post_feedforward_layernorm.output", "blocks.7.hook_mlp_out"),
        ("model.somewhere", None),
    ],
)
def test_a_config_says_where_it_belongs(tmp_path, source, hook):
    origin = gemma_scope.read(second(tmp_path, lower(tensors()), hf_hook_point_in=source)).origin
    assert (origin.model, origin.hook) == ("google/gemma-3-1b-pt", hook)


@pytest.mark.parametrize("name", THRESHOLDED)
def test_ours_come_back_as_a_jumprelu_that_does_the_same(tmp_path, name):
    sae, x = trained(SMALL[name]), rows()
    notes = gemma_scope.write(sae, ORIGIN, tmp_path / "out")
    assert bool(notes) is not name.startswith("jumprelu")
    assert (np.load(tmp_path / "out" / "params.npz")["threshold"] >= 0).all()
    back = gemma_scope.read(tmp_path / "out").sae
    assert apart(back.encode(x).dense(), sae.encode(x).dense()) < 1e-5
    assert apart(back(x), sae(x)) < 1e-5


@pytest.mark.parametrize("name", sorted(SMALL.keys() - set(THRESHOLDED)))
def test_what_it_cannot_hold_is_refused_and_nothing_is_written(tmp_path, name):
    with pytest.raises(
        ForeignError,
        match="Gemma Scope cannot compute what .* it holds SAEs whose latents fire above thresholds",
    ):
        gemma_scope.write(trained(SMALL[name]), ORIGIN, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"architecture": "topk"}, "architecture is 'topk', expected jump_relu"),
        ({"affine_connection": True}, "is a transcoder from 'model.layers.7.output'"),
        (
            {"hf_hook_point_out": "model.layers.8.output"},
            "to 'model.layers.8.output': an SAE here reconstructs what it reads",
        ),
    ],
)
def test_what_is_no_plain_jumprelu_is_told(tmp_path, about, said):
    with pytest.raises(ForeignError, match=said):
        gemma_scope.read(second(tmp_path, lower(tensors()), **about))


def test_transcoders_of_version_1_and_decoders_of_several_layers_are_told(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_3"
    with pytest.raises(
        ForeignError,
        match="is a transcoder .gemma-scope-2b-pt-transcoders., which reconstructs an MLP's output",
    ):
        gemma_scope.read(first(folder, tensors()))
    several = {**lower(tensors()), "w_dec": torch.zeros(F, 2, D)}
    with pytest.raises(ForeignError, match=r"W_dec has shape \(24, 2, 8\), expected \(24, 8\)"):
        gemma_scope.read(second(tmp_path, several))
    skip = {**lower(tensors()), "affine_skip_connection": torch.zeros(D, D)}
    with pytest.raises(ForeignError, match="not understood here: affine_skip_connection"):
        gemma_scope.read(second(tmp_path, skip))


class Opened:
    """An object whose unpickling fails the test."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was opened",)


def test_a_pickle_in_an_npz_is_not_opened(tmp_path):
    array = np.empty((), dtype=object)
    array[()] = Opened()
    np.savez(tmp_path / "params.npz", W_enc=array)
    with pytest.raises(ForeignError, match="cannot be read as arrays of numbers"):
        gemma_scope.read(tmp_path)


def test_damaged_missing_and_swollen_archives_are_told(tmp_path):
    with pytest.raises(ForeignError, match="has neither params.npz nor params.safetensors"):
        gemma_scope.read(tmp_path)
    whole = first(tmp_path, tensors()) / "params.npz"
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(ForeignError, match="is not an archive of arrays"):
        gemma_scope.read(tmp_path)
    whole.write_bytes(pickle.dumps({}))
    with pytest.raises(ForeignError, match="is not an archive of arrays"):
        gemma_scope.read(tmp_path)
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", bytes(10**8))
    with pytest.raises(ForeignError, match="would decompress to 100 MB, more than 8 times its size"):
        gemma_scope.read(tmp_path)
