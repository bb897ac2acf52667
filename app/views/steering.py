"""Steering: features turned up, down or off while the model writes; both texts, their numbers, the dose-response."""

from functools import partial

import streamlit as st

from app import frame, run_rows, steering_charts, steering_frame, steering_rows
from app.session import choice, features, runs, steering
from sae.show import changes, render

name, run = choice.run()
frame.run_chooser(
    list(runs.needed()),
    name,
    partial(choice.show_run, address=steering.address),
    render.facts(run_rows.brief(run.about)),
)
store = features.of(run)
chosen = steering.settings(name, store)
written, swept = steering.jobs_of(name)

about = f"{name} · {run.hook} · what the model writes when features are turned up, down or off"
with frame.header("Steering", about), st.popover("Link", icon=":material/link:", help="reproduces this page"):
    st.code(steering.link(name, chosen), language=None, wrap_lines=True)
steering_frame.complaint()
steering_frame.suggestions(name, store)

form, results = st.columns([5, 8], gap="large")
with form:
    frame.section("Features")
    steering_frame.pushes(name, store, chosen)
    frame.section("Text")
    steering_frame.text(name, chosen)
    steering_frame.begin(partial(steering.steer, name, run, store), partial(steering.sweep, name, run, store))
with results:
    if not written and not swept:
        frame.empty(
            "Nothing written yet", "Press Steer: the model goes on with the prompt as it is, and steered."
        )
    if written:
        frame.job(written)
    if written and written.result:
        found = written.result
        frame.section("As it is, and steered", steering_rows.about(found.settings, found.settings != chosen))
        for pair in found.pairs:
            scale = steering_rows.largest_change([pair.baseline, pair.steered])
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.html(render.legend(-scale, scale), width="content")
                st.caption("how much likelier steering makes a token, nats", width="content")
            left, right = st.columns(2, gap="medium")
            for column, title, one in ((left, "as it is", pair.baseline), (right, "steered", pair.steered)):
                column.caption(f"{title}, seed {pair.seed}")
                column.html(
                    changes.changed_text(
                        found.prompt, steering_rows.tokens(one, store.token_text.pieces(one.tokens)), scale
                    )
                )
            steering_frame.remarks(pair.remarks)
            st.html(
                changes.before_and_after(
                    steering_rows.measures(pair.baseline.measures, pair.steered.measures)
                )
            )
    if swept:
        frame.job(swept)
    if swept and swept.result:
        taken = swept.result
        frame.section(
            "Dose and response", steering_rows.about(taken.settings, taken.settings != chosen, dosed=True)
        )
        figure = steering_charts.dose_response(taken.found.curves(), steering_rows.axis(taken.settings))
        frame.chart(figure, "dose-response curves", "dose-response")
        steering_frame.remarks(taken.found.remarks)
        st.html(changes.texts(steering_rows.examples(taken.found)))
