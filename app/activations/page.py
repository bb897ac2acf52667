"""The Activations page: what a store holds, and the geometry of its hook points."""

import streamlit as st

from app import widgets
from app.activations import controls
from sae.report import geometry as report

name, store = controls.store()
controls.store_chooser(name)
geometry = controls.geometry(store)
widgets.heading("Activations", f"{name}: {report.facts(store)}")
if geometry is None:
    widgets.empty("The geometry is not measured yet", report.QUESTION, controls.command(store))
    controls.measure_button(store)
    st.stop()

widgets.note(report.basis(geometry))
widgets.section("Which hook point?")
widgets.note(report.advice(geometry))
widgets.note(report.massive_note(geometry) or "")
controls.table(geometry)
left, right = st.columns(2, gap="large")
with left:
    widgets.section("Norms", "Euclidean length of a row")
    widgets.chart(report.norms(geometry), "norms of rows at each hook point", "norms")
    widgets.section("Anisotropy", "mean cosine of two rows; 0 where rows point everywhere")
    widgets.chart(report.anisotropy(geometry), "mean cosine of two rows at each hook point", "anisotropy")
with right:
    widgets.section("Intrinsic dimension", "with 95 % intervals; a lower bound where it is high")
    widgets.chart(report.dimension(geometry), "intrinsic dimension at each hook point", "dimension")
    linearity = report.linearity(geometry)
    if linearity:
        widgets.section("Linearity", "1 where a linear map gives the next hook point's rows")
        widgets.chart(linearity, "linearity between successive hook points", "linearity")
