"""The same function in simpler words: exact forms of our architectures, for formats that know only a few.

All in float64; a writer rounds once, at the end."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures import SAE, AbsTopK, BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK, name_of
from sae.errors import ForeignError

HOW_IT_CHOOSES = {
    "topk": "keeps the k largest latents of each row",
    "abstopk": "keeps the k latents of each row that are largest in size, with their sign",
    "batchtopk": "keeps all latents above one threshold",
    "matryoshka": "keeps all latents above one threshold",
    "relu": "keeps every positive latent",
    "jumprelu": "keeps latents above thresholds of their own",
    "gated": "has a gate and magnitudes",
    "kron": "multiplies columns of two small encoders with each other",
    "gba": "compares each row's cosine with a feature to a threshold",
    "mfr": "keeps the k largest latents of each row, negative ones too",
    "topafa": "lets each row's norm decide how many latents fire",
    "adaptivek": "lets a probe of each row decide how many latents fire",
}
"""By architecture, what keeps it out of a format that has no such rule."""


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
        f"{title} holds {holds}; an SAE of architecture {name} {HOW_IT_CHOOSES[name]}, which has no exact form "
        f"there: choose another format (sae export --help lists them)"
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
