"""The Evidence page: each measure of a run beside its controls and seeds, what can be said of it, and how stable its latents are."""

import streamlit as st

from app import widgets
from app.evidence import controls
from app.session import absorption, address, runs, trust
from sae.evaluation.measures import MEASURES
from sae.report import features_charts, render
from sae.report import runs as runs_report
from sae.report import trust as trust_report

name, run = address.run()
widgets.run_chooser(
    list(runs.require_any()), name, address.show_run, render.facts(runs_report.brief(run.record))
)
absorbed = absorption.of(run)
if absorbed and trust.of(run) is None:
    widgets.heading("Evidence", name)
    controls.show_absorption(absorbed)
    widgets.empty(*controls.nothing(run))
    st.stop()
found = controls.found(run)
record = found.record
with widgets.header("Evidence", f"{name}: {trust_report.basis(record)}"):
    controls.report_button(record, name)
widgets.warnings(trust_report.cautions(record))
widgets.metrics(trust_report.numbers(record))
st.html(
    "".join(f'<p class="sae verdict">{render.escaped(text)}</p>' for text in trust_report.conclusions(record))
)
for measure, beside in record.measures.items():
    widgets.section(MEASURES[measure].title, trust_report.remark(beside))
    st.html(trust_report.table(record, measure))
widgets.section(
    "Stability of latents",
    f"number of latents by mean largest |cosine| in the other seeds; random directions have {record.stability.chance:.2f}",
)
widgets.chart(
    features_charts.spread(found.stability, found.stability), "number of latents by stability", "stability"
)
widgets.note("The Features page has the stability of each latent as a column, and lists the stable ones.")
controls.show_absorption(absorbed)
