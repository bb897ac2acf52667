"""Proxies of the right L0, from the decoder: an SAE with too few or too many latents firing mixes features in its decoder rows.

Chanin and Garriga-Alonso 2025, "Sparse but Wrong: Incorrect L0 Leads to Incorrect Features in Sparse Autoencoders",
arXiv:2508.16560. Decoder rows that mix features overlap, with one another and with inputs in which they have no part."""

from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sae.architectures import SAE

ROWS = 4096  # inputs that the projections are taken of
LATENTS = 8192  # latents that cosines are taken of
BLOCK = 256  # inputs or latents at once


class Proxies(TypedDict):
    """What `proxies` returns, as eval.json has it (FORMAT.md)."""

    rows: int
    latents: int
    decoder_cosine: float
    decoder_projection: float


@torch.no_grad()
def proxies(sae: SAE, x: Float[Tensor, "B D"]) -> Proxies:
    """Return both proxies of an SAE of two latents or more, the projection's over the inputs x."""
    rows = drawn(sae.d_sae, LATENTS)
    return {
        "rows": len(x),
        "latents": len(rows),
        "decoder_cosine": decoder_cosine(sae.W_dec[rows.to(sae.W_dec.device)]),
        "decoder_projection": decoder_projection(sae, x),
    }


def decoder_cosine(rows: Float[Tensor, "F D"]) -> float:
    """Return c_dec, the mean absolute cosine over all pairs of decoder rows, in float64; a row of zeros has cosine 0."""
    unit = normalize(rows.double(), dim=1)
    total = sum((block @ unit.T).abs().sum().item() for block in unit.split(BLOCK))
    return (total - unit.square().sum().item()) / (len(unit) * (len(unit) - 1))


def decoder_projection(sae: SAE, x: Float[Tensor, "B D"]) -> float:
    """Return s_n^dec for n = d_sae / 2: the mean over inputs of the n-th largest projection of x - b_dec on a decoder row.

    Decoder rows are divided by their norms. The authors' own code takes the n B-th largest of all projections of a batch,
    which is nearly the same. In the units of x, so that it compares SAEs of one hook point only."""
    unit = normalize(sae.W_dec, dim=1)
    n = sae.d_sae // 2
    blocks = [
        ((block.to(unit) - sae.b_dec) @ unit.T).kthvalue(sae.d_sae - n + 1, dim=1).values.double()
        for block in x.split(BLOCK)
    ]
    return torch.cat(blocks).mean().item()


def drawn(n: int, most: int) -> Tensor:
    """Return which of n rows to look at, in order: all, or `most` drawn without replacement, the same each time."""
    return torch.from_numpy(np.sort(np.random.default_rng(0).permutation(n)[:most]))
