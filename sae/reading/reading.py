"""A text as an SAE sees it: the latents that fire on each token, by value, rarity or effect on the next token."""

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
from sae.report import reading as reading_report

By = Literal["value", "rarity", "effect"]


class Firing(NamedTuple):
    """One latent on one token."""

    latent: int
    value: float
    """Signed; never 0."""
    rarity: float | None
    """Rarity-weighted value (`Reading.rarity`); None without features."""
    effect: float | None
    """On the next token's logit (`Reading.effects`); None on the last token and beside the residual stream."""


class Presence(NamedTuple):
    """One latent over a whole text, excluded positions left out."""

    latent: int
    tokens: int
    """On how many it fires."""
    peak: float
    """Its value of largest size, signed."""
    position: int
    """Where that is; the first of equals."""
    mean: float
    """Mean |value| over the tokens on which it fires."""
    rarity: float | None
    """The largest rarity-weighted value; None without features."""
    effect: float | None
    """Sum of its effects on next tokens' logits; None beside the residual stream."""


@dataclass(frozen=True, repr=False)
class Reading:
    """What an SAE sees in a text of N positions: its tokens in order, and the BOS before each window of them.

    `code` has a row for each position, without stored zeros and signed. Positions at which stores leave
    activations out (BOS, or what stands in for it) are `excluded`: their codes are there, and no ranking over
    the text counts them."""

    ids: Int[Tensor, "N"]
    tokens: list[str]
    """What each reads as; those of the text, joined, are the text. A character that lies in several tokens belongs to
    the first of them, and the others read "" (`TokenText.pieces`)."""
    names: list[str]
    """The name of each, no two tokens of the vocabulary alike; a piece of a character reads like <0xE2>."""
    windows: Int[Tensor, "N"]
    """Number of the context window each was read in; nothing sees across a window's start."""
    is_text: Bool[Tensor, "N"]
    """False for a BOS."""
    excluded: Bool[Tensor, "N"]
    following: Int[Tensor, "N"]
    """Id of the next token of the text; -1 on the last."""
    log_probs: Float[Tensor, "N"]
    """Natural log of the probability that the language model gives that token here; nan on the last."""
    code: SparseCode
    error: Float[Tensor, "N"]
    """Squared distance between activation and reconstruction."""
    variance: Float[Tensor, "N"]
    """Squared distance between activation and the centre."""
    effects: Float[Tensor, "nnz"] | None
    """For each entry of the code, value * decoder row's effect on the logit of the next token minus the mean
    logit, over the direct path with the final norm's scale frozen (activations/logit_attribution.py); nan on the
    last position. None where the hook point is not as wide as the residual stream."""
    observed_max: Float[Tensor, "F"] | None
    """Largest |value| of each latent in the features' pass, nan if it never fired there; None without features."""
    density: Float[Tensor, "F"] | None
    """Share of the features' tokens on which each fires, at least one in so many; None without features."""

    def __repr__(self) -> str:
        return f"Reading({len(self)} positions, {len(self.code.values):,} firings)"

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    @property
    def counted(self) -> Bool[Tensor, "N"]:
        """Positions that are not excluded."""
        return ~self.excluded

    @property
    def l0(self) -> Int[Tensor, "N"]:
        """How many latents fire on each."""
        return self.code.l0()

    @cached_property
    def total(self) -> Float[Tensor, "N"]:
        """Sum of |value| over the latents on each."""
        sums = torch.zeros(len(self), dtype=torch.float64)
        return sums.index_add_(0, self.code.rows(), self.code.values.abs().double()).float()

    @property
    def fvu(self) -> Float[Tensor, "N"]:
        """Error over variance of each: 0 perfect, 1 no better than the centre. nan where the variance is 0.

        The mean of these is not the text's FVU: that is the sum of errors over the sum of variances, `text_fvu`."""
        return self.error / torch.where(self.variance > 0, self.variance, torch.nan)

    @property
    def text_fvu(self) -> float:
        """Summed error over summed variance of the counted positions (docs/metrics.md); nan where that is 0."""
        variance = self.variance[self.counted].double().sum().item()
        return self.error[self.counted].double().sum().item() / variance if variance else float("nan")

    @cached_property
    def surprise(self) -> Float[Tensor, "N"]:
        """-log probability, in nats, of each token given what comes before; nan for a BOS and a first token without.

        A window's first token is predicted from the end of the window before."""
        found = torch.full((len(self),), torch.nan)
        places = self.is_text.nonzero()[:, 0]
        before = torch.cat([places[:1] - 1, places[:-1]])
        found[places[before >= 0]] = -self.log_probs[before[before >= 0]]
        return found

    @cached_property
    def rarity(self) -> Float[Tensor, "nnz"] | None:
        """For each entry of the code |value| / observed_max * -ln(density): strength times surprise, in nats.

        A latent on every token weighs 0. One never observed counts as at its maximum, and as rare as can be
        told. None without features."""
        if self.observed_max is None or self.density is None:
            return None
        size, weight = self.code.values.abs(), -self.code.spread(self.density).log()
        return (size / self.code.spread(self.observed_max)).nan_to_num(nan=1.0, posinf=1.0) * weight

    def values_of(self, latent: int) -> Float[Tensor, "N"]:
        """One latent on each position; 0 where it does not fire. Raises ConfigError when there is none such."""
        if not 0 <= latent < self.code.n_latents:
            raise ConfigError(f"latent {latent} does not exist: this SAE has 0 to {self.code.n_latents - 1}")
        return self.code.of(latent)

    def at(self, position: int, by: By = "value") -> list[Firing]:
        """The latents on one position, first those with the largest |value|, rarity-weighted value or |effect|.

        On the last position, where no token follows, `effect` leaves them in the order of |value|.
        Raises ConfigError when there is no such position, RunError when there is nothing to rank by."""
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
        """The latents that fire on the text, first those on most tokens, or with the highest peak |value|,
        rarity-weighted value or |sum of effects|; of equals the lower number. Raises RunError as `at` does."""
        rows = self.code.rows()
        chosen = (self.counted[rows]).nonzero()[:, 0]
        size = self.code.values.abs()
        order = chosen[size[chosen].argsort(descending=True, stable=True)]
        order = order[self.code.indices[order].argsort(stable=True)]  # by latent, its peak first
        found, counts = self.code.indices[order].unique_consecutive(return_counts=True)
        peaks = order[offsets_of(counts)[:-1]]
        group = torch.arange(len(found)).repeat_interleave(counts)

        def summed(entries: Tensor) -> Tensor:
            sums = torch.zeros(len(found), dtype=torch.float64)
            return sums.index_add_(0, group, entries[order].double().nan_to_num(nan=0.0))

        rarest = None if self.rarity is None else _largest(self.rarity[order], group, len(found))
        effects = None if self.effects is None else summed(self.effects)
        heights = {"tokens": counts, "value": size[peaks], "rarity": rarest, "effect": effects}
        if (height := heights[by]) is None:
            raise self._nothing_to_rank_by(by)
        best = height.abs().argsort(descending=True, stable=True)
        columns = (
            found,
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
        """The text coloured by the sum of |value| on each token, or by one latent, in HTML that brings its style.

        With a position, the latents on it too, the first `most` of `at(position, by)`. Raises as `at` and
        `values_of` do."""
        counted = self.counted.tolist()
        values = (
            (self.total if latent is None else self.values_of(latent)).masked_fill(self.excluded, 0).tolist()
        )
        shades = (
            reading_report.level_shades(values, counted)[0]
            if latent is None
            else reading_report.signed_shades(values)
        )
        tips = [numbers.number(value) for value in values]
        parts = [reading_report.strip(self.tokens, shades, tips, self.is_text.tolist(), position)]
        if position is not None:
            chosen = self.at(position, by)[:most]
            lines = [
                reading_report.Line(f.latent, f.value, f.effect, f.rarity, self._density_of(f.latent), "", [])
                for f in chosen
            ]
            parts.append(reading_report.firings(lines, None))
        return render.framed("".join(parts))

    def _repr_html_(self) -> str:
        return self.html()

    def _density_of(self, latent: int) -> float | None:
        return None if self.density is None else float(self.density[latent])

    def _heights(self, by: By) -> Tensor:
        found = {"value": self.code.values, "rarity": self.rarity, "effect": self.effects}[by]
        if found is None:
            raise self._nothing_to_rank_by(by)
        return found.abs()

    def _nothing_to_rank_by(self, by: str) -> RunError:
        if by == "rarity":
            return RunError(
                "how rare latents are is not known: read with features, as `sae features RUN` makes them"
            )
        return RunError(
            "latents of this hook point do not write into the residual stream: no direct effect to rank by"
        )


def _largest(entries: Tensor, group: Tensor, n: int) -> Tensor:
    return torch.zeros(n).scatter_reduce(0, group, entries, "amax")


def _listed(column: Tensor) -> list[Any]:
    return [None if isnan(value) else value for value in column.tolist()]
