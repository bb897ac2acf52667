"""The Find page: paste or upload two sets of texts, and get the latents that tell them apart, tested on held-out texts."""

from functools import partial

import streamlit as st

from app import widgets
from app.find import controls, state
from app.session import address, runs
from sae.report import find as find_report
from sae.report import render
from sae.report import runs as runs_report

name, run = address.run()
widgets.run_chooser(
    list(runs.by_name()),
    name,
    partial(address.show_run, address=state.query),
    render.facts(runs_report.brief(run.record)),
)
widgets.heading("Find", f"{name} · {run.hook} · which latents tell two sets of texts apart")
controls.example_boxes(run)
asked = state.current()
if asked is None:
    widgets.empty(
        "Nothing to compare yet",
        "Paste or upload at least four texts into each box; some forty of each say more. Half of them rank the latents, the other "
        "half tests the best.",
    )
    st.stop()
job = state.job(run, asked)
widgets.job(job)
if job.result is None:
    st.stop()

if state.stays_here(asked):
    widgets.note(
        "The texts are too long for the address: a reload or a copied address will ask for them again."
    )
search = job.result
sizes = int(search.first.sum()), int((~search.first).sum())
widgets.metrics(find_report.numbers(search.found, sizes))
if search.repeated:
    widgets.note(f"{search.repeated:,} texts came before, in the same set or the other, and were left out.")
if not search.found.latents:
    widgets.empty(
        "No latent differs", "On the half of the texts that ranks them all latents have the same values."
    )
    st.stop()
if not search.found.kept(find_report.FDR):
    widgets.note(
        "No latent differs beyond chance on the held-out texts. With more texts smaller differences show."
    )
widgets.section("Latents", "the best first; AUC and q on held-out texts")
widgets.long_table(find_report.listing(search.found, controls.describe(run)), controls.COLUMNS, height=420)
if (pressed := widgets.pressed()) is not None:
    address.open_feature(name, search.found.latents[pressed].latent)
address.open_on_enter(name)
widgets.section("Monitor", "one latent with a threshold, for sae monitor and for Python")
controls.monitor_form(run, search)
