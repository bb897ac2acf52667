"""Rule explanations of latents (`sae explain`), in explanations.json and explanations.parquet of a features folder (FORMAT.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from activations.disk import files, tables
from activations.disk.schema import parse
from activations.disk.tables import integers, numbers, strings
from activations.errors import RunError, quoted
from sae.features.folder import FeaturesFolder
from sae.runs.records import Estimate, Scalar
from sae.runs.saved_sae import as_written, read_results

FORMAT = 4
"""Of explanations.json; 1 compared half as many contexts by their word embeddings, 2 drew its random directions from the numbers
that an SAE of the same seed starts from, and its sensitivity left out contexts that the choosing half has fewer than three times;
in 3 random directions fired once less than the latents they stand beside, and a score from one document had an interval."""
INDEX, TABLE = "explanations.json", "explanations.parquet"
Kind = Literal["latent", "shuffled", "random direction"]
LATENT, SHUFFLED, RANDOM = KINDS = get_args(Kind)
"""Controls: the latents' own firings on shuffled rows, and random directions of the activations that fire as often."""
SCORES = ("f1", "precision", "recall", "discrimination", "sensitivity", "intruder", "examples")
"""Scores that have an interval; `sae.rules.score` defines them."""
ENDS = ("", "_low", "_high")
NAMED = 0.5
"""From this F1 on, an explanation stands for the name of a latent that has no label."""
COLUMNS = (
    dict.fromkeys(("kind", "explanation", "rule", "rule_kind"), strings)
    | dict.fromkeys(("latent", "sign", "fired", "matched", "near", "confused_with"), integers)
    | dict.fromkeys(("chance", "strong_recall"), numbers)
    | {f"{score}{end}": numbers for score in SCORES for end in ENDS}
)


@dataclass(frozen=True)
class Explanation:
    """What says where a latent fires with values of one sign, and how well it says so on text that did not choose it."""

    latent: int
    sign: int
    """1 for its positive values, -1 for its negative ones."""
    text: str
    """The rule in words."""
    rule_kind: str
    fired: int
    """Firings on the scoring half."""
    matched: int
    """Tokens of the scoring half that the rule matches."""
    chance: float | None
    """F1 to expect where the latent fires as often anywhere."""
    strong_recall: float | None
    """Share of its firings of at least half its largest value that the rule matches."""
    confused_with: int | None
    """Of its nearest latents the one that the rule fits best."""
    f1: Estimate
    precision: Estimate
    recall: Estimate
    discrimination: Estimate
    sensitivity: Estimate
    intruder: Estimate
    examples: Estimate

    @property
    def beats_chance(self) -> bool:
        """Whether the interval of its F1 lies above chance."""
        return self.f1.low is not None and self.chance is not None and self.f1.low > self.chance


@dataclass(frozen=True)
class Distribution:
    """A score over the explanations of one kind."""

    number: int
    mean: Estimate
    """With a bootstrap interval over latents."""
    quantiles: dict[str, float | None]
    """Of 0.05, 0.25, 0.5, 0.75 and 0.95."""
    from_half: float = 0.0
    """Share with a score of at least NAMED."""
    better_by: Estimate | None = None
    """How much larger it is for the latents that a control goes with than for the control, paired; None for the latents."""


@dataclass(frozen=True)
class Halves:
    """Tokens of the two halves of the text."""

    choosing: int
    scoring: int


@dataclass(frozen=True)
class ExplanationsRecord:
    """The content of explanations.json."""

    features_sha256: str
    sae_sha256: str
    store_fingerprint: str
    hook: str
    config: dict[str, Scalar]
    tokens: Halves
    groups: int
    """Groups of documents in the scoring half, which intervals come from."""
    halves: str
    """What was halved: `documents` or `windows`."""
    too_rare: int
    """Latents that fire too rarely in either half to be explained."""
    scores: dict[str, dict[str, Distribution]]
    """score → kind → its distribution."""
    rule_kinds: dict[str, int]
    """Number of latents by the kind of their rule."""
    sha256: dict[str, str] = field(default_factory=dict)


class Explanations:
    """The explanations of a features folder, opened."""

    def __init__(self, features: FeaturesFolder):
        """Open them. Raises RunError when there are none, when they are of other features, and when they are damaged."""
        self.path, self._n_latents = features.path, len(features)
        self._fix = f"sae explain {quoted(features.path.parent)}"
        record = _read(features)
        if record is None:
            raise RunError(f"the latents of {features.path.parent} have not been explained", fix=self._fix)
        self.record = record
        if any(self.record.scores.get(score, {}).keys() != {*KINDS} for score in SCORES):
            raise RunError(
                f"{self.path / INDEX} is damaged: it does not have all scores of all kinds", fix=self._fix
            )
        if self.record.features_sha256 != features.digest:
            raise RunError(
                f"{self.path / INDEX} is of other features than {self.path} has now", fix=self._fix
            )

    def check(self) -> Path:
        """Return the table's file. Raises RunError when its bytes are not those that were written."""
        return as_written(self.path / TABLE, self.record.sha256.get(TABLE), INDEX, self._fix)

    @cached_property
    def table(self) -> pa.Table:
        """A row for each explanation, those of latents first, by latent; FORMAT.md lists the columns."""
        path = self.check()
        table = tables.read(path, COLUMNS, None, self._fix)
        for latent in table["latent"].to_pylist():
            if latent is None or not 0 <= latent < self._n_latents:
                raise RunError(f"{path} is damaged: feature {latent} does not exist", fix=self._fix)
        return table

    @cached_property
    def by_latent(self) -> dict[int, list[Explanation]]:
        """The explanations of each latent that has any: one for each sign, the one of more firings first."""
        found: dict[int, list[Explanation]] = {}
        try:
            for row in self.table.to_pylist():
                if row["kind"] == LATENT:
                    found.setdefault(row["latent"], []).append(_explanation(row))
        except TypeError as error:
            raise RunError(f"{self.path / TABLE} is damaged: {error}", fix=self._fix) from error
        return {latent: sorted(both, key=lambda one: -one.fired) for latent, both in found.items()}

    def of(self, latent: int) -> list[Explanation]:
        """Return the explanations of a latent: none where it fires too rarely."""
        return self.by_latent.get(latent, [])

    @cached_property
    def texts(self) -> dict[int, str]:
        """The first explanation of each latent that has any with a rule, in words."""
        return {
            latent: both[0].text for latent, both in self.by_latent.items() if both[0].rule_kind != "none"
        }

    @cached_property
    def names(self) -> dict[int, str]:
        """The explanations good enough to stand for a name (F1 of at least NAMED), by latent."""
        good = {latent for latent, both in self.by_latent.items() if (both[0].f1.value or 0.0) >= NAMED}
        return {latent: text for latent, text in self.texts.items() if latent in good}

    @cached_property
    def by_kind(self) -> dict[str, list[int]]:
        """The latents whose first explanation has a condition of each kind (token, n-gram, position …), the commonest kind first.

        A rule of several conditions counts with each of their kinds; those without conditions are `dense` or `none`."""
        found: dict[str, list[int]] = {}
        for latent, both in self.by_latent.items():
            for kind in dict.fromkeys(both[0].rule_kind.split(" + ")):
                found.setdefault(kind, []).append(latent)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    @cached_property
    def f1(self) -> NDArray[np.float64]:
        """The F1 of each latent's first explanation [F]; NaN where it has none."""
        scores = np.full(self._n_latents, np.nan)
        for latent, both in self.by_latent.items():
            if both[0].f1.value is not None:
                scores[latent] = both[0].f1.value
        return scores


def explanations_of(features: FeaturesFolder) -> Explanations | None:
    """Return the explanations of these features; None where there are none, or of other features. Raises RunError when damaged."""
    record = _read(features)
    return Explanations(features) if record and record.features_sha256 == features.digest else None


def _read(features: FeaturesFolder) -> ExplanationsRecord | None:
    again = f"sae explain {quoted(features.path.parent)}"
    return read_results(features.path / INDEX, "explanations", FORMAT, ExplanationsRecord, again)


def save_explanations(
    features: FeaturesFolder, table: pa.Table, content: Mapping[str, object]
) -> Explanations:
    """Write the table, then explanations.json with `content` (the fields of `ExplanationsRecord`), and open both.

    What was there before is given up first: an index never names the bytes of another table."""
    (features.path / INDEX).unlink(missing_ok=True)
    files.write_atomically(features.path / TABLE, lambda part: pq.write_table(table, part))
    digests = {TABLE: files.sha256(features.path / TABLE)}
    files.write_sealed(features.path / INDEX, {"format": FORMAT, **content, "sha256": digests})
    return Explanations(features)


def _explanation(row: Mapping[str, object]) -> Explanation:
    scores = {
        score: dict(zip(("value", "low", "high"), (row[f"{score}{end}"] for end in ENDS), strict=True))
        for score in SCORES
    }
    return parse(Explanation, {**row, "text": row["explanation"], **scores})
