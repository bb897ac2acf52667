"""Dead: which latents never fire, since when, on which data, why, what would change it; and the dense ones."""

from functools import partial

import streamlit as st
from streamlit.column_config import ButtonColumn, NumberColumn, TextColumn

from app import widgets
from app.dead import controls, state
from app.session import address, runs
from sae.report import dead as dead_report
from sae.report import features as features_report
from sae.report import render
from sae.report import runs as runs_report

COLUMNS = {
    "feature": ButtonColumn(width=72, alignment="right", key=widgets.OPEN, help="Opens its page."),
    "cause": TextColumn(width="medium", help="The main reason, by the first rule that applies."),
    "fires on": TextColumn(help="On which data it does fire."),
    "in training": TextColumn(help="What became of it in training."),
    "margin": NumberColumn(
        format="%.3g", help="How near it came to firing on any row; 0 and above would fire."
    ),
    "positive on": NumberColumn(format="%.3g %%", help="Share of rows on which its drive is above 0."),
    "best rank": NumberColumn(format="localized", help="Its best place in a row; 0: none."),
    "norm": NumberColumn(format="%.3g", help="Of its encoder."),
    "bias": NumberColumn(format="%.3g", help="Of its encoder, as if b_dec were taken off."),
    "cos mean": NumberColumn(format="%.2f", help="Cosine of its encoder with the mean activation."),
    "cos nearest": NumberColumn(format="%.2f", help="Decoder cosine with the nearest living one."),
    "died at": NumberColumn(format="localized", help="Step of its last death in training."),
    "revived": NumberColumn(format="localized", help="How often it came back in training."),
}
DENSE = {
    "feature": ButtonColumn(width=72, alignment="right", key="open dense", help="Opens its page."),
    "kind": TextColumn(width="medium", help="What kind of signal, by the first rule that applies."),
    "density": NumberColumn(format="%.3g %%", help="Share of tokens it fires on."),
    "position": NumberColumn(format="%.2f", help="Correlation with the place in the window."),
    "first direction": NumberColumn(format="%.2f", help="Decoder cosine with the first principal direction."),
    "mean": NumberColumn(format="%.2f", help="Decoder cosine with the mean activation."),
    "token class": NumberColumn(
        format="%.3g %%", help="Share of its variance that the token's class explains."
    ),
    "prefers": TextColumn(help="The class of tokens it prefers most."),
    "of its firings": NumberColumn(format="%.3g %%", help="Share of its firings on that class."),
    "of all tokens": NumberColumn(format="%.3g %%", help="Share of that class in the text."),
    "antipode": NumberColumn(help="The dense one that points the other way."),
    "antipodality": NumberColumn(format="%.2f", help="1: another reads and writes the opposite."),
    "variance": NumberColumn(format="%.3g %%", help="Share of the activations' variance in its own term."),
}

name, run = address.run()
widgets.run_chooser(
    list(runs.require_any()), name, address.show_run, render.facts(runs_report.brief(run.record))
)
report = state.report(run)
if report is None:
    widgets.heading("Dead latents", name)
    widgets.empty(
        "Not looked into yet",
        "Which latents never fire, and why? This takes about a minute.",
        state.command(run),
    )
    job = state.job(run)
    if job:
        widgets.job(job)
    if not job or not job.running:
        st.button(
            "Run it now", icon=":material/play_arrow:", type="primary", on_click=partial(state.begin, run)
        )
    st.stop()

record, d_sae = report.record, report.record.d_sae
with widgets.header("Dead latents", f"{name}: {dead_report.basis(record)}"):
    st.button(
        "Look again",
        icon=":material/refresh:",
        on_click=partial(state.begin, run),
        help="Asks anew; what is up to date is kept.",
    )
again = state.job(run)
if again:
    widgets.job(again)
widgets.metrics(dead_report.numbers(record, report.rows()))

left, right = st.columns([3, 2], gap="large")
with left:
    widgets.section(
        "In training", "" if record.history else "what became of each was not recorded in this run"
    )
    steps = run.record.config["train"].get("steps")
    widgets.chart(dead_report.deaths(runs.log(run), steps), "dead latents over training", "deaths")
with right:
    widgets.section("Silent on", "latents that fire on no row of a kind")
    widgets.chart(
        dead_report.bars(dead_report.silent(record), d_sae), "latents silent on each kind of data", "silent"
    )
    if record.kinds["dead"]:
        widgets.section("The dead, in training")
        widgets.chart(
            dead_report.bars(dead_report.tally(record.dead_by.training), record.kinds["dead"]),
            "what became of the dead",
            "fates",
        )

causes = dead_report.tally(record.dead_by.cause, state.CAUSES)
if record.kinds["dead"]:
    left, right = st.columns([2, 3], gap="large")
    with left:
        widgets.section("Why", "click a bar to see those alone")
        figure = dead_report.bars(causes, record.kinds["dead"], controls.chosen_cause())
        controls.bar_chooser(figure, "causes of death", "causes")
    with right:
        widgets.section("What would make them fire", f"of {record.kinds['dead']:,} dead")
        curves = dead_report.changes(record.changes)
        for column, curve in zip(st.columns(len(curves)), curves, strict=True):
            column.caption(render.markdown(curve.title))
            with column:
                widgets.chart(dead_report.what_if(curve, record.kinds["dead"]), curve.title, curve.title)
widgets.section("One by one")
kind = controls.kind(dead_report.counts_of(report.table, state.KINDS))
cause = controls.cause(dead_report.causes(report.table, kind))
listed = dead_report.chosen(report.table, kind, cause)
if len(listed):
    title = f"{len(listed):,} {kind}" + (f": {cause}" if cause else "")
    widgets.download(
        f"{title}. Click a number to open its page, a row for its evidence.",
        partial(features_report.csv, listed),
        f"{run.name}-dead.csv",
    )
    picked = controls.detailed_rows(dead_report.shown(listed), COLUMNS)
    if (pressed := widgets.pressed()) is not None:
        address.open_feature(name, listed["latent"][pressed].as_py())
    row = listed.slice(picked, 1).to_pylist()[0]
    with st.container(border=True, key="evidence"):
        widgets.heading(f"{row['latent']}: {row['cause']}", row["evidence"], level=2)
        st.html(render.facts(dead_report.facts(row)))
else:
    widgets.empty("None", f"No latent is {kind}." if cause is None else f"None is {kind} for that cause.")

dense = dead_report.chosen(report.table, "dense", None)
if len(dense):
    widgets.section(
        "Dense latents",
        "on more than a tenth of all tokens; features rather than faults (Sun et al. 2025, arXiv:2506.15679)",
    )
    widgets.long_table(dead_report.shown(dense, dead_report.DENSE), DENSE)
    if (opened := widgets.pressed("open dense")) is not None:
        address.open_feature(name, dense["latent"][opened].as_py())
