"""`Reading`, a text as an SAE sees it: the latents on each token, ranked by value, rarity or effect on the next token."""

from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from activations.errors import ConfigError, RunError
from sae.code import SparseCode, offsets_of
from sae.report import numbers, render
from sae.report import text as text_report

By = Literal["value", "rarity", "effect"]


class Firing(NamedTuple):
    """One latent that fires on one token."""

    latent: int
    value: float
    """The latent's value: signed, never 0."""
    rarity: float | None
    """Rarity-weighted value (`Reading.rarity`); None without features."""
    effect: float | None
    """Direct effect on the next token's logit (`Reading.effects`); None on the last token and off the residual stream."""


class Presence(NamedTuple):
    """One latent over a whole text, without excluded positions."""

    latent: int
    tokens: int
    """Number of tokens on which it fires."""
    peak: float
    """The value of largest size, signed."""
    position: int
    """Position of the peak; the first of equals."""
    mean: float
    """Mean |value| over the tokens on which it fires."""
    rarity: float | None
    """The largest rarity-weighted value; None without features."""
    effect: float | None
    """Sum of its effects on next tokens' logits; None off the residual stream."""


@dataclass(frozen=True, repr=False)
class Reading:
    """A text of N positions as an SAE sees it: its tokens in order, and a BOS before each window.

    `code` has one row per position, signed and without stored zeros. Positions that stores leave out (BOS, or the token
    that stands in for it) are `excluded`: they have codes, but no ranking over the text counts them."""

    ids: Int[Tensor, "N"]
    tokens: list[str]
    """Display text of each token; those of the text, joined, give the text. A character that spans several tokens belongs
    to the first of them, and the others are "" (`TokenText.pieces`)."""
    names: list[str]
    """Name of each token, unique within the vocabulary; part of a character is named like <0xE2>."""
    windows: Int[Tensor, "N"]
    """Index of the context window each was read in; no token sees another window."""
    is_text: Bool[Tensor, "N"]
    """Whether the token is part of the text; False for a BOS."""
    excluded: Bool[Tensor, "N"]
    following: Int[Tensor, "N"]
    """Id of the text's next token; -1 on the last."""
    log_probs: Float[Tensor, "N"]
    """Natural log of the probability that the language model gives that next token; nan on the last."""
    code: SparseCode
    error: Float[Tensor, "N"]
    """Squared distance between activation and reconstruction."""
    variance: Float[Tensor, "N"]
    """Squared distance between activation and the centre."""
    effects: Float[Tensor, "nnz"] | None
    """For each entry of the code: its value times the effect of its decoder row on the next token's logit minus the mean
    logit, along the direct path with the final norm's scale frozen (activations/readout.py). nan on the last
    position. None where the hook point is not as wide as the residual stream."""
    observed_max: Float[Tensor, "F"] | None
    """Largest |value| of each latent on the features' corpus, nan if it never fired there; None without features."""
    density: Float[Tensor, "F"] | None
    """Share of the features' tokens on which each latent fires, as if each fired at least once; None without features."""

    def __repr__(self) -> str:
        return f"Reading({len(self)} positions, {len(self.code.values):,} firings)"

    def __len__(self) -> int:
        """Return the number of positions, N."""
        return len(self.ids)

    @property
    def counted(self) -> Bool[Tensor, "N"]:
        """The positions that are not excluded."""
        return ~self.excluded

    @property
    def l0(self) -> Int[Tensor, "N"]:
        """The number of latents that fire on each position."""
        return self.code.l0()

    @cached_property
    def total(self) -> Float[Tensor, "N"]:
        """The sum of |value| over the latents on each position."""
        sums = torch.zeros(len(self), dtype=torch.float64)
        return sums.index_add_(0, self.code.rows(), self.code.values.abs().double()).float()

    @property
    def fvu(self) -> Float[Tensor, "N"]:
        """Error over variance at each position: 0 is perfect, 1 no better than the centre. nan where the variance is 0.

        The mean of these is not the text's FVU, which is the sum of errors over the sum of variances (`text_fvu`)."""
        return self.error / torch.where(self.variance > 0, self.variance, torch.nan)

    @property
    def text_fvu(self) -> float:
        """Summed error over summed variance of the counted positions (docs/metrics.md); nan where that is 0."""
        variance = self.variance[self.counted].double().sum().item()
        return self.error[self.counted].double().sum().item() / variance if variance else float("nan")

    @cached_property
    def surprise(self) -> Float[Tensor, "N"]:
        """-log probability of each token given the ones before it, in nats.

        nan for a BOS, and for a first token without one. A window's first token is predicted at the end of the window
        before."""
        surprise = torch.full((len(self),), torch.nan)
        text_positions = self.is_text.nonzero()[:, 0]
        predicted_at = torch.cat([text_positions[:1] - 1, text_positions[:-1]])
        surprise[text_positions[predicted_at >= 0]] = -self.log_probs[predicted_at[predicted_at >= 0]]
        return surprise

    @cached_property
    def rarity(self) -> Float[Tensor, "nnz"] | None:
        """|value| / observed_max * -ln(density) for each entry of the code: strength times surprise, in nats.

        A latent that fires on every token weighs 0. A latent that never fired on the corpus counts as at its maximum, with
        the density of a single firing. None without features."""
        if self.observed_max is None or self.density is None:
            return None
        size, weight = self.code.values.abs(), -self.code.spread(self.density).log()
        return (size / self.code.spread(self.observed_max)).nan_to_num(nan=1.0, posinf=1.0) * weight

    def values_of(self, latent: int) -> Float[Tensor, "N"]:
        """Return one latent's value on each position; 0 where it does not fire.

        Raises ConfigError when the SAE has no such latent."""
        if not 0 <= latent < self.code.n_latents:
            raise ConfigError(f"latent {latent} does not exist: this SAE has 0 to {self.code.n_latents - 1}")
        return self.code.of(latent)

    def at(self, position: int, by: By = "value") -> list[Firing]:
        """Return the latents on one position, those with the largest |value|, rarity-weighted value or |effect| first.

        On the last position, where no token follows, `effect` ranks by |value|. Raises ConfigError when there is no such
        position, RunError when the reading lacks the quantity to rank by."""
        if not 0 <= position < len(self):
            raise ConfigError(f"position {position} does not exist: this text has 0 to {len(self) - 1}")
        part = slice(*self.code.offsets[position : position + 2].tolist())
        height = self._heights(by)[part].nan_to_num(nan=0.0)
        by_value = self.code.values[part].abs().argsort(descending=True, stable=True)
        order = by_value[height[by_value].argsort(descending=True, stable=True)]
        columns = (self.code.indices, self.code.values, self.rarity, self.effects)
        listed = ([None] * len(order) if c is None else _listed(c[part][order]) for c in columns)
        return [Firing(*row) for row in zip(*listed, strict=True)]

    def latents(self, by: By | Literal["tokens"] = "value") -> list[Presence]:
        """Return the latents that fire on the text, ranked by peak |value|, number of tokens, rarity-weighted value or |sum
        of effects|.

        Of equals the lower number comes first. Raises RunError as `at` does."""
        rows = self.code.rows()
        chosen = (self.counted[rows]).nonzero()[:, 0]
        size = self.code.values.abs()
        order = chosen[size[chosen].argsort(descending=True, stable=True)]
        order = order[self.code.indices[order].argsort(stable=True)]  # by latent, its peak first
        latents, counts = self.code.indices[order].unique_consecutive(return_counts=True)
        peaks = order[offsets_of(counts)[:-1]]
        group = torch.arange(len(latents)).repeat_interleave(counts)

        def summed(entries: Tensor) -> Tensor:
            sums = torch.zeros(len(latents), dtype=torch.float64)
            return sums.index_add_(0, group, entries[order].double().nan_to_num(nan=0.0))

        rarest = None if self.rarity is None else _largest(self.rarity[order], group, len(latents))
        effects = None if self.effects is None else summed(self.effects)
        heights = {"tokens": counts, "value": size[peaks], "rarity": rarest, "effect": effects}
        if (height := heights[by]) is None:
            raise self._cannot_rank_by(by)
        best = height.abs().argsort(descending=True, stable=True)
        columns = (
            latents,
            counts,
            self.code.values[peaks],
            rows[peaks],
            summed(size) / counts,
            rarest,
            effects,
        )
        listed = ([None] * len(best) if c is None else c[best].tolist() for c in columns)
        return [Presence(*row) for row in zip(*listed, strict=True)]

    def html(
        self, latent: int | None = None, position: int | None = None, by: By = "value", most: int = 10
    ) -> str:
        """Return the text as self-contained HTML, coloured by the sum of |value| on each token or by one latent.

        With a position, the first `most` latents of `at(position, by)` follow. Raises as `at` and `values_of` do."""
        counted = self.counted.tolist()
        values = (
            (self.total if latent is None else self.values_of(latent)).masked_fill(self.excluded, 0).tolist()
        )
        shades = (
            text_report.level_shades(values, counted)[0]
            if latent is None
            else text_report.signed_shades(values)
        )
        tips = [numbers.number(value) for value in values]
        parts = [text_report.strip(self.tokens, shades, tips, self.is_text.tolist(), position)]
        if position is not None:
            chosen = self.at(position, by)[:most]
            lines = [
                text_report.Line(f.latent, f.value, f.effect, f.rarity, self._density_of(f.latent), "", [])
                for f in chosen
            ]
            parts.append(text_report.firings(lines, None))
        return render.framed("".join(parts))

    def _repr_html_(self) -> str:
        return self.html()

    def _density_of(self, latent: int) -> float | None:
        return None if self.density is None else float(self.density[latent])

    def _heights(self, by: By) -> Tensor:
        heights = {"value": self.code.values, "rarity": self.rarity, "effect": self.effects}[by]
        if heights is None:
            raise self._cannot_rank_by(by)
        return heights.abs()

    def _cannot_rank_by(self, by: str) -> RunError:
        if by == "rarity":
            return RunError(
                "this reading has no features, so it has no rarity to rank by", fix="sae features RUN"
            )
        return RunError(
            "latents of this hook point do not write into the residual stream, so they have no direct effect to rank by"
        )


def _largest(entries: Tensor, group: Tensor, n: int) -> Tensor:
    return torch.zeros(n).scatter_reduce(0, group, entries, "amax")


def _listed(column: Tensor) -> list[Any]:
    return [None if isnan(value) else value for value in column.tolist()]
