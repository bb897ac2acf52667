"""The same weights in SAELens: the same latents and the same reconstruction? In an environment of its own:

    pip install sae-lens==6.54.12 && PYTHONPATH=. python benchmarks/agree.py
Small SAEs with random weights, biases and thresholds, in float64 and float32. Compared are latents on 512 rows and what they
decode to: the largest difference over the largest value, and the number of latents that fire on one side only.
"""
# pyright: reportMissingImports=false

import math
from typing import Any

import torch
from torch import Tensor

from sae.architectures import (
    AbsTopKConfig,
    ArchConfig,
    BatchTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    ReLUConfig,
    TopKConfig,
    build,
)

D, F, ROWS = 32, 256, 512
ARCHITECTURES: dict[str, ArchConfig] = {
    "topk": TopKConfig(d_sae=F, k=8),
    "abstopk": AbsTopKConfig(d_sae=F, k=8),
    "batchtopk": BatchTopKConfig(d_sae=F, k=8),
    "matryoshka": MatryoshkaConfig(d_sae=F, k=8),
    "relu": ReLUConfig(d_sae=F),
    "gated": GatedConfig(d_sae=F),
    "jumprelu": JumpReLUConfig(d_sae=F),
}


@torch.no_grad()
def ours(cfg: ArchConfig, dtype: torch.dtype) -> Any:
    """An SAE whose every parameter and threshold is random."""
    sae: Any = build(cfg, D).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for tensor in sae.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 4)
    sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    if hasattr(sae, "log_threshold"):
        sae.log_threshold.sub_(1.0)
    elif hasattr(sae, "threshold"):
        sae.threshold.fill_(1.5)
    return sae.eval()


def theirs(name: str, sae: Any, dtype: torch.dtype) -> Any:
    """SAELens' inference class with our weights. Its BatchTopK and Matryoshka are saved as JumpReLUs, as ours are used."""
    from sae_lens import saes

    kinds = {"topk": "TopK", "abstopk": "AbsTopK", "relu": "Standard", "gated": "Gated"}
    kind = kinds.get(name, "JumpReLU")
    settings = {
        "d_in": D, "d_sae": F, "dtype": str(dtype).removeprefix("torch."), "apply_b_dec_to_input": sae.pre_bias,
    }  # fmt: skip
    if kind in ("TopK", "AbsTopK"):
        settings["k"] = sae.cfg.k
    lens = getattr(saes, f"{kind}SAE")(getattr(saes, f"{kind}SAEConfig")(**settings))
    weights = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    weights["b_gate" if kind == "Gated" else "b_enc"] = sae.b_enc
    if kind == "Gated":
        weights |= {"r_mag": sae.r_mag, "b_mag": sae.b_mag}
    if kind == "JumpReLU":
        weights["threshold"] = sae.threshold.expand(F)
    lens.load_state_dict(weights)
    return lens.eval()


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


@torch.no_grad()
def compare(name: str, cfg: ArchConfig, dtype: torch.dtype) -> str:
    """One row of the table."""
    sae = ours(cfg, dtype)
    lens = theirs(name, sae, dtype)
    x = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    code = sae.encode(x)
    mine, latents = code.dense(), lens.encode(x)
    one_sided = int(((mine != 0) != (latents != 0)).sum())
    decoded = difference(sae.decode(code), lens.decode(latents))
    l0 = code.l0().double().mean().item()
    assert 0 < l0 < F
    assert math.isfinite(decoded)
    return f"| {name} | {dtype} | {l0:.1f} | {one_sided} | {difference(mine, latents):.1e} | {decoded:.1e} |"


def main() -> None:
    """Print the table."""
    print("| architecture | dtype | L0 | fire on one side only | latents differ by | reconstructions by |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, cfg in ARCHITECTURES.items():
        for dtype in (torch.float64, torch.float32):
            print(compare(name, cfg, dtype), flush=True)


if __name__ == "__main__":
    main()
