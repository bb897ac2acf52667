"""Latents whose decoder rows point the same way."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures import SAE


@torch.no_grad()
def nearest(
    W_dec: Float[Tensor, "F D"], n: int, block: int = 1024
) -> tuple[Int[Tensor, "F n"], Float[Tensor, "F n"]]:
    """The n other latents with the largest decoder cosine, and the cosines, best first.

    Fewer than n when there are not that many others. Works in blocks: memory block * F floats."""
    rows = F.normalize(W_dec.float(), dim=1)
    n = min(n, len(rows) - 1)
    indices, cosines = [], []
    for start in range(0, len(rows), block):
        cosine = rows[start : start + block] @ rows.T
        own = torch.arange(len(cosine))
        cosine[own, own + start] = -2.0
        best = cosine.topk(n, dim=1)
        indices.append(best.indices)
        cosines.append(best.values)
    return torch.cat(indices), torch.cat(cosines)


@torch.no_grad()
def cosines(W_dec: Float[Tensor, "F D"], latents: Sequence[int]) -> Float[Tensor, "n n"]:
    """Decoder cosine of every two of these latents."""
    rows = F.normalize(W_dec[list(latents)].float(), dim=1)
    return rows @ rows.T


@torch.no_grad()
def encoder_decoder_cosine(sae: SAE) -> Float[Tensor, "F"]:
    """Cosine of each latent's encoder column and decoder row: 1 at tied initialisation."""
    return F.cosine_similarity(sae.encoder_directions(), sae.W_dec, dim=1)
