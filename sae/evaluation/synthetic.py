"""Planted worlds: activations composed of known features, to measure which of them a dictionary finds.

In every world x = codes @ features exactly, without noise. The same seed gives the same features and rows."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from activations.errors import ConfigError, check_seed
from sae import chance
from sae.chance import Purpose


@dataclass(frozen=True)
class World(ABC):
    """Planted features, and a distribution of the rows that are made of them."""

    d_model: int = 32
    """Width D of the activations."""
    seed: int = 0
    """Seed of the features; the rows have a seed of their own."""

    def __post_init__(self) -> None:
        if self.d_model < 1:
            raise ConfigError(f"d_model = {self.d_model}, must be at least 1")
        check_seed(self.seed)

    @cached_property
    def features(self) -> Float[Tensor, "n D"]:
        """The planted directions, one per row."""
        return self._features(chance.generator(self.seed, Purpose.PLANTED_FEATURES))

    @property
    def parents(self) -> Int[Tensor, "n"]:
        """The index of each feature's parent, without which it never fires; -1 for a feature without a parent."""
        return torch.full((len(self.features),), -1)

    def draw(
        self, rows: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "rows D"], Float[Tensor, "rows n"]]:
        """Return new rows: activations, and the codes they are composed of, in the same units."""
        codes = self._codes(rows, generator)
        return codes @ self.features, codes

    def batches(self, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield endless batches (x [rows, D], codes [rows, n]), which depend on the seed alone."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.draw(rows, generator)

    @abstractmethod
    def _features(self, generator: torch.Generator) -> Float[Tensor, "n D"]: ...

    @abstractmethod
    def _codes(self, rows: int, generator: torch.Generator) -> Float[Tensor, "rows n"]: ...


@dataclass(frozen=True)
class UniformWorld(World):
    """A world in which the coefficients of active features are uniform."""

    low: float = 0.5
    """Smallest coefficient of an active feature."""
    high: float = 1.5
    """Largest coefficient; coefficients are uniform in between."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low <= self.high:
            raise ConfigError(f"low = {self.low}, must be above 0 and at most high = {self.high}")

    def _strengths(self, on: Bool[Tensor, "rows n"], generator: torch.Generator) -> Float[Tensor, "rows n"]:
        """Return coefficients drawn from U(low, high) where `on`, 0 elsewhere."""
        return on * torch.empty(on.shape).uniform_(self.low, self.high, generator=generator)


@dataclass(frozen=True)
class Independent(UniformWorld):
    """Random unit features, `least` to `most` of which are active in a row (Gao et al. 2024 and most toy models since)."""

    n_features: int = 64
    """Number of planted features."""
    least: int = 3
    """Fewest features active in a row."""
    most: int = 3
    """Most features active in a row; all numbers in between are equally likely."""
    signed: bool = False
    """Whether coefficients have random signs, as AbsTopK's latents can."""
    orthonormal: bool = False
    """Whether features are orthonormal; needs n_features <= d_model."""
    common: float = 0.0
    """Length of a direction that all features share, added to each (of length about 1) before they are normalised. Above 0,
    the number of active features is linearly readable from a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_active(self.least, self.most, self.n_features)
        if self.orthonormal and self.n_features > self.d_model:
            raise ConfigError(
                f"n_features = {self.n_features} cannot be orthonormal in d_model = {self.d_model} dimensions"
            )

    def _features(self, generator: torch.Generator) -> Float[Tensor, "n D"]:
        if self.orthonormal:
            return orthonormal(self.n_features, self.d_model, generator)
        own = torch.randn(self.n_features, self.d_model, generator=generator) / self.d_model**0.5
        shared = normalize(torch.randn(1, self.d_model, generator=generator), dim=1)
        return normalize(own + self.common * shared, dim=1)

    def _codes(self, rows: int, generator: torch.Generator) -> Float[Tensor, "rows n"]:
        counts = torch.randint(self.least, self.most + 1, (rows,), generator=generator)
        codes = self._strengths(any_of(self.n_features, counts, generator), generator)
        if not self.signed:
            return codes
        return codes * (2 * torch.randint(0, 2, codes.shape, generator=generator) - 1)


@dataclass(frozen=True)
class Heads(UniformWorld):
    """Features in heads, correlated because each is the sum of two parts that it shares with others of its head.

    Feature (h, i, j) = unit(A[h, i] + B[h, j]) has index (h * m + i) * n + j. In a row, `active` heads have one active
    feature each. KronSAE, arXiv:2505.22255."""

    d_model: int = 40
    n_heads: int = 6
    """Number of heads; each has m * n features."""
    m: int = 4
    """Number of first parts in a head."""
    n: int = 4
    """Number of second parts in a head."""
    active: int = 2
    """Number of heads active in a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_active(self.active, self.active, self.n_heads)

    def _features(self, generator: torch.Generator) -> Float[Tensor, "n D"]:
        first = torch.randn(self.n_heads, self.m, 1, self.d_model, generator=generator)
        second = torch.randn(self.n_heads, 1, self.n, self.d_model, generator=generator)
        return normalize(first + second, dim=-1).view(-1, self.d_model)

    def _codes(self, rows: int, generator: torch.Generator) -> Float[Tensor, "rows n"]:
        heads = any_of(self.n_heads, torch.full((rows,), self.active), generator)
        size = self.m * self.n
        which = torch.randint(size, (rows, self.n_heads, 1), generator=generator)
        on = heads[:, :, None] & (torch.arange(size) == which)
        return self._strengths(on.flatten(1), generator)


@dataclass(frozen=True)
class Tree(UniformWorld):
    """A parent feature, children that fire only with it, and unrelated features: a world that shows feature absorption.

    The features are orthonormal; index 0 is the parent, then come the children, then the others. Bussmann, Nabeshima, Karvonen,
    Nanda 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders" (a toy model like theirs)."""

    d_model: int = 16
    low: float = 1.0
    high: float = 1.0
    children: int = 4
    """Number of children, of which at most one fires."""
    others: int = 4
    """Number of features that fire on their own."""
    p_parent: float = 0.4
    """Probability that the parent fires."""
    p_child: float = 0.8
    """Probability that a child fires when the parent does."""
    p_other: float = 0.17
    """Probability that each of the others fires."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 1 + self.children + self.others > self.d_model:
            raise ConfigError(
                f"{1 + self.children + self.others} features cannot be orthonormal in d_model = {self.d_model}"
            )

    @property
    def parents(self) -> Int[Tensor, "n"]:
        """The index of each feature's parent: 0 for the children, -1 for the parent and the others."""
        return torch.tensor([-1] + [0] * self.children + [-1] * self.others)

    def _features(self, generator: torch.Generator) -> Float[Tensor, "n D"]:
        return orthonormal(1 + self.children + self.others, self.d_model, generator)

    def _codes(self, rows: int, generator: torch.Generator) -> Float[Tensor, "rows n"]:
        parent = torch.rand(rows, 1, generator=generator) < self.p_parent
        with_child = parent & (torch.rand(rows, 1, generator=generator) < self.p_child)
        which = torch.randint(self.children, (rows, 1), generator=generator)
        child = with_child & (torch.arange(self.children) == which)
        other = torch.rand(rows, self.others, generator=generator) < self.p_other
        return self._strengths(torch.cat([parent, child, other], 1), generator)


@dataclass(frozen=True)
class Gaussian(UniformWorld):
    """Gaussian features, `active` of them in a row; every row is normalised to unit norm.

    This is the model of GBA's theory (arXiv:2506.14002). Each feature's frequency is active / n_features."""

    d_model: int = 64
    n_features: int = 128
    """Number of planted features."""
    active: int = 3
    """Number of features active in a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_active(self.active, self.active, self.n_features)

    def _features(self, generator: torch.Generator) -> Float[Tensor, "n D"]:
        return torch.randn(self.n_features, self.d_model, generator=generator)

    def _codes(self, rows: int, generator: torch.Generator) -> Float[Tensor, "rows n"]:
        counts = torch.full((rows,), self.active)
        codes = self._strengths(any_of(self.n_features, counts, generator), generator)
        return codes / (codes @ self.features).norm(dim=1, keepdim=True)


def any_of(n: int, counts: Int[Tensor, "rows"], generator: torch.Generator) -> Bool[Tensor, "rows n"]:
    """Return a mask with `counts` of n places chosen at random in each row."""
    # The places of the largest `count` of n random numbers; the first column of cuts is for a count of 0
    drawn = torch.rand(len(counts), n, dtype=torch.float64, generator=generator)
    largest = drawn.topk(int(counts.max()), dim=1).values
    cut = torch.cat([largest.new_full((len(counts), 1), 2.0), largest], 1).gather(1, counts[:, None])
    return drawn >= cut


def orthonormal(n: int, d: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Return n random orthonormal rows; n must be at most d."""
    return torch.linalg.qr(torch.randn(d, n, generator=generator)).Q.T.contiguous()


def check_active(least: int, most: int, n: int) -> None:
    """Raise ConfigError unless 0 <= least <= most <= n and most > 0."""
    if not (0 <= least <= most <= n and most):
        raise ConfigError(f"{least} to {most} active features do not fit a world of {n} features")
