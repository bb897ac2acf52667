"""State and controls of the Compare page: the other run, the matching, what is listed, the pair of features side by side."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import streamlit as st
from streamlit.column_config import ButtonColumn, ListColumn, NumberColumn

from activations.errors import RunError
from app import widgets
from app.session import choices, families, features, navigation, runs
from app.session.address import Query
from app.session.jobs import Job, Report, find, progress, start
from app.session.runs import Made, stamp
from app.widgets import Missing
from sae.report import render
from sae.runs.records import Comparison
from sae.runs.run import Run
from sae.workflows import compare

ENCODING = 0.4  # encoding takes about this share of a matching job's time
PAGE = "compare"  # in the keys of its choices
COLUMNS = {
    "feature": ButtonColumn(
        width=80, alignment="left", key=widgets.OPEN, help="Click it to see both features side by side."
    ),
    "similarity": NumberColumn(format="%.3f", help="Similarity to the nearest feature of the other run."),
    "nearest": NumberColumn(help="The nearest feature of the other run."),
    "density": NumberColumn(format="%.3g %%", help="Share of tokens on which the feature fires."),
    "fires on": ListColumn(width="medium"),
    "nearest density": NumberColumn(
        format="%.3g %%", help="Share of tokens on which the nearest feature fires."
    ),
    "nearest fires on": ListColumn(width="medium"),
    "partner": NumberColumn(help="The feature it is paired with when features are paired one to one."),
    "partner similarity": NumberColumn(format="%.3f"),
}


def second(name: str, first: Run) -> tuple[str, Run]:
    """Return the name and the run to compare run `name` with: the one that `other` in the URL names, or the last one that
    it was compared with, or else the most suitable one.

    A finished run that reads the same activations is the most suitable, if possible one with features. Where the URL names `name`
    itself or a run that does not exist, such as one that has been deleted since, one of the latter two stands in, and the page
    says so. Raises Missing when there is no other run."""
    others = candidates(name)
    asked, last = st.query_params.get("other"), st.session_state.get(f"last other of {name}")
    chosen = next((other for other in (asked, last) if other in others), None)
    if chosen is None:
        chosen = max(others, key=lambda other: _suitability(first, others[other]))
    if asked and chosen != asked:
        why = (
            "A run is not compared with itself"
            if asked == name
            else f"There is no run {asked!r}, or no longer"
        )
        widgets.warnings([f"{why}: the page compares {name} with {chosen}."])
    st.session_state[f"last other of {name}"] = chosen
    navigation.complete(run=name, other=chosen)
    return chosen, others[chosen]


def query(run: str) -> Query:
    """Return what the page's URL carries to compare a run with the run it was last compared with in this session."""
    other = st.session_state.get(f"last other of {run}")
    named = {"run": run, "other": other} if other in runs.by_name() else {"run": run}
    return named | choices.query(PAGE)


def candidates(name: str) -> dict[str, Run]:
    """Return all runs but this one. Raises Missing when there are none."""
    others = {other: run for other, run in runs.require_any().items() if other != name}
    if not others:
        why = f"{name} is the only run in {runs.folder()}. Train another one on the same store, with another seed or k."
        raise Missing("Nothing to compare with", why, "sae train … --out runs/another")
    return others


def show_second(name: str) -> None:
    """Compare the first run with another one."""
    for parameter in ("a", "b"):
        st.query_params.pop(parameter, None)
    st.query_params["other"] = name


def check(first: Run, second: Run) -> None:
    """Raise RunError, in one line, unless the latents of these two can be matched."""
    compare.refuse_other_widths(first, second)
    if first.digest == second.digest:
        raise RunError(f"{first.path} and {second.path} hold the same SAE: every feature is its own partner")


def matched(first: Run, second: Run) -> Comparison | None:
    """Return the matching of the two runs that was made last, saved or not; None when it has not been made."""
    job, written = matching(first, second), stamp(compare.place(first, second))
    if job and job.result and job.result.written == written:
        return job.result.what
    kept = _kept(first, second, written, first.digest, second.digest)
    # What another run of the second one's name was compared with lies in the same file
    return kept or (job.result.what if job and job.result else None)


def begin(first: Run, second: Run) -> None:
    """Start to match the two runs in the background."""
    title = f"matching the features of {first.name} and {second.name}"
    start(_key(first, second), lambda report: _match(first, second, report), title)


def matching(first: Run, second: Run) -> Job[Made[Comparison]] | None:
    """Return this visitor's matching job, running or finished; None when none was started."""
    return find(_key(first, second))


def parents(first: Run, second: Run, pair: tuple[int, int]) -> tuple[int | None, int | None] | None:
    """Return the parents of two features, None for one that has none; None alone unless both runs' families have been looked for."""
    known = [families.of(features.of(run)) if features.collected(run) else None for run in (first, second)]
    if known[0] is None or known[1] is None:
        return None
    above = [found.link(latent) for found, latent in zip((known[0], known[1]), pair, strict=True)]
    return above[0] and above[0].parent, above[1] and above[1].parent


def pair(sizes: tuple[int, int], other: str) -> tuple[int, int] | None:
    """Return the two latents that the URL puts side by side; None when it names none, or those of another run than `other`, which
    stands in for it.

    `sizes` are the sizes of the two SAEs. Raises RunError when a latent does not exist."""
    asked = [st.query_params[name] for name in ("a", "b") if name in st.query_params]
    if len(asked) < len(sizes) or st.query_params.get("other", other) != other:
        return None
    for text, size in zip(asked, sizes, strict=True):
        if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) < size):
            raise RunError(f"feature {text[:40]} does not exist: this run has 0 to {size - 1}")
    return int(asked[0]), int(asked[1])


def show_pair(other: str, first: int, second: int) -> None:
    """Show two latents side by side, one of the first run and one of `other`, with which the page compares it.

    The URL may name another run that is gone, in whose place `other` stands."""
    st.query_params["other"] = other
    st.query_params["a"], st.query_params["b"] = str(first), str(second)


def address_of_pairs(other: str) -> Query:
    """Return what the URL carries beside the two latents that it puts side by side."""
    return {name: value for name, value in navigation.here().query.items() if name not in ("a", "b")} | {
        "other": other
    }


def table(run: Run) -> Any:
    """Return the table of a run's features; None when they have not been collected."""
    return features.of(run).table if features.collected(run) else None


def _match(first: Run, second: Run, report: Report) -> Made[Comparison]:
    report(0.0, "opening the runs")
    stages = {"encode": (0.0, ENCODING), "match": (ENCODING, 1.0)}
    comparison = compare.match_runs(first, second, progress=progress(report, stages))
    # in a folder that is not writable the comparison is shown, and made again the next time
    with suppress(OSError):
        compare.keep(first, second, comparison)
    return Made(comparison, stamp(compare.place(first, second)))


def _suitability(first: Run, other: Run) -> tuple[bool, bool, bool, bool]:
    alike = (first.record.model, first.hook) == (other.record.model, other.hook)
    copied = False  # such as a copy of the run's folder: there is nothing to match
    with suppress(RunError):
        copied = first.digest == other.digest
    return not copied, alike, other.finished, features.collected(other)


def _key(first: Run, second: Run) -> str:
    return f"compare {first.digest} {second.digest}"


@st.cache_resource(max_entries=4, show_spinner="Opening the comparison")
def _kept(_first: Run, _second: Run, stamp: tuple[int, int], *digests: str) -> Comparison | None:
    return compare.kept(_first, _second)


def other_chooser(names: Sequence[str], current: str, choose: Callable[[str], None]) -> None:
    """Show a box to choose the run to compare with."""
    options = {"options": names, "format_func": render.visible, "width": 360}
    widgets.box(st.selectbox, "Compared with", current, choose, "other box", **options)


def match_button(begin: Callable[[], None], running: bool) -> None:
    """Show a button that starts the matching; nothing while it runs."""
    if not running:
        st.button("Match the features", icon=":material/compare_arrows:", type="primary", on_click=begin)


def measure_chooser(measures: Mapping[str, tuple[str, str]]) -> str:
    """Return the measure of similarity that the visitor chose."""
    return choices.control(
        st.segmented_control,
        "Similarity",
        PAGE,
        "measure",
        list(measures),
        next(iter(measures)),
        key="similarity",
        required=True,
        format_func=lambda name: measures[name][0],
        help="\n\n".join(f"**{label}**: {why}" for label, why in measures.values()),
    )


def kind_chooser(kinds: Mapping[str, tuple[str, str]], counts: Mapping[str, int]) -> str:
    """Return the kind of features that the visitor chose to list."""
    return choices.control(
        st.segmented_control,
        "Features that are",
        PAGE,
        "kind",
        list(kinds),
        next(iter(kinds)),
        key="kind",
        required=True,
        format_func=lambda kind: f"{kind} {counts[kind]:,}",
        help="\n\n".join(f"**{kind}**: {why}" for kind, (_, why) in kinds.items()),
    )
