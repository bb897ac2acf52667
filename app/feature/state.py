"""State of the Feature page and its actions: label, measured effect, a text to try the feature on, an HTML file."""

from functools import partial

from app.session import jobs, models
from app.session.features import of
from app.session.readings import read_text
from sae.features import effects
from sae.features import feature as feature_page
from sae.features.effects import Effect, measure_effect
from sae.features.feature import FeatureStore
from sae.reading.reading import Reading
from sae.runs.run import Run

LONGEST_LABEL, LONGEST_NOTE = 200, 4000  # characters


def save_label(store: FeatureStore, latent: int, label: str, note: str) -> None:
    """Save what the visitor calls a feature.

    Texts are cut to the length that the form allows, since a visitor's browser need not respect the form."""
    store.labels.set(latent, label[:LONGEST_LABEL], note[:LONGEST_NOTE])


def effect(store: FeatureStore, latent: int) -> Effect | None:
    """Return a feature's measured effect on the model; None if it has not been measured."""
    return effects.load_effect(store, latent)


def effect_job(run: Run, latent: int) -> jobs.Job[None] | None:
    """Return this visitor's measurement of a feature's effect, running or ended; None if none was started."""
    return jobs.find(_effect_key(run, latent))


def measure(run: Run, latent: int) -> None:
    """Start to measure a feature's effect on the model; the result is saved beside the features."""
    jobs.start(_effect_key(run, latent), partial(_measure, run, of(run), latent))


def own_text(run: Run) -> jobs.Job[Reading] | None:
    """Return the reading of this visitor's text, running or ended; it stays when the visitor goes to another feature."""
    return jobs.find(f"own text {run.path}")


def try_text(run: Run, text: str) -> None:
    """Start to read a text."""
    jobs.start(f"own text {run.path}", partial(read_text, run, text))


def values_on(reading: Reading, latent: int) -> tuple[list[str], list[float]]:
    """Return the tokens of a reading and a feature's value on each, without tokens that are not text, such as BOS."""
    triples = zip(reading.tokens, reading.values_of(latent).tolist(), reading.is_text.tolist(), strict=True)
    of_text = [(token, value) for token, value, is_text in triples if is_text]
    return [token for token, _ in of_text], [value for _, value in of_text]


def as_html(store: FeatureStore, latent: int, title: str) -> str:
    """Return a feature as a self-contained HTML document."""
    return feature_page.document(
        f"{title}: feature {latent}",
        [feature_page.body(store.feature(latent), feature_page.AROUND, feature_page.EXAMPLES)],
    )


def _measure(run: Run, store: FeatureStore, latent: int, report: jobs.Report) -> None:
    report(0.0, "waiting for the language model" if models.ready(run) else "loading the language model")
    with models.using(run) as (model, sae):
        report(0.01, "running its examples with and without it")
        effect = measure_effect(model, sae, store, run.hook, latent, progress=jobs.progress(report))
        effects.save_effect(store, effect)


def _effect_key(run: Run, latent: int) -> str:
    return f"effect {run.path} {latent}"
