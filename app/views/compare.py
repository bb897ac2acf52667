"""Compare: two runs side by side, their features matched one with another."""

from functools import partial

import streamlit as st
from streamlit.column_config import ButtonColumn, ListColumn, NumberColumn

from app import charts, compare_charts, compare_frame, compare_rows, frame, run_rows
from app.session import choice, compare, features, runs
from sae.show import feature as show
from sae.show import render, strips, tables

COLUMNS = {
    "feature": ButtonColumn(
        width=80, alignment="left", key=frame.OPEN, help="Press to see both side by side."
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

name, run = choice.run()
frame.run_chooser(
    list(runs.found()),
    name,
    partial(choice.show_run, address=compare.address),
    render.facts(run_rows.brief(run.about)),
)
other, second = compare.second(name, run)
with frame.header("Compare", f"{name} · {run_rows.summary(run.about)}"):
    compare_frame.other_chooser(list(compare.candidates(name)), other, compare.show_second)

heads, measured = run_rows.short((name, other)), runs.evaluations({name: run, other: second})
compare.check(run, second)
found, job = compare.matched(run, second), compare.matching(run, second)
with st.expander("Evaluation and settings", expanded=found is None):
    left, right = st.columns(2, gap="large")
    with left:
        frame.section("Evaluation", "each on its own held-out text")
        values = run_rows.side_by_side([measured.get(name), measured.get(other)])
        evaluate = runs.command("evaluate", run)
        frame.html_or_note(tables.columns(heads, values) if values else "", "Neither is evaluated.", evaluate)
    with right:
        frame.section("Settings that differ")
        rows = [
            (label, "", column)
            for label, column in run_rows.differing({name: run.about, other: second.about})
        ]
        frame.html_or_note(tables.columns(heads, rows) if rows else "", "None: they were trained alike.")
if found is None:
    frame.section("Features", "which of one run's features the other has too")
    compare_frame.match_button(partial(compare.begin, run, second), bool(job and job.running))
if job:
    frame.job(job)
if found is None:
    st.stop()

with st.container(horizontal=True, vertical_alignment="bottom", gap="large", key="compare-controls"):
    measure = compare_frame.measure_chooser(compare_rows.MEASURES)
    kind = compare_frame.kind_chooser(compare_rows.KINDS, compare_rows.counts(found, measure))
frame.metrics(compare_rows.numbers(found, measure))
edges, bars = compare_rows.bin_edges(found, measure), compare_rows.histogram(found, measure)
frame.section("Similarity", f"above: this run's features; below: the other's · {compare_rows.basis(found)}")
frame.chart(compare_charts.similarities(edges, bars, found["near"]), "features by similarity", "similarities")
listing = compare_rows.listing(found, measure, kind, compare.table(run), compare.table(second))
if len(listing):
    frame.section(kind.capitalize(), compare_rows.KINDS[kind][1])
    frame.long_table(compare_rows.labelled(listing), COLUMNS, height=320)
    if (pressed := frame.pressed()) is not None:
        compare.show_pair(*compare_rows.pair(listing, kind, pressed))
else:
    frame.empty(f"No feature is {kind}", compare_rows.KINDS[kind][1])


def side(place: int, label: str, one: runs.Run, latent: int) -> None:
    """One of the two features: its numbers, how often it fires with which value, its strongest examples."""
    with frame.header(f"Feature {latent}", label, level=2, key=f"header-side-{place}"):
        link = {"run": label, "feature": str(latent)}
        frame.page_button("views/feature.py", "Open", ":material/target:", link, key=f"page-button-{place}")
    if not features.collected(one):
        frame.empty("No features yet", "What it fires on is not known.", runs.command("features", one))
        return
    store = features.of(one)
    row = store.row(latent)
    frame.metrics(show.numbers(row), key=f"side-metrics-{place}")
    if not row["fired"]:
        frame.empty(*show.dead(store.about["tokens"]))
        return
    values = store.histogram(latent)
    frame.chart(charts.activations(values.edges, values.counts), "activation histogram", f"values-{place}")
    for title, about, windows in show.groups(store.strongest(latent), store.strongest(latent, -1), []):
        frame.section(title, about)
        st.html(strips.examples(windows, show.scale(row), 16, 6))


chosen = compare.pair(compare_rows.sizes(found))
if chosen:
    frame.section("Side by side", compare_rows.similarity(found, *chosen))
    left, right = st.columns(2, gap="large")
    with left:
        side(0, name, run, chosen[0])
    with right:
        side(1, other, second, chosen[1])
