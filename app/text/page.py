"""Your text: what the features make of a text one types, token by token."""

from functools import partial

import streamlit as st

from app import widgets
from app.pressable import pressable
from app.session import address, readings, runs
from app.text import controls, state
from sae.report import reading as reading_report
from sae.report import render
from sae.report import runs as runs_report
from sae.report import text as text_report

name, run = address.run()
widgets.run_chooser(
    list(runs.found()),
    name,
    partial(address.show_run, address=state.query),
    render.facts(runs_report.brief(run.record)),
)
widgets.heading("Your text", f"{name} · {run.hook} · which features fire on what you type")
controls.text_box(
    state.current(), state.show, text_report.EXAMPLES, readings.LONGEST, partial(state.held_out_example, run)
)
if not state.current():
    widgets.empty(
        "Nothing to read yet", "Type or paste a text, or press an example. The model is loaded then."
    )
    st.stop()
job = state.reading(run, state.current())
widgets.job(job)
if job.result is None:
    controls.read_again(job, state.again)
    st.stop()

found, about = job.result, state.about(run)
colour, place = state.colour(found, text_report.MEASURES), state.token(found)
does = {"token": state.show_token, "colour": state.colour_by}
widgets.metrics(text_report.about(found))
if about is None:
    widgets.empty(
        "No features yet",
        "Without them nothing says what a feature stands for.",
        runs.command("features", run),
    )

shown = text_report.coloured(found, colour)
with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="text-controls"):
    controls.colour_controls(text_report.MEASURES, colour, state.colour_by, shown.legend)
    by, densest = controls.ranking_controls(
        text_report.RANKINGS, text_report.rankings(found), text_report.DENSEST
    )
left, right = st.columns([3, 2], gap="large")
with left:
    tokens = reading_report.strip(found.tokens, shown.shades, shown.tips, found.is_text.tolist(), place)
    pressable(tokens, "tokens", does)
with right:
    with widgets.header("Token", text_report.followed_by(found, place), [found.names[place]], level=2):
        controls.token_stepper(place, len(found) - 1, state.show_token)
    widgets.metrics(text_report.token_numbers(found, place), key="token-metrics")
    lines, count = text_report.at(found, place, by, densest, about)
    widgets.note(text_report.hidden(count, densest))
    opened = pressable(reading_report.firings(lines, name, colour), "on-token", does)
with left:
    lines, count, of = text_report.over(found, by, densest, about)
    widgets.section("Over the whole text", text_report.listed(lines, count, of, densest))
    opened = pressable(reading_report.firings(lines, name, colour), "on-text", does) or opened
if opened:
    address.open_feature(name, opened.to)
