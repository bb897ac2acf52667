"""What a visitor looks for and marks on the Features page: filters in the URL, brushed ranges, features on the map."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa
import streamlit as st

from activations.errors import ConfigError
from app.session import address
from app.session.address import Query
from sae.report.features import DENSITIES, STATES

KEPT = "filters of this visit"
VIEWS = ("histograms", "clusters", "densities")
STOPS = {f"{share:g}": share for share in DENSITIES}


@dataclass(frozen=True)
class Filters:
    """One state of the page's controls; a field's name is its parameter's in the URL."""

    find: str = ""
    """Words."""
    state: str = "all"
    density: tuple[float, float] = (DENSITIES[0], DENSITIES[-1])
    """As a share of 1, ends included."""
    view: str = "histograms"


NAMES = [field.name for field in fields(Filters)]


def current() -> Filters:
    """What the URL asks for. Raises ConfigError, in one line, for what cannot be."""
    asked = {name: st.query_params[name] for name in NAMES if name in st.query_params}
    for name, allowed in (("state", STATES), ("view", VIEWS)):
        if asked.get(name, allowed[0]) not in allowed:
            raise ConfigError(f"{name} = {asked[name][:60]!r} must be one of {', '.join(allowed)}")
    density = {"density": _density(asked["density"])} if "density" in asked else {}
    st.session_state[KEPT] = replace(Filters(), **asked | density)
    return st.session_state[KEPT]


def change(**changes: Any) -> None:
    """Set some fields to something else; the rest of the URL stays as it is.

    Begins from what the page holds: of two quick changes, the browser sends the second before it knows the first's
    URL."""
    st.session_state[KEPT] = replace(_kept(), **changes)
    others = {name: value for name, value in st.query_params.items() if name not in NAMES}
    st.query_params.from_dict(others | _written())


def query(run: str) -> Query:
    """What the page's URL carries to look in a run for what this visit last looked for."""
    return {"run": run} | _written()


def _kept() -> Filters:
    return st.session_state.get(KEPT, Filters())


def _written() -> dict[str, str]:
    kept, usual = _kept(), Filters()
    texts = {
        "find": kept.find,
        "state": kept.state,
        "density": ",".join(f"{share:g}" for share in kept.density),
        "view": kept.view,
    }
    return {name: text for name, text in texts.items() if getattr(kept, name) != getattr(usual, name)}


def _density(asked: str) -> tuple[float, float]:
    ends = [STOPS.get(text, -1.0) for text in asked.split(",")]
    if len(ends) != 2 or not 0 <= ends[0] <= ends[1]:
        raise ConfigError(f"density = {asked[:60]!r} must be two of {', '.join(STOPS)}, the smaller first")
    return ends[0], ends[1]


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
        address.open_feature(run, latent)
