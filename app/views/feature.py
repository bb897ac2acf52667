"""Feature: one latent's examples by value band, its histogram, what it writes and does, what is near, own text."""

from functools import partial

import streamlit as st

from app import charts, feature_frame, frame, run_rows
from app.session import choice, dead, feature, features, runs, steering
from sae.show import feature as show
from sae.show import render, strips

name, run = choice.run()
frame.run_chooser(
    list(runs.needed()),
    name,
    partial(choice.show_run, address=choice.with_feature),
    render.facts(run_rows.brief(run.about)),
)
store = features.of(run)
index = choice.feature(name, store)
row = store.row(index)
about, (label, note) = feature.names(store), feature.label(store, index)

with frame.header(
    f"Feature {index}", f"{name} · {run.hook} · {store.about['tokens']:,} tokens read", row["peak_tokens"]
):
    keep = partial(feature.save_label, store, index)
    feature_frame.label_editor(label, note, str(store.labels.path), f"{name} {index}", keep)
    page = partial(feature.html, store, index, name)
    feature_frame.file_button(
        "HTML", page, f"{run.name}-{index}.html", "this page as a file that opens anywhere"
    )
    frame.stepper(index, len(store) - 1, choice.show_feature, partial(choice.show_random_feature, store))
    frame.page_button("views/steering.py", "Steer", ":material/tune:", steering.address_with(name, index))
feature_frame.label(show.labelled(label, note))
frame.warnings(runs.problems(run))
frame.metrics(show.numbers(row))

left, right = st.columns([5, 3], gap="large")
own = feature.own_text(run)
tokens, values = feature.on_own(own.result, index) if own and own.result else ([], [])
with left:
    with st.expander("Try your own text", expanded=own is not None):
        feature_frame.text_to_try(
            f"own text {name}", "type or paste, then Try", partial(feature.try_own, run)
        )
        if own:
            frame.job(own)
        if tokens:
            st.html(show.trial(tokens, values, show.full_scale(row, values)))
            st.caption(render.markdown(show.strongest(tokens, values)[1]))
    if row["fired"]:
        around, most = frame.example_controls(render.legend(*show.value_range(row)))
        positive, negative, bands = store.strongest(index), store.strongest(index, -1), store.bands(index)
        for title, remark, windows in show.groups(positive, negative, bands):
            frame.section(title, remark)
            st.html(strips.examples(windows, show.scale(row), around, most))
    else:
        frame.empty(*show.dead(store.about["tokens"]))
        st.caption(render.markdown(dead.remark(run, index)))
with right:
    if row["fired"]:
        histogram = store.histogram(index)
        mark = show.strongest(tokens, values)[0] if tokens else None
        frame.section("Values", "tokens by value, both axes logarithmic")
        figure = charts.activations(histogram.edges, histogram.counts, mark)
        frame.chart(figure, "activation histogram", "values")
    if show.has_lens(row):
        frame.section("Logit lens", "next tokens its direction favours and disfavours")
        raised, lowered = st.columns(2)
        raised.html(render.logits("raised", row["raised_tokens"], row["raised_logits"]))
        lowered.html(render.logits("lowered", row["lowered_tokens"], row["lowered_logits"]))
    if row["fired"]:
        effect, effect_job = feature.effect(store, index), feature.effect_job(run, index)
        frame.section("Measured effect", "by taking it out where it fires")
        if effect_job:
            frame.job(effect_job)
        if not effect and not (effect_job and effect_job.running):
            feature_frame.ask(
                "Measure",
                "runs its examples with and without it: some ten seconds",
                partial(feature.measure, run, index),
            )
        for title, side in show.effect_sides(effect):
            st.html(show.effect(title, side))
            with st.expander("Token by token"):
                st.html(show.effect_examples(side))
    if row["neighbours"]:
        frame.section("Nearest features", "by the cosine of their decoder directions")
        st.html(show.neighbours(row, about, name))
    if partners := store.partners(index):
        frame.section("Fires together with", "on the same tokens more often than by chance")
        st.html(show.partners(partners, about, name))
