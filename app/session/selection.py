"""What the visitor marked on the Features page: ranges brushed in histograms, features on the map, those to compare.

Brushes and marks belong to a run and last as long as the visit; the features compared are in the URL."""

from collections.abc import Sequence

import pyarrow as pa
import streamlit as st

from app.session import choice

MOST_COMPARED = 4


def ranges(run: str) -> dict[str, tuple[float, float]]:
    """Column of the table -> the range brushed."""
    return st.session_state.get(f"brushed {run}", {})


def brush(run: str, column: str, ends: tuple[float, float]) -> None:
    """Keep to features whose value in a column lies between these."""
    st.session_state[f"brushed {run}"] = {**ranges(run), column: ends}


def marked(run: str) -> list[int] | None:
    """Features marked on the map; None when there is no mark."""
    return st.session_state.get(f"marked {run}")


def mark(run: str, latents: Sequence[int]) -> None:
    """Keep to these features."""
    st.session_state[f"marked {run}"] = list(latents)


def clear(run: str) -> None:
    """Take all brushes and marks away."""
    for kind in ("brushed", "marked"):
        st.session_state.pop(f"{kind} {run}", None)


def compared(n_latents: int) -> list[int]:
    """The features to compare that the URL names; what is none is left out."""
    asked = st.query_params.get("compare", "").split(",")
    found = [int(text) for text in asked if text.isascii() and text.isdigit() and len(text) < 12]
    return [latent for latent in dict.fromkeys(found) if latent < n_latents][:MOST_COMPARED]


def compare(latents: Sequence[int]) -> None:
    """Put these features into the URL, the last few of them."""
    if latents:
        st.query_params["compare"] = ",".join(map(str, latents[-MOST_COMPARED:]))
    else:
        st.query_params.pop("compare", None)


def compare_rows(shown: pa.Table, before: Sequence[int], rows: Sequence[int]) -> None:
    """Compare the features in these rows of the table shown, and those compared before that are not in it."""
    listed = shown["feature"].to_pylist()
    chosen = [listed[row] for row in rows]
    kept = [latent for latent in before if latent in chosen or latent not in set(listed)]
    compare([*kept, *(latent for latent in chosen if latent not in kept)])


def click(latent: int) -> None:
    """Ask for a feature's page from inside a callback; `follow` then leaves for it."""
    st.session_state["clicked"] = latent


def follow(run: str) -> None:
    """Leave for the feature that was just clicked on, if any."""
    latent = st.session_state.pop("clicked", None)
    if latent is not None:
        choice.open_feature(run, latent)
