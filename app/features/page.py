"""Features: every latent of a run's SAE in one table, with filters, histograms to brush, a map, and a comparison."""

from functools import partial

import streamlit as st
from streamlit.column_config import ButtonColumn, ListColumn, NumberColumn, TextColumn

from app import widgets
from app.feature import state as feature
from app.features import controls
from app.features import state as filters
from app.features import state as selection
from app.session import address, features, runs
from sae.report import feature as feature_report
from sae.report import features as features_report
from sae.report import features_charts, render
from sae.report import runs as runs_report

COLUMNS = {
    "feature": ButtonColumn(width=72, alignment="right", key=widgets.OPEN, help="Its number in the SAE."),
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

name, run = address.run()
selection.follow(name)
widgets.run_chooser(
    list(runs.needed()),
    name,
    partial(address.show_run, address=filters.query),
    render.facts(runs_report.brief(run.record)),
)
store = features.of(run)
widgets.heading("Features", f"{name}: {len(store):,} features, measured on {store.about['tokens']:,} tokens")
widgets.warnings(runs.problems(run))

named = {latent: label.label for latent, label in feature.labels(store).items()}
table = features_report.with_labels(features.table(store), named)
plot = st.container()
chosen = filters.current()
controls.filters(features_report.counts(table), features_report.DENSITIES, chosen, filters.change)
wanted = features_report.Wanted(
    chosen.find, chosen.state, chosen.density, selection.ranges(name), selection.marked(name)
)
shown = features_report.filtered(table, wanted, features.haystack(store))
with plot:
    look = controls.look(features.mapped(store), chosen, filters.change)
    if look == controls.HISTOGRAMS:
        panels = features_charts.panels(table, shown)
        for place, panel in zip(st.columns(len(panels), gap="medium"), panels, strict=True):
            with place:
                widgets.section(panel.title, panel.about)
                keep = partial(selection.brush, name, panel.column)
                controls.brush(panel.figure, panel.title, f"brush {panel.title}", panel.ends, keep)
    else:
        colours = features.colours(store, by_cluster=look == controls.BY_CLUSTER)
        figure = features_charts.directions(
            features.places(store), colours, features.captions(store), shown["feature"].to_pylist()
        )
        mark = partial(selection.mark, name)
        controls.points(figure, "map of decoder directions", "map", mark, selection.click)
    controls.marks(features_charts.marks(wanted), partial(selection.clear, name))

compared = selection.compared(len(store))
if len(shown):
    about = f"{len(shown):,} of {len(table):,} features. Click a number to open its page, mark rows to compare them."
    widgets.download(about, partial(features_report.csv, shown), f"{run.name}-features.csv")
    marked = features_report.places(shown, compared)
    keep = partial(selection.compare_rows, shown, compared)
    controls.markable_rows(features_report.labelled(shown), COLUMNS, marked, keep)
    if (pressed := widgets.pressed()) is not None:
        address.open_feature(name, shown["feature"][pressed].as_py())
else:
    widgets.empty("No feature is like that", "Change the search, the state, the densities or the brushes.")
if compared:
    with widgets.header(
        "Compared", f"{len(compared)} features side by side, {selection.MOST_COMPARED} at most", level=2
    ):
        st.button("Clear", icon=":material/close:", on_click=selection.compare, args=[[]])
    for place, latent in zip(st.columns(len(compared), gap="medium"), compared, strict=True):
        place.html(feature_report.card(store.feature(latent), name))
if len(compared) > 1:
    st.html(feature_report.pairs(feature.pairs(run, store, compared), name))
