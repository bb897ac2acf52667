"""The Your text page: which features fire on a text that the visitor types, token by token."""

from functools import partial

import streamlit as st

from app import widgets
from app.session import address, models, runs
from app.text import controls, state
from app.text.controls import pressable
from sae.report import render
from sae.report import runs as runs_report
from sae.report import text as text_report

name, run = address.run()
widgets.run_chooser(
    list(runs.by_name()),
    name,
    partial(address.show_run, address=state.query),
    render.facts(runs_report.brief(run.record)),
)
widgets.heading("Your text", f"{name} · {run.hook} · which features fire on what you type")
controls.text_box(
    state.current(), state.show, text_report.EXAMPLES, models.LONGEST, partial(state.held_out_example, run)
)
if not state.current():
    widgets.empty(
        "Nothing to read yet", "Type or paste a text, or press an example. Then the model is loaded."
    )
    st.stop()
job = state.reading(run, state.current())
widgets.job(job)
if job.result is None:
    controls.read_again(job, state.forget)
    st.stop()

if state.stays_here(state.current()):
    widgets.note("The text is too long for the address: a reload or a copied address will ask for it again.")
reading, describe = job.result, state.labels_and_tokens(run)
colour, place = state.colour(reading, text_report.MEASURES), state.token(reading)
actions = {"token": state.show_token, "colour": state.colour_by}
widgets.metrics(text_report.about(reading))
if describe is None:
    widgets.empty(
        "No features yet",
        *runs.from_store("features", run, "Without them the page cannot show what a feature stands for."),
    )

shown = text_report.coloured(reading, colour)
with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="text-controls"):
    controls.colour_controls(text_report.MEASURES, colour, state.colour_by, shown.legend)
    by, densest = controls.ranking_controls(
        text_report.RANKINGS, text_report.rankings(reading), text_report.DENSEST
    )
left, right = st.columns([3, 2], gap="large")
with left:
    tokens = text_report.strip(reading.tokens, shown.shades, shown.tips, reading.is_text.tolist(), place)
    pressable(tokens, "tokens", actions)
with right:
    with widgets.header(
        "Token", text_report.followed_by(reading, place), [text_report.token_name(reading, place)], level=2
    ):
        controls.token_stepper(place, len(reading) - 1, state.show_token)
    widgets.metrics(text_report.token_numbers(reading, place), key="token-metrics")
    lines, count, of = text_report.at(reading, place, by, densest, describe)
    widgets.note(text_report.listed_at(lines, count, of, densest))
    pressable(render.wide(text_report.firings(lines, name, colour)), "on-token", actions)
with left:
    lines, count, of = text_report.over(reading, by, densest, describe)
    widgets.section("Over the whole text", text_report.listed(lines, count, of, densest))
    pressable(render.wide(text_report.firings(lines, name, colour)), "on-text", actions)
