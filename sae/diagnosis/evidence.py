"""Measure latents that do not fire: firings by group of rows, margins, ranks, weights, and the nearest live latents."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from activations.progress import Advance, ignore
from sae.architectures import SAE
from sae.code import SparseCode
from sae.diagnosis.sample import HELD_OUT, SPECIAL, TEXT, TRAIN, Rows

BLOCK = 1024  # latents whose cosines with all live ones are in memory at once


@dataclass(frozen=True)
class Firings:
    """Firings of all latents on each group of rows, and means of the activations."""

    counts: dict[str, Int[Tensor, "F"]]
    """For each group of rows, the number of rows on which each latent is not zero."""
    rows: dict[str, int]
    """Number of rows in each group."""
    code: SparseCode
    """Code of all rows of text, in the order in which `Rows.text` gives them."""
    mean: Float[Tensor, "D"]
    """Mean activation on text, float64."""
    variance: float
    """Variance of the activations on text, summed over dimensions."""
    special_mean: Float[Tensor, "D"] | None
    """Mean activation at special positions; None where the store has none."""

    @property
    def text(self) -> Int[Tensor, "F"]:
        """Firings of each latent on text, training and held-out."""
        return torch.stack([self.counts[name] for name in TEXT]).sum(0)

    @property
    def n_text(self) -> int:
        """Number of rows of text, training and held-out."""
        return sum(self.rows[name] for name in TEXT)

    @property
    def density(self) -> Float[Tensor, "F"]:
        """Share of the rows of text on which each latent fires."""
        return self.text / self.n_text


@torch.no_grad()
def firings(sae: SAE, rows: Rows, other: dict[str, Tensor], advance: Advance = ignore) -> Firings:
    """Encode all rows of text, the special positions and the `other` groups of activations [n, D], and count firings.

    `advance` is called with the number of rows of each batch. Memory: 12 bytes a firing on text."""
    counts = {name: torch.zeros(sae.d_sae, dtype=torch.int64) for name in TEXT}
    total, square, parts = torch.zeros(sae.d_model, dtype=torch.float64), 0.0, []
    for piece in rows.text():
        code = _on_cpu(sae.encode(piece.x.to(sae.device)))
        held_out = piece.held_out[code.rows()]
        for name, chosen in ((HELD_OUT, held_out), (TRAIN, ~held_out)):
            counts[name] += torch.bincount(code.indices[chosen], minlength=sae.d_sae)
        total += piece.x.double().sum(0)
        square += float(piece.x.double().square().sum())
        parts.append(code)
        advance(len(piece.x))
    others = {SPECIAL: rows.special(), **other}
    for name, x in others.items():
        counts[name] = torch.zeros(sae.d_sae, dtype=torch.int64)
        for some in x.split(rows.cfg.batch):
            code = _on_cpu(sae.encode(some.to(sae.device)))
            counts[name] += torch.bincount(code.indices, minlength=sae.d_sae)
            advance(len(some))
    mean = total / rows.n_text
    return Firings(
        counts,
        {**{name: rows.n[name] for name in TEXT}, **{name: len(x) for name, x in others.items()}},
        _joined(parts),
        mean,
        square / rows.n_text - float(mean.square().sum()),
        others[SPECIAL].double().mean(0) if len(others[SPECIAL]) else None,
    )


def _on_cpu(code: SparseCode) -> SparseCode:
    code = code.without_zeros()
    return SparseCode(code.values.cpu(), code.indices.cpu(), code.offsets.cpu(), code.n_latents)


def _joined(parts: list[SparseCode]) -> SparseCode:
    lengths = torch.cat([part.offsets.diff() for part in parts])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    values = torch.cat([part.values for part in parts])
    indices = torch.cat([part.indices for part in parts])
    return SparseCode(values, indices, offsets, parts[0].n_latents)


@dataclass(frozen=True)
class PreActivations:
    """The pre-activations of n latents on the rows of text, and how near they came to firing."""

    margin: Float[Tensor, "n"]
    """Largest margin of any row, as `SAE.firing` defines it; above 0 where the latent fires."""
    needed: Float[Tensor, "n"]
    """The pre-activation that was needed to fire on that row."""
    ratio: Float[Tensor, "n"]
    """Largest ratio of a pre-activation (its size where latents are signed) to what its row needed; NaN where no row needed
    more than 0."""
    best_rank: Int[Tensor, "n"]
    """Best rank in a row, 1 for the largest, among rows where the latent exceeds its own threshold; 0 where there are none."""
    missing_places: Int[Tensor, "n"]
    """Least number of ranks by which it was too low to be kept in one of those rows; 0 where it fires, -1 where there is
    no such row or latents are not chosen by rank."""
    positive_share: Float[Tensor, "n"]
    """Share of rows on which the pre-activation is above 0 (not 0 where latents are signed)."""
    mean: Float[Tensor, "n"]
    """Mean pre-activation."""
    mean_of_all: Float[Tensor, "F"]
    """Mean pre-activation of all F latents."""
    typical: float
    """Median size of the pre-activations that fire, on the first batch with any; NaN when none does."""
    by_rank: bool
    """Whether each row keeps its largest latents, a given number of them."""
    rows: int


@torch.no_grad()
def pre_activations(
    sae: SAE, rows: Rows, latents: Int[Tensor, "n"], advance: Advance = ignore
) -> PreActivations:
    """Read the text once more and follow the pre-activations of these latents.

    Where latents are chosen by rank, this sorts a matrix [batch, F] for each batch. `advance` is called with the number
    of rows of each batch."""
    n, device = len(latents), sae.device
    margin, needed, ratio = (torch.full((n,), start) for start in (-math.inf, 0.0, -math.inf))
    best, missing = (torch.full((n,), torch.iinfo(torch.int64).max) for _ in range(2))
    positive = torch.zeros(n, dtype=torch.int64)
    total = torch.zeros(sae.d_sae, dtype=torch.float64)
    typical, k_per_row = math.nan, None
    floor = sae.thresholds()[latents.to(device)].cpu()
    for piece in rows.text():
        x = piece.x.to(device)
        pre = sae.dense_pre_activations(x)
        k_per_row = sae.kept_per_row(x, pre)
        if math.isnan(typical):
            typical = _typical(sae, pre, k_per_row)
        total += pre.double().sum(0).cpu()
        own, bar, over = (tensor.cpu() for tensor in sae.firing_of(pre, k_per_row, latents.to(device)))
        level = own.abs() if sae.signed else own
        nearest_row = over.argmax(0, keepdim=True)
        better = over.gather(0, nearest_row)[0] > margin
        margin = torch.where(better, over.gather(0, nearest_row)[0], margin)
        needed = torch.where(better, bar.gather(0, nearest_row)[0], needed)
        ratio = torch.maximum(ratio, torch.where(bar > 0, level / bar, -math.inf).amax(0))
        positive += (level > 0).sum(0)
        if k_per_row is not None:
            rank = ranks(pre.abs() if sae.signed else pre, level)
            allowed = level > floor  # below its own threshold a latent would not fire at any rank
            too_low = (rank - k_per_row.cpu()[:, None]).clamp_min(0)
            never = torch.iinfo(torch.int64).max
            best = torch.minimum(best, torch.where(allowed, rank, never).amin(0))
            missing = torch.minimum(missing, torch.where(allowed, too_low, never).amin(0))
        advance(len(x))
    none = best == torch.iinfo(torch.int64).max
    return PreActivations(
        margin,
        needed,
        torch.where(ratio > -math.inf, ratio, math.nan),
        torch.where(none, 0, best),
        torch.where(none, -1, missing),
        positive / rows.n_text,
        total[latents] / rows.n_text,
        total / rows.n_text,
        typical,
        k_per_row is not None,
        rows.n_text,
    )


def _typical(sae: SAE, pre: Tensor, k_per_row: Tensor | None) -> float:
    """Return the median size of the pre-activations that fire, NaN when none does."""
    firing = sae.firing_of(pre, k_per_row, torch.arange(sae.d_sae, device=pre.device))
    fired = firing.pre_activation[firing.margin > 0]
    return float(fired.abs().median()) if len(fired) else math.nan


def ranks(level: Float[Tensor, "B F"], own: Float[Tensor, "B n"]) -> Int[Tensor, "B n"]:
    """Return the rank of each of `own` in its row of `level`: 1 more than the number of entries above it."""
    rising = torch.from_numpy(np.sort(level.cpu().numpy(), axis=1))  # several times as fast as torch's sort
    return level.shape[1] - torch.searchsorted(rising, own.contiguous(), right=True) + 1


@dataclass(frozen=True)
class Nearest:
    """The living latent nearest to each of n latents, by decoder row and by encoder direction; -1 when none is alive."""

    by_decoder: Int[Tensor, "n"]
    decoder_cosine: Float[Tensor, "n"]
    its_encoder_cosine: Float[Tensor, "n"]
    """Encoder cosine with the latent that is nearest by decoder."""
    by_encoder: Int[Tensor, "n"]
    encoder_cosine: Float[Tensor, "n"]


@torch.no_grad()
def nearest_living(sae: SAE, latents: Int[Tensor, "n"], living: Bool[Tensor, "F"]) -> Nearest:
    """Find the live latents nearest to these. A latent is never its own neighbour.

    Where latents are signed, a live latent whose encoder and decoder both point the opposite way does the same and counts
    as near as one that points the same way."""
    others = living.nonzero()[:, 0]
    if not len(others):
        none, nan = torch.full((len(latents),), -1), torch.full((len(latents),), math.nan)
        return Nearest(none, nan, nan, none, nan)
    decoder = F.normalize(sae.W_dec.float().cpu(), dim=1)
    encoder = F.normalize(sae.encoder_directions().float().cpu(), dim=1)
    parts = [_nearest(decoder, encoder, some, others, sae.signed) for some in latents.split(BLOCK)]
    return Nearest(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _nearest(
    decoder: Tensor, encoder: Tensor, some: Tensor, others: Tensor, signed: bool
) -> tuple[Tensor, ...]:
    by_decoder, by_encoder = (rows[some] @ rows[others].T for rows in (decoder, encoder))
    if signed:
        by_decoder, by_encoder = by_decoder * by_encoder.sign(), by_encoder.abs()
    own = some[:, None] == others
    best = [cosine.masked_fill(own, -2.0).max(1) for cosine in (by_decoder, by_encoder)]
    its = by_encoder.gather(1, best[0].indices[:, None])[:, 0]
    return (
        others[best[0].indices], best[0].values, its, others[best[1].indices], best[1].values,
    )  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Norms, biases and directions of every latent, [F]."""

    encoder_norm: Float[Tensor, "F"]
    decoder_norm: Float[Tensor, "F"]
    bias: Float[Tensor, "F"] | None
    """Encoder bias as if b_dec were subtracted from x in every architecture; None where latents have no bias of their own."""
    mean_cosine: Float[Tensor, "F"]
    """Cosine of the encoder direction with the mean activation on text minus b_dec."""
    special_cosine: Float[Tensor, "F"] | None
    """Cosine of the encoder direction with the mean activation at special positions minus b_dec."""


@torch.no_grad()
def weights(sae: SAE, on_text: Firings) -> Weights:
    """Return norms, biases and cosines of every latent's weights with the mean activations."""
    directions, b_dec = sae.encoder_directions().float().cpu(), sae.b_dec.float().cpu()
    bias = sae.encoder_bias()
    if bias is not None:
        bias = bias.float().cpu()
        bias = bias if sae.pre_bias else bias + directions @ b_dec
    special = on_text.special_mean
    return Weights(
        directions.norm(dim=1),
        sae.W_dec.float().norm(dim=1).cpu(),
        bias,
        _cosine(directions, on_text.mean.float() - b_dec),
        None if special is None else _cosine(directions, special.float() - b_dec),
    )


def _cosine(rows: Tensor, direction: Tensor) -> Tensor:
    return F.cosine_similarity(rows, direction[None], dim=1)
