"""The language models and SAEs that pages run, loaded when first needed and shared by all visitors; reading a text with them.

One language model is kept at a time, and one thread at a time may run it, because hooks are set on the shared modules."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from activations.errors import ConfigError, WorkbenchError
from activations.language_model import LanguageModel
from activations.tokens import PackingConfig
from app.session import features
from app.session.jobs import Report, progress
from sae.architectures import SAE
from sae.reading.reader import MOST_TOKENS, read
from sae.reading.reading import Reading
from sae.runs.run import Run, device

SAES_KEPT = 4

_turn = threading.RLock()
# at most one, under the hash of its weights, or under its name where the hash is unknown
_models: dict[str, LanguageModel] = {}
_saes: dict[str, SAE] = {}  # under the hash of the file, the one used last at the end


@contextmanager
def using(run: Run) -> Iterator[tuple[LanguageModel, SAE]]:
    """Give the block the run's language model and SAE, on the device; other threads wait until it ends.

    Loading takes seconds. Raises ModelError or RunError when either cannot be loaded."""
    with _turn:
        yield _model(run), _sae(run)


def ready(run: Run) -> bool:
    """Return whether the run's language model is in memory, so that `using` does not load it."""
    return _key(run) in _models


def _model(run: Run) -> LanguageModel:
    weights = _key(run)
    if weights not in _models:
        _models.clear()  # many laptops have no memory for two
        gc.unfreeze()
        gc.collect()  # a model is full of reference cycles, which keep it in memory
        _models[weights] = run.language_model()
        # Streamlit collects garbage after every run of a page, and would look through a million objects of its libraries
        gc.freeze()
    return _models[weights]


def _key(run: Run) -> str:
    if run.reads_files:  # its model's name says nothing of what can be loaded
        return f"files of {run.record.model}"
    return run.record.weights_sha256 or run.record.model


def _sae(run: Run) -> SAE:
    _saes[run.digest] = _saes.pop(run.digest, None) or run.sae().to(device())
    if len(_saes) > SAES_KEPT:
        del _saes[next(iter(_saes))]
    return _saes[run.digest]


LONGEST = 8 * MOST_TOKENS  # characters of a text at most


def read_text(run: Run, text: str, report: Report) -> Reading:
    """Read a text, packed as the run's store is, with the run's language model and SAE. It is the work of a job.

    Raises ConfigError for more than LONGEST characters, and what loading the models and `sae.read` raise."""
    if len(text) > LONGEST:
        raise ConfigError(f"the text has {len(text):,} characters: at most {LONGEST:,} are read at once")
    report(0.0, "reading" if ready(run) else "loading the language model (a few seconds, once)")
    collected = features.of(run) if features.collected(run) else None
    packing, centre = _packing_and_mean(run)
    with using(run) as (model, sae):
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
