"""The text that the Your text page reads, what is chosen of it, and the reading itself, made in the background."""

import random
from functools import partial
from typing import Any

import streamlit as st

from activations.errors import ConfigError
from activations.rows import is_held_out
from app.feature.state import names
from app.session import features
from app.session.address import Query
from app.session.jobs import Job, find, start
from app.session.problems import Missing
from app.session.readings import read_text
from sae.reading.reading import Reading
from sae.report.feature import About
from sae.runs.run import Run

SHORT = 400  # characters of a text that goes into the URL
EXAMPLE_TOKENS = 100  # of a held-out document
KEEP, TEXT, JOB = "text of this visit", "text", "reading"


def current() -> str:
    """The text the URL holds, which becomes that of this visit, or without one the text of this visit."""
    if st.query_params.get(TEXT):
        st.session_state[KEEP] = st.query_params[TEXT]
    return st.session_state.get(KEEP, "")


def query(run: str) -> Query:
    """What the page's URL carries to read this visit's text with a run; a long one is in no URL."""
    text = st.session_state.get(KEEP, "")
    return {"run": run, TEXT: text} if 0 < len(text) <= SHORT else {"run": run}


def show(text: str) -> None:
    """Read another text; a short one goes into the URL. What was chosen of the one before is let go."""
    st.session_state[KEEP] = text
    for name in (TEXT, "token"):
        st.query_params.pop(name, None)
    if 0 < len(text) <= SHORT:
        st.query_params[TEXT] = text


def reading(run: Run, text: str) -> Job[Reading]:
    """The reading of a text, under way or done; begun if it is not this visit's last one.

    Raises Missing when the run is not finished."""
    if not run.finished:
        why = f"{run.path.name} has not finished training: texts can be read when it is finished."
        raise Missing("No SAE yet", why, f"sae train … --out {run.path} --resume")
    wanted = (run.digest, features.collected(run), text)
    if st.session_state.get("what is read") != wanted or not find(JOB):
        st.session_state["what is read"] = wanted
        start(JOB, partial(read_text, run, text))
    job = find(JOB)
    assert job is not None
    return job


def again() -> None:
    """Forget the last reading, so that the text is read once more."""
    st.session_state.pop("what is read", None)


def about(run: Run) -> About | None:
    """What tells a feature's label and the tokens it fires most on; None when features have not been collected."""
    return names(features.of(run)) if features.collected(run) else None


def token(found: Reading) -> int:
    """The token the URL names, or without one the first that counts. Raises ConfigError when there is none such."""
    asked = st.query_params.get("token")
    if asked is None:
        return int(found.counted.nonzero()[0]) if bool(found.counted.any()) else 0
    return _number(asked, len(found), "token", "this text")


def show_token(place: int) -> None:
    """Look at another token."""
    st.query_params["token"] = str(place)


def colour(found: Reading, measures: Any) -> str | int:
    """What the URL says to colour by: one of `measures`, or a feature. Raises ConfigError when it is neither."""
    asked = st.query_params.get("colour", next(iter(measures)))
    return asked if asked in measures else _number(asked, found.code.n_latents, "feature", "this run")


def colour_by(what: str | int) -> None:
    """Colour by something else."""
    st.query_params["colour"] = str(what)


def held_out_example(run: Run) -> str:
    """The beginning of one of the store's held-out documents, any, as its features spell it.

    Raises StoreError when the store is not there, Missing when the run has no features, ConfigError when none
    of the documents looked at is held out."""
    store, token_text = run.store, features.of(run).token_text
    for number in random.sample(range(len(store.shards)), len(store.shards)):
        shard = store.read(number)
        there = shard.documents[is_held_out(shard.documents)].unique()
        if len(there):
            chosen = there[random.randrange(len(there))]
            here = shard.documents == chosen
            tokens, starts = shard.tokens[here][:EXAMPLE_TOKENS], shard.positions[here][:EXAMPLE_TOKENS] == 0
            return "".join(token_text.pieces(tokens.tolist(), starts.tolist()))
    raise ConfigError(f"{store.path} has no held-out document")


def _number(asked: str, count: int, what: str, where: str) -> int:
    if not (asked.isascii() and asked.isdigit() and len(asked) < 12 and int(asked) < count):
        raise ConfigError(f"{what} {asked[:40]} does not exist: {where} has 0 to {count - 1}")
    return int(asked)
