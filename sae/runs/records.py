"""The JSON files of a run folder as typed records, parsed once when they are read (FORMAT.md).

A file may hold more than its record, which is then ignored. `dict[str, Any]` stands for settings and facts of other
tools, whose fields depend on the architecture or the tool."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Imported:
    """Where an imported SAE came from: `imported` in run.json."""

    format: str
    path: str
    notes: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    """What the files say beyond the SAE itself, under SAELens' names."""
    sha256: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    hook: str | None = None
    hub: dict[str, str | None] | None = None


@dataclass(frozen=True)
class RunRecord:
    """run.json."""

    config: dict[str, Any]
    """Settings as they were written; `Run.config` is what they mean."""
    hook: str
    d_model: int
    input_scale: float
    model: str
    model_revision: str | None
    weights_sha256: str | None
    store_fingerprint: str | None
    model_dtype: str = "float32"
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    rate_trials: list[tuple[float, ...]] | None = None
    """Pairs of rate and loss."""
    imported: Imported | None = None
    id: str = ""


@dataclass(frozen=True)
class SAERecord:
    """sae.json."""

    architecture: str
    arch: dict[str, Any]
    d_model: int
    weights_file_sha256: str
    latents_file_sha256: str | None = None


@dataclass(frozen=True)
class CheckpointRecord:
    """training.json of a checkpoint."""

    step: int
    reader: dict[str, Any]
    """Where the reader of the store was, as `ShuffledReader.state` gives it."""
    state_file_sha256: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A measure with its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Splice:
    """The part of eval.json that was measured with the language model."""

    windows: int
    tokens: int
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """eval.json."""

    tokens: int
    documents: int
    estimates: dict[str, Estimate]
    dead: float
    dense: float
    positions: str = "all"
    splice: Splice | None = None
    encoder: dict[str, int] = field(default_factory=dict)
    sae_sha256: str | None = None

    @property
    def measures(self) -> dict[str, Estimate]:
        """All estimates by name, those of the language model last."""
        return self.estimates | (self.splice.estimates if self.splice else {})


@dataclass(frozen=True)
class AboutFeatures:
    """features.json."""

    d_sae: int
    tokens: int
    sae_sha256: str
    sha256: dict[str, str]
    unit: float = 1.0
    clusters: list[list[str]] = field(default_factory=list)


Curve = dict[str, list[float] | float | None]
Kind = Literal["shared", "merged", "lost", "split", "new"]


@dataclass(frozen=True)
class Fates:
    """Of dead.json the dead latents, counted."""

    cause: dict[str, int]
    training: dict[str, int]


@dataclass(frozen=True)
class Changes:
    """Of dead.json what would make them fire."""

    bias: Curve | None
    k: Curve | None
    threshold: Curve | None
    resample: Curve | None


@dataclass(frozen=True)
class AboutDead:
    """dead.json."""

    d_sae: int
    rows: dict[str, int]
    resolution: float
    features_rows: int
    history: bool
    kinds: dict[str, int]
    silent: dict[str, int]
    dead_by: Fates
    dense_by_kind: dict[str, int]
    changes: Changes


@dataclass(frozen=True)
class MatchedLatents:
    """What one measure says of each latent of one SAE in compare-NAME.json; all lists have an entry per latent."""

    nearest: list[int]
    similarity: list[float]
    partner: list[int]
    """Number of the partner in the one-to-one matching, -1 for none."""
    partner_similarity: list[float | None]
    kind: list[Kind]


Levels = dict[str, float | None]
"""`count`, `mean`, and the shares `above_0.7` and `above_0.9`."""


@dataclass(frozen=True)
class MatchingSummary:
    """What one measure says of two SAEs in compare-NAME.json."""

    one_to_one: Levels
    nearest: dict[str, Levels]
    mutual: Levels


@dataclass(frozen=True)
class Matched:
    """One measure in compare-NAME.json; `latents` by side, first and second."""

    summary: MatchingSummary
    latents: dict[str, MatchedLatents]


@dataclass(frozen=True)
class ComparedRun:
    """One of the two runs in compare-NAME.json."""

    run: str
    weights_file_sha256: str


@dataclass(frozen=True)
class Comparison:
    """compare-NAME.json."""

    format: int
    first: ComparedRun
    second: ComparedRun
    store_fingerprint: str
    tokens: int
    absolute: bool
    near: float
    firing: dict[str, float]
    """Share of each SAE's latents that fire on these tokens."""
    cosine: Matched
    activation: Matched

    def by(self, measure: str) -> Matched:
        """Return what a measure found, `cosine` or `activation`."""
        return {"cosine": self.cosine, "activation": self.activation}[measure]


@dataclass(frozen=True)
class LabelEntry:
    """Of labels.json one latent's."""

    label: str
    note: str


@dataclass(frozen=True)
class AllLabels:
    """labels.json."""

    saes: dict[str, dict[str, LabelEntry]]
