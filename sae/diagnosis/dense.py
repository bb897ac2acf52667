"""Latents that fire on more than a tenth of all tokens: what each is made of, and what kind of signal it carries.

Sun et al. 2025, "Dense SAE Latents Are Features, Not Bugs", arXiv:2506.15679: they come in antipodal pairs and
track positions, parts of speech and principal components. Kinds that need the model's output are not told here."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures import SAE
from sae.diagnosis.evidence import Firings
from sae.diagnosis.sample import Rows
from sae.evaluation.measures import DENSE

PCA_ROWS = 4096
CLASSES = ("first piece of a word", "inside a word", "number", "punctuation", "space or line break", "other")
KINDS = ("position", "token class", "principal direction", "mean activation", "antipodal pair", "unexplained")


@dataclass(frozen=True)
class DenseRules:
    """From where on a dense latent is called by a kind; tried in the order of KINDS."""

    position: float = 0.4
    """Size of the correlation of its value with the place in the window."""
    token_class: float = 0.3
    """Share of its value's variance that the token's class accounts for."""
    principal: float = 0.5
    """Size of its decoder's cosine with the first principal direction."""
    mean: float = 0.5
    """Size of its decoder's cosine with the mean activation."""
    antipodal: float = 0.9
    """Decoder cosine below minus which two dense latents are the two ends of one axis."""


RULES = DenseRules()


def classes_of(vocabulary: list[str]) -> Int[Tensor, "V"]:
    """For each token text its place in CLASSES. A first piece begins with a space, then a letter."""

    def class_of(text: str) -> int:
        bare = text.strip()
        if not bare:
            return 4
        if bare.isdigit():
            return 2
        if not any(character.isalnum() for character in bare):
            return 3
        if not bare[0].isalpha():
            return 5
        return 0 if text[0].isspace() else 1

    return torch.tensor([class_of(text) for text in vocabulary])


@torch.no_grad()
def describe(sae: SAE, rows: Rows, found: Firings, vocabulary: list[str] | None) -> list[dict[str, Any]]:
    """A row for each dense latent: how dense, aligned with what, depending on what, paired with whom, its kind.

    Correlations are over all rows of text, zeros counted. `vocabulary` is the text of each token id; without it
    token classes are left out. variance_share: of the variance of activations, what the latent's own term
    z_j W_dec_j has."""
    latents = (found.density > DENSE).nonzero()[:, 0]
    if not len(latents):
        return []
    z = _values(found, latents)
    tokens, columns = _places(rows)
    decoder = F.normalize(sae.W_dec[latents.to(sae.device)].float().cpu(), dim=1)
    encoder = F.normalize(sae.encoder_directions()[latents.to(sae.device)].float().cpu(), dim=1)
    mean = F.normalize(found.mean.float(), dim=0)
    principal = _principal(rows)
    norms = sae.W_dec.float().norm(dim=1).cpu()[latents].double()
    measured = {
        "latent": latents,
        "density": found.density[latents],
        "mean_alignment": decoder @ mean,
        "principal_alignment": decoder @ principal,
        "position_correlation": _correlation(z, columns.double()),
        "variance_share": z.var(0, correction=0) * norms.square() / found.variance,
        "enc_dec_cosine": (encoder * decoder).sum(1),
    }
    table = [dict(zip(measured, values, strict=True)) for values in zip(*(c.tolist() for c in measured.values()), strict=True)]  # fmt: skip
    classes = _by_class(z, classes_of(vocabulary)[tokens]) if vocabulary is not None else [{}] * len(latents)
    pairs = _antipodes(decoder, encoder, latents)
    for row, of_class, pair in zip(table, classes, pairs, strict=True):
        row |= {**_NO_CLASS, **of_class, **pair}
        row["kind"] = kind_of(row)
    return table


_NO_CLASS = {"class_share": None, "token_class": None, "token_class_firings": None, "token_class_base": None}


def kind_of(row: dict[str, Any], rules: DenseRules = RULES) -> str:
    """The first of KINDS whose rule a dense latent's row meets."""
    applies = (
        abs(row["position_correlation"]) >= rules.position,
        (row["class_share"] or 0.0) >= rules.token_class,
        abs(row["principal_alignment"]) >= rules.principal,
        abs(row["mean_alignment"]) >= rules.mean,
        row["antipode"] is not None,
    )
    return next((kind for kind, does in zip(KINDS, applies, strict=False) if does), "unexplained")


def _values(found: Firings, latents: Tensor) -> Float[Tensor, "N n"]:
    place = torch.full((found.code.n_latents,), -1)
    place[latents] = torch.arange(len(latents))
    column = place[found.code.indices]
    z = torch.zeros(found.code.n_rows, len(latents), dtype=torch.float64)
    inside = column >= 0
    z[found.code.rows()[inside], column[inside]] = found.code.values[inside].double()
    return z


def _places(rows: Rows) -> tuple[Tensor, Tensor]:
    pieces = [(piece.tokens, piece.columns) for piece in rows.text()]
    tokens, columns = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return tokens, columns


def _principal(rows: Rows) -> Float[Tensor, "D"]:
    """First principal direction of the first rows of text, by power iteration."""
    parts, seen = [], 0
    for piece in rows.text():
        parts.append(piece.x)
        seen += len(piece.x)
        if seen >= PCA_ROWS:
            break
    x = torch.cat(parts)[:PCA_ROWS].double()
    x = x - x.mean(0)
    direction = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(100):
        direction = F.normalize(x.T @ (x @ direction), dim=0)
    return direction.float()


def _correlation(z: Float[Tensor, "N n"], with_: Float[Tensor, "N"]) -> Float[Tensor, "n"]:
    z, other = z - z.mean(0), with_ - with_.mean()
    size = (z.norm(dim=0) * other.norm()).clamp_min(torch.finfo(z.dtype).tiny)
    return other @ z / size


def _by_class(z: Float[Tensor, "N n"], classes: Int[Tensor, "N"]) -> list[dict[str, Any]]:
    """Of each latent: the share of its value's variance between token classes, the class it prefers most, and that
    class's share of its firings and of all tokens."""
    one_hot = F.one_hot(classes, len(CLASSES)).double()
    sizes = one_hot.sum(0)
    base = sizes / sizes.sum()
    means = one_hot.T @ z / sizes.clamp_min(1)[:, None]
    between = base @ (means - z.mean(0)).square()
    share = between / z.var(0, correction=0).clamp_min(torch.finfo(z.dtype).tiny)
    fired = (z != 0).double()
    shares = one_hot.T @ fired / fired.sum(0).clamp_min(1)
    preferred = (
        (shares / base.clamp_min(1 / sizes.sum())[:, None]).masked_fill(base[:, None] < 0.01, -1).argmax(0)
    )
    return [
        {
            "class_share": float(share[j]),
            "token_class": CLASSES[best],
            "token_class_firings": float(shares[best, j]),
            "token_class_base": float(base[best]),
        }
        for j, best in enumerate(preferred.tolist())
    ]


def _antipodes(decoder: Tensor, encoder: Tensor, latents: Tensor) -> list[dict[str, Any]]:
    """Of each: the dense latent that points the other way most, if it does, and section 3's score: the largest
    product of encoder and decoder cosine with another that points away in both; 0 when none does."""
    if len(latents) < 2:
        return [{"antipode": None, "antipode_cosine": None, "antipodality": 0.0}] * len(latents)
    cosine, reading = decoder @ decoder.T, encoder @ encoder.T
    away = torch.where((cosine < 0) & (reading < 0), cosine * reading, 0.0)
    cosine.fill_diagonal_(math.inf)
    lowest = cosine.min(1)
    return [
        {
            "antipode": int(latents[at]) if value < -RULES.antipodal else None,
            "antipode_cosine": float(value),
            "antipodality": float(score),
        }
        for at, value, score in zip(lowest.indices, lowest.values, away.amax(1), strict=True)
    ]
