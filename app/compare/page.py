"""Compare: two runs side by side, their features matched one with another."""

from functools import partial

import streamlit as st
from streamlit.column_config import ButtonColumn, ListColumn, NumberColumn

from app import widgets
from app.compare import controls, state
from app.session import address, features, runs
from sae.report import charts, render, token_strips
from sae.report import compare as compare_report
from sae.report import feature as feature_report
from sae.report import runs as runs_report

COLUMNS = {
    "feature": ButtonColumn(
        width=80, alignment="left", key=widgets.OPEN, help="Press to see both side by side."
    ),
    "similarity": NumberColumn(format="%.3f", help="With the nearest of the other run."),
    "nearest": NumberColumn(help="The nearest of the other run."),
    "density": NumberColumn(format="%.3g %%", help="Share of tokens on which the feature fires."),
    "fires on": ListColumn(width="medium"),
    "nearest density": NumberColumn(format="%.3g %%", help="Share of tokens on which the nearest fires."),
    "nearest fires on": ListColumn(width="medium"),
    "partner": NumberColumn(help="Its partner when every feature gets one of its own."),
    "partner similarity": NumberColumn(format="%.3f"),
}

name, run = address.run()
widgets.run_chooser(
    list(runs.found()),
    name,
    partial(address.show_run, address=state.query),
    render.facts(runs_report.brief(run.record)),
)
other, second = state.second(name, run)
with widgets.header("Compare", f"{name} · {runs_report.summary(run.record)}"):
    controls.other_chooser(list(state.candidates(name)), other, state.show_second)

heads, measured = runs_report.short((name, other)), runs.evaluations({name: run, other: second})
state.check(run, second)
found, job = state.matched(run, second), state.matching(run, second)
with st.expander("Evaluation and settings", expanded=found is None):
    left, right = st.columns(2, gap="large")
    with left:
        widgets.section("Evaluation", "each on its own held-out text")
        values = runs_report.side_by_side([measured.get(name), measured.get(other)])
        evaluate = runs.command("evaluate", run)
        widgets.html_or_note(
            render.columns(heads, values) if values else "", "Neither is evaluated.", evaluate
        )
    with right:
        widgets.section("Settings that differ")
        rows = [
            (label, "", column)
            for label, column in runs_report.differing({name: run.record, other: second.record})
        ]
        widgets.html_or_note(render.columns(heads, rows) if rows else "", "None: they were trained alike.")
if found is None:
    widgets.section("Features", "which of one run's features the other has too")
    controls.match_button(partial(state.begin, run, second), bool(job and job.running))
if job:
    widgets.job(job)
if found is None:
    st.stop()

with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="compare-controls"):
    measure = controls.measure_chooser(compare_report.MEASURES)
    kind = controls.kind_chooser(compare_report.KINDS, compare_report.counts(found, measure))
widgets.metrics(compare_report.numbers(found, measure))
edges, bars = compare_report.bin_edges(found, measure), compare_report.histogram(found, measure)
widgets.section(
    "Similarity", f"above: this run's features; below: the other's · {compare_report.basis(found)}"
)
widgets.chart(compare_report.similarities(edges, bars, found.near), "features by similarity", "similarities")
listing = compare_report.listing(found, measure, kind, state.table(run), state.table(second))
if len(listing):
    widgets.section(kind.capitalize(), compare_report.KINDS[kind][1])
    widgets.long_table(compare_report.labelled(listing), COLUMNS, height=320)
    if (pressed := widgets.pressed()) is not None:
        state.show_pair(*compare_report.pair(listing, kind, pressed))
else:
    widgets.empty(f"No feature is {kind}", compare_report.KINDS[kind][1])


def side(place: int, label: str, one: runs.Run, latent: int) -> None:
    """One of the two features: its numbers, how often it fires with which value, its strongest examples."""
    with widgets.header(f"Feature {latent}", label, level=2, key=f"header-side-{place}"):
        link = {"run": label, "feature": str(latent)}
        widgets.page_button("feature/page.py", "Open", ":material/target:", link, key=f"page-button-{place}")
    if not features.collected(one):
        widgets.empty("No features yet", "What it fires on is not known.", runs.command("features", one))
        return
    store = features.of(one)
    row = store.row(latent)
    widgets.metrics(feature_report.numbers(row), key=f"side-metrics-{place}")
    if not row["fired"]:
        widgets.empty(*feature_report.dead(store.about["tokens"]))
        return
    values = store.histogram(latent)
    widgets.chart(charts.activations(values.edges, values.counts), "activation histogram", f"values-{place}")
    for title, about, windows in feature_report.groups(
        store.strongest(latent), store.strongest(latent, -1), []
    ):
        widgets.section(title, about)
        st.html(token_strips.examples(windows, feature_report.scale(row), 16, 6))


chosen = state.pair(compare_report.sizes(found))
if chosen:
    widgets.section("Side by side", compare_report.similarity(found, *chosen))
    left, right = st.columns(2, gap="large")
    with left:
        side(0, name, run, chosen[0])
    with right:
        side(1, other, second, chosen[1])
