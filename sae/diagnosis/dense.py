"""Describe dense latents, which fire on more than a tenth of all tokens: what signal does each of them carry?

Sun et al. 2025, "Dense SAE Latents Are Features, Not Bugs", arXiv:2506.15679: dense latents come in antipodal pairs and
track positions, parts of speech and principal components. The paper's kinds that need the model's output are left out."""

import math
from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures import SAE
from sae.diagnosis.evidence import Firings
from sae.diagnosis.sample import Rows
from sae.evaluation.measures import DENSE

PCA_ROWS = 4096  # rows of text from which the first principal direction is computed
CLASSES = ("first piece of a word", "inside a word", "number", "punctuation", "space or line break", "other")
KINDS = ("position", "token class", "principal direction", "mean activation", "antipodal pair", "unexplained")


@dataclass(frozen=True)
class DenseRules:
    """Thresholds from which a dense latent is of a kind; the kinds are tried in the order of KINDS."""

    position: float = 0.4
    """|correlation| of its value with the position in the window."""
    token_class: float = 0.3
    """Share of its value's variance that lies between token classes."""
    principal: float = 0.5
    """|cosine| of its decoder row with the first principal direction."""
    mean: float = 0.5
    """|cosine| of its decoder row with the mean activation."""
    antipodal: float = 0.9
    """Two dense latents whose decoder cosine is below minus this are the two ends of one axis."""


RULES = DenseRules()


def classes_of(vocabulary: list[str]) -> Int[Tensor, "V"]:
    """Return the index in CLASSES of each token text. The first piece of a word begins with a space, then a letter."""

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


class _ClassColumns(TypedDict):
    """How a dense latent's value depends on the class of the token; None without a vocabulary (see `_by_class`)."""

    class_share: float | None
    token_class: str | None
    token_class_firings: float | None
    token_class_base: float | None


class _AntipodeColumns(TypedDict):
    """The other end of a dense latent's axis, if it has one (see `_antipodes`)."""

    antipode: int | None
    antipode_cosine: float | None
    antipodality: float


class _Columns(_ClassColumns, _AntipodeColumns):
    """What `kind_of` judges a dense latent by, and more that is measured of it."""

    latent: int
    density: float
    mean_alignment: float
    principal_alignment: float
    position_correlation: float
    variance_share: float
    enc_dec_cosine: float


class DenseRow(_Columns):
    """What `describe` says of a dense latent."""

    kind: str


@torch.no_grad()
def describe(sae: SAE, rows: Rows, counted: Firings, vocabulary: list[str] | None) -> list[DenseRow]:
    """Return a row for each dense latent: its density, alignments, correlations, antipode and kind.

    Correlations are over all rows of text, zeros included. `vocabulary` is the text of each token id; without it token
    classes are left out. variance_share is the variance of the latent's term z_j W_dec_j as a share of that of the
    activations."""
    latents = (counted.density > DENSE).nonzero()[:, 0]
    if not len(latents):
        return []
    z = _values(counted, latents)
    tokens, columns = _tokens_and_columns(rows)
    decoder = F.normalize(sae.W_dec[latents.to(sae.device)].float().cpu(), dim=1)
    encoder = F.normalize(sae.encoder_directions()[latents.to(sae.device)].float().cpu(), dim=1)
    mean = F.normalize(counted.mean.float(), dim=0)
    principal = _principal(rows)
    norms = sae.W_dec.float().norm(dim=1).cpu()[latents].double()
    classes = (
        [_NO_CLASS] * len(latents) if vocabulary is None else _by_class(z, classes_of(vocabulary)[tokens])
    )
    pairs = _antipodes(decoder, encoder, latents)
    density = counted.density[latents].tolist()
    alignment, principal_alignment = (decoder @ mean).tolist(), (decoder @ principal).tolist()
    position_correlation = _correlation(z, columns.double()).tolist()
    variance_share = (z.var(0, correction=0) * norms.square() / counted.variance).tolist()
    enc_dec_cosine = (encoder * decoder).sum(1).tolist()
    table: list[DenseRow] = []
    for at, latent in enumerate(latents.tolist()):
        measured: _Columns = {
            "latent": latent,
            "density": density[at],
            "mean_alignment": alignment[at],
            "principal_alignment": principal_alignment[at],
            "position_correlation": position_correlation[at],
            "variance_share": variance_share[at],
            "enc_dec_cosine": enc_dec_cosine[at],
            **classes[at],
            **pairs[at],
        }
        table.append({**measured, "kind": kind_of(measured)})
    return table


_NO_CLASS: _ClassColumns = {
    "class_share": None,
    "token_class": None,
    "token_class_firings": None,
    "token_class_base": None,
}


def kind_of(row: _Columns, rules: DenseRules = RULES) -> str:
    """Return the first of KINDS whose rule the row of a dense latent meets."""
    applies = (
        abs(row["position_correlation"]) >= rules.position,
        (row["class_share"] or 0.0) >= rules.token_class,
        abs(row["principal_alignment"]) >= rules.principal,
        abs(row["mean_alignment"]) >= rules.mean,
        row["antipode"] is not None,
    )
    return next((kind for kind, does in zip(KINDS, applies, strict=False) if does), "unexplained")


def _values(counted: Firings, latents: Tensor) -> Float[Tensor, "N n"]:
    """Return the values of these latents on all N rows of text, zeros included."""
    code = counted.code
    column_of = torch.full((code.n_latents,), -1)
    column_of[latents] = torch.arange(len(latents))
    column = column_of[code.indices]
    z = torch.zeros(code.n_rows, len(latents), dtype=torch.float64)
    inside = column >= 0
    z[code.rows()[inside], column[inside]] = code.values[inside].double()
    return z


def _tokens_and_columns(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the token id and the position in its window of each row of text."""
    pieces = [(piece.tokens, piece.columns) for piece in rows.text()]
    tokens, columns = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return tokens, columns


def _principal(rows: Rows) -> Float[Tensor, "D"]:
    """Return the first principal direction of the first PCA_ROWS rows of text, by power iteration."""
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


def _correlation(z: Float[Tensor, "N n"], other: Float[Tensor, "N"]) -> Float[Tensor, "n"]:
    """Return the correlation of each column of z with `other`; 0 where one of the two is constant."""
    z, other = z - z.mean(0), other - other.mean()
    size = (z.norm(dim=0) * other.norm()).clamp_min(torch.finfo(z.dtype).tiny)
    return other @ z / size


def _by_class(z: Float[Tensor, "N n"], classes: Int[Tensor, "N"]) -> list[_ClassColumns]:
    """Return for each latent the share of its value's variance between token classes, and the class that it prefers.

    Preferred is the class whose share of the latent's firings is largest relative to its share of all tokens; both shares
    are returned too. Classes of less than 1 % of all tokens are left out, because their ratios are noise."""
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


def _antipodes(decoder: Tensor, encoder: Tensor, latents: Tensor) -> list[_AntipodeColumns]:
    """Return for each dense latent its antipode, the dense latent with the most negative decoder cosine, if there is one.

    antipodality is the score of the paper's section 3: the largest product of encoder and decoder cosine with a latent
    for which both are negative; 0 when there is none."""
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
