"""Features: every latent of a run's SAE in one table, with filters, and how often they fire."""

from functools import partial

import streamlit as st
from streamlit.column_config import ButtonColumn, ListColumn, NumberColumn

from app import charts, feature_rows, frame, run_rows
from app.session import choice, features, runs
from sae.show import render

COLUMNS = {
    "feature": ButtonColumn(width=72, alignment="right", key=frame.OPEN, help="Its number in the SAE."),
    "density": NumberColumn(format="%.3g %%", help="Share of the tokens read on which its value is not 0."),
    "firings": NumberColumn(format="localized", help="Number of tokens on which it fires."),
    "max": NumberColumn(format="%.3g", help="Its largest value on any token."),
    "min": NumberColumn(format="%.3g", help="Its most negative value on any token."),
    "mean": NumberColumn(format="%.3g", help="Mean of its values over the tokens on which it fires."),
    "positive": NumberColumn(format="%.0f %%", help="Share of its firings with a value above 0."),
    "fires most on": ListColumn(width="medium", help="The token at the peak of its five strongest examples."),
    "raises": ListColumn(width=300, help="Next tokens its decoder direction favours most (logit lens)."),
    "enc·dec": NumberColumn(format="%.2f", help="Cosine between its encoder and its decoder direction."),
    "nearest": NumberColumn(format="%.2f", help="Decoder cosine with the nearest other feature."),
    "first fired": NumberColumn(format="localized", help="Number of the token on which it first fired."),
}

name, run = choice.run()
frame.run_chooser(list(runs.needed()), name, choice.show_run, render.facts(run_rows.brief(run.about)))
store = features.of(run)
frame.heading("Features", f"{name}: {len(store):,} features, measured on {store.about['tokens']:,} tokens")

table = features.table(store)
plot = st.container()
words, state, density = frame.filters(feature_rows.counts(table), feature_rows.DENSITIES, render.percent)
shown = feature_rows.filtered(table, words, state, *density)
with plot:
    everything, chosen = feature_rows.shares(table), feature_rows.shares(shown)
    frame.section("Density", "features by the share of tokens they fire on")
    frame.chart(charts.densities(everything, chosen), "histogram of densities", "densities")

if len(shown):
    about = f"{len(shown):,} of {len(table):,} features. Click a number to open its page."
    frame.download(about, partial(feature_rows.csv, shown), f"{run.name}-features.csv")
    pressed = frame.pressed_row(feature_rows.labelled(shown), COLUMNS)
    if pressed is not None:
        choice.open_feature(name, shown["feature"][pressed].as_py())
else:
    frame.empty("No feature is like that", "Change the token, the state or the densities.")
