"""Feature: one latent's examples by value band, its histogram, logit lens, neighbours and numbers."""

from functools import partial

import streamlit as st

from app import charts, feature_rows, frame, run_rows
from app.session import choice, dead, features, runs
from sae.show import render

name, run = choice.run()
frame.run_chooser(list(runs.needed()), name, choice.show_run, render.facts(run_rows.brief(run.about)))
store = features.of(run)
index = choice.feature(name, store)
row = store.row(index)

about = f"{name} · {run.hook} · {store.about['tokens']:,} tokens read"
with frame.header(f"Feature {index}", about, row["peak_tokens"]):
    frame.stepper(index, len(store) - 1, choice.show_feature, partial(choice.show_random_feature, store))
frame.metrics(feature_rows.numbers(row))

left, right = st.columns([5, 3], gap="large")
with left:
    if row["fired"]:
        around, most = frame.example_controls(render.legend(*feature_rows.value_range(row)))
        positive, negative, bands = store.strongest(index), store.strongest(index, -1), store.bands(index)
        for title, about, windows in feature_rows.groups(positive, negative, bands):
            frame.section(title, about)
            st.html(render.examples(windows, feature_rows.scale(row), around, most))
    else:
        frame.empty(*feature_rows.dead(store.about["tokens"]))
        st.caption(render.markdown(dead.remark(run, index)))
with right:
    if row["fired"]:
        histogram = store.histogram(index)
        frame.section("Values", "tokens by value, both axes logarithmic")
        frame.chart(charts.activations(histogram.edges, histogram.counts), "activation histogram", "values")
    if feature_rows.has_lens(row):
        frame.section("Logit lens", "next tokens its direction favours and disfavours")
        raised, lowered = st.columns(2)
        raised.html(render.logits("raised", row["raised_tokens"], row["raised_logits"]))
        lowered.html(render.logits("lowered", row["lowered_tokens"], row["lowered_logits"]))
    if row["neighbours"]:
        frame.section("Nearest features", "by the cosine of their decoder directions")
        st.html(render.neighbours(feature_rows.neighbours(row, store.table), name))
