"""What the Feature page adds to the features folder: labels, measured effects, own text, a file to take along."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import streamlit as st

from app.features.controls import LONGEST_LABEL, LONGEST_NOTE
from app.session import jobs, models
from app.session.features import of
from app.session.readings import read_text
from app.session.runs import stamp
from sae.features import effects, html_page
from sae.features.effects import Effect, measure_effect
from sae.features.latent_labels import Label
from sae.features.neighbours import cosines
from sae.features.store import FeatureStore
from sae.reading.reading import Reading
from sae.report.feature import About
from sae.runs.run import Run


class Pair(NamedTuple):
    """Two features beside each other."""

    one: int
    other: int
    cosine: float
    """Of their decoder directions."""
    together: int | None
    """Tokens on which both fire; None when neither lists the other."""
    pmi: float | None


def labels(store: FeatureStore) -> dict[int, Label]:
    """All labels and notes of the run, as they are now."""
    return _labels(store.labels.path, stamp(store.labels.path), store)


def label(store: FeatureStore, latent: int) -> Label:
    """One feature's label and note; both empty when there is none."""
    return labels(store).get(latent, Label())


def names(store: FeatureStore) -> About:
    """What tells a feature's label and the tokens it fires most on."""
    known = labels(store)
    return lambda latent: (known.get(latent, Label()).label, store.table["peak_tokens"][latent].as_py())


def save_label(store: FeatureStore, latent: int, label: str, note: str) -> None:
    """Keep what the visitor calls a feature, as long as the boxes take it: not every visitor comes by way of them."""
    store.labels.set(latent, label[:LONGEST_LABEL], note[:LONGEST_NOTE])


def effect(store: FeatureStore, latent: int) -> Effect | None:
    """What a feature does to the model, if it has been measured."""
    return effects.load_effect(store, latent)


def effect_job(run: Run, latent: int) -> jobs.Job[None] | None:
    """The measurement the visitor asked for, under way or ended."""
    return jobs.find(_key("effect", run, latent))


def measure(run: Run, latent: int) -> None:
    """Begin to measure what a feature does to the model; it is kept next to the features."""
    jobs.start(_key("effect", run, latent), partial(_measure, run, of(run), latent))


def own_text(run: Run) -> jobs.Job[Reading] | None:
    """The visitor's own text, being read or done; it stays while one goes from feature to feature."""
    return jobs.find(f"own text {run.path}")


def try_own(run: Run, text: str) -> None:
    """Begin to read a text."""
    jobs.start(f"own text {run.path}", partial(read_text, run, text))


def on_own(reading: Reading, latent: int) -> tuple[list[str], list[float]]:
    """The own text's tokens and a feature's value on each; what stands before it (BOS) is left out."""
    pairs = zip(reading.tokens, reading.values_of(latent).tolist(), reading.is_text.tolist(), strict=True)
    kept = [(token, value) for token, value, is_text in pairs if is_text]
    return [token for token, _ in kept], [value for _, value in kept]


def html(store: FeatureStore, latent: int, title: str) -> str:
    """A feature as a self-contained HTML file."""
    return html_page.document(
        f"{title}: feature {latent}",
        [html_page.body(store.feature(latent), html_page.AROUND, html_page.EXAMPLES)],
    )


def pairs(run: Run, store: FeatureStore, latents: Sequence[int]) -> list[Pair]:
    """Every two of these features: decoder cosine, and how often both fire where that is listed."""
    between = cosines(_decoder(run.digest, run), latents)
    listed = {(one, partner.latent): partner for one in latents for partner in store.partners(one)}
    found = []
    for place, one in enumerate(latents):
        for further, other in enumerate(latents[place + 1 :], place + 1):
            partner = listed.get((one, other)) or listed.get((other, one))
            counts = (partner.count, partner.pmi) if partner else (None, None)
            found.append(Pair(one, other, float(between[place, further]), *counts))
    return found


def _measure(run: Run, store: FeatureStore, latent: int, report: jobs.Report) -> None:
    report(0.0, "loading the language model" if not models.ready(run) else "waiting for the language model")
    with models.using(run) as (model, sae):

        def on_done(done: int, of: int) -> None:
            report(done / of, f"{done} of {of} examples run with and without it")

        report(0.01, "running its examples with and without it")
        effects.save_effect(store, measure_effect(model, sae, store, run.hook, latent, on_done=on_done))


def _key(what: str, run: Run, latent: int) -> str:
    return f"{what} {run.path} {latent}"


@st.cache_resource(max_entries=8, show_spinner=False)
def _labels(path: object, stamp: tuple[int, int], _store: FeatureStore) -> dict[int, Label]:
    return _store.labels.all()


@st.cache_resource(max_entries=2, show_spinner=False)
def _decoder(digest: str, _run: Run):
    return _run.sae().W_dec
