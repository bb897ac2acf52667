"""The language models and SAEs that pages run, loaded when first needed and shared by all visitors; reading a text with them.

One language model is kept at a time, and one job at a time may run it, because hooks are set on the shared modules."""

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from activations.errors import ConfigError, WorkbenchError
from activations.language_model import LanguageModel
from activations.progress import clock
from activations.tokens import PackingConfig
from app.session import features, jobs
from app.session.jobs import UNSEEN, Job, Report, progress
from sae.architectures import SAE
from sae.reading.reader import MOST_TOKENS, read
from sae.reading.reading import Reading
from sae.runs.run import Run, device
from sae.workflows.probe import model_of

SAES_KEPT = 4
LOADING = "load"  # the kind of work, for its usual time
POLL = 0.25  # seconds between two looks of a job that waits

_line: list[Job[Any]] = []  # the jobs that run the model or wait for it, the one that runs it first
_moved = threading.Condition()  # the line has changed
# at most one, under its `_key`
_models: dict[str, LanguageModel] = {}
_saes: dict[str, SAE] = {}  # under the hash of the file, the one used last at the end


@contextmanager
def using(run: Run, report: Report, as_harvested: bool = False) -> Iterator[tuple[LanguageModel, SAE]]:
    """Give the block of a job the run's language model and SAE, on the device; other jobs wait in line until it ends.

    The model computes in float32, or `as_harvested`: in the precision of the harvest, as the commands that measure on many texts have it.
    The job's note says what it waits for, and a job that waits can be stopped. Raises ModelError or RunError when either
    cannot be loaded."""
    with _turn(report):
        if _key(run, as_harvested) not in _models:
            usual = jobs.usual_seconds(LOADING)
            report(0.0, "loading the language model" + (f", {usual:.0f} s the last time" if usual else ""))
        yield _model(run, as_harvested), _sae(run)


@contextmanager
def _turn(report: Report) -> Iterator[None]:
    """Wait for the job's turn in the line of jobs that run the model."""
    mine = report.job
    with _moved:
        _line.append(mine)
    try:
        while True:
            with _moved:
                first, before = _line[0], _line.index(mine)
                if first is mine:
                    break
                _moved.wait(POLL)
            report(0.0, _reason(first, before))
        yield
    finally:
        with _moved:
            _line.remove(mine)
            _moved.notify_all()


def _reason(first: Job[Any], before: int) -> str:
    """Return why a job waits: what has the model, since when, for how long yet, and how many wait before it."""
    left = first.seconds_left
    time_left = "time left unknown" if left is None else f"about {clock(left)} left"
    unseen = f"; nobody looks at it, so it ends within {UNSEEN:.0f} s" if first.unseen else ""
    others = f"; {before - 1} more before this one" if before > 1 else ""
    what = first.title or "other work"
    return f"waiting for the language model, which has been {what} for {clock(first.seconds)}, {time_left}{unseen}{others}"


def _model(run: Run, as_harvested: bool) -> LanguageModel:
    weights = _key(run, as_harvested)
    if weights not in _models:
        _models.clear()  # many laptops have no memory for two
        gc.unfreeze()
        gc.collect()  # a model is full of reference cycles, which keep it in memory
        began = time.monotonic()
        _models[weights] = model_of(run) if as_harvested else run.language_model()
        jobs.took(LOADING, time.monotonic() - began)
        # Streamlit collects garbage after every run of a page, and would look through a million objects of its libraries
        gc.freeze()
    return _models[weights]


def _key(run: Run, as_harvested: bool) -> str:
    """Return what tells loaded models apart: their weights, their engine, and the precision that they compute in."""
    if run.reads_files:  # its model's name says nothing of what can be loaded
        return f"files of {run.record.model}"
    weights, precision = run.record.weights_sha256 or run.record.model, run.record.model_dtype
    if run.record.source != "bridge":  # such a model computes in the precision of the harvest in any case
        return f"{weights} by {run.record.source} in {precision}"
    return f"{weights} in {precision}" if as_harvested and precision != "float32" else weights


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
    report(0.0, "reading")
    collected = features.of(run) if features.collected(run) else None
    packing, centre = _packing_and_mean(run)
    with using(run, report) as (model, sae):
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
