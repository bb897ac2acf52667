"""What can be measured of latents that do not fire: who fires on what, margins, ranks, weights, nearest living ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.architectures import SAE
from sae.code import SparseCode
from sae.diagnosis.sample import HELD_OUT, SPECIAL, TEXT, TRAIN, Rows

BLOCK = 1024  # latents whose cosines with all others are in memory at once

OnRows = Callable[[int], None]


@dataclass(frozen=True)
class Firings:
    """Who fires on what."""

    counts: dict[str, Int[Tensor, "F"]]
    """By group of rows, how many of them each latent is not zero on."""
    rows: dict[str, int]
    code: SparseCode
    """Of all rows of text, in order, for those who look at values."""
    mean: Float[Tensor, "D"]
    """Of the activations on text, float64."""
    variance: float
    """Summed over dimensions, of the same."""
    special_mean: Float[Tensor, "D"] | None
    """Of the activations at special positions; None where there are none."""

    @property
    def text(self) -> Int[Tensor, "F"]:
        """Firings on text of either split."""
        return torch.stack([self.counts[name] for name in TEXT]).sum(0)

    @property
    def n_text(self) -> int:
        """Rows of text."""
        return sum(self.rows[name] for name in TEXT)

    @property
    def density(self) -> Float[Tensor, "F"]:
        """Share of the rows of text that each latent fires on."""
        return self.text / self.n_text


@torch.no_grad()
def firings(sae: SAE, rows: Rows, other: dict[str, Tensor], on_rows: OnRows = lambda n: None) -> Firings:
    """Encode all rows of text, the special positions and the `other` groups of activations [n, D].

    Memory: 12 bytes a firing on text."""
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
        on_rows(len(piece.x))
    others = {SPECIAL: rows.special(), **other}
    for name, x in others.items():
        counts[name] = torch.zeros(sae.d_sae, dtype=torch.int64)
        for some in x.split(rows.cfg.batch):
            code = _on_cpu(sae.encode(some.to(sae.device)))
            counts[name] += torch.bincount(code.indices, minlength=sae.d_sae)
            on_rows(len(some))
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
class Drives:
    """How some latents asked to fire on the rows of text. Tensors [n] unless said otherwise."""

    margin: Float[Tensor, "n"]
    """The largest margin to firing of any row."""
    needed: Float[Tensor, "n"]
    """What was needed on that row."""
    ratio: Float[Tensor, "n"]
    """The largest drive (its size where latents are signed) over what was needed; nan where nothing is above 0."""
    best_rank: Int[Tensor, "n"]
    """Best place in a row, 1 for the first, among rows where its threshold alone would let it fire; 0: none."""
    missing_places: Int[Tensor, "n"]
    """By how many places the nearest row, of those, had too few; 0 where it fires. -1: there is no such row, or
    latents are not chosen by rank."""
    positive_share: Float[Tensor, "n"]
    """Share of rows on which its drive is above 0 (not 0 where latents are signed)."""
    mean: Float[Tensor, "n"]
    """Mean drive."""
    mean_of_all: Float[Tensor, "F"]
    typical: float
    """Median size of the drives that fire, on the first batch of rows; nan when none does."""
    by_rank: bool
    """Whether each row keeps a number of latents."""
    rows: int


@torch.no_grad()
def drives(sae: SAE, rows: Rows, latents: Int[Tensor, "n"], on_rows: OnRows = lambda n: None) -> Drives:
    """Go through the text once more and follow these latents. Sorts [batch, F] where latents are chosen by rank."""
    n, device = len(latents), sae.device
    margin, needed, ratio = (torch.full((n,), start) for start in (-math.inf, 0.0, -math.inf))
    best, missing = (torch.full((n,), torch.iinfo(torch.int64).max) for _ in range(2))
    positive = torch.zeros(n, dtype=torch.int64)
    total = torch.zeros(sae.d_sae, dtype=torch.float64)
    typical, kept = math.nan, None
    floor = sae.thresholds()[latents.to(device)].cpu()
    for piece in rows.text():
        x = piece.x.to(device)
        drive = sae.drive(x)
        kept = sae.kept_per_row(x, drive)
        if math.isnan(typical):
            typical = _typical(sae, drive, kept)
        total += drive.double().sum(0).cpu()
        found = sae.firing_of(drive, kept, latents.to(device))
        own, bar, over = (tensor.cpu() for tensor in found)
        level = own.abs() if sae.signed else own
        at = over.argmax(0, keepdim=True)
        better = over.gather(0, at)[0] > margin
        margin = torch.where(better, over.gather(0, at)[0], margin)
        needed = torch.where(better, bar.gather(0, at)[0], needed)
        ratio = torch.maximum(ratio, torch.where(bar > 0, level / bar, -math.inf).amax(0))
        positive += (level > 0).sum(0)
        if kept is not None:
            rank = ranks(drive.abs() if sae.signed else drive, level)
            allowed = level > floor
            far = (rank - kept.cpu()[:, None]).clamp_min(0)
            never = torch.iinfo(torch.int64).max
            best = torch.minimum(best, torch.where(allowed, rank, never).amin(0))
            missing = torch.minimum(missing, torch.where(allowed, far, never).amin(0))
        on_rows(len(x))
    none = best == torch.iinfo(torch.int64).max
    return Drives(
        margin,
        needed,
        torch.where(ratio > -math.inf, ratio, math.nan),
        torch.where(none, 0, best),
        torch.where(none, -1, missing),
        positive / rows.n_text,
        total[latents] / rows.n_text,
        total / rows.n_text,
        typical,
        kept is not None,
        rows.n_text,
    )


def _typical(sae: SAE, drive: Tensor, kept: Tensor | None) -> float:
    found = sae.firing_of(drive, kept, torch.arange(sae.d_sae, device=drive.device))
    firing = found.drive[found.margin > 0]
    return float(firing.abs().median()) if len(firing) else math.nan


def ranks(level: Float[Tensor, "B F"], own: Float[Tensor, "B n"]) -> Int[Tensor, "B n"]:
    """Place of each of `own` in its row of `level`: 1 more than the number of entries above it."""
    rising = torch.from_numpy(np.sort(level.cpu().numpy(), axis=1))  # several times as fast as torch's
    return level.shape[1] - torch.searchsorted(rising, own.contiguous(), right=True) + 1


@dataclass(frozen=True)
class Nearest:
    """The living latent most like each: by decoder row, or by encoder direction. -1 when nothing lives."""

    by_decoder: Int[Tensor, "n"]
    decoder_cosine: Float[Tensor, "n"]
    its_encoder_cosine: Float[Tensor, "n"]
    """Encoder cosine with the one nearest by decoder."""
    by_encoder: Int[Tensor, "n"]
    encoder_cosine: Float[Tensor, "n"]


@torch.no_grad()
def nearest_living(sae: SAE, latents: Int[Tensor, "n"], living: Bool[Tensor, "F"]) -> Nearest:
    """Where latents are signed, a living one that points the opposite way in both is as near, and counts so.

    A latent is never its own neighbour."""
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
    """Of every latent, [F]."""

    encoder_norm: Float[Tensor, "F"]
    decoder_norm: Float[Tensor, "F"]
    bias: Float[Tensor, "F"] | None
    """As if b_dec were taken off x in every architecture; None where latents have no bias of their own."""
    mean_cosine: Float[Tensor, "F"]
    """Of the encoder direction with the mean activation on text, b_dec taken off."""
    special_cosine: Float[Tensor, "F"] | None
    """Of the encoder direction with the mean activation at special positions, b_dec taken off."""


@torch.no_grad()
def weights(sae: SAE, found: Firings) -> Weights:
    """Norms, biases and what encoders point at."""
    directions, b_dec = sae.encoder_directions().float().cpu(), sae.b_dec.float().cpu()
    bias = sae.encoder_bias()
    if bias is not None:
        bias = bias.float().cpu()
        bias = bias if sae.pre_bias else bias + directions @ b_dec
    special = found.special_mean
    return Weights(
        directions.norm(dim=1),
        sae.W_dec.float().norm(dim=1).cpu(),
        bias,
        _cosine(directions, found.mean.float() - b_dec),
        None if special is None else _cosine(directions, special.float() - b_dec),
    )


def _cosine(rows: Tensor, direction: Tensor) -> Tensor:
    return F.cosine_similarity(rows, direction[None], dim=1)
