"""Runs: every run under the folder; one of them with curves, evaluation and settings, or several side by side."""

import streamlit as st
from streamlit.column_config import NumberColumn, TextColumn

from app import frame, run_charts, run_frame, run_rows
from app.session import choice, filters, runs, several
from sae.show import render, tables

COLUMNS = {
    "name": TextColumn("run", width="medium"),
    "features": NumberColumn(format="localized", help="Size of the dictionary."),
    "k": NumberColumn(help="Features the architecture lets fire on a token; empty where it sets no number."),
    "FVU": NumberColumn(format="%.3f", help=run_rows.MEASURES["fvu"][1]),
    "CE recovered": NumberColumn(format="%.1f %%", help=run_rows.MEASURES["recovered_zero"][1]),
    "L0": NumberColumn(format="%.1f", help=run_rows.MEASURES["l0"][1]),
    "dead": NumberColumn(format="%.1f %%", help="Share of features that fired on no held-out token."),
    "steps": NumberColumn(format="localized"),
}

found = runs.needed()
measured = runs.evaluations(found)
steps_done = {name: runs.steps_done(run) for name, run in found.items()}
overview, said = run_rows.common(run_rows.runs(found, measured, steps_done))
together = several.chosen()
with frame.header("Runs", " · ".join([f"{len(found)} in {runs.folder()}", *said])):
    run_frame.together_switch(together is not None, several.choose, several.end)
table = st.container()
name, run = choice.run()
finished, origin = run.finished, run_rows.imported(run.about)
with table:
    if together is None:
        frame.pick_row(overview, COLUMNS, list(found), name, choice.show_run)
    else:
        run_frame.pick_rows(overview, COLUMNS, list(found), together, several.choose)


@st.fragment(run_every=None if finished else "2s")
def training() -> None:
    """Curves that grow while the run is training; the whole page follows when it ends."""
    if run.finished != finished:
        st.rerun()
    if finished:
        frame.section("Training", "finished")
    else:
        frame.section("Training")
        st.progress(*run_rows.progress(run.about, runs.log(run), runs.quiet_for(run)))
    steps = run.about["config"]["train"].get("steps")
    frame.chart(run_charts.curves({name: runs.log(run)}, steps), "training curves", "curves")


def one() -> None:
    """The run chosen: how it went and how good it is."""
    with frame.header(name, run_rows.summary(run.about), level=2):
        frame.page_button("views/features.py", "Features", ":material/apps:", filters.address(name))
    frame.warnings(runs.problems(run))
    left, right = st.columns([3, 2], gap="large")
    with left:
        if origin:
            frame.section("Imported", "trained elsewhere: there are no curves")
            st.html(render.facts(origin))
        else:
            training()
    with right:
        if name in measured:
            frame.section("Evaluation", run_rows.basis(measured[name]))
            st.html(render.estimates(run_rows.estimates(measured[name])))
        else:
            question = "How well does it rebuild held-out activations?"
            frame.empty("Not evaluated yet", question, runs.command("evaluate", run))


def side_by_side(names: list[str]) -> None:
    """The runs chosen together: their curves in one figure, what differs in their settings, their measures."""
    if not names:
        frame.empty("No run is chosen", "Tick two runs or more in the table to see them side by side.")
        return
    heads = run_rows.short(names)
    left, right = st.columns([3, 2], gap="large")
    with left:
        frame.section("Training", f"{len(names)} runs")
        logs = {head: runs.log(found[name]) for head, name in zip(heads, names, strict=True)}
        frame.chart(run_charts.curves(logs), "training curves", "overlaid")
    with right:
        frame.section("Settings that differ")
        rows = [
            (label, "", values) for label, values in run_rows.differing({n: found[n].about for n in names})
        ]
        frame.html_or_note(tables.columns(heads, rows) if rows else "", "None: they are trained alike.")
        frame.section("Evaluation", "each on its own held-out text")
        rows = run_rows.side_by_side([measured.get(name) for name in names])
        frame.html_or_note(tables.columns(heads, rows) if rows else "", "None of them is evaluated.")


if together is None:
    one()
else:
    side_by_side(together)
if len(measured) > 1:
    frame.section(
        "Sparsity against quality", "evaluated runs, each on its own held-out text; click one to choose it"
    )
    height = run_frame.height_chooser(run_charts.HEIGHTS)
    points = run_rows.frontier(found, measured, height)
    figure = run_charts.frontier(points, name, height)
    run_frame.pressed_point(figure, "quality against L0 of all evaluated runs", "pareto", choice.show_run)
with st.expander("Settings"):
    st.html(render.facts(run_rows.settings(run.about)))
