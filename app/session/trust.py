"""What `sae trust` found out about runs, read once: verdicts beside the controls, and how stable each latent is over seeds."""

from pathlib import Path

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from activations.errors import RunError
from app.session.runs import stamp
from app.widgets import error
from sae.runs.run import TRUST, Run
from sae.runs.trust import INDEX, Trust, trust_of


def of(run: Run) -> Trust | None:
    """Return what was found out about the run's present weights; None where nothing was. Raises RunError when it is damaged."""
    return _trust(run.path, stamp(run.path / TRUST / INDEX), run.finished)


def stability(run: Run) -> NDArray[np.float64] | None:
    """Return the stability of each latent over seeds; None where it has not been measured. Damage is reported in the page."""
    try:
        found = of(run)
        return None if found is None else found.stability
    except RunError as damage:
        error(damage.message, damage.fix)
        return None


# The stamp is part of the key, so that the result of another `sae trust` shows up.
@st.cache_resource(max_entries=8, show_spinner=False)
def _trust(path: Path, stamp: tuple[int, int], finished: bool) -> Trust | None:
    return trust_of(Run(path))
