"""Transcoders, crosscoders and cross-layer transcoders are refused as what they are, in every format that can hold them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from activations.errors import ForeignError
from sae.workflows.import_sae import import_sae
from tests.sae.small import D, F

PAIR = {
    "W_enc": torch.zeros(D, F),
    "W_dec": torch.zeros(F, D),
    "b_enc": torch.zeros(F),
    "b_dec": torch.zeros(D),
}


def saelens(folder, **settings):
    about = {"sae_lens_version": "6.54.12", **settings.pop("metadata", {})}
    cfg = {"architecture": "standard", "d_in": D, "d_sae": F, **settings, "metadata": about}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file(PAIR, folder / "sae_weights.safetensors")


def gemma_1(folder):
    inner = folder / "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_5"
    inner.mkdir(parents=True)
    np.savez(inner / "params.npz", **{name: tensor.numpy() for name, tensor in PAIR.items()})
    return inner


def gemma_2(folder, place="gemma-scope-2-1b-pt/transcoder_all/layer_3_width_16k_l0_big", **about):
    inner = folder / place
    inner.mkdir(parents=True)
    save_file({name.lower(): tensor for name, tensor in PAIR.items()}, inner / "params.safetensors")
    if about:
        cfg = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.3.output", **about}
        (inner / "config.json").write_text(json.dumps(cfg))
    return inner


def sparsify(folder, **settings):
    (folder / "cfg.json").write_text(json.dumps({"expansion_factor": 3, "k": 2, "d_in": D, **settings}))
    save_file(PAIR, folder / "sae.safetensors")


def dictionary(folder, weight=None, trainer=None, buffer=None):
    state = {"encoder.weight": torch.zeros(F, D) if weight is None else weight}
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer or {}, "buffer": buffer or {}}))


def circuit_tracer(folder, name):
    save_file(PAIR, folder / name)


CASES = {
    **{
        f"saelens {kind}": (lambda folder, kind=kind: saelens(folder, architecture=kind), f"is a {kind} SAE")
        for kind in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
    },
    "saelens by d_out": (lambda folder: saelens(folder, d_out=D), "is a transcoder"),
    "saelens by hook": (
        lambda folder: saelens(folder, metadata={"hook_name": "a", "hook_name_out": "b"}),
        "is a transcoder",
    ),
    "gemma 1": (gemma_1, "is a transcoder"),
    "gemma 2": (
        lambda folder: gemma_2(folder, hf_hook_point_out="model.layers.3.mlp.output"),
        "is a transcoder",
    ),
    "gemma 2 affine": (lambda folder: gemma_2(folder, affine_connection=True), "is a transcoder"),
    "gemma 2 by path": (gemma_2, "is a transcoder"),
    "sparsify": (lambda folder: sparsify(folder, transcode=True), "is a transcoder"),
    "sparsify skip": (lambda folder: sparsify(folder, skip_connection=True), "skip connection"),
    "crosscoder by class": (
        lambda folder: dictionary(folder, trainer={"dict_class": "BatchTopKCrossCoder"}),
        "is a crosscoder .BatchTopKCrossCoder.",
    ),
    "crosscoder by shape": (lambda folder: dictionary(folder, torch.zeros(2, D, F)), "is a crosscoder"),
    "dictionary transcoder": (
        lambda folder: dictionary(folder, buffer={"io": "in_and_out"}),
        "is a transcoder",
    ),
    "circuit-tracer": (lambda folder: circuit_tracer(folder, "layer_0.safetensors"), "is a transcoder"),
    "clt": (lambda folder: circuit_tracer(folder, "W_enc_0.safetensors"), "is a cross-layer transcoder"),
    "gemma 2 clt": (
        lambda folder: circuit_tracer(folder, "params_layer_0.safetensors"),
        "cross-layer transcoder",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_dictionary_that_is_no_sae_is_refused_as_what_it_is(tmp_path, case):
    make, said = CASES[case]
    (tmp_path / "files").mkdir()
    folder = make(tmp_path / "files") or tmp_path / "files"
    with pytest.raises(ForeignError, match=said) as error:
        import_sae(folder, tmp_path / "run", model="gpt2", hook="blocks.0.hook_resid_post")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
