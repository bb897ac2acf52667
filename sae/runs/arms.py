"""The folder `arms` of a run (FORMAT.md, Arms): what steering by a latent and by its rivals was measured to do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from activations.errors import quoted
from sae.runs.records import Estimate, Scalar
from sae.runs.run import Run
from sae.runs.saved_sae import read_results

FORMAT = 4
"""Of arms.json and forecast.json; 1 steered and compared the first token of texts without a BOS, 2 took unrelated text from few documents, 3
from windows that need not be held out where they are read, and random directions that a run with the same seed starts from."""
T = TypeVar("T")
FOLDER, INDEX, POINTS, TEXTS = "arms", "arms.json", "points", "texts"
FORECAST, POINT_FORMAT = "forecast.json", "sae-arms-1"
Verdict = Literal["above random", "not distinguishable", "below random"]


@dataclass(frozen=True)
class Level:
    """One arm at one strength."""

    strength: float
    """Share of the activations' norm; of the prompt arm, the number of examples."""
    concept: Estimate
    """How much more of the concept the texts hold than unsteered ones, as the judge sees it."""
    kl: Estimate
    """KL from the unsteered predictions on unrelated text, nats."""
    surprise: Estimate
    """By how much the texts are less likely under the unsteered model than its own texts, nats a token."""
    moved: Estimate | None
    """How far the judges of unrelated concepts move, on average; None where there is no unrelated concept."""
    repetition: float
    """Share of runs of three tokens that occurred earlier in their text."""


@dataclass(frozen=True)
class ArmResult:
    """One arm on one concept."""

    levels: list[Level]
    texts: list[list[str]]
    """Texts of each level; of the random arm those of its first direction."""
    better_by: Estimate | None
    """Mean over levels of `concept`, minus that of the random directions, paired over texts; None for the random arm itself."""
    verdict: Verdict | None


@dataclass(frozen=True)
class ConceptResult:
    """All arms on one concept."""

    name: str
    """Name of the labelled texts."""
    concept: str
    """Name of the class that is steered towards."""
    examples: list[int]
    """Labelled texts that chose the arms, that taught the judge, and that tested it."""
    latent: int
    sign: int
    """1 where the latent is higher on the concept, -1 where it is lower; the latent arm steers with this sign."""
    latent_auc: float
    """On examples that did not choose the latent."""
    latent_q: float
    judge_auc: float
    """On the examples that neither chose the arms nor taught the judge."""
    unrelated: list[str]
    """Concepts whose judges count as unrelated."""
    smallest: float
    """The smallest reliable difference from random directions, from their spread."""
    arms: dict[str, ArmResult]


@dataclass(frozen=True)
class Overall:
    """One arm at one strength, over all concepts; intervals are over concepts."""

    arm: str
    strength: float
    concept: Estimate
    kl: Estimate
    surprise: Estimate
    moved: Estimate | None


@dataclass(frozen=True)
class Nulls:
    """Random directions, each judged as if it were an arm, beside the other ones."""

    judged: int
    distinguishable: int


@dataclass(frozen=True)
class ArmsRecord:
    """The content of arms.json."""

    format: int
    sae_sha256: str
    hook: str
    norm: float
    """Root mean square norm of the activations."""
    config: dict[str, Scalar | list[Scalar]]
    concepts: list[ConceptResult]
    overall: list[Overall]
    nulls: Nulls
    texts_sha256: dict[str, str]
    """Hash of the labelled texts that were used of each concept, those of `left_out` among them."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Reasons, by concept, why some are missing."""


def read_arms(run: Run) -> ArmsRecord | None:
    """Return what was measured of a run's present weights, None where nothing was. Raises RunError when it is damaged."""
    record = _read(run, INDEX, ArmsRecord, "--compare …")
    return record if record and record.sae_sha256 == run.digest else None


@dataclass(frozen=True)
class ForecastRecord:
    """The content of forecast.json: what steering by some latents does to unrelated text, and how well it can be foreseen."""

    format: int
    sae_sha256: str
    features_sha256: str
    share: float
    """How far every activation was moved, as a share of the activations' norm."""
    windows: int
    window_tokens: int
    latents: list[int]
    """Latents that were measured, drawn at random from those that fire."""
    kl: list[float]
    """Of each of them, KL from the unsteered predictions on unrelated text, nats."""
    correlation: Estimate | None = None
    """Rank correlation of the forecast with `kl` on latents that it had not seen; None until all are measured."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of the forecast by predictor; both in normal scores."""
    arms_seed: int = 0
    """Seed that the latents were drawn with; 0 in files of older releases, which do not tell it."""


def read_forecast(run: Run, features_sha256: str) -> ForecastRecord | None:
    """Return the forecast of a run's present weights and of the features with this digest, None where there is none. Raises RunError
    when it is damaged."""
    record = _read(run, FORECAST, ForecastRecord, "--forecast 128")
    wanted = run.digest, features_sha256
    return record if record and (record.sae_sha256, record.features_sha256) == wanted else None


def _read(run: Run, name: str, kind: type[T], option: str) -> T | None:
    path: Path = run.path / FOLDER / name
    again, fix = f"sae steer {quoted(run.path)} {option}", f"rm {quoted(path)}"
    return read_results(path, "arms", FORMAT, kind, again, fix)
