"""Read SAEs of Llama Scope and its successors (OpenMOSS): hyperparams.json with checkpoints/final.safetensors, or
config.json with sae_weights.safetensors.

He et al. 2024, arXiv:2410.20526; llamascopium 2.0.0b34, models/sae.py. Inputs are scaled to a mean norm of sqrt(D) before
they are encoded, and reconstructions are scaled back: both factors are folded in. The threshold in hyperparams.json was
measured after that folding, so it is in units of raw activations. Thresholds among the tensors of the later layout were
trained on scaled inputs and are divided by the factor."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from activations.errors import ConfigError, ForeignError
from sae.architectures import ArchConfig, JumpReLUConfig, ReLUConfig, TopKConfig
from sae.foreign.exact_forms import assemble, finished, fold_norms, fold_pre_bias
from sae.foreign.weights import (
    Imported,
    Layout,
    Origin,
    Settings,
    Weights,
    read_json,
    read_safetensors,
    setting,
    text_or_none,
)

TITLE = "Llama Scope (hyperparams.json and checkpoints/final.safetensors; later config.json and sae_weights.safetensors)"
FIRST, LATER = (
    ("hyperparams.json", "checkpoints/final.safetensors"),
    ("config.json", "sae_weights.safetensors"),
)
LAYOUTS = tuple(Layout(re.escape(weights), (config,)) for config, weights in (FIRST, LATER))
NORM = "dataset_average_activation_norm"
NOT_SAES = {
    "crosscoder": "a crosscoder, which reads several hook points at once",
    "clt": "a cross-layer transcoder, which writes to later layers than it reads",
    "lorsa": "a low-rank sparse attention module, which mixes positions",
    "molt": "a mixture of linear transforms, which reconstructs another hook point than it reads",
    "mixcoder": "a mixture for several modalities",
}
"""Kinds of dictionary that share the layout (`sae_type`), and why they cannot be read."""
MODELS = {
    r"Llama3_1-8B-Base": "meta-llama/Llama-3.1-8B",
    r"Llama-Scope-R1-Distill": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}
"""Part of the published files' path -> the model, which the files do not name."""


def recognises(path: Path) -> bool:
    """Return whether this is a folder in one of the two layouts.

    SAELens' weights have the same name as the later layout's, but lie beside a cfg.json."""
    return any((path / config).is_file() and (path / weights).is_file() for config, weights in (FIRST, LATER))


def read(path: Path) -> Imported:
    """Read the SAE in a folder. Raises ForeignError when it is damaged or has no exact form here."""
    first = (path / FIRST[0]).is_file()
    settings_file, file = (path / name for name in (FIRST if first else LATER))
    settings = read_json(settings_file)
    hook = _hook(settings, settings_file)
    weights = Weights(file, read_safetensors(file))
    width = setting(settings, "d_model", int, settings_file)
    scale_in, scale_out = _scales(settings, weights, hook, width, settings_file)
    W_enc, b_enc, W_dec, b_dec = _linear(weights, width)
    n = len(b_enc)
    arch = _arch(settings, n, settings_file)
    tensors = {
        "W_enc": W_enc,
        "b_enc": b_enc / scale_in,
        "W_dec": W_dec * (scale_in / scale_out),
        "b_dec": b_dec / scale_out,
    }
    by_norm = settings.get("sparsity_include_decoder_norm", True) is not False
    if isinstance(arch, JumpReLUConfig):
        threshold = _threshold(settings, weights, n, scale_in, settings_file)
        # the threshold applies to a pre-activation times the norm of its decoder row, before the rows are scaled
        norms = W_dec.norm(dim=1).clamp_min(torch.finfo(W_dec.dtype).tiny)
        tensors["log_threshold"] = (threshold.clamp_min(0) / (norms if by_norm else 1)).log()
    weights.done()
    sae = assemble(arch, tensors)
    subtracted = settings.get("apply_decoder_bias_to_pre_encoder") is True
    notes = fold_pre_bias(sae, subtracted) + fold_norms(sae, ranked_by_norm=by_norm)
    if scale_in != 1:
        notes.append(f"the file's SAE multiplies inputs by {scale_in:.6g}: the factor is folded in")
    return Imported(finished(sae), Origin(_model(settings, path), hook, {"settings": settings}), notes)


def _hook(settings: Settings, path: Path) -> str:
    """Return the hook point. Raises ForeignError when the file does not hold a plain SAE."""
    kind = settings.get("sae_type", "sae")
    if kind != "sae":
        what = NOT_SAES.get(str(kind), f"a {kind!r}, which is not known here")
        raise ForeignError(
            f"{path.parent} is {what} (sae_type in {path.name}): an SAE here reconstructs what it reads"
        )
    source = setting(settings, "hook_point_in", str, path)
    target = settings.get("hook_point_out", source)
    if target != source:
        raise ForeignError(
            f"{path.parent} is a transcoder from {source} to {target!r}: an SAE here reconstructs what it reads"
        )
    if settings.get("use_glu_encoder"):
        raise ForeignError(
            f"{path.parent} has a gated linear encoder (use_glu_encoder), which no architecture here has"
        )
    return source


def _scales(settings: Settings, weights: Weights, hook: str, width: int, path: Path) -> tuple[float, float]:
    """Return the factors by which inputs are multiplied before encoding and targets before they are compared."""
    tensor = float(weights.take(f"{NORM}.{hook}")) if f"{NORM}.{hook}" in weights else None
    how = settings.get("norm_activation", "dataset-wise")
    if how == "inference":
        return 1.0, 1.0
    if how != "dataset-wise":
        raise ForeignError(f"{path}: norm_activation is {how!r}: rows are scaled by their own norms, which fixed weights "
                           f"cannot do; expected dataset-wise or inference")  # fmt: skip
    recorded = settings.get(NORM)
    norms = (
        [recorded.get("in"), recorded.get("out", recorded.get("in"))]
        if isinstance(recorded, dict)
        else [tensor, tensor]
    )
    for norm in norms:
        if not isinstance(norm, int | float) or not 0 < norm < math.inf:
            raise ForeignError(f"{path}: the mean norm by which inputs are scaled ({NORM}) is {norm!r}, expected a "
                               f"number above 0")  # fmt: skip
    return width**0.5 / norms[0], width**0.5 / norms[1]


def _linear(weights: Weights, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W_enc, b_enc, W_dec and b_dec, from either layout's names. A missing b_dec is 0."""
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


def _arch(settings: Settings, n: int, path: Path) -> ArchConfig:
    """Return the config of our architecture for the file's activation function."""
    name = setting(settings, "act_fn", str, path).lower()
    try:
        match name:
            case "jumprelu":
                return JumpReLUConfig(d_sae=n)
            case "relu":
                return ReLUConfig(d_sae=n)
            case "topk":
                return TopKConfig(d_sae=n, k=setting(settings, "top_k", int, path))
    except ConfigError as error:
        raise ForeignError(f"{path}: {error}") from error
    raise ForeignError(
        f"{path}: act_fn is {name!r}, which chooses latents within a batch and leaves no threshold; "
        f"expected jumprelu, relu or topk"
    )


def _threshold(settings: Settings, weights: Weights, n: int, scale: float, path: Path) -> Tensor:
    """Return each latent's threshold, in units of raw pre-activations."""
    for name in ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold"):
        if name in weights:
            return weights.take(name, n).exp() / scale
    return torch.full((n,), setting(settings, "jump_relu_threshold", float, path), dtype=torch.float64)


def _model(settings: Settings, path: Path) -> str | None:
    if (name := text_or_none(settings, "model_name")) is not None:
        return name
    full_path = "/".join(path.absolute().parts)
    return next((model for part, model in MODELS.items() if re.search(part, full_path)), None)
