"""The Feature page: one latent's examples by activation interval, histogram, lens, effect, neighbours, and a text to try."""

from functools import partial

import streamlit as st

from app import widgets
from app.dead import controls as dead
from app.feature import controls
from app.features import lists
from app.session import address, explanations, features, jobs, lenses, meanings, runs, trust
from app.steering import state as steering
from sae.report import charts, render, token_strips
from sae.report import feature as feature_report
from sae.report import runs as runs_report
from sae.report import trust as trust_report

name, run = address.run()
widgets.run_chooser(
    list(runs.require_any()),
    name,
    partial(address.show_run, address=address.feature_page),
    render.facts(runs_report.brief(run.record)),
)
store = features.of(run)
index = address.feature(name, store)
row = store.row(index)
describe, label = features.labels_and_tokens(store), features.label(store, index)

with widgets.header(
    f"Feature {index}", f"{name} · {run.hook} · {store.record.tokens:,} tokens read", row["peak_tokens"]
):
    save = partial(controls.save_label, store, index, label)
    controls.label_editor(label, str(store.labels.path), f"{name} {index}", save)
    lists.editor(store, index)
    page = partial(controls.as_html, store, index, name)
    controls.file_button(
        "HTML", page, f"{run.name}-{index}.html", "This feature as a file that opens anywhere"
    )
    last = len(store) - 1
    step, go_to_any = partial(address.step_feature, name, last), partial(address.show_random_feature, store)
    controls.stepper(index, last, address.show_feature, step, go_to_any)
    widgets.page_button("steering/page.py", "Steer", ":material/tune:", steering.address_with(name, index))
known = dead.readable(run)
badges = trust_report.badge(trust.stability(run), index) + dead.badge(known, index, name)
controls.label(feature_report.labelled(*label, badges))
controls.label(explanations.head(store, index))
widgets.warnings(runs.problems(run))
controls.label(feature_report.typical(store.sampled(index), row["peak_tokens"]))
widgets.metrics(feature_report.numbers(row))

left, right = st.columns([5, 3], gap="large")
own = controls.own_text(run)
tokens, values = controls.values_on(own.result, index) if own and own.result else ([], [])
with left:
    with st.expander("Try your own text", expanded=own is not None):
        controls.text_to_try(
            f"own text {name}", "Type or paste a text, then press Try", partial(controls.try_text, run)
        )
        if own:
            widgets.job(own)
        if tokens:
            st.html(feature_report.trial(tokens, values, feature_report.full_scale(row, values)))
            st.caption(render.markdown(feature_report.strongest(tokens, values)[1]))
    if row["fired"]:
        around, most = controls.example_controls(render.legend(*feature_report.value_range(row)))
        positive, negative, bands = store.strongest(index), store.strongest(index, -1), store.bands(index)
        for title, remark, windows in feature_report.groups(positive, negative, bands):
            widgets.section(title, remark)
            st.html(token_strips.examples(windows, feature_report.scale(row), around, most))
    else:
        widgets.empty(*feature_report.dead(store.record.tokens))
        st.caption(render.markdown(dead.remark(run, known, index)))
with right:
    if row["fired"]:
        histogram = store.histogram(index)
        mark = feature_report.strongest(tokens, values)[0] if tokens else None
        widgets.section("Values", "number of tokens by value, both axes logarithmic")
        figure = charts.activations(histogram.edges, histogram.counts, mark)
        widgets.chart(figure, "activation histogram", "values")
    controls.lenses(lenses.sections(store, index))
    st.html(feature_report.weights_line(row))
    if row["fired"]:
        effect, effect_job = controls.effect(store, index), controls.effect_job(run, index)
        widgets.section("Measured effect", "of ablating it where it fires")
        if effect_job:
            widgets.job(effect_job)
        if not effect and not (effect_job and effect_job.running):
            controls.start_button(
                "Measure",
                "Runs the model on its examples with and without the feature." + jobs.usual_time("effect"),
                partial(controls.measure, run, index),
            )
        for title, side in feature_report.effect_sides(effect):
            st.html(feature_report.effect(title, side))
            with st.expander("Token by token"):
                st.html(feature_report.effect_examples(side))
    controls.family(run, store, index, describe, name)
    if row["neighbours"]:
        widgets.section("Nearest features", "by decoder cosine")
        st.html(feature_report.neighbours(row, describe, name))
    if alike := meanings.neighbours(store, index):
        widgets.section("Nearest in meaning", "by the words they fire on")
        st.html(feature_report.alike(alike, describe, name))
    if partners := store.partners(index):
        widgets.section("Fires together with", "on the same tokens, more often than by chance")
        st.html(feature_report.partners(partners, describe, name))
