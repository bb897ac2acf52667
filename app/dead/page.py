"""The Dead latents page: which latents never fire, since when, on which data, why, what would help; dense latents."""

from functools import partial

import streamlit as st

from app import widgets
from app.dead import controls
from app.session import address, runs
from sae.diagnosis.causes import CAUSES
from sae.diagnosis.report import KINDS
from sae.report import dead as dead_report
from sae.report import features as features_report
from sae.report import render
from sae.report import runs as runs_report

name, run = address.run()
widgets.run_chooser(
    list(runs.require_any()),
    name,
    address.show_run,
    render.facts(runs_report.brief(run.record)),
)
report = controls.report(run)
if report is None:
    widgets.heading("Dead latents", name)
    widgets.warnings(controls.of_other_weights(run))
    widgets.empty("No report yet", *controls.nothing(run))
    job = controls.job(run)
    if job:
        widgets.job(job)
    if not (job and job.running) and not runs.lacks_store(run):
        st.button(
            "Run it now", icon=":material/play_arrow:", type="primary", on_click=partial(controls.begin, run)
        )
    st.stop()

record, d_sae = report.record, report.record.d_sae
with widgets.header("Dead latents", f"{name}: {dead_report.basis(record)}"):
    if not runs.lacks_store(run):
        st.button(
            "Update",
            icon=":material/refresh:",
            on_click=partial(controls.begin, run),
            help="Recompute what is out of date",
        )
update = controls.job(run)
if update:
    widgets.job(update)
widgets.metrics(dead_report.numbers(record, report.rows()))

left, right = st.columns([3, 2], gap="large")
with left:
    widgets.section(
        "In training", "" if record.history else "this run did not record what happened to each latent"
    )
    steps = run.record.config["train"].get("steps")
    widgets.chart(
        dead_report.deaths(runs.logs({name: run}).get(name, []), steps),
        "dead latents over training",
        "deaths",
    )
with right:
    widgets.section("Silent on", "latents that fire on no row of this data")
    st.html(dead_report.counts(dead_report.silent(record), d_sae))
    if record.kinds["dead"]:
        widgets.section("Dead latents in training")
        st.html(dead_report.counts(dead_report.tally(record.dead_by.training), record.kinds["dead"]))

causes = dead_report.tally(record.dead_by.cause, CAUSES)
if record.kinds["dead"]:
    left, right = st.columns([2, 3], gap="large")
    with left:
        widgets.section("Why", "click a bar to list only these")
        figure = dead_report.bars(causes, record.kinds["dead"], controls.chosen_cause())
        controls.bar_chooser(figure, "number of dead latents by cause", "causes")
    with right:
        widgets.section("What would make them fire", f"of {record.kinds['dead']:,} dead")
        curves = dead_report.changes(record.changes)
        for column, curve in zip(st.columns(len(curves)), curves, strict=True):
            column.html(dead_report.what_if(curve, record.kinds["dead"]))
widgets.section("One by one")
kind = controls.kind(dead_report.counts_of(report.table, KINDS))
cause = controls.cause(dead_report.causes(report.table, kind))
listed = dead_report.chosen(report.table, kind, cause)
if len(listed):
    title = f"{len(listed):,} {kind}" + (f": {cause}" if cause else "")
    widgets.download(
        f"{title}. Click a number to open the latent's page, a row to see its evidence.",
        partial(features_report.csv, listed),
        f"{run.name}-dead.csv",
    )
    picked = controls.detailed_rows(dead_report.shown(listed), kind, cause)
    if (pressed := widgets.pressed()) is not None:
        address.open_feature(name, listed["latent"][pressed].as_py())
    row = listed.slice(picked, 1).to_pylist()[0]
    with st.container(border=True, key="evidence"):
        widgets.heading(f"{row['latent']}: {row['cause']}", row["evidence"], level=2)
        st.html(render.facts(dead_report.facts(row)))
else:
    widgets.empty(
        "None", f"No latents are {kind}." if cause is None else f"No latents are {kind} for this cause."
    )

dense = dead_report.chosen(report.table, "dense", None)
if len(dense):
    widgets.section(
        "Dense latents",
        "fire on more than a tenth of all tokens; they are features, not faults (Sun et al. 2025, arXiv:2506.15679)",
    )
    widgets.long_table(dead_report.shown(dense, dead_report.DENSE_TABLE), controls.DENSE_COLUMNS)
    if (opened := widgets.pressed(controls.OPEN_DENSE)) is not None:
        address.open_feature(name, dense["latent"][opened].as_py())
address.open_on_enter(name)
