"""Present a report of `sae dead`, as the Dead latents page shows it: key numbers, tables, one latent's evidence, figures."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import plotly.graph_objects as go
import pyarrow as pa

from sae.evaluation.measures import DENSE
from sae.report.charts import GREY, PALETTE, plain, plain_text
from sae.report.numbers import DASH, count, fixed, number, percent
from sae.report.render import escaped, feature_anchor
from sae.runs.records import Changes, DeadRecord

pc: Any = import_module(
    "pyarrow.compute"
)  # creates its functions on import, where type checkers do not see them
# Groups of rows in the report, and what to call them
GROUPS = {
    "train": "training text",
    "held_out": "held-out text",
    "special": "special positions",
    "random": "random tokens",
    "shuffled": "shuffled text",
}
# Columns of the report that the tables show, and their titles
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
DENSE_TABLE = {
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
SHARES = (  # columns shown as percentages
    "positive_share",
    "density",
    "class_share",
    "token_class_firings",
    "token_class_base",
    "variance_share",
)
BAR = 26  # height of a bar in pixels


class WhatIf(NamedTuple):
    """The number of dead latents that would fire, by how far one property is changed.

    `dense` counts those of them that would fire on more than a tenth of the rows."""

    title: str
    axis: str
    x: list[float]
    fire: list[int]
    dense: list[int] | None = None


def numbers(record: DeadRecord, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return the key numbers of a report as (name, value, explanation). `rows` are the rows of its table."""
    kinds, d_sae = record.kinds, record.d_sae
    numbers = [
        (
            "dead",
            count(kinds["dead"]),
            "Latents that fire on none of the text examined here. Features counts on the tokens its features were measured on, an "
            "evaluation on its own held-out text: their counts may differ.",
        ),
        ("share", percent(kinds["dead"] / d_sae), f"Share of dead latents among all {d_sae:,}."),
        (
            "rare",
            count(kinds["rare"]),
            "Latents that fire, but so rarely that training may count them as dead by chance.",
        ),
        (
            "training text only",
            count(kinds["training only"]),
            "Latents that fire in training text but on no held-out token.",
        ),
        (
            "dense",
            count(kinds["dense"]),
            f"Latents that fire on more than {percent(DENSE)} of all tokens examined here; Features counts on its own tokens.",
        ),
    ]
    if record.history:
        lost = sum(1 for row in rows if row["kind"] == "dead" and row["training"] == "revived and lost")
        numbers.append(("revived and lost", count(lost), "Dead latents that training had revived."))
    return numbers


def basis(record: DeadRecord) -> str:
    """Return how much text a report is based on, as a line."""
    text = f"{record.rows['train'] + record.rows['held_out']:,} tokens of text"
    with_features = (
        f", and {record.features_rows:,} tokens that the features were collected on"
        if record.features_rows
        else ""
    )
    rarest = f"; a latent that fires on fewer than 1 in {1 / record.resolution:,.0f} may count as dead"
    return f"{text}{with_features or rarest}"


def silent(record: DeadRecord) -> list[tuple[str, int, str]]:
    """Return (name, number of silent latents, number of rows) of each group of rows."""
    rows = record.rows
    return [
        (GROUPS[name], count, f"{rows[name]:,} rows") for name, count in record.silent.items() if name in rows
    ]


def tally(counts: Mapping[str, int], notes: Mapping[str, str] | None = None) -> list[tuple[str, int, str]]:
    """Return (name, count, note) for bars, the largest count first."""
    order = sorted(counts, key=lambda name: -counts[name])
    return [(name, counts[name], (notes or {}).get(name, "")) for name in order]


def chosen(table: pa.Table, kind: str, cause: str | None) -> pa.Table:
    """Return the rows of the report of one kind, and of one cause unless it is None."""
    keep = pc.equal(table["kind"], kind)
    if cause is not None:
        keep = pc.and_(keep, pc.equal(table["cause"], cause))
    return table.filter(pc.fill_null(keep, False))


def causes(table: pa.Table, kind: str) -> list[str]:
    """Return the causes of the latents of a kind, the most frequent first."""
    every = chosen(table, kind, None)["cause"].to_pylist()
    return sorted(set(every), key=lambda cause: (-every.count(cause), cause))


def shown(table: pa.Table, names: Mapping[str, str] = TABLE) -> pa.Table:
    """Return the named columns as the page shows them, shares as percentages. Empty columns are left out."""
    width = len(str(pc.max(table["latent"]).as_py() or 0))
    columns: dict[str, list[str] | pa.ChunkedArray] = {
        "feature": [f"{latent:>{width}}" for latent in table["latent"].to_pylist()]
    }
    for name, label in names.items():
        column = table[name]
        if column.null_count < len(column):
            columns[label] = pc.multiply(column, 100.0) if name in SHARES else column
    return pa.table(columns)


def counts_of(table: pa.Table, kinds: Sequence[str]) -> dict[str, int]:
    """Count the latents of each kind but the dense ones, which have a table of their own."""
    listed = table["kind"].to_pylist()
    return {kind: listed.count(kind) for kind in kinds if kind != "dense"}


def facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return one latent's evidence as (name, value)."""
    fired = {label: row[f"fired_{name}"] for name, label in GROUPS.items()}
    rank = row["best_rank"]
    pairs = [
        ("nearest to firing", f"{number(row['margin'])}, a pre-activation of {number(row['best_drive'])} where {number(row['needed'])} was needed"),
        ("positive on", percent(row["positive_share"])),
        ("best rank in a row", count(rank) if rank else DASH),
        ("encoder, decoder norm", f"{number(row['encoder_norm'])}, {number(row['decoder_norm'])}"),
        ("bias", number(row["bias"])),
        ("threshold", number(row["threshold"]) if row["threshold"] else DASH),
        ("encoder · mean activation", number(row["mean_cosine"])),
        ("encoder · special positions", number(row["special_cosine"])),
        ("nearest by decoder", _near(row["near_decoder"], row["near_decoder_cosine"])),
        ("nearest by encoder", _near(row["near_encoder"], row["near_encoder_cosine"])),
        ("fired on", ", ".join(f"{count:,} {label}" for label, count in fired.items() if count) or "nothing"),
        ("in training", _training(row)),
    ]  # fmt: skip
    return [(name, value) for name, value in pairs if value != DASH]


def _near(latent: int | None, cosine: float | None) -> str:
    return DASH if latent is None or latent < 0 else f"{latent} (cosine {number(cosine)})"


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
    """Return a line about why a feature never fires; empty when nothing is known."""
    return f"{row['cause']}: {row['evidence']}" if row and row["cause"] else ""


def badge(row: Mapping[str, Any] | None, run: str) -> str:
    """Return a dense latent's kind and antipode, with a link to it, as HTML to stand beside its label; empty for any other."""
    if not row or not row["dense_kind"]:
        return ""
    fires = f"Dense: it fired on {percent(row['density'])} of the tokens that sae dead read"
    shown = f'<span class="badge" title="{escaped(fires)}">dense: {escaped(row["dense_kind"])}</span>'
    if row["antipode"] is None:
        return shown
    cosine = fixed(row["antipode_cosine"], 2)
    return (
        f'{shown}<span class="badge" title="The dense latent that writes the opposite direction: decoder cosine {cosine}">'
        f"antipode {feature_anchor(run, row['antipode'])}</span>"
    )


def deaths(log: Sequence[Mapping[str, float]], steps: int | None) -> go.Figure:
    """Return the curves of dead latents at each step and of all deaths and revivals so far, as far as they were logged."""
    lines = (
        ("dead now", "dead", PALETTE[0], "solid"),
        ("deaths so far", "died", PALETTE[5], "dot"),
        ("revivals so far", "revived", PALETTE[2], "dot"),
    )
    figure = go.Figure()
    for name, key, color, dash in lines:
        rows = [row for row in log if key in row]
        if rows:
            figure.add_scatter(
                x=[row["step"] for row in rows],
                y=[row[key] for row in rows],
                name=name,
                mode="lines+markers" if len(rows) < 3 else "lines",
                line={"color": color, "width": 2, "dash": dash},
                hovertemplate="step %{x:,}: %{y:,} " + name + "<extra></extra>",
            )
    figure.update_xaxes(title="step", range=[0, steps] if steps else None, showgrid=False, nticks=6)
    figure.update_yaxes(rangemode="tozero", nticks=5)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0})
    return plain(figure, height=260, top=28, bottom=44, legend=True)


def bars(rows: Sequence[tuple[str, int, str]], total: int, chosen: str | None = None) -> go.Figure:
    """Return counts by name as horizontal bars, the first on top; the chosen one stands out.

    A bar's customdata begins with its name. Without a note, hovering tells its share of `total`."""
    figure = go.Figure(
        go.Bar(
            x=[count for _, count, _ in rows],
            y=[plain_text(name) for name, *_ in rows],
            orientation="h",
            text=[f"{count:,}" for _, count, _ in rows],
            textposition="outside",
            cliponaxis=False,
            marker={"color": [PALETTE[0] if chosen in (None, name) else f"rgba({GREY}, 0.45)" for name, *_ in rows]},
            customdata=[[name, note or percent(count / max(total, 1))] for name, count, note in rows],
            hovertemplate="%{y}: %{x:,}<br>%{customdata[1]}<extra></extra>",
        )
    )  # fmt: skip
    most = max((count for _, count, _ in rows), default=1)
    figure.update_xaxes(visible=False, range=[0, 1.18 * max(most, 1)])
    figure.update_yaxes(autorange="reversed", automargin=True, ticks="", ticklabelstandoff=6, showgrid=False)
    return plain(figure, height=BAR * max(len(rows), 1) + 14, top=4, left=8, bottom=8)


def counts(rows: Sequence[tuple[str, int, str]], total: int) -> str:
    """Return counts by name as a table with bars, the first on top. Without a note, hovering tells a count's share of `total`."""
    most = max((count for _, count, _ in rows), default=0) or 1
    lines = "".join(
        f'<tr title="{escaped(note or percent(count / max(total, 1)))}"><td>{escaped(name)}</td>'
        f'<td class="bar up" style="--w:{count / most:.3f}"><i></i><span>{count:,}</span></td></tr>'
        for name, count, note in rows
    )
    return f'<table class="sae logits">{lines}</table>'


def changes(record: Changes) -> list[WhatIf]:
    """Return what can be changed in a run of this architecture, and what that would do."""
    curves = []
    if bias := record.bias:
        axis = f"× median pre-activation ({number(bias.unit)})"
        curves.append(WhatIf("Bias moved, one latent at a time", axis, bias.by, bias.fire))
    if k := record.k:
        x = [float((k.k or 0) + extra) for extra in k.extra]
        title = f"k larger than {k.k}" if k.k else "More latents selected per row"
        curves.append(WhatIf(title, "k" if k.k else "more", x, k.fire))
    if threshold := record.threshold:
        axis = "share of the present threshold"
        curves.append(WhatIf("All thresholds lowered", axis, threshold.share, threshold.fire))
    if resample := record.resample:
        title, axis = "All resampled", "× live latents' encoder norm"
        curves.append(WhatIf(title, axis, resample.scale, resample.fire, resample.dense))
    return curves


def what_if(curve: WhatIf, total: int) -> str:
    """Return how many of the `total` dead latents would fire, by how far the change goes, as a table with bars.

    It ends where all of them fire, unless it tells how many are dense, too."""
    rows = list(zip(curve.x, curve.fire, curve.dense or [None] * len(curve.x), strict=True))
    if curve.dense is None and total in curve.fire:
        rows = rows[: curve.fire.index(total) + 1]
    lines = "".join(
        f'<tr><td class="n">{number(x)}</td><td class="bar down" style="--w:{fire / max(total, 1):.3f}"><i></i><span>{fire:,}</span></td>'
        + (f'<td class="n">{dense:,}</td></tr>' if dense is not None else "</tr>")
        for x, fire, dense in rows
    )
    known = "" if curve.dense is None else '<th scope="col" class="n">dense</th>'
    return (
        f'<table class="sae logits"><caption>{escaped(curve.title)}</caption><tr><th scope="col" class="n">{escaped(curve.axis)}</th>'
        f'<th scope="col">would fire</th>{known}</tr>{lines}</table>'
    )
