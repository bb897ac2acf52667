"""Llama Scope and its successors (OpenMOSS): hyperparams.json with checkpoints/final.safetensors, or config.json with
sae_weights.safetensors.

He et al. 2024, arXiv:2410.20526; llamascopium 2.0.0b34, models/sae.py. Inputs are scaled to a mean norm of sqrt(D) before
they are encoded, and reconstructions are scaled back: both factors are folded in. The number in hyperparams.json above
which latents fire was taken after that folding, so it is in units of raw activations; thresholds among the tensors of the
later layout were trained on scaled inputs and are divided by the factor."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from activations.errors import ConfigError, ForeignError
from sae.architectures import ArchConfig, JumpReLUConfig, ReLUConfig, TopKConfig
from sae.foreign.weights import (
    Imported,
    Layout,
    Origin,
    Weights,
    assemble,
    finished,
    fold_norms,
    fold_pre_bias,
    read_json,
    read_safetensors,
    setting,
)

TITLE = "Llama Scope (hyperparams.json and checkpoints/final.safetensors; later config.json and sae_weights.safetensors)"
FIRST, LATER = (
    ("hyperparams.json", "checkpoints/final.safetensors"),
    ("config.json", "sae_weights.safetensors"),
)
LAYOUTS = tuple(Layout(re.escape(weights), (about,)) for about, weights in (FIRST, LATER))
NORM = "dataset_average_activation_norm"
NOT_SAES = {
    "crosscoder": "a crosscoder, which reads several places of the model at once",
    "clt": "a cross-layer transcoder, which writes to later layers than it reads",
    "lorsa": "a low-rank sparse attention module, which mixes positions",
    "molt": "a mixture of linear transforms, which rebuilds another place than it reads",
    "mixcoder": "a mixture for several modalities",
}
"""Kinds of dictionary that share the layout (`sae_type`), and why they cannot be read."""
MODELS = {
    r"Llama3_1-8B-Base": "meta-llama/Llama-3.1-8B",
    r"Llama-Scope-R1-Distill": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}
"""What the path of the published files contains -> the model; the files do not name it."""


def recognises(path: Path) -> bool:
    """Whether this is a folder in one of the two layouts. SAELens' weights have the later one's name, but lie beside a
    cfg.json."""
    return any((path / about).is_file() and (path / weights).is_file() for about, weights in (FIRST, LATER))


def read(path: Path) -> Imported:
    """Read the SAE in a folder. Raises ForeignError when it is damaged or has no exact form here."""
    first = (path / FIRST[0]).is_file()
    place, file = (path / name for name in (FIRST if first else LATER))
    about = read_json(place)
    hook = _hook(about, place)
    weights = Weights(file, read_safetensors(file))
    width = setting(about, "d_model", int, place)
    scale_in, scale_out = _scales(about, weights, hook, width, place)
    W_enc, b_enc, W_dec, b_dec = _linear(weights, width)
    n = len(b_enc)
    arch = _arch(about, n, place)
    tensors = {
        "W_enc": W_enc,
        "b_enc": b_enc / scale_in,
        "W_dec": W_dec * (scale_in / scale_out),
        "b_dec": b_dec / scale_out,
    }
    by_norm = about.get("sparsity_include_decoder_norm", True) is not False
    if isinstance(arch, JumpReLUConfig):
        threshold = _threshold(about, weights, n, scale_in, place)
        # what is compared is a latent's pre-activation times its row's norm, before the rows are scaled
        norms = W_dec.norm(dim=1).clamp_min(torch.finfo(W_dec.dtype).tiny)
        tensors["log_threshold"] = (threshold.clamp_min(0) / (norms if by_norm else 1)).log()
    weights.done()
    sae = assemble(arch, tensors)
    subtracted = about.get("apply_decoder_bias_to_pre_encoder") is True
    notes = fold_pre_bias(sae, subtracted) + fold_norms(sae, ranked_by_norm=by_norm)
    if scale_in != 1:
        notes.append(f"inputs are multiplied by {scale_in:.6g} there: the factor is folded in")
    return Imported(finished(sae), Origin(_model(about, path), hook, {"settings": about}), notes)


def _hook(about: dict[str, Any], place: Path) -> str:
    kind = about.get("sae_type", "sae")
    if kind != "sae":
        what = NOT_SAES.get(str(kind), f"a {kind!r}, which is not known here")
        raise ForeignError(
            f"{place.parent} is {what} (sae_type in {place.name}): an SAE here rebuilds what it reads"
        )
    source = setting(about, "hook_point_in", str, place)
    target = about.get("hook_point_out", source)
    if target != source:
        raise ForeignError(
            f"{place.parent} is a transcoder from {source} to {target!r}: an SAE here rebuilds what it reads"
        )
    if about.get("use_glu_encoder"):
        raise ForeignError(
            f"{place.parent} has a gated linear encoder (use_glu_encoder): no architecture here has one"
        )
    return source


def _scales(
    about: dict[str, Any], weights: Weights, hook: str, width: int, place: Path
) -> tuple[float, float]:
    """Return what inputs and outputs are multiplied by before they are encoded and compared."""
    tensor = float(weights.take(f"{NORM}.{hook}")) if f"{NORM}.{hook}" in weights else None
    how = about.get("norm_activation", "dataset-wise")
    if how == "inference":
        return 1.0, 1.0
    if how != "dataset-wise":
        raise ForeignError(f"{place}: norm_activation is {how!r}: rows are scaled by their own norms, which no fixed "
                           f"weights can do; needed is dataset-wise or inference")  # fmt: skip
    said = about.get(NORM)
    norms = [said.get("in"), said.get("out", said.get("in"))] if isinstance(said, dict) else [tensor, tensor]
    for norm in norms:
        if not isinstance(norm, int | float) or not 0 < norm < math.inf:
            raise ForeignError(f"{place}: the mean norm by which inputs are scaled ({NORM}) is {norm!r}, needed is a "
                               f"number above 0")  # fmt: skip
    return width**0.5 / norms[0], width**0.5 / norms[1]


def _linear(weights: Weights, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W_enc, b_enc, W_dec and b_dec by either layout's names; a missing b_dec is 0."""
    if "W_E" in weights:
        W_enc = weights.take("W_E", width, None)
        n = W_enc.shape[1]
        b_enc, W_dec, bias = weights.take("b_E", n), weights.take("W_D", n, width), "b_D"
    else:
        W_enc = weights.take("encoder.weight", None, width).T
        n = W_enc.shape[1]
        b_enc, W_dec, bias = (
            weights.take("encoder.bias", n),
            weights.take("decoder.weight", width, n).T,
            "decoder.bias",
        )
    b_dec = weights.take(bias, width) if bias in weights else torch.zeros(width, dtype=W_enc.dtype)
    return W_enc, b_enc, W_dec, b_dec


def _arch(about: dict[str, Any], n: int, place: Path) -> ArchConfig:
    name = setting(about, "act_fn", str, place).lower()
    try:
        match name:
            case "jumprelu":
                return JumpReLUConfig(d_sae=n)
            case "relu":
                return ReLUConfig(d_sae=n)
            case "topk":
                return TopKConfig(d_sae=n, k=setting(about, "top_k", int, place))
    except ConfigError as error:
        raise ForeignError(f"{place}: {error}") from error
    raise ForeignError(
        f"{place}: act_fn is {name!r}, which chooses latents within a batch and leaves no threshold; "
        f"needed is jumprelu, relu or topk"
    )


def _threshold(about: dict[str, Any], weights: Weights, n: int, scale: float, place: Path) -> Tensor:
    """Return the value of raw pre-activations above which each latent fires."""
    for name in ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold"):
        if name in weights:
            return weights.take(name, n).exp() / scale
    return torch.full((n,), setting(about, "jump_relu_threshold", float, place), dtype=torch.float64)


def _model(about: dict[str, Any], path: Path) -> str | None:
    name, whole = about.get("model_name"), "/".join(path.absolute().parts)
    if isinstance(name, str):
        return name
    return next((model for part, model in MODELS.items() if re.search(part, whole)), None)
