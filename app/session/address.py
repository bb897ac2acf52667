"""Which run and which feature the URL asks for, and where links lead: to a page with what this visit chose on it.

A name from the URL is looked up among the runs that were found; it never becomes a path."""

import random
from collections.abc import Callable, Mapping

import streamlit as st

from activations.errors import RunError
from app.session import features, runs
from sae.features.store import FeatureStore
from sae.runs.run import Run

Query = Mapping[str, str | list[str]]
Address = Callable[[str], Query]  # run -> what the URL of a page carries to show it as this visit left it


def run() -> tuple[str, Run]:
    """The run the URL names, or without one the run last shown, or the first with features.

    Raises Missing when there is no run, RunError when the URL names one that is not there."""
    found = runs.needed()
    asked = st.query_params.get("run")
    name = asked or st.session_state.get("last run")
    if name not in found and not asked:
        name = next((name for name, run in found.items() if features.collected(run)), next(iter(found)))
    if name not in found:
        raise RunError(f"there is no run {name!r} in {runs.folder()}: the Runs page lists those there are")
    st.session_state["last run"] = name
    return name, found[name]


def here() -> Query:
    """All that the URL of the page on show carries."""
    return {key: st.query_params.get_all(key) for key in st.query_params}


def there(address: Address) -> Query:
    """What a link to a page carries for the run on show; nothing where there is none."""
    run = st.query_params.get("run") or st.session_state.get("last run", "")
    return address(run) if run in runs.found() else {}


def run_alone(run: str) -> Query:
    """Address of a page on which nothing but the run is chosen for good."""
    return {"run": run}


def with_feature(run: str) -> Query:
    """Address of a page about a feature: the one that the URL names, or that this visit last had on show."""
    asked = st.query_params.get("feature") if st.query_params.get("run") in (None, run) else None
    feature = asked or st.session_state.get(f"last feature of {run}")
    return {"run": run} if feature is None else {"run": run, "feature": feature}


def show_run(name: str, address: Address = run_alone) -> None:
    """Go to another run, on the same page."""
    st.query_params.from_dict(address(name))


def feature(run: str, store: FeatureStore) -> int:
    """The feature the URL names, or without one the feature last shown of this run, or the first alive one.

    Raises RunError when the URL names one that is not there."""
    first = (features.alive(store) or [0])[0]
    asked = st.query_params.get("feature") or st.session_state.get(f"last feature of {run}", f"{first}")
    if not (asked.isascii() and asked.isdigit() and len(asked) < 12 and int(asked) < len(store)):
        raise RunError(f"feature {asked[:40]} does not exist: this run has 0 to {len(store) - 1}")
    st.session_state[f"last feature of {run}"] = asked
    return int(asked)


def show_feature(latent: int) -> None:
    """Go to another feature, on the Feature page."""
    st.query_params["feature"] = str(latent)


def show_random_feature(store: FeatureStore) -> None:
    """Go to a feature that fires, any."""
    show_feature(random.choice(features.alive(store) or [0]))


def open_feature(run: str, latent: int) -> None:
    """Leave for the page of a feature."""
    st.switch_page("feature/page.py", query_params={"run": run, "feature": str(latent)})
