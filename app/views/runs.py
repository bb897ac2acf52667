"""Runs: every run under the folder; one of them with its curves, its evaluation and its settings."""

import streamlit as st
from streamlit.column_config import NumberColumn, TextColumn

from app import charts, frame, run_rows
from app.session import choice, runs
from sae.show import render

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
frame.heading("Runs", f"{len(found)} in {runs.folder()}")
measured = runs.evaluations(found)
steps_done = {name: runs.steps_done(run) for name, run in found.items()}
table = st.container()
name, run = choice.run()
finished = run.finished
with table:
    overview = run_rows.runs(found, measured, steps_done)
    frame.pick_row(overview, COLUMNS, list(found), name, choice.show_run)


@st.fragment(run_every=None if finished else "5s")
def training() -> None:
    """Curves that grow while the run is training; the whole page follows when it ends."""
    if run.finished != finished:
        st.rerun()
    frame.section("Training", run_rows.state(run, runs.steps_done(run)))
    steps = run.about["config"]["train"]["steps"]
    frame.chart(charts.curves(runs.log(run), steps), "training curves", "curves")


with frame.header(name, run_rows.summary(run.about), level=2):
    frame.page_button("views/features.py", "Features", ":material/apps:", {"run": name})
left, right = st.columns([3, 2], gap="large")
with left:
    training()
with right:
    if name in measured:
        frame.section("Evaluation", run_rows.basis(measured[name]))
        st.html(render.estimates(run_rows.estimates(measured[name])))
    else:
        question = "How well does it rebuild held-out activations?"
        frame.empty("Not evaluated yet", question, runs.command("evaluate", run))
if len(measured) > 1:
    frame.section("Sparsity against error", "evaluated runs, each on its own held-out text")
    points = run_rows.frontier(found, measured)
    frame.chart(charts.pareto(points, name), "FVU against L0 of all evaluated runs", "pareto")
with st.expander("Settings"):
    st.html(render.facts(run_rows.settings(run.about)))
