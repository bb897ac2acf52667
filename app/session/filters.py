"""What the Features page looks for, and in which view: in its URL, as far as it is not as usual."""

from dataclasses import dataclass, fields, replace
from typing import Any

import streamlit as st

from app.feature_rows import DENSITIES, STATES
from app.session.choice import Query
from sae.errors import ConfigError

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


def address(run: str) -> Query:
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
