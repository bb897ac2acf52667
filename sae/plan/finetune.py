"""Predict what `sae finetune` takes: the language model's passes from a few real windows, the SAE's steps from counted work."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from activations.disk import files
from activations.disk.files import size_text
from activations.language_model import LanguageModel
from sae.architectures.config import ExpectedL0
from sae.config import RunConfig
from sae.plan import rates, training
from sae.plan.forecast import Forecast, total
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
    resolved = training.resolve(job, machine)
    seconds = {part: value for part, value in cost.seconds.items() if part not in FROM_STORE}
    whole = replace(
        cost,
        what=f"fine-tune {cost.what.removeprefix('train ')}",
        memory=_memory(job, measured, machine),
        seconds={"start": measured.start, PASSES: resolved.tokens / measured.tokens_per_second, **seconds},
        resources={"start": "compute", PASSES: "compute", **cost.resources},
        facts={
            **{name: fact for name, fact in cost.facts.items() if name in ("steps", "parameters")},
            "the model": f"{measured.tokens_per_second:,.0f} tokens/s, two passes and one backward ({measured.when})",
        },
        notes=_notes(job, resolved.firing),
    )
    return replace(whole, refusals=_refusals(whole, job, run.store.context, measured, machine, out))


def _memory(job: Job, measured: Passes, machine: Machine) -> dict[str, float]:
    """Return the most memory by part; the model's is the measured one, whatever the batch."""
    parts = training.memory_of(training.resolve(job, machine), job.data, machine)
    return {
        "model, gradients of a batch, Python and libraries": float(measured.memory),
        **{
            part: size
            for part, size in parts.items()
            if part not in ("Python and libraries", "shuffle window")
        },
    }


def _notes(job: Job, firing: ExpectedL0) -> tuple[str, ...]:
    """Return what the forecast assumes. `sae plan finetune` has no options of its own for either."""
    notes = []
    if firing.assumed:
        notes.append(f"{firing.value:,.4g} latents per token are an assumption ({firing.assumed})")
    if job.arch.revives_dead:
        notes.append("no latent is assumed to be dead: where many are, AuxK makes steps longer")
    return tuple(notes)


def _refusals(
    cost: Forecast, job: Job, context: int, measured: Passes, machine: Machine, out: Path
) -> tuple[str, ...]:
    """Return why a fine-tuning cannot be done here, each with what would fit; none where it can."""
    refusals = []
    if (need := total(cost.memory)) > machine.memory:
        refusals.append(
            f"too little memory: it takes {size_text(need)}, {size_text(measured.memory)} of it for the language model, and "
            f"{machine.name} has {size_text(machine.memory)}; {_less_memory(job, context, measured, machine)}"
        )
    if (need := total(cost.disk)) > (free := files.free_bytes(out)):
        refusals.append(
            f"too little disk: it takes {size_text(need)} and {out.absolute()} has {size_text(free)} free; an --out on another "
            f"disk would fit"
        )
    return tuple(refusals)


def _less_memory(job: Job, context: int, measured: Passes, machine: Machine) -> str:
    """Return what would make a job fit the memory. The model is counted as measured, though a smaller batch takes less in it too."""
    windows = job.train.batch // context // 2
    while windows * context >= 2:
        smaller = replace(job, train=replace(job.train, batch=windows * context))
        if total(_memory(smaller, measured, machine)) <= machine.memory:
            return f"--batch {windows * context} would fit"
        windows //= 2
    if job.train.batch > context:
        return f"a smaller --batch takes less, down to {context}, a window of the store"
    return "a machine with more memory would fit"
