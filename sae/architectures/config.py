"""The base of all configurations. Each describes its architecture: name, rule, advice, expected L0, cost of a training step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Literal, NamedTuple

from activations.errors import ConfigError

LabelUnit = Literal["score", "latents", "nats"]
Scan = Literal["row", "batch", "above", "ands", "sort", "topk"]
GUESSED_L0 = 100.0  # latents a token where neither k nor a target says: of the order that papers report


class Selects(Enum):
    """The ways in which an SAE in use decides which latents fire on a row."""

    BY_RANK = "the largest of each row"
    ABOVE_ONE_THRESHOLD = "those above a threshold that all latents share"
    ABOVE_OWN_THRESHOLDS = "each above a threshold of its own"


class ExpectedL0(NamedTuple):
    """Latents per token that take part in the reconstruction, in training."""

    value: float
    assumed: str | None = None
    """The assumption behind the number, when no setting fixes it."""


class EncoderCost(NamedTuple):
    """The size of an encoder, and what encoding costs."""

    parameters: int
    """Trained numbers, without those of the decoder (W_dec, b_dec)."""
    flops: int
    """Floating-point operations per token; a multiply-add counts as two."""


class TrainingCost(NamedTuple):
    """The work of one training step on a code and on pre-activations, beside the matrix products that encode and decode.

    `sae plan` turns these counts into seconds and bytes. B rows, D the activations' width, F latents."""

    scan: Scan
    """The way latents are selected among [B, F] pre-activations, by the name of the rate that `sae plan` measures."""
    passes: float = 0
    """Elementwise operations on all of [B, F], each into new memory; 0 where pre-activations lie in the one buffer."""
    held: float | None = None
    """Numbers held at once for each pre-activation; None where one buffer of limited size serves all rows."""
    reads: int = 4
    """Number of times that the decoder or encoder rows of all entries are read: for decoding, and for the gradients of
    values, decoder and encoder."""
    errors: float = 1.0
    """Errors of [B, D] that the loss is made of."""
    codes: int = 1
    """Codes selected for each row."""
    entries: float = 1
    """Entries selected, in multiples of L0."""
    dictionaries: int = 1
    """SAEs trained side by side."""
    matched_pairs: int = 0
    """Pairs of dictionaries whose rows are matched one to one."""


@dataclass(frozen=True)
class ArchConfig:
    """The fields that every architecture has; each adds its own."""

    name: ClassVar[str]
    """The architecture's name on the command line, in run.json and in the table of architectures."""

    rule: ClassVar[str]
    """The rule by which latents are selected in use, as a clause; it explains why a file format without such a rule cannot
    hold the SAE."""

    shards_latents: ClassVar[bool] = False
    """Whether ranks can share out the latents: they are selected by order alone, and all a latent has are its parts of
    W_enc, b_enc and W_dec."""

    revives_dead: ClassVar[bool] = False
    """Whether the loss has AuxK, which gives dead latents gradients (fields aux_k and aux_weight)."""

    price: ClassVar[str | None] = None
    """The field that L0 follows where no setting fixes it: the weight of a penalty, the higher the fewer latents fire.
    None where a setting fixes L0, or nothing does."""

    reads_labels: ClassVar[bool] = False
    """Whether it learns from a number for each token or document too, as `sae harvest --labels` stores it."""

    rate: ClassVar[float] = 1.0
    """The best peak learning rate, over that of a TopK of equal width, steps and batch (`benchmarks/rates.py`)."""

    advice: ClassVar[str] = ""
    """Which settings suit which budget, as `sae train ARCH --help` and the method's page say."""

    d_sae: int = 8192
    """Latents in the dictionary (its width, F)."""

    def selects(self) -> Selects:
        """Return how latents are selected in use. Every architecture says it."""
        raise NotImplementedError

    def expected_l0(self) -> ExpectedL0:
        """Return how many latents per token fire in training. Here a guess: no setting fixes it."""
        return ExpectedL0(
            min(GUESSED_L0, self.d_sae), "nothing sets it: it follows from the data and --arch settings"
        )

    def training_cost(self) -> TrainingCost:
        """Return what a training step does. Here a selection in one pass over the pre-activations."""
        return TrainingCost("row" if self.selects() is Selects.BY_RANK else "above")

    @classmethod
    def small(cls, d_sae: int, k: int) -> dict[str, int]:
        """Return settings for a dictionary far smaller than a language model's, in which about k latents should fire."""
        return {"d_sae": d_sae} | ({"k": k} if "k" in cls.__dataclass_fields__ else {})

    def reading(self, unit: LabelUnit) -> "ArchConfig":
        """Return the configuration for labels in a unit. Here unchanged: no labels are read."""
        return self

    def __post_init__(self) -> None:
        if self.d_sae < 1:
            raise ConfigError(f"d_sae = {self.d_sae} must be at least 1")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name} = {value} must be a finite number")
            if name.endswith("_weight") and isinstance(value, int | float) and value < 0:
                raise ConfigError(
                    f"{name} = {value} must be at least 0: below, what it weighs would be sought, not avoided"
                )
        if (aux_k := getattr(self, "aux_k", None)) is not None and aux_k < 1:
            raise ConfigError(f"aux_k = {aux_k} must be at least 1; aux_weight = 0 leaves AuxK out")

    @classmethod
    def upgraded(cls, fields: Mapping[str, object], batch: int | None = None) -> Mapping[str, object]:
        """Return settings that an older release wrote as this release has them; `batch` is the run's, if it is known."""
        return fields
