"""Runs: every run under the folder; one of them with curves, evaluation and settings, or several side by side."""

import streamlit as st
from streamlit.column_config import NumberColumn, TextColumn

from app import widgets
from app.features import state as filters
from app.runs import controls
from app.runs import state as several
from app.session import address, runs
from sae.report import render, run_charts
from sae.report import runs as runs_report

COLUMNS = {
    "name": TextColumn("run", width="medium"),
    "features": NumberColumn(format="localized", help="Size of the dictionary."),
    "k": NumberColumn(help="Features the architecture lets fire on a token; empty where it sets no number."),
    "FVU": NumberColumn(format="%.3f", help=runs_report.MEASURES["fvu"][1]),
    "CE recovered": NumberColumn(format="%.1f %%", help=runs_report.MEASURES["recovered_zero"][1]),
    "L0": NumberColumn(format="%.1f", help=runs_report.MEASURES["l0"][1]),
    "dead": NumberColumn(format="%.1f %%", help="Share of features that fired on no held-out token."),
    "steps": NumberColumn(format="localized"),
}

found = runs.needed()
measured = runs.evaluations(found)
steps_done = {name: runs.steps_done(run) for name, run in found.items()}
overview, said = runs_report.common(runs_report.runs(found, measured, steps_done))
together = several.chosen()
with widgets.header("Runs", " · ".join([f"{len(found)} in {runs.folder()}", *said])):
    controls.together_switch(together is not None, several.choose, several.end)
table = st.container()
name, run = address.run()
finished, origin = run.finished, runs_report.imported(run.record)
with table:
    if together is None:
        widgets.pick_row(overview, COLUMNS, list(found), name, address.show_run)
    else:
        controls.pick_rows(overview, COLUMNS, list(found), together, several.choose)


@st.fragment(run_every=None if finished else "2s")
def training() -> None:
    """Curves that grow while the run is training; the whole page follows when it ends."""
    if run.finished != finished:
        st.rerun()
    if finished:
        widgets.section("Training", "finished")
    else:
        widgets.section("Training")
        st.progress(*runs_report.progress(run.record, runs.log(run), runs.quiet_for(run)))
    steps = run.record.config["train"].get("steps")
    widgets.chart(run_charts.curves({name: runs.log(run)}, steps), "training curves", "curves")


def one() -> None:
    """The run chosen: how it went and how good it is."""
    with widgets.header(name, runs_report.summary(run.record), level=2):
        widgets.page_button("features/page.py", "Features", ":material/apps:", filters.query(name))
    widgets.warnings(runs.problems(run))
    left, right = st.columns([3, 2], gap="large")
    with left:
        if origin:
            widgets.section("Imported", "trained elsewhere: there are no curves")
            st.html(render.facts(origin))
        else:
            training()
    with right:
        if name in measured:
            widgets.section("Evaluation", runs_report.basis(measured[name]))
            st.html(render.estimates(runs_report.estimates(measured[name])))
        else:
            question = "How well does it rebuild held-out activations?"
            widgets.empty("Not evaluated yet", question, runs.command("evaluate", run))


def side_by_side(names: list[str]) -> None:
    """The runs chosen together: their curves in one figure, what differs in their settings, their measures."""
    if not names:
        widgets.empty("No run is chosen", "Tick two runs or more in the table to see them side by side.")
        return
    heads = runs_report.short(names)
    left, right = st.columns([3, 2], gap="large")
    with left:
        widgets.section("Training", f"{len(names)} runs")
        logs = {head: runs.log(found[name]) for head, name in zip(heads, names, strict=True)}
        widgets.chart(run_charts.curves(logs), "training curves", "overlaid")
    with right:
        widgets.section("Settings that differ")
        rows = [
            (label, "", values)
            for label, values in runs_report.differing({n: found[n].record for n in names})
        ]
        widgets.html_or_note(render.columns(heads, rows) if rows else "", "None: they are trained alike.")
        widgets.section("Evaluation", "each on its own held-out text")
        rows = runs_report.side_by_side([measured.get(name) for name in names])
        widgets.html_or_note(render.columns(heads, rows) if rows else "", "None of them is evaluated.")


if together is None:
    one()
else:
    side_by_side(together)
if len(measured) > 1:
    widgets.section(
        "Sparsity against quality", "evaluated runs, each on its own held-out text; click one to choose it"
    )
    height = controls.height_chooser(run_charts.HEIGHTS)
    points = runs_report.frontier(found, measured, height)
    figure = run_charts.frontier(points, name, height)
    controls.pressed_point(figure, "quality against L0 of all evaluated runs", "pareto", address.show_run)
with st.expander("Settings"):
    st.html(render.facts(runs_report.settings(run.record)))
