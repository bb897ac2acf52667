"""The Features page: all latents of an SAE in one table, with filters, histograms to brush, a map, and a comparison."""

from functools import partial

import streamlit as st

from app import widgets
from app.features import controls, lists, state
from app.session import address, explanations, features, maps, meanings, runs, trust
from sae.report import feature as feature_report
from sae.report import feature_map, features_charts, render, search
from sae.report import features as features_report
from sae.report import runs as runs_report

name, run = address.run()
widgets.run_chooser(
    list(runs.require_any()),
    name,
    partial(address.show_run, address=state.query),
    render.facts(runs_report.brief(run.record)),
)
store = features.of(run)
widgets.heading("Features", f"{name}: {len(store):,} features, measured on {store.record.tokens:,} tokens")
widgets.warnings(runs.problems(run))

labels = {latent: label.label for latent, label in features.labels(store).items()}
table = features_report.with_stability(features.table(store), trust.stability(run))
table = explanations.with_explanations(table, store)
table = features_report.with_labels(table, labels)
overview = st.container()
chosen, collected = state.current(), features.lists(store)
listed = lists.chosen(collected)
table = features_report.with_notes(table, collected.get(listed))
state.remember(name, collected)
kinds = state.kinds(explanations.kinds(store), chosen)
controls.filters(features_report.counts(table), kinds, features_report.DENSITIES, chosen, state.change)
wanted = features_report.Wanted(
    chosen.words,
    chosen.state,
    chosen.density,
    state.ranges(),
    state.marked(),
    collected.get(listed),
    kinds.get(chosen.rule),
)
shown = features_report.filtered(table, wanted, features.haystack(store))
if chosen.words.strip():
    shown = search.ranked(shown, chosen.words, store.texts)
if chosen.by == state.MEANING:
    known = meanings.searchable(store)
    if known is None:  # of damage, `searchable` has told
        if not meanings.damaged(store):
            job, collect = meanings.collecting(store), partial(meanings.collect, store)
            controls.words_first(*meanings.needed(store), job, collect)
    elif chosen.meaning:
        shown = search.by_meaning(shown, meanings.scores(store, known, chosen.meaning), known.commonest)
with overview:
    look = controls.look(maps.mapped(store), chosen, state.change)
    if look == controls.HISTOGRAMS:
        panels = features_charts.panels(table, shown)
        columns = st.container(key="histograms").columns(len(panels), gap="medium")
        for place, panel in zip(columns, panels, strict=True):
            with place:
                widgets.section(panel.title, panel.remark)
                brush = partial(state.brush, name, panel.column)
                controls.brush(panel.figure, panel.title, f"brush {panel.title}", panel.ends, brush)
    else:
        colours = maps.colours(store, by_cluster=look == controls.BY_CLUSTER)
        figure = feature_map.directions(
            maps.places(store),
            colours,
            maps.captions(store),
            shown["feature"].to_pylist(),
            maps.labels(store),
        )
        mark = partial(state.mark, name)
        controls.points(
            figure, "map of decoder directions", "map", mark, partial(address.aim_at_feature, name)
        )
    controls.marks(features_charts.marks(wanted), partial(state.clear, name))

compared = state.compared(len(store))
if len(shown):
    caption = f"{len(shown):,} of {len(table):,} features. Click a number to open the feature's page; tick rows to compare them."
    with st.container(horizontal=True, vertical_alignment="center"):
        table_as_csv = partial(features_report.csv, shown, features_report.PERCENTAGES)
        widgets.download(caption, table_as_csv, f"{run.name}-features.csv")
        lists.chooser(collected, listed)
        lists.menu(store, listed, shown["feature"].to_pylist())
    marked = features_report.places(shown, compared)
    compare = partial(state.compare_rows, shown, compared)
    controls.markable_rows(features_report.labelled(shown), marked, compare)
    address.open_on_enter(name)
    if (pressed := widgets.pressed()) is not None:
        address.open_feature(name, shown["feature"][pressed].as_py())
else:
    controls.nothing(chosen, state.change)
    lists.chooser(collected, listed)
if compared:
    with widgets.header(
        "Compared", f"{len(compared)} features side by side, at most {state.MOST_COMPARED}", level=2
    ):
        st.button("Clear", icon=":material/close:", on_click=state.compare, args=[[]])
    for place, latent in zip(st.columns(len(compared), gap="medium"), compared, strict=True):
        place.html(feature_report.card(store.feature(latent), name))
if len(compared) > 1:
    st.html(feature_report.pairs(state.pairs(run, store, compared), name))
