"""The language model and the SAEs of live pages: loaded when first needed, then shared by everybody who looks.

One model at a time is kept, and one call at a time may run it: hooks are set on the shared modules."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from activations.language_model import LanguageModel
from sae.architectures import SAE
from sae.runs.run import Run, device

SAES_KEPT = 4

_turn = threading.RLock()
_models: dict[
    str, LanguageModel
] = {}  # by the hash of its weights, or its name where that is not known; one at most
_saes: dict[str, SAE] = {}  # by the hash of its file, the one used last at the end


@contextmanager
def using(run: Run) -> Iterator[tuple[LanguageModel, SAE]]:
    """The run's language model and SAE, for as long as the block lasts; others wait. Loading takes seconds.

    Raises ModelError or RunError when either cannot be had."""
    with _turn:
        yield _model(run), _sae(run)


def ready(run: Run) -> bool:
    """Whether the run's language model is in memory, so that `using` need not load it."""
    return _key(run) in _models


def _model(run: Run) -> LanguageModel:
    weights = _key(run)
    if weights not in _models:
        _models.clear()  # two would not fit into many a laptop
        gc.unfreeze()
        gc.collect()  # a model is full of cycles: it would stay
        _models[weights] = run.language_model()
        gc.freeze()  # a million objects of its libraries, which Streamlit would look through after every run of a page
    return _models[weights]


def _key(run: Run) -> str:
    return run.record.weights_sha256 or run.record.model


def _sae(run: Run) -> SAE:
    _saes[run.digest] = _saes.pop(run.digest, None) or run.sae().to(device())
    if len(_saes) > SAES_KEPT:
        del _saes[next(iter(_saes))]
    return _saes[run.digest]
