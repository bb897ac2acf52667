"""The Steering page: the model writes with features turned up, down or off; texts, measures and a dose-response."""

from functools import partial

import streamlit as st

from app import widgets
from app.session import address, features, runs
from app.steering import arms, controls, state
from sae.report import render
from sae.report import runs as runs_report

name, run = address.run()
widgets.run_chooser(
    list(runs.require_any()),
    name,
    partial(address.show_run, address=state.query),
    render.facts(runs_report.brief(run.record)),
)
store = features.of(run)
chosen = state.settings(name, store)
written, swept = state.jobs_of(name, run)

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
    controls.interventions(name, run, store, chosen)
    widgets.section("Text")
    controls.text(name, run, chosen)
with results:
    # Beside the form, so that at any height of the window a press and what it starts are seen together
    controls.start_buttons(partial(state.steer, name, run, store), partial(state.sweep, name, run, store))
    if not written and not swept:
        widgets.empty(
            "Nothing written yet", "Press Steer: the model continues the prompt twice, unsteered and steered."
        )
    if written:
        widgets.job(written, partial(controls.drafts, chosen))
    if written and written.result:
        controls.texts(written.result, store, chosen)
    if swept:
        widgets.job(swept, partial(controls.response, chosen, key="growing"))
    if swept and swept.result:
        controls.response(chosen, swept.result)
arms.comparison(name, run, [intervention.latent for intervention in chosen.interventions])
