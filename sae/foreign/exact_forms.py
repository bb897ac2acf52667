"""The same function in simpler words: exact forms of our architectures, for formats that know only a few.

All in float64; a writer rounds once, at the end."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from activations.errors import ForeignError
from sae.architectures import SAE, AbsTopK, BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK, name_of

IN_USE = {
    "topk": "it keeps the k largest latents of each row",
    "abstopk": "it keeps what is largest in size, with its sign: k of each row or, chosen per batch, what is beyond a "
    "threshold on both sides",
    "batchtopk": "it keeps what is above a threshold",
    "matryoshka": "it keeps what is above a threshold",
    "relu": "it keeps every positive latent",
    "jumprelu": "it keeps what is above a threshold of each latent's own",
    "gated": "one path decides which latents fire, another how strongly",
    "kron": "its latents are square roots of products of two pre-activations",
    "topafa": "how many latents a row keeps depends on the row's norm",
    "adaptivek": "how many latents a row keeps is said by a probe, row by row",
    "gba": "whether a latent fires depends on its cosine with the row, so its threshold grows with the row's norm",
    "mfr": "of a row with fewer than k positive pre-activations it keeps negative ones",
}
"""What keeps each architecture out of a format that has no such rule."""


class Thresholded(NamedTuple):
    """z = y where y > threshold, else 0, with y = x W_enc + b_enc; x_hat = z W_dec + b_dec."""

    W_enc: Float[Tensor, "D F"]
    b_enc: Float[Tensor, "F"]
    W_dec: Float[Tensor, "F D"]
    b_dec: Float[Tensor, "D"]
    threshold: Float[Tensor, "F"]


class Ranked(NamedTuple):
    """z = relu of the largest u of each row, u = (x - b_dec) W_enc + b_enc; x_hat = z W_dec + b_dec."""

    W_enc: Float[Tensor, "D F"]
    b_enc: Float[Tensor, "F"]
    W_dec: Float[Tensor, "F D"]
    b_dec: Float[Tensor, "D"]


def refusal(sae: SAE, title: str, holds: str) -> ForeignError:
    """What to tell of an SAE that a format cannot hold."""
    name = name_of(sae.cfg)
    return ForeignError(
        f"{title} cannot compute what {name} does in use: {IN_USE[name]}; it holds {holds}. Choose another format "
        f"(sae export --help lists them)"
    )


@torch.no_grad()
def thresholded(sae: SAE) -> Thresholded | None:
    """The SAE as thresholds on an encoder that reads x itself; None where latents are chosen otherwise."""
    if not isinstance(sae, ReLU | JumpReLU | BatchTopK | Matryoshka | Gated):
        return None
    W_enc, b_enc, W_dec, b_dec = (part.double() for part in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    threshold = sae.thresholds().double()
    if isinstance(sae, Gated):
        # open where v > -b_enc, and there v exp(r_mag) + b_mag: a threshold of the magnitude (paper, appendix E)
        slope, b_mag = sae.r_mag.double().exp(), sae.b_mag.double()
        threshold = (b_mag - slope * b_enc).clamp_min(0)
        W_enc, b_enc = W_enc * slope, b_mag
    if sae.pre_bias:
        b_enc = b_enc - b_dec @ W_enc
    return Thresholded(W_enc, b_enc, W_dec, b_dec, threshold)


@torch.no_grad()
def ranked(sae: TopK | BatchTopK | Matryoshka | AbsTopK) -> Ranked:
    """The weights of an SAE that chooses among positive latents.

    AbsTopK has 2 F of them here (`about_ranked`), with encoder, bias and decoder row negated in the second half. The k
    largest of those are the k largest in size, and the reconstruction is the same."""
    W_enc, b_enc, W_dec, b_dec = (part.double() for part in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    if isinstance(sae, AbsTopK):
        W_enc, b_enc = torch.cat([W_enc, -W_enc], 1), torch.cat([b_enc, -b_enc])
        W_dec = torch.cat([W_dec, -W_dec])
    return Ranked(W_enc, b_enc, W_dec, b_dec)


def about_ranked(sae: SAE) -> list[str]:
    """What to tell of weights that `ranked` gave."""
    F = sae.d_sae
    said = f"its latents are signed and there they cannot be: each is two, j where it is positive and {F} + j where negative"
    return [said] if isinstance(sae, AbsTopK) else []
