"""Feature absorption of the first letters of words, as it is kept in a run's folder: absorption.json (FORMAT.md)."""

from dataclasses import dataclass, field
from typing import Literal

from sae.evaluation import bootstrap
from sae.runs.records import Estimate, Scalar

FORMAT = 2
"""1 measured signed latents by their positive values alone."""
ABSORPTION = "absorption.json"
Whose = Literal["sae", "random sae"]
WHOSE: dict[Whose, str] = {
    "sae": "the SAE",
    "random sae": "the same SAE, its directions turned at random",
}


@dataclass(frozen=True)
class LetterAbsorption:
    """What was measured of one letter with one SAE."""

    letter: str
    words: int
    """Test words that begin with it."""
    true_positives: int
    """Those of them that the probe on activations recognises; absorption is measured on these."""
    probe_f1: float
    """F1 of that probe on all test words."""
    latents: list[int]
    """The latents that stand for the letter, the most telling first."""
    f1: float
    """F1 of a probe on those latents alone."""
    fraction: float
    """Mean absorbed fraction over the true positives."""
    full: float
    """Share of the true positives that is fully absorbed."""


@dataclass(frozen=True)
class AbsorptionRecord:
    """The content of absorption.json."""

    format: int
    sae_sha256: str
    hook: str
    config: dict[str, Scalar]
    words: int
    """Words read, training words included."""
    letters: dict[Whose, list[LetterAbsorption]]
    """By SAE; both have the same letters in the same order."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Reasons, by letter, why it was not measured."""
    complete: bool = False
    """Whether all letters are done."""

    def mean(self, whose: Whose, measure: Literal["fraction", "full"]) -> Estimate:
        """Return the mean over letters, with a 95 % bootstrap interval over letters; None where no letter could be measured. One letter
        has no interval."""
        values = [getattr(each, measure) for each in self.letters[whose]]
        if not values:
            return Estimate(None, None, None)
        return _known(bootstrap.ratio(values, [1.0] * len(values)), len(values))

    def beyond_control(self, measure: Literal["fraction", "full"]) -> Estimate:
        """Return the mean difference from the random SAE, with a paired 95 % bootstrap interval over letters. One letter has no
        interval."""
        own, control = ([getattr(each, measure) for each in self.letters[whose]] for whose in WHOSE)
        if not own:
            return Estimate(None, None, None)
        ones = [1.0] * len(own)
        return _known(bootstrap.difference((own, ones), (control, ones)), len(own))

    @property
    def split(self) -> float:
        """Mean number of latents that stand for a letter, beyond the first."""
        counts = [len(each.latents) - 1 for each in self.letters["sae"]]
        return sum(counts) / max(len(counts), 1)


def _known(estimate: bootstrap.Estimate, letters: int) -> Estimate:
    """Return an estimate over letters, of which a single one does not tell how much letters differ."""
    return Estimate(*estimate) if letters > 1 else Estimate(estimate.value, None, None)
