"""Read and write the dead folder of a run: latents that are dead, rare or dense, with evidence and cause (FORMAT.md, Dead)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import NotRequired, TypedDict, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from activations.disk import files, tables
from activations.errors import RunError, quoted
from sae.diagnosis.sample import GROUPS
from sae.runs.records import DeadRecord, DeadSummary
from sae.runs.saved_sae import as_written, read_results

FORMAT = 1
INDEX, TABLE = "dead.json", "latents.parquet"
KINDS = ("dead", "training only", "rare", "dense")
SCHEMA = pa.schema(
    [("latent", pa.int32()), ("kind", pa.string()), ("fires_on", pa.string()), ("density", pa.float64())]
    + [(f"fired_{name}", pa.int64()) for name in GROUPS]
    + [("fired_features", pa.int64()), ("training", pa.string())]
    + [(name, pa.int64()) for name in ("times_died", "times_revived", "first_death", "last_death", "last_fired")]
    + [("cause", pa.string()), ("also", pa.list_(pa.string())), ("evidence", pa.string())]
    + [(name, pa.float64()) for name in ("margin", "needed", "positive_share", "best_drive", "mean_drive", "mean_projection")]
    + [("best_rank", pa.int64()), ("missing_places", pa.int64())]
    + [(name, pa.float64()) for name in ("encoder_norm", "decoder_norm", "bias", "threshold", "mean_cosine", "special_cosine")]
    + [("near_decoder", pa.int32()), ("near_decoder_cosine", pa.float64()), ("near_decoder_encoder_cosine", pa.float64())]
    + [("near_encoder", pa.int32()), ("near_encoder_cosine", pa.float64()), ("dense_kind", pa.string())]
    + [(name, pa.float64()) for name in ("mean_alignment", "principal_alignment", "position_correlation", "variance_share", "class_share")]
    + [("token_class", pa.string()), ("token_class_firings", pa.float64()), ("token_class_base", pa.float64())]
    + [("antipode", pa.int32()), ("antipode_cosine", pa.float64()), ("antipodality", pa.float64())]
)  # fmt: skip


class FiringColumns(TypedDict):
    """The columns of a latent's row that say where it fires, and what became of it in training."""

    latent: int
    fires_on: str
    density: float
    fired_train: int
    fired_held_out: int
    fired_special: int
    fired_random: NotRequired[int | None]
    fired_shuffled: NotRequired[int | None]
    fired_features: int | None
    training: str
    times_died: int | None
    times_revived: int | None
    first_death: int | None
    last_death: int | None
    last_fired: int | None


class LatentRow(FiringColumns):
    """A row of latents.parquet, by column (FORMAT.md). A column that a row lacks is null in the file, and None when it is read."""

    kind: str
    cause: NotRequired[str | None]
    also: NotRequired[list[str] | None]
    evidence: NotRequired[str | None]
    margin: NotRequired[float | None]
    needed: NotRequired[float | None]
    positive_share: NotRequired[float | None]
    best_drive: NotRequired[float | None]
    mean_drive: NotRequired[float | None]
    mean_projection: NotRequired[float | None]
    best_rank: NotRequired[int | None]
    missing_places: NotRequired[int | None]
    encoder_norm: NotRequired[float | None]
    decoder_norm: NotRequired[float | None]
    bias: NotRequired[float | None]
    threshold: NotRequired[float | None]
    mean_cosine: NotRequired[float | None]
    special_cosine: NotRequired[float | None]
    near_decoder: NotRequired[int | None]
    near_decoder_cosine: NotRequired[float | None]
    near_decoder_encoder_cosine: NotRequired[float | None]
    near_encoder: NotRequired[int | None]
    near_encoder_cosine: NotRequired[float | None]
    dense_kind: NotRequired[str | None]
    mean_alignment: NotRequired[float | None]
    principal_alignment: NotRequired[float | None]
    position_correlation: NotRequired[float | None]
    variance_share: NotRequired[float | None]
    class_share: NotRequired[float | None]
    token_class: NotRequired[str | None]
    token_class_firings: NotRequired[float | None]
    token_class_base: NotRequired[float | None]
    antipode: NotRequired[int | None]
    antipode_cosine: NotRequired[float | None]
    antipodality: NotRequired[float | None]


class DeadReport:
    """A report that `sae dead` wrote about a run. Read-only; opens in milliseconds.

    Raises RunError when the folder is missing, unfinished, damaged or of a newer format."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not (self.path / INDEX).exists():
            raise RunError(f"no finished report on dead latents at {path}", fix=self._fix)
        record = read_results(self.path / INDEX, "dead", FORMAT, DeadRecord, self._fix)
        if record is None:
            raise RunError(f"{self.path} is of an older format, or has no {INDEX}", fix=self._fix)
        self.record = record
        record = self.record
        if not (record.d_sae > 0 < record.resolution and record.kinds.keys() >= {*KINDS}):
            raise RunError(
                f"{self.path / INDEX} is damaged: it does not count all of {', '.join(KINDS)}", fix=self._fix
            )
        if not {"train", "held_out"} <= record.rows.keys() <= {*GROUPS}:
            raise RunError(
                f"{self.path / INDEX} is damaged: it has rows of {', '.join(record.rows)}, must be train, held_out and others of {', '.join(GROUPS)}",
                fix=self._fix,
            )

    @property
    def _fix(self) -> str:
        """The command that makes the folder anew."""
        return f"sae dead {quoted(self.path.parent)}"

    @cached_property
    def table(self) -> pa.Table:
        """The table with a row for each latent that is dead, fires in training text only, is rare or dense, in order."""
        path = self.path / TABLE
        as_written(path, self.record.sha256.get(TABLE), INDEX, self._fix)
        return tables.read(path, SCHEMA, fix=self._fix)

    def rows(self, kind: str | None = None) -> list[LatentRow]:
        """Return the rows of the table as dictionaries by column, of one kind or all."""
        rows = cast("list[LatentRow]", self.table.to_pylist())  # the table has been read by SCHEMA
        return [row for row in rows if kind in (None, row["kind"])]

    def row(self, latent: int) -> LatentRow | None:
        """Return one latent's row; None for a latent that is none of KINDS."""
        rows = self.table.filter(pc.field("latent") == latent).to_pylist()
        return cast("LatentRow", rows[0]) if rows else None


def write(
    path: Path, job: Mapping[str, object], summary: DeadSummary, table: Sequence[LatentRow]
) -> DeadReport:
    """Write a whole dead folder, dead.json last, and open it. Columns that a row of the table lacks are null.

    `job` says what was looked at: the fields that `DeadRecord` adds to the summary."""
    (path / INDEX).unlink(missing_ok=True)
    whole = pa.Table.from_pylist(sorted(table, key=lambda row: row["latent"]), SCHEMA)
    files.write_atomically(path / TABLE, lambda part: pq.write_table(whole, part))
    digest = {TABLE: files.sha256(path / TABLE)}
    files.write_sealed(path / INDEX, {"format": FORMAT, **job, **asdict(summary), "sha256": digest})
    return DeadReport(path)
