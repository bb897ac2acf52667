"""Predict what `sae finetune` takes: the language model's passes from a few real windows, the SAE's steps from counted work."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from activations.language_model import LanguageModel
from sae.config import RunConfig
from sae.plan import rates, training
from sae.plan.forecast import Forecast
from sae.plan.measure import Clock
from sae.plan.rates import Machine
from sae.plan.stream import FROM_STORE
from sae.plan.training import Data, Job
from sae.runs.run import Run
from sae.training.end_to_end import SplicedReader

BATCHES = 2  # timed after a first one, which is slower
PASSES = "the model's passes"


@dataclass(frozen=True)
class Passes:
    """The measured speed of two passes of a language model and of one backward, and its memory."""

    tokens_per_second: float
    start: float
    """Seconds until it runs: to load it and to check its weights."""
    memory: int
    """Most bytes the process took: model, activations for the gradients and libraries together."""
    when: str
    """When this was measured, as text."""


def passes(
    key: str,
    run: Run,
    cfg: RunConfig,
    load: Callable[[], LanguageModel],
    again: bool,
    clock: Clock = time.perf_counter,
) -> Passes:
    """Return the speed stored under this key, or measure it now on batches of the run's store as fine-tuning reads them, and store it.

    `again` measures in any case. Call this before anything else takes memory: the process' peak counts as the model's."""

    def measure() -> Passes:
        started = clock()
        model, store = load(), run.store
        ready = clock() - started
        windows = cfg.train.batch // store.context
        reader = SplicedReader(store, run.hook, model, windows, seed=cfg.train.seed, positions=cfg.positions)
        batches, speeds = iter(reader), []
        while len(speeds) <= BATCHES:
            started = clock()
            batch = next(batches)  # a pass over the windows
            assert batch.divergence is not None
            batch.divergence(batch.x.clone().requires_grad_()).backward()
            speeds.append(windows * store.context / (clock() - started))
        return Passes(statistics.median(speeds[1:]), ready, rates.peak_memory(), rates.now())

    return rates.measured_once(key, Passes, measure, again)


def forecast(run: Run, cfg: RunConfig, measured: Passes, machine: Machine, out: Path) -> Forecast:
    """Predict what fine-tuning a run takes, with its new run in the folder `out`. Nothing is trained."""
    job = Job(cfg.arch, cfg.train, Data.of(run.store, run.hook))
    cost = training.forecast(job, machine, out)
    tokens = training.resolve(job, machine).tokens
    seconds = {part: value for part, value in cost.seconds.items() if part not in FROM_STORE}
    memory = {
        part: size
        for part, size in cost.memory.items()
        if part not in ("Python and libraries", "shuffle window")
    }
    whole = replace(
        cost,
        what=f"fine-tune {cost.what.removeprefix('train ')}",
        memory={"model, gradients of a batch, Python and libraries": float(measured.memory), **memory},
        seconds={"start": measured.start, PASSES: tokens / measured.tokens_per_second, **seconds},
        resources={"start": "compute", PASSES: "compute", **cost.resources},
        facts={
            **{name: fact for name, fact in cost.facts.items() if name in ("steps", "parameters")},
            "the model": f"{measured.tokens_per_second:,.0f} tokens/s, two passes and one backward ({measured.when})",
        },
    )
    return replace(whole, refusals=training.refusals(whole, job, machine, out))
