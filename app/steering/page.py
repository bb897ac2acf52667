"""The Steering page: the model writes with features turned up, down or off; texts, measures and a dose-response."""

from functools import partial

import streamlit as st

from app import widgets
from app.session import address, features, runs
from app.steering import controls, state
from sae.report import render
from sae.report import runs as runs_report
from sae.report import steering as steering_report

name, run = address.run()
widgets.run_chooser(
    list(runs.require_any()),
    name,
    partial(address.show_run, address=state.query),
    render.facts(runs_report.brief(run.record)),
)
store = features.of(run)
chosen = state.settings(name, store)
written, swept = state.jobs_of(name)

subtitle = f"{name} · {run.hook} · what the model writes when features are turned up, down or off"
with (
    widgets.header("Steering", subtitle),
    st.popover("Link", icon=":material/link:", help="A link that opens the page with these settings"),
):
    st.code(state.link(name, chosen), language=None, wrap_lines=True)
controls.complaint()
controls.suggestions(name, store)

form, results = st.columns([5, 8], gap="large")
with form:
    widgets.section("Features")
    controls.interventions(name, store, chosen)
    widgets.section("Text")
    controls.text(name, chosen)
    controls.start_buttons(partial(state.steer, name, run, store), partial(state.sweep, name, run, store))
with results:
    if not written and not swept:
        widgets.empty(
            "Nothing written yet", "Press Steer: the model continues the prompt twice, unsteered and steered."
        )
    if written:
        widgets.job(written)
    if written and written.result:
        texts = written.result
        widgets.section(
            "Unsteered and steered", steering_report.about(texts.settings, texts.settings != chosen)
        )
        for pair in texts.pairs:
            scale = steering_report.largest_change([pair.baseline, pair.steered])
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.html(render.legend(-scale, scale), width="content")
                st.caption("how much likelier steering makes a token, in nats", width="content")
            left, right = st.columns(2, gap="medium")
            for column, title, written_text in (
                (left, "unsteered", pair.baseline),
                (right, "steered", pair.steered),
            ):
                column.caption(f"{title}, seed {pair.seed}")
                column.html(
                    steering_report.changed_text(
                        texts.prompt,
                        steering_report.tokens(written_text, store.token_text.pieces(written_text.tokens)),
                        scale,
                    )
                )
            controls.remarks(pair.remarks)
            st.html(
                steering_report.before_and_after(
                    steering_report.measures(pair.baseline.measures, pair.steered.measures)
                )
            )
    if swept:
        widgets.job(swept)
    if swept and swept.result:
        sweep = swept.result
        widgets.section(
            "Dose-response", steering_report.about(sweep.settings, sweep.settings != chosen, dosed=True)
        )
        figure = steering_report.dose_response(sweep.response.curves(), steering_report.axis(sweep.settings))
        widgets.chart(figure, "dose-response curves", "dose-response")
        controls.remarks(sweep.response.remarks)
        st.html(steering_report.texts(steering_report.examples(sweep.response)))
