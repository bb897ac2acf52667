"""The runs that the Runs page shows side by side, which the URL names."""

import streamlit as st

from activations.errors import RunError
from app.session import runs

WITH = "with"  # the URL's parameter


def chosen() -> list[str] | None:
    """Return the runs side by side, in the order of the list of runs; None when the page shows a single run.

    Raises RunError when the URL names a run that does not exist."""
    if WITH not in st.query_params:
        return None
    asked = [name for name in st.query_params.get_all(WITH) if name]
    every = runs.by_name()
    for name in asked:
        if name not in every:
            raise RunError(f"there is no run {name!r} in {runs.folder()}; choose from the table")
    return [name for name in every if name in asked]


def choose(names: list[str]) -> None:
    """Show these runs side by side."""
    st.query_params[WITH] = names or [""]


def end() -> None:
    """Show a single run again."""
    st.query_params.pop(WITH, None)
