"""State of the Your text page: the visitor's text, its reading in the background, the token and colour of the URL."""

import random
from functools import partial
from typing import Any

import streamlit as st

from activations.errors import ConfigError
from activations.rows import is_held_out
from app.session import choices, features, jobs, navigation, packed
from app.session.address import Query
from app.session.jobs import Job
from app.session.models import read_text
from app.widgets import Missing
from sae.reading.reading import Reading
from sae.report.feature import Describe
from sae.runs.run import Run

SHORT = 400  # characters; a longer text is put into the URL in packed form
EXAMPLE_TOKENS = 100  # of a held-out document
TEXT, PACKED = "text", "packed"  # the URL's parameters for a short and a longer text
PAGE = "text"  # in the keys of its choices
SESSION_TEXT, JOB = "text of this session", "reading"  # keys of the session and of its job


def current() -> str:
    """Return the text in the URL, which becomes the session's text, or else the session's text.

    Raises ConfigError for a packed text that is damaged."""
    if st.query_params.get(TEXT):
        st.session_state[SESSION_TEXT] = st.query_params[TEXT]
    elif st.query_params.get(PACKED):
        st.session_state[SESSION_TEXT] = packed.unpack(st.query_params[PACKED], PACKED)
    else:
        navigation.complete(**_in_url(st.session_state.get(SESSION_TEXT, "")))
    return st.session_state.get(SESSION_TEXT, "")


def stays_here(text: str) -> bool:
    """Return whether the text is too long for the address."""
    return bool(text) and not _in_url(text)


def query(run: str) -> Query:
    """Return what the page's URL carries to read this session's text with a run, as the page was left in this session."""
    return {"run": run} | _in_url(st.session_state.get(SESSION_TEXT, "")) | choices.query(PAGE)


def show(text: str) -> None:
    """Read another text, which goes into the URL. The token chosen in the last text is cleared."""
    st.session_state[SESSION_TEXT] = text
    kept = {name: value for name, value in st.query_params.items() if name not in (TEXT, PACKED, "token")}
    st.query_params.from_dict(kept | _in_url(text))


def reading(run: Run, text: str) -> Job[Reading]:
    """Return the reading of a text, running or done. It is started unless this visitor has read the text lately.

    Raises Missing when the run is not finished."""
    if not run.finished:
        why = f"{run.path.name} has not finished training. Texts can be read after that."
        raise Missing("No SAE yet", why, run.resume)
    wanted = (*features.identity(run), text)
    title = f"reading a text with {run.name}"
    return jobs.find(JOB, wanted) or jobs.start(JOB, partial(read_text, run, text), title, wanted)


def forget() -> None:
    """Forget the last reading, so that the text is read once more."""
    jobs.forget(JOB)


def labels_and_tokens(run: Run) -> Describe | None:
    """Return a function from a feature to its label and tokens; None if the run's features have not been collected."""
    return features.labels_and_tokens(features.of(run)) if features.collected(run) else None


def token(reading: Reading) -> int:
    """Return the token that the URL names, or else the first that counts. Raises ConfigError if it does not exist."""
    asked = st.query_params.get("token")
    if asked is None:
        return int(reading.counted.nonzero()[0]) if bool(reading.counted.any()) else 0
    return _number(asked, len(reading), "token", "this text")


def show_token(place: int) -> None:
    """Look at another token."""
    st.query_params["token"] = str(place)


def colour(reading: Reading, measures: Any) -> str | int:
    """Return what the URL colours by: one of `measures`, or a feature's number. Raises ConfigError if it is neither."""
    asked = st.query_params.get("colour", next(iter(measures)))
    return asked if asked in measures else _number(asked, reading.code.n_latents, "feature", "this run")


def colour_by(what: str | int) -> None:
    """Colour by something else."""
    st.query_params["colour"] = str(what)


def held_out_example(run: Run) -> str:
    """Return the beginning of any of the store's held-out documents, as its features spell its tokens.

    Raises StoreError when the store is missing, Missing when the run has no features, ConfigError when the store has no
    held-out document."""
    store, token_text = run.store, features.of(run).token_text
    for number in random.sample(range(len(store.shards)), len(store.shards)):
        shard = store.read(number)
        held_out = shard.documents[is_held_out(shard.documents)].unique()
        if len(held_out):
            rows = shard.documents == held_out[random.randrange(len(held_out))]
            tokens, starts = shard.tokens[rows][:EXAMPLE_TOKENS], shard.positions[rows][:EXAMPLE_TOKENS] == 0
            return "".join(token_text.pieces(tokens.tolist(), starts.tolist()))
    raise ConfigError(f"{store.path} has no held-out documents")


def _in_url(text: str) -> dict[str, str]:
    """Return the parameter that holds a text; none for an empty one or one that is too long."""
    if len(text) <= SHORT:
        return {TEXT: text} if text else {}
    short = packed.pack(text)
    return {PACKED: short} if short else {}


def _number(asked: str, count: int, what: str, where: str) -> int:
    if not (asked.isascii() and asked.isdigit() and len(asked) < 12 and int(asked) < count):
        raise ConfigError(f"{what} {asked[:40]} does not exist: {where} has 0 to {count - 1}")
    return int(asked)
