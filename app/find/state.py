"""State of the Find page: the two sets of texts, which the URL holds, and the search in the background."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import streamlit as st

from app.session import jobs, models, navigation, packed
from app.session.address import Query
from app.session.jobs import Job, Report, progress
from sae.runs.run import Run
from sae.workflows.find import FindConfig, LatentPooling, Search
from sae.workflows.find import find as search_latents

JOB, ASKED = "search", "what was searched"  # keys of the job and of the session
SETS = ("first", "second")  # parameters of the URL
POOLINGS: dict[LatentPooling, str] = {
    "max": "strongest token",
    "mean": "mean over tokens",
    "last": "last token",
}


@dataclass(frozen=True)
class Asked:
    """What is searched: two sets of texts, and how a latent's values on a text's tokens become one number."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    pooling: LatentPooling = "max"

    @property
    def sets(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Both sets of texts."""
        return self.first, self.second


def current() -> Asked | None:
    """Return what the URL asks for, or else what this session asked for last; None before anything was asked for.

    Raises ConfigError for texts in the URL that are damaged. An unknown pooling counts as the usual one."""
    texts = [st.query_params.get(name) for name in SETS]
    if all(texts):
        first, second = (packed.unpack(text or "", name) for text, name in zip(texts, SETS, strict=True))
        named: dict[str | None, LatentPooling] = {name: name for name in POOLINGS}
        pooling = named.get(st.query_params.get("pooling"), "max")
        st.session_state[ASKED] = Asked(tuple(first.splitlines()), tuple(second.splitlines()), pooling)
    elif ASKED in st.session_state:
        navigation.complete(**_in_url(st.session_state[ASKED]))
    return st.session_state.get(ASKED)


def stays_here(asked: Asked) -> bool:
    """Return whether the texts are too long for the address."""
    return not _in_url(asked)


def ask(first: Sequence[str], second: Sequence[str], pooling: LatentPooling) -> None:
    """Search for these texts. They go into the URL where they are short enough."""
    st.session_state[ASKED] = asked = Asked(tuple(first), tuple(second), pooling)
    others = {name: value for name, value in st.query_params.items() if name not in (*SETS, "pooling")}
    jobs.forget(JOB)  # pressing the button again searches anew
    st.query_params.from_dict(others | _in_url(asked))


def query(run: str) -> Query:
    """Return what the page's URL carries to search a run for this session's texts."""
    asked = st.session_state.get(ASKED)
    return {"run": run} | (_in_url(asked) if asked else {})


def job(run: Run, asked: Asked) -> Job[Search]:
    """Return this visitor's search in the run, running or done. It is started unless it was made lately."""
    what = (run.digest, asked)
    title = f"searching {run.name} for latents that tell texts apart"
    return jobs.find(JOB, what) or jobs.start(JOB, partial(_search, run, asked), title, what)


def _search(run: Run, asked: Asked, report: Report) -> Search:
    report(0.0, "reading")
    with models.using(run, report) as (model, sae):
        cfg = FindConfig(pooling=asked.pooling)
        return search_latents(run, asked.first, asked.second, cfg, model, sae, progress(report))


def _in_url(asked: Asked) -> dict[str, str]:
    """Return the parameters that hold what is searched; none where the texts are too long."""
    texts = [packed.pack("\n".join(texts)) for texts in asked.sets]
    if not all(texts) or sum(len(text or "") for text in texts) > packed.LONGEST:
        return {}
    pooling = {} if asked.pooling == "max" else {"pooling": asked.pooling}
    return {name: text or "" for name, text in zip(SETS, texts, strict=True)} | pooling
