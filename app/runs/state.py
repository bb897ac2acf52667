"""Several runs looked at together on the Runs page: which, as the URL says."""

import streamlit as st

from activations.errors import RunError
from app.session import runs

WITH = "with"


def chosen() -> list[str] | None:
    """The runs the URL puts together, in the order of the list of runs; None when it does not put any together.

    Raises RunError when one of them is not there."""
    if WITH not in st.query_params:
        return None
    asked = [name for name in st.query_params.get_all(WITH) if name]
    found = runs.found()
    for name in asked:
        if name not in found:
            raise RunError(f"there is no run {name!r} in {runs.folder()}: choose among those in the table")
    return [name for name in found if name in asked]


def choose(names: list[str]) -> None:
    """Put these together."""
    st.query_params[WITH] = names or [""]


def end() -> None:
    """Look at one run again."""
    st.query_params.pop(WITH, None)
