"""A text read with a run's eyes: the work behind Your text, and behind a feature's own-text box."""

from torch import Tensor

from activations.errors import ConfigError, WorkbenchError
from activations.tokens import PackingConfig
from app.session import features, models
from app.session.jobs import Report
from sae.reading.reader import MOST_TOKENS, read
from sae.reading.reading import Reading
from sae.runs.run import Run

LONGEST = 8 * MOST_TOKENS  # characters of a text


def read_text(run: Run, text: str, report: Report) -> Reading:
    """The text cut as the run's store is, and read by its language model and SAE. To be done in a job.

    Raises what loading them and `sae.read` raise, ConfigError for more than LONGEST characters."""
    if len(text) > LONGEST:
        raise ConfigError(f"the text has {len(text):,} characters: at most {LONGEST:,} are read at once")
    report(0.0, "reading" if models.ready(run) else "loading the model: some seconds the first time")
    collected = features.of(run) if features.collected(run) else None
    packing, centre = _as_stored(run)
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
            on_tokens=lambda n, of: report(n / of, "reading"),
            first=run.first_tokens,
        )


def _as_stored(run: Run) -> tuple[PackingConfig | None, Tensor | None]:
    """How the run's store cuts text, and its mean; None where the store is gone."""
    try:
        return run.store.spec.packing, run.store.mean(run.hook)
    except WorkbenchError:
        return None, None
