"""The language models and SAEs that pages run: loaded when first needed, then shared by all visitors.

One language model is kept at a time, and one thread at a time may run it, because hooks are set on the shared modules."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from activations.language_model import LanguageModel
from sae.architectures import SAE
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
    return run.record.weights_sha256 or run.record.model


def _sae(run: Run) -> SAE:
    _saes[run.digest] = _saes.pop(run.digest, None) or run.sae().to(device())
    if len(_saes) > SAES_KEPT:
        del _saes[next(iter(_saes))]
    return _saes[run.digest]
