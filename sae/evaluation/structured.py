"""Planted worlds with structure: a hierarchy of features, firings correlated by a Gaussian copula, Zipf frequencies.

After SynthSAEBench (Chanin et al. 2026, arXiv:2602.14687; the package sae_lens.synthetic): the same distributions, except that
the frequencies of features in a hierarchy are kept exactly where that benchmark corrects them to first order."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from activations.errors import ConfigError
from sae import chance
from sae.chance import Purpose
from sae.evaluation.synthetic import World

LARGEST_SHARED = 0.99
"""The largest part of a feature's variance that shared factors may have; more is scaled down to it, as in SynthSAEBench."""
ITERATIONS = 2000  # of the fixed point for exclusive siblings; it takes some dozen unless they fill nearly all of their parent's rows


@dataclass(frozen=True)
class Structured(World):
    """Features in trees, correlated and of unequal frequencies, as those of language models are thought to be.

    Feature 0 is the most frequent. The first `roots` features are the roots of trees, which follow level by level; the features
    after the last level stand alone. Chanin et al. 2026, "SynthSAEBench", arXiv:2602.14687."""

    d_model: int = 48
    n_features: int = 48
    """Number of planted features, random unit directions."""
    roots: int = 8
    """Number of trees; 0 for no hierarchy. A child is active only where its parent is."""
    branching: int = 2
    """Children of each feature that has any."""
    depth: int = 1
    """Levels of children below the roots."""
    exclusive: bool = True
    """Whether at most one of a feature's children is active."""
    p_most: float = 0.5
    """Frequency of the most frequent feature: the share of rows on which it is active."""
    p_least: float = 0.005
    """Frequency of the least frequent feature."""
    exponent: float = 1.0
    """Exponent of Zipf's law: frequencies fall as rank ** -exponent, stretched to lie between p_most and p_least."""
    keep_frequencies: bool = True
    """Whether children have these frequencies too; else each has that share of its parent's rows at most, as hierarchies only take
    firings away."""
    correlation: Literal["none", "low-rank", "blocks"] = "low-rank"
    """How the normal variables behind the firings are correlated: not at all, by `rank` random factors, or equally within each of
    `rank` blocks, to which features belong in turn. In a hierarchy, firings given the parent's are correlated so."""
    rank: int = 4
    """Number of factors or blocks."""
    strength: float = 0.1
    """low-rank: standard deviation of a factor's weights, small where rank * strength ** 2 is to stay below 1; blocks: the correlation
    of two features of a block."""
    size_most: float = 5.0
    """Mean coefficient of the most frequent feature when it is active; means fall linearly with rank."""
    size_least: float = 4.0
    """Mean coefficient of the least frequent feature."""
    size_spread: float = 0.5
    """Coefficients are normal around a feature's mean; their standard deviation is |N(size_spread, size_spread)|, drawn once for
    each feature. 0 makes them constant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name} = {value} must be a finite number")
        if not 0 < self.p_least <= self.p_most < 1:
            raise ConfigError(
                f"p_least = {self.p_least} and p_most = {self.p_most} must satisfy 0 < p_least <= p_most < 1"
            )
        if not (self.exponent > 0 and self.size_least > 0 and self.size_most > 0 and self.size_spread >= 0):
            raise ConfigError(
                "exponent, size_most and size_least must be above 0, and size_spread at least 0"
            )
        if min(self.roots, self.depth) < 0 or self.branching < 1 or self.n_features < 1:
            raise ConfigError("roots and depth must be at least 0, branching and n_features at least 1")
        if (needed := sum(self._sizes)) > self.n_features:
            raise ConfigError(
                f"{self.roots} trees of {self.depth} levels of {self.branching} children need {needed} features, there are "
                f"{self.n_features}"
            )
        blocks = self.correlation == "blocks"
        if self.rank < 1 or self.strength < 0 or (blocks and self.strength > LARGEST_SHARED):
            raise ConfigError(
                f"rank = {self.rank} must be at least 1, and strength = {self.strength} at least 0"
                + (f" and at most {LARGEST_SHARED}" if blocks else "")
            )
        _ = self._rates  # a hierarchy that cannot have these frequencies is refused

    @property
    def _sizes(self) -> list[int]:
        """The number of features on each level of the trees; none without trees."""
        return [self.roots * self.branching**level for level in range(self.depth + 1)]

    @property
    def parents(self) -> Int[Tensor, "n"]:
        """The index of each feature's parent; -1 for roots and for features outside of trees."""
        parents, first = torch.full((self.n_features,), -1), 0
        for size in self._sizes[:-1]:
            children = first + size + torch.arange(size * self.branching)
            parents[children] = first + torch.arange(size * self.branching) // self.branching
            first += size
        return parents

    @property
    def frequencies(self) -> Float[Tensor, "n"]:
        """The share of rows on which each feature is active, in float64: exact where firings are not correlated and coefficients do
        not reach 0, else close."""
        return self._rates.frequencies

    @cached_property
    def _rates(self) -> "Rates":
        zipf = zipf_frequencies(self.n_features, self.exponent, self.p_most, self.p_least)
        rates = Rates(zipf.clone(), zipf.clone())
        for parents, children in self._families():
            above = rates.frequencies[parents]
            if self.keep_frequencies:
                wanted = zipf[children] / above[:, None]
                rates.firing[children] = self._firing(wanted, parents)
            given = rates.firing[children]
            rates.frequencies[children] = above[:, None] * (one_of(given) if self.exclusive else given)
        return rates

    def _firing(self, wanted: Float[Tensor, "p b"], parents: Int[Tensor, "p"]) -> Float[Tensor, "p b"]:
        """Return how often children must fire, given their parent, to be active with the frequencies `wanted`."""
        if not self.exclusive:
            return wanted
        if (total := wanted.sum(1)).max() >= 1:
            worst = int(total.argmax())
            raise ConfigError(
                f"the {self.branching} children of feature {int(parents[worst])} would be active on {total[worst]:.2f} times its "
                f"rows, which exclusive children cannot be: fewer children, a larger exponent, a smaller p_least, or "
                f"keep_frequencies = False"
            )
        firing, before = wanted, torch.zeros_like(wanted)
        for _ in range(ITERATIONS):
            if torch.allclose(firing, before, rtol=1e-13, atol=0):
                break
            firing, before = (firing * wanted / one_of(firing)).clamp_max(1), firing
        return firing

    def _families(self) -> list[tuple[Int[Tensor, "p"], Int[Tensor, "p b"]]]:
        """Return for each level the features with children, and their children, from the roots down."""
        families, first = [], 0
        for size in self._sizes[:-1]:
            children = first + size + torch.arange(size * self.branching)
            families.append((first + torch.arange(size), children.view(size, self.branching)))
            first += size
        return families if self.roots else []

    @cached_property
    def _copula(self) -> "Copula":
        generator = chance.generator(self.seed, Purpose.PLANTED_COPULA)
        return Copula.of(self.correlation, self.n_features, self.rank, self.strength, generator)

    @cached_property
    def _size_spreads(self) -> Float[Tensor, "n"]:
        generator = chance.generator(self.seed, Purpose.PLANTED_SIZES)
        return (self.size_spread * (1 + torch.randn(self.n_features, generator=generator))).abs()

    def _features(self, generator: torch.Generator) -> Float[Tensor, "n D"]:
        return normalize(torch.randn(self.n_features, self.d_model, generator=generator), dim=1)

    def _codes(self, rows: int, generator: torch.Generator) -> Float[Tensor, "rows n"]:
        means = torch.linspace(self.size_most, self.size_least, self.n_features)
        sizes = means + self._size_spreads * torch.randn(rows, self.n_features, generator=generator)
        # A coefficient that would not be positive is a feature that is not active: its children must see that
        on = self._copula.draw(self._rates.firing, rows, generator) & (sizes > 0)
        for parents, children in self._families():
            family = on[:, children] & on[:, parents, None]
            if self.exclusive:
                family = keep_one(family, generator)
            on[:, children] = family
        return on * sizes


class Rates(NamedTuple):
    """How often features fire by themselves, and how often they are active."""

    firing: Float[Tensor, "n"]
    """Probability with which each fires before the hierarchy and exclusion take firings away."""
    frequencies: Float[Tensor, "n"]
    """Share of rows on which each is active in the end."""


class Copula(NamedTuple):
    """Standard normal variables with the correlations weights @ weights.T off the diagonal, which fire above thresholds."""

    weights: Float[Tensor, "n rank"]
    own: Float[Tensor, "n"]
    """The variance of each that is its own: 1 minus what the factors give it."""

    @classmethod
    def of(cls, kind: str, n: int, rank: int, strength: float, generator: torch.Generator) -> "Copula":
        """Return the copula of one of the kinds of `Structured.correlation`."""
        weights = torch.zeros(n, rank)
        if kind == "blocks":
            weights[torch.arange(n), torch.arange(n) % rank] = strength**0.5
        elif kind == "low-rank":
            weights = strength * torch.randn(n, rank, generator=generator)
        shared = weights.square().sum(1, keepdim=True)
        weights = weights * (LARGEST_SHARED / shared.clamp_min(LARGEST_SHARED)).sqrt()
        return cls(weights, 1 - weights.square().sum(1))

    def draw(
        self, probabilities: Float[Tensor, "n"], rows: int, generator: torch.Generator
    ) -> Bool[Tensor, "rows n"]:
        """Return which features fire on each row, each with its probability (float64)."""
        shared = torch.randn(rows, self.weights.shape[1], generator=generator) @ self.weights.T
        normal = shared + self.own.sqrt() * torch.randn(rows, len(self.own), generator=generator)
        return normal > thresholds(probabilities).float()


def thresholds(probabilities: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return the numbers that a standard normal variable exceeds with these probabilities: -inf for 1."""
    return math.sqrt(2) * torch.erfinv(1 - 2 * probabilities)


def zipf_frequencies(n: int, exponent: float, most: float, least: float) -> Float[Tensor, "n"]:
    """Return rank ** -exponent for ranks 1 to n, stretched linearly to fall from `most` to `least`; float64. One feature has `most`."""
    powers = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    if n == 1:
        return torch.full((1,), most, dtype=torch.float64)
    return least + (most - least) * (powers - powers[-1]) / (1 - powers[-1])


def one_of(firing: Float[Tensor, "p b"]) -> Float[Tensor, "p b"]:
    """Return how often each of b siblings is the one that is kept, when each fires independently with its probability and one of
    those that fire is kept, all with equal chance. A probability of 0 stays 0."""
    # P(kept) = P(fires) E[1 / (1 + N)], N others fire; 1 / (1 + N) is the integral of t^N over 0 to 1, and E[t^N] a product over
    # the others, a polynomial in t of degree b - 1 that Gauss-Legendre nodes integrate exactly.
    points, weights = np.polynomial.legendre.leggauss(firing.shape[1] // 2 + 1)
    t = torch.from_numpy((points + 1) / 2)[:, None]
    factors = 1 - firing[:, None] * (1 - t)
    others = factors.prod(2, keepdim=True) / factors
    return firing * (torch.from_numpy(weights / 2)[:, None] * others).sum(1)


def keep_one(family: Bool[Tensor, "rows p b"], generator: torch.Generator) -> Bool[Tensor, "rows p b"]:
    """Return the family with one member left in each group of b that had any, all with equal chance."""
    drawn = torch.rand(family.shape, generator=generator) + 1
    kept = (drawn * family).argmax(2, keepdim=True)
    return family & (torch.arange(family.shape[2]) == kept)
