"""Steering: features turned up, down or off while the model writes; both texts, their numbers, the dose-response."""

from functools import partial

import streamlit as st

from app import widgets
from app.session import address, features, runs
from app.steering import controls, state
from sae.report import render, text_changes
from sae.report import runs as runs_report
from sae.report import steering as steering_report

name, run = address.run()
widgets.run_chooser(
    list(runs.needed()),
    name,
    partial(address.show_run, address=state.query),
    render.facts(runs_report.brief(run.record)),
)
store = features.of(run)
chosen = state.settings(name, store)
written, swept = state.jobs_of(name)

about = f"{name} · {run.hook} · what the model writes when features are turned up, down or off"
with (
    widgets.header("Steering", about),
    st.popover("Link", icon=":material/link:", help="reproduces this page"),
):
    st.code(state.link(name, chosen), language=None, wrap_lines=True)
controls.complaint()
controls.suggestions(name, store)

form, results = st.columns([5, 8], gap="large")
with form:
    widgets.section("Features")
    controls.pushes(name, store, chosen)
    widgets.section("Text")
    controls.text(name, chosen)
    controls.begin(partial(state.steer, name, run, store), partial(state.sweep, name, run, store))
with results:
    if not written and not swept:
        widgets.empty(
            "Nothing written yet", "Press Steer: the model goes on with the prompt as it is, and steered."
        )
    if written:
        widgets.job(written)
    if written and written.result:
        found = written.result
        widgets.section(
            "As it is, and steered", steering_report.about(found.settings, found.settings != chosen)
        )
        for pair in found.pairs:
            scale = steering_report.largest_change([pair.baseline, pair.steered])
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.html(render.legend(-scale, scale), width="content")
                st.caption("how much likelier steering makes a token, nats", width="content")
            left, right = st.columns(2, gap="medium")
            for column, title, one in ((left, "as it is", pair.baseline), (right, "steered", pair.steered)):
                column.caption(f"{title}, seed {pair.seed}")
                column.html(
                    text_changes.changed_text(
                        found.prompt, steering_report.tokens(one, store.token_text.pieces(one.tokens)), scale
                    )
                )
            controls.remarks(pair.remarks)
            st.html(
                text_changes.before_and_after(
                    steering_report.measures(pair.baseline.measures, pair.steered.measures)
                )
            )
    if swept:
        widgets.job(swept)
    if swept and swept.result:
        taken = swept.result
        widgets.section(
            "Dose and response", steering_report.about(taken.settings, taken.settings != chosen, dosed=True)
        )
        figure = steering_report.dose_response(taken.found.curves(), steering_report.axis(taken.settings))
        widgets.chart(figure, "dose-response curves", "dose-response")
        controls.remarks(taken.found.remarks)
        st.html(text_changes.texts(steering_report.examples(taken.found)))
