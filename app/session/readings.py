"""The job that reads a visitor's text with a run's language model and SAE, for Your text and for the Feature page."""

from torch import Tensor

from activations.errors import ConfigError, WorkbenchError
from activations.tokens import PackingConfig
from app.session import features, models
from app.session.jobs import Report, progress
from sae.reading.reader import MOST_TOKENS, read
from sae.reading.reading import Reading
from sae.runs.run import Run

LONGEST = 8 * MOST_TOKENS  # characters of a text at most


def read_text(run: Run, text: str, report: Report) -> Reading:
    """Read a text, packed as the run's store is, with the run's language model and SAE. It is the work of a job.

    Raises ConfigError for more than LONGEST characters, and what loading the models and `sae.read` raise."""
    if len(text) > LONGEST:
        raise ConfigError(f"the text has {len(text):,} characters: at most {LONGEST:,} are read at once")
    report(0.0, "reading" if models.ready(run) else "loading the language model (a few seconds, once)")
    collected = features.of(run) if features.collected(run) else None
    packing, centre = _packing_and_mean(run)
    with models.using(run) as (model, sae):
        report(0.0, "reading")
        return read(
            model,
            sae,
            run.hook,
            text,
            collected,
            packing,
            centre,
            progress=progress(report),
            first=run.first_tokens,
        )


def _packing_and_mean(run: Run) -> tuple[PackingConfig | None, Tensor | None]:
    """Return how the run's store packs text, and its mean activation; both None where the store is gone."""
    try:
        return run.store.spec.packing, run.store.mean(run.hook)
    except WorkbenchError:
        return None, None
