"""How well lenses predict the measured effects of latents (`sae lens`): lens.json and lens.parquet of a features folder (FORMAT.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from torch import Tensor

from activations.disk import files, tables
from activations.disk.tables import lists, numbers, strings
from activations.errors import RunError, StoreError, quoted
from activations.jacobian import read_jacobian
from sae.features.folder import FeaturesFolder
from sae.runs.records import Estimate, Scalar
from sae.runs.run import Run
from sae.runs.saved_sae import as_written, read_results

FORMAT = 1
INDEX, TABLE = "lens.json", "lens.parquet"
Lens = Literal["logit", "jacobian"]
LENSES: tuple[Lens, ...] = get_args(Lens)
"""The decoder row through the model's head alone, and through the mean Jacobian of the blocks before it."""
COLUMNS = dict.fromkeys(("raised_tokens", "lowered_tokens"), lists(strings)) | dict.fromkeys(
    ("raised_logits", "lowered_logits"), lists(numbers)
)
LISTED = 10
"""Tokens raised most that a lens and a measurement are compared by, beside correlations."""


@dataclass(frozen=True)
class Agreement:
    """How well a lens predicts the measured effects of latents on the next token: means over latents, with bootstrap intervals."""

    spearman: Estimate
    """Rank correlation over the vocabulary."""
    pearson: Estimate
    listed: Estimate
    """Share of the LISTED tokens that the latent is measured to raise most that are also among those that the lens raises most."""
    of_another: Estimate
    """Rank correlation with the lens of another latent: what all latents have in common."""


@dataclass(frozen=True)
class LensRecord:
    """The content of lens.json."""

    features_sha256: str
    sae_sha256: str
    hook: str
    config: dict[str, Scalar]
    jacobian_sha256: str
    explained: float
    """Share of the response to small changes that the mean Jacobian predicts (`activations.jacobian`)."""
    measured_share: float
    """Weight of the measured changes in it, the rest being the tuned lens's."""
    rows: int
    """Rows that it was measured on."""
    latents: list[int]
    """Latents whose effect was measured."""
    agreement: dict[str, Agreement]
    """By lens; one that the hook point does not have is missing."""
    better_by: Estimate | None
    """How much larger the Jacobian lens's rank correlation is than the logit lens's, paired; None where there is one lens."""
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The lens with the larger mean rank correlation."""
        return max(self.agreement, key=lambda name: self.agreement[name].spearman.value or 0.0)


@dataclass(frozen=True)
class LensTokens:
    """The tokens that the Jacobian lens of a latent raises and lowers most, and by how much in logits for a value of 1."""

    raised_tokens: list[str]
    raised_logits: list[float]
    lowered_tokens: list[str]
    lowered_logits: list[float]


class Lenses:
    """What `sae lens` found out about a run's latents."""

    def __init__(self, features: FeaturesFolder):
        """Open it. Raises RunError when there is none, when it is of other features, and when it is damaged."""
        self.path, self._n_latents = features.path, len(features)
        self._fix = f"sae lens {quoted(features.path.parent)}"
        record = read_results(self.path / INDEX, "lens", FORMAT, LensRecord, self._fix)
        if record is None:
            raise RunError(f"the lenses of {features.path.parent} have not been measured", fix=self._fix)
        self.record = record
        if not self.record.agreement or not self.record.agreement.keys() <= {*LENSES}:
            raise RunError(f"{self.path / INDEX} is damaged: it does not name a lens", fix=self._fix)
        if self.record.features_sha256 != features.digest:
            raise RunError(f"{self.path / INDEX} is of other features", fix=self._fix)

    @cached_property
    def table(self) -> pa.Table:
        """The tokens of the Jacobian lens, with a row for each latent."""
        path = as_written(self.path / TABLE, self.record.sha256.get(TABLE), INDEX, self._fix)
        table = tables.read(path, COLUMNS, self._n_latents, self._fix)
        for side in ("raised", "lowered"):
            if not tables.alike(table, f"{side}_tokens", f"{side}_logits"):
                raise RunError(f"{path} is damaged: {side} tokens without their logits", fix=self._fix)
        return table

    def of(self, latent: int) -> LensTokens:
        """Return a latent's tokens by the Jacobian lens. Raises RunError when the table is damaged."""
        row = self.table.select(list(COLUMNS)).slice(latent, 1).to_pylist()[0]
        return LensTokens(**row)


def lenses_of(features: FeaturesFolder) -> Lenses | None:
    """Return what `sae lens` found about these features; None where it has not, or of other features. Raises RunError when damaged."""
    again = f"sae lens {quoted(features.path.parent)}"
    record = read_results(features.path / INDEX, "lens", FORMAT, LensRecord, again)
    return Lenses(features) if record and record.features_sha256 == features.digest else None


def jacobian_of(run: Run) -> Float[Tensor, "N D"] | None:
    """Return the mean Jacobian that is kept beside a run's store, at its hook point; None where there is none, or no store."""
    try:
        known = read_jacobian(run.store, run.hook)
    except StoreError:
        return None
    return None if known is None else known.matrix


def save_lenses(features: FeaturesFolder, table: pa.Table, content: Mapping[str, object]) -> Lenses:
    """Write the table, then lens.json with `content` (the fields of `LensRecord`), and open both.

    What was there before is given up first: an index never names the bytes of another table."""
    (features.path / INDEX).unlink(missing_ok=True)
    files.write_atomically(features.path / TABLE, lambda part: pq.write_table(table, part))
    digests = {TABLE: files.sha256(features.path / TABLE)}
    files.write_sealed(features.path / INDEX, {"format": FORMAT, **content, "sha256": digests})
    return Lenses(features)
