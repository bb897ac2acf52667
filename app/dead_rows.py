"""Pure: what a dead folder says -> numbers, bars, tables and the facts of one latent, as the page shows them."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import pyarrow as pa

from sae.show.render import number, percent

pc: Any = import_module("pyarrow.compute")  # makes its functions when imported, unseen by type checkers
GROUPS = {
    "train": "training text",
    "held_out": "held-out text",
    "special": "special positions",
    "random": "random tokens",
    "shuffled": "shuffled text",
}
TABLE = {
    "cause": "cause",
    "fires_on": "fires on",
    "training": "in training",
    "margin": "margin",
    "positive_share": "positive on",
    "best_rank": "best rank",
    "encoder_norm": "norm",
    "bias": "bias",
    "mean_cosine": "cos mean",
    "near_decoder_cosine": "cos nearest",
    "last_death": "died at",
    "times_revived": "revived",
}
DENSE = {
    "dense_kind": "kind",
    "density": "density",
    "position_correlation": "position",
    "principal_alignment": "first direction",
    "mean_alignment": "mean",
    "class_share": "token class",
    "token_class": "prefers",
    "token_class_firings": "of its firings",
    "token_class_base": "of all tokens",
    "antipode": "antipode",
    "antipodality": "antipodality",
    "variance_share": "variance",
}
PER_CENT = (
    "positive_share",
    "density",
    "class_share",
    "token_class_firings",
    "token_class_base",
    "variance_share",
)


def numbers(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """The header's numbers as (name, value, explanation)."""
    kinds, d_sae = about["kinds"], about["d_sae"]
    found = [
        ("dead", f"{kinds['dead']:,}", "They fire on none of the text looked at."),
        ("share", percent(kinds["dead"] / d_sae), f"Of all {d_sae:,}."),
        (
            "rare",
            f"{kinds['rare']:,}",
            "They fire, but so seldom that training takes them for dead by chance.",
        ),
        (
            "training text only",
            f"{kinds['training only']:,}",
            "They fire in training text and on no held-out token.",
        ),
        ("dense", f"{kinds['dense']:,}", "They fire on more than a tenth of all tokens."),
    ]
    if about["history"]:
        lost = sum(1 for row in rows if row["kind"] == "dead" and row["training"] == "revived and lost")
        found.append(("revived and lost", f"{lost:,}", "Dead ones that had been brought back in training."))
    return found


def basis(about: Mapping[str, Any]) -> str:
    """What was looked at, as a line."""
    rows = about["rows"]
    text = f"{rows['train'] + rows['held_out']:,} tokens of text"
    seen = (
        f", and {about['features_rows']:,} that the features were collected on"
        if about["features_rows"]
        else ""
    )
    rarest = f"; what fires on fewer than 1 in {1 / about['resolution']:,.0f} may pass for dead"
    return f"{text}{seen}{'' if seen else rarest}"


def silent(about: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """For each group of rows: its name, how many latents are silent on it, and how many rows that were."""
    rows = about["rows"]
    silent = about["silent"]
    return [(GROUPS[name], count, f"{rows[name]:,} rows") for name, count in silent.items() if name in rows]


def tally(counts: Mapping[str, int], notes: Mapping[str, str] | None = None) -> list[tuple[str, int, str]]:
    """Counts by name as bars, the largest first, each with a note."""
    order = sorted(counts, key=lambda name: -counts[name])
    return [(name, counts[name], (notes or {}).get(name, "")) for name in order]


def chosen(table: pa.Table, kind: str, cause: str | None) -> pa.Table:
    """Rows of the report of one kind, and one cause unless it is None."""
    keep = pc.equal(table["kind"], kind)
    if cause is not None:
        keep = pc.and_(keep, pc.equal(table["cause"], cause))
    return table.filter(pc.fill_null(keep, False))


def causes(table: pa.Table, kind: str) -> list[str]:
    """Causes of latents of a kind, the most frequent first."""
    found = chosen(table, kind, None)["cause"].to_pylist()
    return sorted(set(found), key=lambda cause: (-found.count(cause), cause))


def shown(table: pa.Table, names: Mapping[str, str] = TABLE) -> pa.Table:
    """The columns named, as the page shows them; those with nothing in them are left out. Shares in per cent."""
    width = len(str(pc.max(table["latent"]).as_py() or 0))
    columns: dict[str, Any] = {"feature": [f"{latent:>{width}}" for latent in table["latent"].to_pylist()]}
    for name, label in names.items():
        column = table[name]
        if column.null_count < len(column):
            columns[label] = pc.multiply(column, 100.0) if name in PER_CENT else column
    return pa.table(columns)


def counts_of(table: pa.Table, kinds: Sequence[str]) -> dict[str, int]:
    """How many latents of each kind, dense ones left out: they have a table of their own."""
    listed = table["kind"].to_pylist()
    return {kind: listed.count(kind) for kind in kinds if kind != "dense"}


def facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One latent's evidence as (name, value)."""
    fired = {label: row[f"fired_{name}"] for name, label in GROUPS.items()}
    places = row["best_rank"]
    pairs = [
        ("nearest to firing", f"{number(row['margin'])}, with {number(row['best_drive'])} where {number(row['needed'])} was needed"),
        ("positive on", percent(row["positive_share"])),
        ("best place in a row", f"{places:,}" if places else "–"),
        ("encoder, decoder norm", f"{number(row['encoder_norm'])}, {number(row['decoder_norm'])}"),
        ("bias", number(row["bias"])),
        ("threshold", number(row["threshold"]) if row["threshold"] else "–"),
        ("encoder · mean activation", number(row["mean_cosine"])),
        ("encoder · special positions", number(row["special_cosine"])),
        ("nearest by decoder", _near(row["near_decoder"], row["near_decoder_cosine"])),
        ("nearest by encoder", _near(row["near_encoder"], row["near_encoder_cosine"])),
        ("fired on", ", ".join(f"{count:,} {label}" for label, count in fired.items() if count) or "nothing"),
        ("in training", _training(row)),
    ]  # fmt: skip
    return [(name, value) for name, value in pairs if value != "–"]


def _near(latent: int | None, cosine: float | None) -> str:
    return "–" if latent is None or latent < 0 else f"{latent} (cosine {number(cosine)})"


def _training(row: Mapping[str, Any]) -> str:
    if row["times_died"] is None:
        return "not recorded"
    first, last = row["first_death"], row["last_death"]
    died = f"died {row['times_died']}×, revived {row['times_revived']}×"
    when = (
        ""
        if first is None
        else f", first dead at step {first:,}" + (f", last at {last:,}" if last != first else "")
    )
    return f"{row['training']}: {died}{when}"


def remark(row: Mapping[str, Any] | None) -> str:
    """What the page of a feature that never fires says of why, in a line; empty when nothing is known."""
    return f"{row['cause']}: {row['evidence']}" if row and row["cause"] else ""
