"""State and controls of the Evidence page: what was found out about a run, and the report as a file."""

from functools import partial

import streamlit as st

from app import widgets
from app.session import runs, trust
from app.widgets import Missing
from sae.probing.absorption import AbsorptionRecord
from sae.report import absorption as absorption_report
from sae.report import trust as trust_report
from sae.runs.run import Run
from sae.runs.trust import Trust, TrustRecord
from sae.trust.plan import without_controls


def found(run: Run) -> Trust:
    """Return what `sae trust` found out about the run. Raises Missing where it has not run, RunError when its files are damaged."""
    known = trust.of(run) if run.finished else None
    if known is None:
        raise Missing(*nothing(run))
    return known


def nothing(run: Run) -> tuple[str, str, str]:
    """Return, of a run that has not been compared with controls, a title, why that is so, and the command that would compare it."""
    if not run.finished:
        why = f"{run.path.name} has not finished training. It can be compared with its controls after that."
        return "No evidence yet", why, run.resume
    if how := without_controls(run):
        why = f"{run.path.name} {how}: its controls would need the store, the start and the steps that it was trained with."
        return "No evidence", why, ""
    why = (
        "Is this SAE better than one with a random decoder or encoder, than PCA, than itself with another seed? Finding "
        "out trains several SAEs of the same size; the command first tells how long."
    )
    return "No evidence yet", why, runs.command("trust", run)


def show_absorption(record: AbsorptionRecord | None) -> None:
    """Show what `sae absorption` measured, where it has."""
    if record is None:
        return
    widgets.section("Absorption of first letters", absorption_report.basis(record))
    widgets.note(absorption_report.conclusion(record))
    widgets.note(absorption_report.HELP)
    st.html(absorption_report.tables(record))


def report_button(record: TrustRecord, name: str) -> None:
    """Show a button that saves the report as one HTML file, which is made when the button is pressed."""
    st.download_button(
        "HTML",
        partial(trust_report.page, record, name),
        f"{name.replace('/', '-')}-evidence.html",
        "text/html",
        icon=":material/download:",
        on_click="ignore",
        help="This report as a file that opens anywhere",
    )
