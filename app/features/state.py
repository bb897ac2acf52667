"""State of the Features page, all of it in the URL: filters, brushes, marks on the map, features to compare.

It also computes what the page shows of each pair of compared features: decoder cosine and PMI."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import pyarrow as pa
import streamlit as st
from torch import Tensor

from activations.errors import ConfigError
from app.features.lists import LISTED
from app.session import packed
from app.session.address import Query
from sae.features.feature import FeatureStore
from sae.features.neighbours import cosines
from sae.report.features import DENSITIES, F1, STABILITY, STATES
from sae.rules.rule import KINDS as RULE_KINDS
from sae.runs.run import Run

FILTERS_KEY = "filters of this session"
MOST_COMPARED = 4
VIEWS = ("histograms", "clusters", "densities")
SEARCHES = WORDS, MEANING = ("words", "meaning")
KINDS = ("", *RULE_KINDS, "dense", "none")  # of rules; all of them at first
BRUSHED, MARKED = "brush", "marked"  # parameters of the URL
BRUSHES = ("density", "mean", "positive", STABILITY, F1)
NUMBER = re.compile(r"-?\d{1,12}(\.\d{1,12})?(e[+-]?\d{1,2})?", re.ASCII)
STOPS = {f"{share:g}": share for share in DENSITIES}


@dataclass(frozen=True)
class Filters:
    """The state of the page's filters. A field's name is its parameter in the URL."""

    find: str = ""
    """Words to search for."""
    by: str = WORDS
    """Whether they are looked for as they are, or by what they mean."""
    state: str = "all"
    density: tuple[float, float] = (DENSITIES[0], DENSITIES[-1])
    """Lowest and highest density as fractions of all tokens, both included."""
    rule: str = ""
    """The kind of rule that features have; empty for any, or none."""
    view: str = "histograms"

    @property
    def words(self) -> str:
        """What is looked for as it is."""
        return self.find if self.by == WORDS else ""

    @property
    def meaning(self) -> str:
        """What is looked for by meaning."""
        return self.find.strip() if self.by == MEANING else ""


NAMES = [field.name for field in fields(Filters)]


def current() -> Filters:
    """Return the filters that the URL asks for. Raises ConfigError for a value that is not allowed."""
    asked = {name: st.query_params[name] for name in NAMES if name in st.query_params}
    for name, allowed in (("state", STATES), ("view", VIEWS), ("by", SEARCHES), ("rule", KINDS)):
        if asked.get(name, allowed[0]) not in allowed:
            known = ", ".join(filter(None, allowed))
            raise ConfigError(f"{name} = {asked[name][:60]!r} must be one of {known}")
    density = {"density": _density(asked["density"])} if "density" in asked else {}
    st.session_state[FILTERS_KEY] = replace(Filters(), **asked | density)
    return st.session_state[FILTERS_KEY]


def kinds(found: Mapping[str, Sequence[int]], chosen: Filters) -> dict[str, Sequence[int]]:
    """Return the kinds of rules that the page offers, with the features that have them, from those found in a run.

    A kind that this release does not know, since another one made the file, is left out: an address could not name it. The kind
    that is chosen is among them even where no feature of this run has it, so that it still filters and can be changed. There
    are none where the run has no rules at all."""
    known = {kind: latents for kind, latents in found.items() if kind in KINDS}
    return {**known, chosen.rule: known.get(chosen.rule, [])} if found and chosen.rule else known


def change(**changes: Any) -> None:
    """Change some filters and leave the rest of the URL as it is.

    The change starts from this session's filters and not from the URL, because when two changes follow quickly, the
    browser sends the second before it knows the first one's URL."""
    st.session_state[FILTERS_KEY] = replace(_filters(), **changes)
    others = {name: value for name, value in st.query_params.items() if name not in NAMES}
    st.query_params.from_dict(others | _as_query())


def query(run: str) -> Query:
    """Return what the page's URL carries to show a run with this session's filters, its brushes, its marks and its list."""
    return {"run": run} | _as_query() | st.session_state.get(_selection(run), {})


def ranges() -> dict[str, tuple[float, float]]:
    """Return the brushed range of each brushed column of the table. Raises ConfigError for what is no range."""
    brushed = {}
    for part in filter(None, st.query_params.get(BRUSHED, "").split(",")):
        column, *ends = part.split(":")
        if column not in BRUSHES or len(ends) != 2 or not all(map(NUMBER.fullmatch, ends)):
            raise ConfigError(
                f"{BRUSHED} = {part[:60]!r} must be one of {', '.join(BRUSHES)}, then :lowest:highest"
            )
        brushed[column] = float(ends[0]), float(ends[1])
    return brushed


def brush(run: str, column: str, ends: tuple[float, float]) -> None:
    """Show only features whose value in a column lies between `ends`."""
    brushed = {**ranges(), column: ends}
    _select(run, BRUSHED, ",".join(f"{name}:{low:.9g}:{high:.9g}" for name, (low, high) in brushed.items()))


def marked() -> list[int] | None:
    """Return the features marked on the map; None when nothing is marked. Raises ConfigError for what is no list of them."""
    asked = st.query_params.get(MARKED)
    return None if asked is None else packed.unpack_numbers(asked, MARKED)


def mark(run: str, latents: Sequence[int]) -> None:
    """Show only these features. Marks on too many features for an address are refused by a remark in the page."""
    short = packed.pack_numbers(latents)
    if short is None:
        st.toast(f"{len(latents):,} features are too many to mark; mark fewer at once")
    else:
        _select(run, MARKED, short)


def remember(run: str, lists: Collection[str]) -> None:
    """Keep the URL's brushes, marks and list for links to the page. A list that is not among the run's `lists` is not kept."""
    asked = {name: st.query_params[name] for name in (BRUSHED, MARKED, LISTED) if name in st.query_params}
    if asked.get(LISTED) not in lists:
        asked.pop(LISTED, None)
    st.session_state[_selection(run)] = asked


def clear(run: str) -> None:
    """Clear all brushes and marks."""
    for name in (BRUSHED, MARKED):
        st.query_params.pop(name, None)
        st.session_state.get(_selection(run), {}).pop(name, None)


def compared(n_latents: int) -> list[int]:
    """Return the features that the URL compares; what does not name a feature is ignored."""
    asked = st.query_params.get("compare", "").split(",")
    numbers = [int(text) for text in asked if text.isascii() and text.isdigit() and len(text) < 12]
    return [latent for latent in dict.fromkeys(numbers) if latent < n_latents][:MOST_COMPARED]


def compare(latents: Sequence[int]) -> None:
    """Compare these features, or the last MOST_COMPARED of them; the URL keeps them."""
    if latents:
        st.query_params["compare"] = ",".join(map(str, latents[-MOST_COMPARED:]))
    else:
        st.query_params.pop("compare", None)


def compare_rows(shown: pa.Table, before: Sequence[int], rows: Sequence[int]) -> None:
    """Compare the features in these rows of the table, and those compared before that the table does not show."""
    listed = shown["feature"].to_pylist()
    chosen = [listed[row] for row in rows]
    still = [latent for latent in before if latent in chosen or latent not in set(listed)]
    compare([*still, *(latent for latent in chosen if latent not in still)])


class Pair(NamedTuple):
    """Two features side by side."""

    latent: int
    other: int
    cosine: float
    """The cosine of their decoder directions."""
    together: int | None
    """Number of tokens on which both fire; None when neither is listed as a co-firing latent of the other."""
    pmi: float | None
    """Pointwise mutual information of their firings; None in the same case."""


def pairs(run: Run, store: FeatureStore, latents: Sequence[int]) -> list[Pair]:
    """Return every pair of these features with its decoder cosine, and how often both fire where that is known."""
    cosine = cosines(_decoder(run.digest, run), latents)
    listed = {(latent, partner.latent): partner for latent in latents for partner in store.partners(latent)}
    every = []
    for i, latent in enumerate(latents):
        for j, other in enumerate(latents[i + 1 :], i + 1):
            partner = listed.get((latent, other)) or listed.get((other, latent))
            counts = (partner.count, partner.pmi) if partner else (None, None)
            every.append(Pair(latent, other, float(cosine[i, j]), *counts))
    return every


def _select(run: str, name: str, value: str) -> None:
    st.query_params[name] = value
    st.session_state.setdefault(_selection(run), {})[name] = value


def _selection(run: str) -> str:
    """Return the key of a run's brushes, marks and list."""
    return f"selected {run}"


def _filters() -> Filters:
    return st.session_state.get(FILTERS_KEY, Filters())


def _as_query() -> dict[str, str]:
    filters, usual = _filters(), Filters()
    texts = {
        "find": filters.find,
        "by": filters.by,
        "rule": filters.rule,
        "state": filters.state,
        "density": ",".join(f"{share:g}" for share in filters.density),
        "view": filters.view,
    }
    return {name: text for name, text in texts.items() if getattr(filters, name) != getattr(usual, name)}


def _density(asked: str) -> tuple[float, float]:
    ends = [STOPS.get(text, -1.0) for text in asked.split(",")]
    if len(ends) != 2 or not 0 <= ends[0] <= ends[1]:
        raise ConfigError(f"density = {asked[:60]!r} must be two of {', '.join(STOPS)}, the smaller first")
    return ends[0], ends[1]


@st.cache_resource(max_entries=2, show_spinner=False)
def _decoder(digest: str, _run: Run) -> Tensor:
    return _run.sae().W_dec
