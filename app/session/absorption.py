"""What `sae absorption` measured of runs, read once for each state of the file."""

from pathlib import Path

import streamlit as st

from activations.errors import RunError
from app.session.runs import stamp
from app.widgets import error
from sae.probing.absorption import ABSORPTION, AbsorptionRecord
from sae.runs.run import Run
from sae.workflows.absorption import read_absorption


def of(run: Run) -> AbsorptionRecord | None:
    """Return what was measured of the run's present weights; None where nothing was, or not all letters. Damage is reported in the page."""
    try:
        record = _absorption(run.path, stamp(run.path / ABSORPTION), run.finished)
    except RunError as damage:
        error(damage.message, damage.fix)
        return None
    return record if record and record.complete else None


# The stamp is part of the key, so that the result of another `sae absorption` shows up.
@st.cache_resource(max_entries=8, show_spinner=False)
def _absorption(path: Path, stamp: tuple[int, int], finished: bool) -> AbsorptionRecord | None:
    return read_absorption(Run(path)) if finished else None
