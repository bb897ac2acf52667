"""Features: every latent of a run's SAE in one table, with filters, histograms to brush, a map, and a comparison."""

from functools import partial

import streamlit as st
from streamlit.column_config import ButtonColumn, ListColumn, NumberColumn, TextColumn

from app import feature_charts, feature_frame, feature_rows, frame, run_rows
from app.session import choice, feature, features, filters, runs, selection
from sae.show import feature as show
from sae.show import render

COLUMNS = {
    "feature": ButtonColumn(width=72, alignment="right", key=frame.OPEN, help="Its number in the SAE."),
    "label": TextColumn(width="medium", help="What somebody called it, on its page."),
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
selection.follow(name)
frame.run_chooser(
    list(runs.needed()),
    name,
    partial(choice.show_run, address=filters.address),
    render.facts(run_rows.brief(run.about)),
)
store = features.of(run)
frame.heading("Features", f"{name}: {len(store):,} features, measured on {store.about['tokens']:,} tokens")
frame.warnings(runs.problems(run))

named = {latent: label.label for latent, label in feature.labels(store).items()}
table = feature_rows.with_labels(features.table(store), named)
plot = st.container()
chosen = filters.current()
feature_frame.filters(feature_rows.counts(table), feature_rows.DENSITIES, chosen, filters.change)
wanted = feature_rows.Wanted(
    chosen.find, chosen.state, chosen.density, selection.ranges(name), selection.marked(name)
)
shown = feature_rows.filtered(table, wanted, features.haystack(store))
with plot:
    look = feature_frame.look(features.mapped(store), chosen, filters.change)
    if look == feature_frame.HISTOGRAMS:
        panels = feature_charts.panels(table, shown)
        for place, panel in zip(st.columns(len(panels), gap="medium"), panels, strict=True):
            with place:
                frame.section(panel.title, panel.about)
                keep = partial(selection.brush, name, panel.column)
                feature_frame.brush(panel.figure, panel.title, f"brush {panel.title}", panel.ends, keep)
    else:
        colours = features.colours(store, by_cluster=look == feature_frame.BY_CLUSTER)
        figure = feature_charts.directions(
            features.places(store), colours, features.captions(store), shown["feature"].to_pylist()
        )
        mark = partial(selection.mark, name)
        feature_frame.points(figure, "map of decoder directions", "map", mark, selection.click)
    feature_frame.marks(feature_charts.marks(wanted), partial(selection.clear, name))

compared = selection.compared(len(store))
if len(shown):
    about = f"{len(shown):,} of {len(table):,} features. Click a number to open its page, mark rows to compare them."
    frame.download(about, partial(feature_rows.csv, shown), f"{run.name}-features.csv")
    marked = feature_rows.places(shown, compared)
    keep = partial(selection.compare_rows, shown, compared)
    feature_frame.markable_rows(feature_rows.labelled(shown), COLUMNS, marked, keep)
    if (pressed := frame.pressed()) is not None:
        choice.open_feature(name, shown["feature"][pressed].as_py())
else:
    frame.empty("No feature is like that", "Change the search, the state, the densities or the brushes.")
if compared:
    with frame.header(
        "Compared", f"{len(compared)} features side by side, {selection.MOST_COMPARED} at most", level=2
    ):
        st.button("Clear", icon=":material/close:", on_click=selection.compare, args=[[]])
    for place, latent in zip(st.columns(len(compared), gap="medium"), compared, strict=True):
        place.html(show.card(store.feature(latent), name))
if len(compared) > 1:
    st.html(show.pairs(feature.pairs(run, store, compared), name))
