"""What a language model said of latents (`sae explain --judge`), in judgements.json of a features folder (FORMAT.md)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from activations.disk import files
from activations.errors import RunError, quoted
from sae.features.explanations import Distribution
from sae.features.folder import FeaturesFolder
from sae.runs.records import Estimate, Scalar
from sae.runs.saved_sae import read_results

FORMAT = 1
INDEX, ANSWERS = "judgements.json", "judged"
"""The file of judgements, and the folder that keeps every answer of the model."""
MODEL, RULE, CONTROL = READINGS = ("model", "rule", "control")
"""Explanations that the model is asked about on the same texts: its own, the rule's, and its own of another latent."""


@dataclass(frozen=True)
class Detection:
    """How well a reader of an explanation tells texts with the latent from texts without."""

    balanced_accuracy: Estimate
    """Mean of the shares of firing and of other texts that were told rightly; chance .5."""
    f1: Estimate
    """F1 of telling the firing texts."""
    texts: int
    """Texts that were answered for."""
    unanswered: int
    """Texts whose answer could not be read."""


@dataclass(frozen=True)
class Judgement:
    """What the model said of one latent's values of one sign, and how well that says where it fires."""

    latent: int
    sign: int
    """1 for its positive values, -1 for its negative ones."""
    explanation: str | None
    """In the model's words; None where its answer could not be read."""
    rule: str | None
    """The rule that was read beside it, in words; None where there is none."""
    control_latent: int | None
    """The latent whose explanation is the control."""
    detection: dict[str, Detection]
    """Detection with each reading (`READINGS`) that there is."""
    intruder: Estimate
    """Share of trials in which the context that does not belong was named; chance .2. It needs no explanation."""
    trials: int
    """Trials that were answered."""
    unanswered_trials: int

    def of(self, reading: str) -> Estimate:
        """Return the balanced accuracy with a reading; empty where it was not asked about."""
        found = self.detection.get(reading)
        return Estimate(None, None, None) if found is None else found.balanced_accuracy


@dataclass(frozen=True)
class JudgementsRecord:
    """The content of judgements.json."""

    features_sha256: str
    sae_sha256: str
    model: str
    """Name of the language model, as it was asked for."""
    config: dict[str, Scalar]
    judged: list[Judgement]
    too_few: list[int]
    """Latents that were asked for and have too few texts, on which they fire or do not."""
    scores: dict[str, dict[str, Distribution]]
    """score → reading → its distribution over latents; the intruder score has the reading `model` alone."""
    answers: int
    """Different questions that were answered."""
    unread: int
    """Answers that could not be read."""
    tokens_in: int
    """Tokens of the questions, as the server counted them; what it did not count is missing."""
    tokens_out: int


class Judgements:
    """The judgements in a features folder, opened."""

    def __init__(self, features: FeaturesFolder, record: JudgementsRecord):
        self.path, self.record = features.path / INDEX, record

    @cached_property
    def by_latent(self) -> dict[int, Judgement]:
        """The judgement of each latent that has one."""
        return {one.latent: one for one in self.record.judged}

    def of(self, latent: int) -> Judgement | None:
        """Return the judgement of a latent; None where it was not asked about."""
        return self.by_latent.get(latent)


def judgements_of(features: FeaturesFolder) -> Judgements | None:
    """Return what a model said of these features; None where there is nothing, or it is of other features.

    Raises RunError when the file is damaged."""
    path = features.path / INDEX
    again, fix = f"sae explain {quoted(features.path.parent)} --judge …", f"rm {quoted(path)}"
    record = read_results(path, "judgements", FORMAT, JudgementsRecord, again, fix)
    if record is None or record.features_sha256 != features.digest:
        return None
    for one in record.judged:
        if not 0 <= one.latent < len(features):
            raise RunError(f"{path} is damaged: feature {one.latent} does not exist", fix=fix)
    return Judgements(features, record)


def save_judgements(
    features: FeaturesFolder, judged: Sequence[Judgement], content: Mapping[str, object]
) -> Judgements:
    """Write judgements.json with `content` (the other fields of `JudgementsRecord`), and open it."""
    fields = {"format": FORMAT, "features_sha256": features.digest, **content}
    files.write_sealed(features.path / INDEX, {**fields, "judged": [asdict(one) for one in judged]})
    found = judgements_of(features)
    assert found is not None
    return found


def answers_folder(features: FeaturesFolder) -> Path:
    """Return the folder that keeps the model's answers."""
    return features.path / ANSWERS
