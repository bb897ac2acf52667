"""SAEs to exchange with SAELens, and its formulas, written out in float64 from the source of its classes.

Readers and writers are tested against these where the package is not installed; tests/peers tests these against the package."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.architectures import SAE, build
from tests.sae.small import SMALL, D

HOOK = "blocks.3.hook_resid_post"
EXPORTED = {
    "topk": "topk",
    "topk-multi": "topk",
    "abstopk": "abstopk",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
    "relu": "standard",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "jumprelu-tanh": "jumprelu",
}
METADATA = {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": "blocks.1.hook_resid_pre"}
SHAPES = {
    "W_enc": "DF", "W_dec": "FD", "b_enc": "F", "b_dec": "D", "b_gate": "F", "b_mag": "F", "r_mag": "F", "threshold": "F",
}  # fmt: skip
TENSORS = {
    "standard": "W_enc W_dec b_enc b_dec",
    "topk": "W_enc W_dec b_enc b_dec",
    "abstopk": "W_enc W_dec b_enc b_dec",
    "jumprelu": "W_enc W_dec b_enc b_dec threshold",
    "gated": "W_enc W_dec b_dec b_gate b_mag r_mag",
}


def ours(name: str) -> SAE:
    """Return an SAE in use whose parameters and thresholds are all random."""
    sae, generator = build(SMALL[name], D), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in sae.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
        if "threshold" in dict(sae.named_buffers()):
            sae.get_buffer("threshold").fill_(0.4)
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    return sae.eval().requires_grad_(False)


def folder(
    path: Path,
    architecture: str,
    d: int = 8,
    f: int = 24,
    *,
    tensors: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write an SAE of this architecture with random weights, free decoder norms and thresholds on both sides of 0."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"D": d, "F": f}
    made: dict[str, Any] = {
        name: torch.randn([sizes[axis] for axis in SHAPES[name]], generator=generator) / 2
        for name in TENSORS.get(architecture, TENSORS["topk"]).split()
    }
    kept = {name: tensor for name, tensor in {**made, **(tensors or {})}.items() if tensor is not None}
    cfg = {
        "architecture": architecture,
        "d_in": d,
        "d_sae": f,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": METADATA,
        **({"k": 5, "rescale_acts_by_decoder_norm": False} if architecture.endswith("topk") else {}),
        **changes,
    }
    path.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, path / "sae_weights.safetensors")
    (path / "cfg.json").write_text(json.dumps(cfg))
    return path


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Read the folder's tensors in float64."""
    return {name: tensor.double() for name, tensor in load_file(path / "sae_weights.safetensors").items()}


def latents(path: Path, x: Tensor) -> Tensor:
    """Return the latents of x by the SAE in the folder."""
    cfg, t, x = json.loads((path / "cfg.json").read_text()), tensors_of(path), x.double()
    read = (x - t["b_dec"] if cfg["apply_b_dec_to_input"] else x) @ t["W_enc"]
    if cfg["architecture"] == "gated":
        return (read + t["b_gate"] > 0) * (read * t["r_mag"].exp() + t["b_mag"]).relu()
    u = read + t["b_enc"]
    if cfg["architecture"] == "standard":
        return u.relu()
    if cfg["architecture"] == "jumprelu":
        return u.relu() * (u > t["threshold"])
    if cfg["rescale_acts_by_decoder_norm"]:
        u = u * t["W_dec"].norm(dim=1)
    signed = cfg["architecture"] == "abstopk"
    largest = (u.abs() if signed else u).topk(cfg["k"], dim=1).indices
    values = u if signed else u.relu()
    return torch.zeros_like(u).scatter(1, largest, values.gather(1, largest))


def decoded(path: Path, z: Tensor) -> Tensor:
    """Return the reconstruction of some latents."""
    cfg, t = json.loads((path / "cfg.json").read_text()), tensors_of(path)
    if cfg.get("rescale_acts_by_decoder_norm"):
        z = z / t["W_dec"].norm(dim=1)
    return z @ t["W_dec"] + t["b_dec"]
