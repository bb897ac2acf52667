"""The folder `trust` of a run (FORMAT.md, Trust): what `sae trust` found, and how stable each latent is over seeds."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from activations.errors import RunError, quoted
from sae.runs.records import Estimate, Scalar
from sae.runs.run import TRUST, Run
from sae.runs.saved_sae import as_written, read_results, read_tensors

FORMAT = 2  # the language model of 1 read windows of few documents
INDEX, STABILITY = "trust.json", "stability.safetensors"
STABLE = 0.7
"""A latent is stable when its mean largest cosine over the other seeds is at least this."""
UNEQUAL = 0.1
"""A control is not at the run's sparsity from this share of its L0 on."""
Verdict = Literal["falls short", "not distinguishable", "too small", "other sparsity", "beats"]
ORDER: tuple[Verdict, ...] = get_args(Verdict)
"""What can be said of a run beside a control, from the worst to the best."""


@dataclass(frozen=True)
class Control:
    """One SAE that the run is compared with."""

    kind: Literal["control", "seed", "random-model"]
    """A control has a part that is random or not learned; a seed is the run once more, with another seed; a random model's SAE is
    trained like the run, on the same text read by a model with random weights."""
    sae_sha256: str
    l0: Estimate


@dataclass(frozen=True)
class Against:
    """A measure of the run beside that of one control."""

    value: Estimate
    """The control's."""
    better_by: Estimate
    """How much better the run is, with a paired bootstrap interval; below 0 where it is worse."""
    verdict: Verdict


@dataclass(frozen=True)
class Beside:
    """One measure of the run beside those of its seeds and controls."""

    value: Estimate
    seeds: dict[str, Estimate]
    smallest: float
    """The smallest reliable difference, from the spread over seeds."""
    controls: dict[str, Against]
    random_models: dict[str, Against] = field(default_factory=dict)
    """SAEs of models with random weights, which have other activations: a measure on which they are as good does not tell a trained
    model from a random one."""

    @property
    def closest(self) -> str:
        """The control beside which the worst has to be said of the run; of several, the one that it is least better than."""
        return min(self.controls, key=lambda name: self._standing(self.controls[name]))

    @staticmethod
    def _standing(against: Against) -> tuple[int, float]:
        return ORDER.index(against.verdict), against.better_by.value or 0.0


@dataclass(frozen=True)
class StabilitySummary:
    """The stability of a run's latents, summed up."""

    mean: float
    stable: float
    """Share of latents with a stability of at least STABLE."""
    chance: float
    """Mean over latents of the largest |cosine| with the rows of a random dictionary of as many latents."""


SPLICED = ("recovered_zero", "kl")  # measures for which the language model reads text


@dataclass(frozen=True)
class TrustRecord:
    """The content of trust.json."""

    sae_sha256: str
    store_fingerprint: str
    hook: str
    config: dict[str, Scalar]
    tokens: int
    """Held-out rows that every SAE was measured on."""
    documents: int
    l0: Estimate
    """The run's own."""
    controls: dict[str, Control]
    measures: dict[str, Beside]
    stability: StabilitySummary
    sha256: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    """Reasons, by control, why some are missing."""
    windows: int = 0
    """Windows that the language model read; 0 where it took no part."""
    windows_documents: int = 0
    """Documents whose predictions count in these windows; 0 in files that do not say it."""

    def documents_of(self, measure: str) -> int:
        """Return over how many documents a measure was taken; 0 where the file does not say it."""
        return self.windows_documents if measure in SPLICED else self.documents


class Trust:
    """What `sae trust` found out about a run."""

    def __init__(self, run: Run):
        """Read it. Raises RunError when it is not there, damaged, or of other weights than the run has now."""
        self.run, self.path = run, run.path / TRUST
        self._fix = f"sae trust {quoted(run.path)}"
        record = _read(self.path / INDEX, self._fix)
        if record is None:
            raise RunError(f"{run.path} has not been compared with its controls", fix=self._fix)
        self.record = record
        if self.record.sae_sha256 != run.digest:
            raise RunError(f"{self.path / INDEX} is of other weights than {run.path} has now", fix=self._fix)

    @cached_property
    def stability(self) -> NDArray[np.float64]:
        """The stability of each latent [F]: the mean over the other seeds of its largest |cosine| with a decoder row there."""
        path = as_written(self.path / STABILITY, self.record.sha256.get(STABILITY), INDEX, self._fix)
        stability = read_tensors(path, self._fix).get("stability")
        if stability is None or stability.shape != (self.run.config.arch.d_sae,):
            raise RunError(
                f"{path} is damaged: it does not hold a stability for each of the run's latents",
                fix=self._fix,
            )
        return stability.double().numpy()


def trust_of(run: Run) -> Trust | None:
    """Return what `sae trust` found out about a run's present weights, None where it has not. Raises RunError when damaged."""
    if not run.finished:
        return None
    path, again = run.path / TRUST / INDEX, f"sae trust {quoted(run.path)}"
    record = _read(path, again)
    return Trust(run) if record and record.sae_sha256 == run.digest else None


def _read(path: Path, again: str) -> TrustRecord | None:
    return read_results(
        path, "trust", FORMAT, TrustRecord, again, unchanged=lambda record: not record.windows
    )
