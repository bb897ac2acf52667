"""Your text: what the features make of a text one types, token by token."""

from functools import partial

import streamlit as st

from app import frame, run_rows, text_frame, text_rows
from app.press_frame import pressable
from app.session import choice, readings, runs, text
from sae.show import reading as show
from sae.show import render

name, run = choice.run()
frame.run_chooser(
    list(runs.found()),
    name,
    partial(choice.show_run, address=text.address),
    render.facts(run_rows.brief(run.about)),
)
frame.heading("Your text", f"{name} · {run.hook} · which features fire on what you type")
text_frame.text_box(
    text.current(), text.show, text_rows.EXAMPLES, readings.LONGEST, partial(text.held_out_example, run)
)
if not text.current():
    frame.empty("Nothing to read yet", "Type or paste a text, or press an example. The model is loaded then.")
    st.stop()
job = text.reading(run, text.current())
frame.job(job)
if job.result is None:
    text_frame.read_again(job, text.again)
    st.stop()

found, about = job.result, text.about(run)
colour, place = text.colour(found, text_rows.MEASURES), text.token(found)
does = {"token": text.show_token, "colour": text.colour_by}
frame.metrics(text_rows.about(found))
if about is None:
    frame.empty(
        "No features yet",
        "Without them nothing says what a feature stands for.",
        runs.command("features", run),
    )

shown = text_rows.coloured(found, colour)
with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="text-controls"):
    text_frame.colour_controls(text_rows.MEASURES, colour, text.colour_by, shown.legend)
    by, densest = text_frame.ranking_controls(
        text_rows.RANKINGS, text_rows.rankings(found), text_rows.DENSEST
    )
left, right = st.columns([3, 2], gap="large")
with left:
    tokens = show.strip(found.tokens, shown.shades, shown.tips, found.is_text.tolist(), place)
    pressable(tokens, "tokens", does)
with right:
    with frame.header("Token", text_rows.followed_by(found, place), [found.names[place]], level=2):
        text_frame.token_stepper(place, len(found) - 1, text.show_token)
    frame.metrics(text_rows.token_numbers(found, place), key="token-metrics")
    lines, count = text_rows.at(found, place, by, densest, about)
    frame.note(text_rows.hidden(count, densest))
    opened = pressable(show.firings(lines, name, colour), "on-token", does)
with left:
    lines, count, of = text_rows.over(found, by, densest, about)
    frame.section("Over the whole text", text_rows.listed(lines, count, of, densest))
    opened = pressable(show.firings(lines, name, colour), "on-text", does) or opened
if opened:
    choice.open_feature(name, opened.to)
