"""The URL: which run and feature it asks for, and what links to pages carry so that a page shows what was chosen in this session.

A run's name from the URL is looked up among the runs of the folder; it never becomes a path."""

import random
from collections.abc import Callable

import streamlit as st

from activations.errors import RunError
from app import widgets
from app.session import choices, features, navigation, runs
from app.session.navigation import Query
from sae.features.feature import FeatureStore
from sae.runs.run import Run

Address = Callable[[str], Query]
"""Returns, for a run, what a page's URL carries to show the page as it was left in this session."""


def run() -> tuple[str, Run]:
    """Return name and run: the run that the URL names, or else the run shown last, or the first with features.

    Raises Missing when there are no runs, RunError when the URL names a run that does not exist."""
    every = runs.require_any()
    asked = st.query_params.get("run")
    name = asked or st.session_state.get(widgets.LAST_RUN)
    if name not in every and not asked:
        name = next((name for name, run in every.items() if features.collected(run)), next(iter(every)))
    if name not in every:
        raise RunError(
            f"there is no run {name!r} in {runs.folder()}; the Runs page lists the runs of the folder"
        )
    st.session_state[widgets.LAST_RUN] = name
    navigation.complete(run=name)
    return name, every[name]


def current_query() -> Query:
    """Return all that the URL of the current page carries."""
    return {key: st.query_params.get_all(key) for key in st.query_params}


def link_query(address: Address) -> Query:
    """Return what a link to a page carries for the current run; empty when no run is shown."""
    run = st.query_params.get("run") or st.session_state.get(widgets.LAST_RUN, "")
    return address(run) if run in runs.by_name() else {}


def run_alone(run: str) -> Query:
    """Return the address of a page that keeps no choice but the run."""
    return {"run": run}


def with_choices(page: str) -> Address:
    """Return the address of a page that keeps the run and the choices of its controls in this session."""
    return lambda run: {"run": run, **choices.query(page)}


def with_feature(run: str) -> Query:
    """Return the address of a page about a feature: the one that the URL names, or else the one seen last in this session.

    A number that no feature has, in the URL or of an earlier run of this name, stays behind."""
    asked = st.query_params.get("feature") if st.query_params.get("run") in (None, run) else None
    last = st.session_state.get(_last_feature(run), "")
    feature = next((each for each in (asked, last) if each and exists(run, each)), None)
    return {"run": run} if feature is None else {"run": run, "feature": feature}


def feature_page(run: str) -> Query:
    """Return the address of the Feature page as it was left in this session."""
    return {**with_feature(run), **choices.query("feature")}


def show_run(name: str, address: Address = run_alone) -> None:
    """Go to another run on the current page."""
    st.query_params.from_dict(address(name))


def feature(run: str, store: FeatureStore) -> int:
    """Return the feature that the URL names, or else the feature of this run shown last, or the first that fires.

    Raises RunError when the URL names a feature that does not exist."""
    first = (features.live(store) or [0])[0]
    last = st.session_state.get(_last_feature(run), "")  # the run may have been trained anew since
    asked = st.query_params.get("feature") or (last if _is_below(last, len(store)) else f"{first}")
    if not _is_below(asked, len(store)):
        raise RunError(f"feature {asked[:40]} does not exist: this run has 0 to {len(store) - 1}")
    st.session_state[_last_feature(run)] = asked
    navigation.complete(run=run, feature=asked)
    return int(asked)


def show_feature(latent: int) -> None:
    """Go to another feature on the Feature page."""
    st.query_params["feature"] = str(latent)


def step_feature(run: str, last: int, by: int) -> None:
    """Go to the feature `by` numbers further on the Feature page, between 0 and `last`.

    The step starts from the feature shown last and not from the URL, because when two presses follow quickly, the browser
    sends the second before it knows the first one's URL."""
    latent = min(max(int(st.session_state[_last_feature(run)]) + by, 0), last)
    st.session_state[_last_feature(run)] = str(latent)
    show_feature(latent)


def show_random_feature(store: FeatureStore) -> None:
    """Go to any feature that fires."""
    show_feature(random.choice(features.live(store) or [0]))


def open_feature(run: str, latent: int) -> None:
    """Open a feature's page."""
    navigation.open_page("feature", feature_query(run, latent))


def open_on_enter(run: str) -> None:
    """Let the key Enter on a feature's number in a table open the feature's page."""
    navigation.open_on_enter("feature", {"run": run}, {"feature": "feature"})


def aim_at_feature(run: str, latent: int) -> None:
    """Open a feature's page at the next run of the app, as from inside a callback."""
    navigation.aim("feature", feature_query(run, latent))


def feature_query(run: str, latent: int) -> Query:
    """Return what the address of a feature's page carries."""
    return {"run": run, "feature": str(latent), **choices.query("feature")}


def exists(run: str, feature: str) -> bool:
    """Return whether the run has a feature of this number, as far as its settings say."""
    return _is_below(feature, runs.by_name()[run].record.config["arch"].get("d_sae") or None)


def _is_below(feature: str, size: int | None) -> bool:
    """Return whether a text is a number of one of `size` features, or of any at all where the size is not known."""
    is_number = feature.isascii() and feature.isdigit() and len(feature) < 12
    return is_number and (size is None or int(feature) < size)


def _last_feature(run: str) -> str:
    """Return the key of the feature of a run seen last in this session."""
    return f"last feature of {run}"
