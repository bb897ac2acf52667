"""What `sae store geometry` measures, as geometry.json has it (FORMAT.md)."""

from dataclasses import dataclass, field

from activations.errors import check_seed


@dataclass(frozen=True)
class GeometryConfig:
    """Settings of `sae store geometry`."""

    rows: int = 32_768
    """Rows drawn for the covariance and the linearity, at least 16 for each coordinate of the widest hook point; all rows of a
    smaller store."""
    points: int = 8192
    """Of these, rows whose neighbours are looked for, for the intrinsic dimension. Time grows with the square."""
    neighbours: int = 20
    """Neighbours of each point that the maximum-likelihood estimate uses."""
    seed: int = 0
    """Seed of the rows drawn and of the bootstrap."""

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class MassiveCoordinate:
    """A coordinate with massive activations: on how many tokens, of which so many in first positions, and their mean value."""

    coordinate: int
    tokens: int
    first: int
    mean: float


@dataclass(frozen=True)
class FirstPosition:
    """The rows at the first position of their windows, which training leaves out."""

    rows: int
    mean_norm: float
    largest: float
    """Largest magnitude of any coordinate."""
    variance_share: float
    """Their share of the summed squared distance of all rows from the mean of all rows."""
    massive: int
    """Those with a massive activation."""


@dataclass(frozen=True)
class Linearity:
    """How linear the map to the next hook point is; `update` is that to the difference, None where it does not exist."""

    to: str
    stream: float
    update: float | None


@dataclass(frozen=True)
class HookGeometry:
    """The geometry of one hook point. Rows in first positions count nowhere but in `first` and `coordinates`."""

    hook: str
    width: int
    rows: int
    norms: dict[str, float]
    """Quantiles of the Euclidean norm, by the share of rows below: "0.05", "0.5", …."""
    largest: float
    """Largest magnitude of any coordinate."""
    massive: int
    """Rows with a massive activation."""
    coordinates: list[MassiveCoordinate]
    """Those with massive activations on most tokens, at most 16."""
    cosine: float
    """Mean cosine between two rows, over all pairs."""
    centred_cosine: float
    """The same after the mean row is subtracted."""
    sampled: int
    """Rows drawn for what follows."""
    participation: float | None
    """(sum of eigenvalues)^2 / sum of their squares, of the covariance; None where it is zero."""
    top_share: float | None
    """Share of the variance along the first principal direction."""
    distinct: int
    """Distinct rows among the points whose neighbours were looked for."""
    two_nn: Interval | None
    maximum_likelihood: Interval | None
    """Both estimates of intrinsic dimension are None where there are too few distinct rows."""
    first: FirstPosition | None = None
    """None for a store of files, whose windows are no context that a model has read."""
    linearity: Linearity | None = None
    """None for the last hook point, and where fewer than 10 rows for each coordinate were drawn."""


@dataclass(frozen=True)
class Geometry:
    """The content of geometry.json."""

    store_fingerprint: str
    config: GeometryConfig
    hooks: list[HookGeometry] = field(default_factory=list)
