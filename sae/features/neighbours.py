"""Find latents whose decoder rows point in similar directions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from activations.progress import Advance, ignore
from sae.architectures import SAE
from sae.kernels import top


@torch.no_grad()
def nearest(
    W_dec: Float[Tensor, "F D"], n: int, block: int = 1024, on_latents: Advance = ignore
) -> tuple[Int[Tensor, "F n"], Float[Tensor, "F n"]]:
    """Return for each latent the n other latents with the largest decoder cosine, and the cosines, largest first.

    n is lowered to F - 1 where it is larger. Works in blocks: memory is block * F floats."""
    rows = F.normalize(W_dec.float(), dim=1)
    n = min(n, len(rows) - 1)
    buffer = rows.new_empty(min(block, len(rows)), len(rows))
    parts = []
    for start in range(0, len(rows), block):
        some = rows[start : start + block]
        cosine = torch.mm(some, rows.T, out=buffer[: len(some)])
        cosine.diagonal(start).fill_(-2.0)  # below any cosine: a latent is not its own neighbour
        parts.append(top(cosine, n))
        on_latents(len(some))
    cosines, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    return indices, cosines


@torch.no_grad()
def cosines(W_dec: Float[Tensor, "F D"], latents: Sequence[int]) -> Float[Tensor, "n n"]:
    """Return the decoder cosine of every pair of these latents."""
    rows = F.normalize(W_dec[list(latents)].float(), dim=1)
    return rows @ rows.T


@torch.no_grad()
def encoder_decoder_cosine(sae: SAE) -> Float[Tensor, "F"]:
    """Return the cosine of each latent's encoder direction and decoder row: 1 at tied initialisation."""
    return F.cosine_similarity(sae.encoder_directions(), sae.W_dec, dim=1)
