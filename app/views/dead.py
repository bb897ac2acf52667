"""Dead: which latents never fire, since when, on which data, why, what would change it; and the dense ones."""

from functools import partial

import streamlit as st
from streamlit.column_config import ButtonColumn, NumberColumn, TextColumn

from app import dead_charts, dead_frame, dead_rows, feature_rows, frame, run_rows
from app.session import choice, dead, runs
from sae.show import render

COLUMNS = {
    "feature": ButtonColumn(width=72, alignment="right", key=frame.OPEN, help="Opens its page."),
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

name, run = choice.run()
frame.run_chooser(list(runs.needed()), name, choice.show_run, render.facts(run_rows.brief(run.about)))
report = dead.found(run)
if report is None:
    frame.heading("Dead latents", name)
    frame.empty(
        "Not looked into yet",
        "Which latents never fire, and why? This takes about a minute.",
        dead.command(run),
    )
    job = dead.job(run)
    if job:
        frame.job(job)
    if not job or not job.running:
        st.button(
            "Run it now", icon=":material/play_arrow:", type="primary", on_click=partial(dead.begin, run)
        )
    st.stop()

about, d_sae = report.about, report.about["d_sae"]
with frame.header("Dead latents", f"{name}: {dead_rows.basis(about)}"):
    st.button(
        "Look again",
        icon=":material/refresh:",
        on_click=partial(dead.begin, run),
        help="Asks anew; what is up to date is kept.",
    )
again = dead.job(run)
if again:
    frame.job(again)
frame.metrics(dead_rows.numbers(about, report.rows()))

left, right = st.columns([3, 2], gap="large")
with left:
    frame.section(
        "In training", "" if about["history"] else "what became of each was not recorded in this run"
    )
    steps = run.about["config"]["train"].get("steps")
    frame.chart(dead_charts.deaths(runs.log(run), steps), "dead latents over training", "deaths")
with right:
    frame.section("Silent on", "latents that fire on no row of a kind")
    frame.chart(
        dead_charts.bars(dead_rows.silent(about), d_sae), "latents silent on each kind of data", "silent"
    )
    if about["kinds"]["dead"]:
        frame.section("The dead, in training")
        frame.chart(
            dead_charts.bars(dead_rows.tally(about["dead_by"]["training"]), about["kinds"]["dead"]),
            "what became of the dead",
            "fates",
        )

causes = dead_rows.tally(about["dead_by"]["cause"], dead.CAUSES)
if about["kinds"]["dead"]:
    left, right = st.columns([2, 3], gap="large")
    with left:
        frame.section("Why", "click a bar to see those alone")
        figure = dead_charts.bars(causes, about["kinds"]["dead"], dead_frame.chosen_cause())
        dead_frame.bar_chooser(figure, "causes of death", "causes")
    with right:
        frame.section("What would make them fire", f"of {about['kinds']['dead']:,} dead")
        curves = dead_charts.changes(about["changes"])
        for column, curve in zip(st.columns(len(curves)), curves, strict=True):
            column.caption(render.markdown(curve.title))
            with column:
                frame.chart(dead_charts.what_if(curve, about["kinds"]["dead"]), curve.title, curve.title)
frame.section("One by one")
kind = dead_frame.kind(dead_rows.counts_of(report.table, dead.KINDS))
cause = dead_frame.cause(dead_rows.causes(report.table, kind))
listed = dead_rows.chosen(report.table, kind, cause)
if len(listed):
    title = f"{len(listed):,} {kind}" + (f": {cause}" if cause else "")
    frame.download(
        f"{title}. Click a number to open its page, a row for its evidence.",
        partial(feature_rows.csv, listed),
        f"{run.name}-dead.csv",
    )
    picked = dead_frame.detailed_rows(dead_rows.shown(listed), COLUMNS)
    if (pressed := frame.pressed()) is not None:
        choice.open_feature(name, listed["latent"][pressed].as_py())
    row = listed.slice(picked, 1).to_pylist()[0]
    with st.container(border=True, key="evidence"):
        frame.heading(f"{row['latent']}: {row['cause']}", row["evidence"], level=2)
        st.html(render.facts(dead_rows.facts(row)))
else:
    frame.empty("None", f"No latent is {kind}." if cause is None else f"None is {kind} for that cause.")

dense = dead_rows.chosen(report.table, "dense", None)
if len(dense):
    frame.section(
        "Dense latents",
        "on more than a tenth of all tokens; features rather than faults (Sun et al. 2025, arXiv:2506.15679)",
    )
    frame.long_table(dead_rows.shown(dense, dead_rows.DENSE), DENSE)
    if (opened := frame.pressed("open dense")) is not None:
        choice.open_feature(name, dense["latent"][opened].as_py())
