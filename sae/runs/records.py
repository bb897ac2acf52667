"""The JSON files of a run folder as typed records, parsed once when they are read (FORMAT.md).

A file may hold more than its record, which is then ignored."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from sae.config import Settings
from sae.evaluation.measures import AblationEffects, Estimate, L0Proxies, QuasiOrthogonality

Scalar = int | float | str | bool | None
"""A value of the settings of `sae features` or `sae dead`."""


@dataclass(frozen=True)
class Imported:
    """The origin of an imported SAE: `imported` in run.json."""

    format: str
    path: str
    notes: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    """Facts that the files state beyond the SAE itself, under SAELens' names; of any type, as the other tool wrote them."""
    sha256: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    hook: str | None = None
    hub: dict[str, str | None] | None = None


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json."""

    config: Settings
    """Settings as they were written; `Run.config` is their parsed form."""
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
    source: str = "bridge"
    """What gave the store's rows, as in the store's spec."""


@dataclass(frozen=True)
class SAERecord:
    """sae.json."""

    architecture: str
    arch: Settings
    d_model: int
    weights_file_sha256: str
    latents_file_sha256: str | None = None


@dataclass(frozen=True)
class CheckpointRecord:
    """The content of a checkpoint's training.json."""

    step: int
    reader: dict[str, Any]
    """Position of the store's reader, as `Reader.state` returns it; each kind of reader has fields of its own and checks them."""
    state_file_sha256: str | None = None


@dataclass(frozen=True)
class Splice:
    """The part of eval.json that was measured with the language model."""

    windows: int
    tokens: int
    estimates: dict[str, Estimate]
    documents: int | None = None
    """Documents that the tokens are of; None where the file does not say."""


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
    quasi_orthogonality: QuasiOrthogonality | None = None
    """None in files of older releases, and for an SAE of a single latent."""
    l0_proxies: L0Proxies | None = None
    """None as above."""
    effects: AblationEffects | None = None
    """None where they were not asked for."""

    @property
    def measures(self) -> dict[str, Estimate]:
        """All estimates by name, those of the language model last."""
        return self.estimates | (self.splice.estimates if self.splice else {})

    def documents_of(self, name: str) -> int | None:
        """Return the number of documents that a measure's interval is over; None where the file does not say."""
        return self.splice.documents if self.splice and name in self.splice.estimates else self.documents


@dataclass(frozen=True)
class FeaturesRecord:
    """features.json. Fields with a default are missing in folders of older releases."""

    d_sae: int
    tokens: int
    """Rows that were looked at."""
    sae_sha256: str
    sha256: dict[str, str]
    """SHA-256 of each other file of the folder, by name."""
    unit: float = 1.0
    """Root mean square norm of the activations."""
    clusters: list[list[str]] = field(default_factory=list)
    """For each cluster of the map the commonest peak tokens of its latents; empty without a map."""
    store_fingerprint: str | None = None
    hook: str | None = None
    config: dict[str, Scalar] = field(default_factory=dict)
    model: str | None = None
    map: bool = False
    positions: str = "all"
    """Positions that count, as in the run's settings: `all`, or `last` of each document in a window."""


class FeatureRow(TypedDict):
    """A row of features.parquet: one latent's statistics, None where it never fired. FORMAT.md says what each column holds.

    From `positive_share` on, columns depend on the SAE or are missing in older releases: `get` reads those that may be missing."""

    latent: int
    fired: int
    density: float
    mean: float | None
    max: float | None
    min: float | None
    enc_dec_cosine: float | None
    neighbours: list[int]
    neighbour_cosines: list[float]
    peak_tokens: list[str]
    positive_share: float | None
    b_enc: float | None
    std: float | None
    skew: float | None
    kurtosis: float | None
    decoder_norm: float
    first_row: int
    last_row: int
    cluster: int | None
    map_x: float | None
    map_y: float | None
    cofiring: list[int]
    cofiring_counts: list[int]
    cofiring_pmi: list[float]
    raised_tokens: list[str]
    raised_logits: list[float]
    lowered_tokens: list[str]
    lowered_logits: list[float]


Kind = Literal["shared", "merged", "lost", "split", "new"]


@dataclass(frozen=True)
class DeadBy:
    """The dead latents of dead.json, counted by cause, by the data they fire on and by what became of them in training."""

    cause: dict[str, int]
    fires_on: dict[str, int]
    training: dict[str, int]


@dataclass(frozen=True)
class BiasCurve:
    """Number of dead latents that would fire, each alone, with the bias moved by `by` units."""

    unit: float
    """Median size of the pre-activations that make a latent fire."""
    by: list[float]
    fire: list[int]


@dataclass(frozen=True)
class KCurve:
    """Number of dead latents that would fire if `extra` more latents were kept in each row."""

    k: int | None
    """Number that each row keeps now; None where rows keep different numbers."""
    extra: list[int]
    fire: list[int]


@dataclass(frozen=True)
class ThresholdCurve:
    """Number of dead latents that would fire with all thresholds multiplied by `share`."""

    share: list[float]
    fire: list[int]


@dataclass(frozen=True)
class ResampleCurve:
    """Number of dead latents that would fire on held-out rows once all of them are resampled."""

    scale: list[float]
    """Encoder norms, as multiples of `norm`."""
    fire: list[int]
    rows: int
    """Held-out rows that were encoded."""
    norm: float
    """Mean encoder norm of the live latents."""
    dense: list[int] | None = None
    """Number that would fire on more than a tenth of the rows; None in a report of an older release."""


@dataclass(frozen=True)
class Changes:
    """Changes that would make dead latents fire, in dead.json; None for a change that has no meaning for the SAE."""

    bias: BiasCurve | None
    k: KCurve | None
    threshold: ThresholdCurve | None
    resample: ResampleCurve | None


@dataclass(frozen=True, kw_only=True)
class DeadSummary:
    """The counts of dead.json and its what-if curves."""

    d_sae: int
    rows: dict[str, int]
    """Rows that were looked at, by group."""
    resolution: float
    """Density below which a live latent passes for dead on the rows of text with p > 5 %."""
    changes: Changes
    kinds: dict[str, int]
    silent: dict[str, int]
    """Latents that fire on no row of a group, by group."""
    dead_by: DeadBy
    dense_by_kind: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class DeadRecord(DeadSummary):
    """The content of dead.json: its summary, and what was looked at."""

    features_rows: int
    """Rows on which features had been collected; 0 where there were none."""
    history: bool
    """Whether the training history took part."""
    sha256: dict[str, str]
    sae_sha256: str | None = None
    store_fingerprint: str | None = None
    hook: str | None = None
    config: dict[str, Scalar] = field(default_factory=dict)
    off_distribution: bool = False
    """Whether the language model took part, which reads text unlike any in the store."""
    rules: dict[str, float | dict[str, float]] = field(default_factory=dict)
    """Thresholds of the rules that named causes; those for dense latents under `dense`."""
    positions: str = "all"
    """Positions of the text that count: `all`, or `last` of each document in a window."""


@dataclass(frozen=True)
class MatchedLatents:
    """The result of one measure for each latent of one SAE in compare-NAME.json; all lists have an entry per latent."""

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
    """The summary of one measure for two SAEs in compare-NAME.json."""

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
    """The content of compare-NAME.json."""

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
    positions: str = "all"
    """Positions of the rows that both were compared on."""

    def by(self, measure: str) -> Matched:
        """Return the matching under a measure, `cosine` or `activation`."""
        return {"cosine": self.cosine, "activation": self.activation}[measure]
