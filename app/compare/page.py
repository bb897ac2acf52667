"""The Compare page: two runs side by side, and the features of one matched with those of the other."""

from functools import partial

import streamlit as st

from app import widgets
from app.compare import controls
from app.session import address, features, navigation, runs
from sae.report import charts, render, token_strips
from sae.report import compare as compare_report
from sae.report import feature as feature_report
from sae.report import runs as runs_report

name, run = address.run()
widgets.run_chooser(
    list(runs.by_name()),
    name,
    partial(address.show_run, address=controls.query),
    render.facts(runs_report.brief(run.record)),
)
other, second = controls.second(name, run)
with widgets.header("Compare", f"{name} · {runs_report.summary(run.record)}"):
    controls.other_chooser(list(controls.candidates(name)), other, controls.show_second)

heads, evaluations = runs_report.short((name, other)), runs.evaluations({name: run, other: second})
controls.check(run, second)
comparison, job = controls.matched(run, second), controls.matching(run, second)
with st.expander("Evaluation and settings", expanded=comparison is None):
    left, right = st.columns(2, gap="large")
    with left:
        widgets.section("Evaluation", "each on its own held-out text")
        values = runs_report.side_by_side([evaluations.get(name), evaluations.get(other)])
        missing = runs.from_store("evaluate", run, "Neither run has been evaluated.")
        widgets.html_or_note(render.columns(heads, values) if values else "", *missing)
    with right:
        widgets.section("Settings that differ")
        rows = [
            (label, "", column)
            for label, column in runs_report.differing({name: run.record, other: second.record})
        ]
        widgets.html_or_note(render.columns(heads, rows) if rows else "", "None: both were trained alike.")
if comparison is None:
    widgets.section("Features", "which features of one run the other has too")
    controls.match_button(partial(controls.begin, run, second), bool(job and job.running))
if job:
    widgets.job(job)
if comparison is None:
    st.stop()

with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="compare-controls"):
    measure = controls.measure_chooser(compare_report.MEASURES)
    kind = controls.kind_chooser(compare_report.KINDS, compare_report.counts(comparison, measure))
widgets.metrics(compare_report.numbers(comparison, measure))
edges, bars = compare_report.bin_edges(comparison, measure), compare_report.histogram(comparison, measure)
widgets.section(
    "Similarity",
    f"up: this run's features; down: those of the other run · {compare_report.basis(comparison)}",
)
widgets.chart(
    compare_report.similarities(edges, bars, comparison.near),
    "histogram of features by similarity",
    "similarities",
)
listing = compare_report.listing(comparison, measure, kind, controls.table(run), controls.table(second))
if len(listing):
    widgets.section(kind.capitalize(), compare_report.KINDS[kind][1])
    widgets.long_table(compare_report.labelled(listing), controls.COLUMNS, height=320)
    if (pressed := widgets.pressed()) is not None:
        controls.show_pair(other, *compare_report.pair(listing, kind, pressed))
        navigation.show_part("side-by-side")
    navigation.open_on_enter("compare", controls.address_of_pairs(other), compare_report.cells(kind))
else:
    widgets.empty(f"No feature is {kind}", compare_report.KINDS[kind][1])


def side(place: int, run_name: str, run: runs.Run, latent: int) -> None:
    """Show one of the two features: its numbers, the histogram of its values, its strongest examples."""
    with widgets.header(f"Feature {latent}", run_name, level=2, key=f"header-side-{place}"):
        link = {"run": run_name, "feature": str(latent)}
        widgets.page_button("feature/page.py", "Open", ":material/target:", link, key=f"page-button-{place}")
    if not features.collected(run):
        missing = runs.from_store("features", run, "What it fires on is unknown.")
        widgets.empty("No features yet", *missing, level=3)
        return
    store = features.of(run)
    row = store.row(latent)
    widgets.metrics(feature_report.numbers(row), key=f"side-metrics-{place}")
    if not row["fired"]:
        widgets.empty(*feature_report.dead(store.record.tokens), level=3)
        return
    values = store.histogram(latent)
    widgets.chart(charts.activations(values.edges, values.counts), "activation histogram", f"values-{place}")
    for title, remark, windows in feature_report.groups(
        store.strongest(latent), store.strongest(latent, -1), []
    ):
        widgets.section(title, remark, level=3)
        st.html(token_strips.examples(windows, feature_report.scale(row), 16, 6))


chosen = controls.pair(compare_report.sizes(comparison), other)
if chosen:
    with st.container(key="side-by-side"):
        widgets.section("Side by side", compare_report.similarity(comparison, *chosen))
        above = controls.parents(run, second, chosen)
        if above and (told := compare_report.parents(comparison, measure, *above)):
            st.caption(render.markdown(told))
    left, right = st.columns(2, gap="large")
    with left:
        side(0, name, run, chosen[0])
    with right:
        side(1, other, second, chosen[1])
