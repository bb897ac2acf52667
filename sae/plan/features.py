"""Predict what `sae features` takes: one pass over the store, then work that depends only on the number of latents."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from activations.disk import files
from activations.disk.files import size_text
from activations.language_model import LanguageModel
from activations.store import row_bytes
from sae.features import map as maps
from sae.features.cofiring import BLOCK_BYTES
from sae.features.collect import FeaturesConfig, shards_to_read
from sae.plan import rates
from sae.plan.forecast import Forecast, active, count, duration, total
from sae.plan.measure import Clock
from sae.plan.rates import Machine, Rates
from sae.runs.run import Run

MAP_START, MAP_LATENT = 3.0, 4e-4  # seconds of the map on one core: to compile its loops, and per latent
RESOURCES = {
    "the language model's start": "compute",
    "reading": "disk",
    "encode": "compute",
    "selection": "memory bandwidth",
    "statistics and examples": "memory bandwidth",
    "codes kept meanwhile": "disk",
    "latents firing together": "memory bandwidth",
    "logit lens": "compute",
    "neighbours": "compute",
    "map": "compute",
}
STATE, EXAMPLE = 2000, 900  # bytes per latent: statistics and candidates; its examples in memory


@dataclass(frozen=True)
class Reader:
    """The cost of the language model that `sae features` needs for token texts and the logit lens."""

    start: float
    """Seconds to load it."""
    memory: int
    """Most bytes that the process took, libraries included."""
    vocabulary: int


def reader(
    key: str, load: Callable[[], LanguageModel], again: bool, clock: Clock = time.perf_counter
) -> Reader:
    """Return the measurement stored under this key, or load the model, measure it and store the measurement.

    `again` measures in any case. Call this before anything else takes memory: the process' peak counts as the model's."""

    def measure() -> Reader:
        started = clock()
        model = load()
        vocabulary = len(model.vocabulary.text.names)
        _ = model.readout  # the lens needs it, and with some engines it takes seconds too
        return Reader(clock() - started, rates.peak_memory(), vocabulary)

    return rates.measured_once(key, Reader, measure, again)


def forecast(
    run: Run, cfg: FeaturesConfig, reader: Reader | None, machine: Machine, ranks: int = 1
) -> Forecast:
    """Predict what describing a run's latents takes when the ranks share the pass over the store; without a reader, of a run on files."""
    store, arch = run.store, run.config.arch
    width, F = store.width(run.hook), arch.d_sae
    shards, rows = shards_to_read(store, cfg.tokens)
    stored = [entry.rows for entry in store.shards[:shards]]
    firing = _firing(run)
    work = count(arch, width, cfg.batch, firing, block=machine.block)
    r, firings = machine.rates, rows * firing
    row = row_bytes(store.spec.dtype, width)
    encode, selection = encoding(run, rows, cfg.batch, machine)
    seconds = {
        **({"the language model's start": reader.start} if reader else {}),
        "reading": sum(stored) * row / r.read,
        "encode": encode / ranks,
        "selection": selection / ranks,
        "statistics and examples": firings / r.firing / ranks,
        "codes kept meanwhile": firings * 8 / r.write,
        "latents firing together": F**2 / r.pair + firings * firing / r.together,
        **({"logit lens": _lens(F, width, reader.vocabulary, r)} if reader else {}),
        # each pair of latents is multiplied once and looked at twice
        "neighbours": F**2 * (width / r.flops + 1 / r.scan_row),
    }
    if maps.available():
        seconds["map"] = MAP_START + MAP_LATENT * F
    memory = {
        "model, Python and libraries": float(reader.memory if reader else rates.peak_memory()),
        "the SAE": 4.0 * work.parameters,
        "pre-activations": 4.0 * work.dense,
        "a shard and its codes": max(stored) * (row + 60.0 * firing * rows / sum(stored)),
        "statistics and examples": F * (STATE + EXAMPLE * (2 * cfg.strongest + cfg.sampled) / 80),
        "pair counts": 1.5 * min(4 * F**2, BLOCK_BYTES),
    }
    disk = {
        "codes kept meanwhile": firings * 8.0,
        "features": F * (2000.0 + 40 * (cfg.strongest + cfg.sampled)),
    }
    once = total(seconds) - (reader.start if reader else 0)
    facts = {
        "tokens": f"{rows:,} in {shards} shards, {firings:,.0f} firings",
        "speed": f"{rows / once:,.0f} tokens/s, {duration(once / F)} per latent",
    }
    resources = {name: RESOURCES[name] for name in seconds}
    what = f"features of {F:,} latents on {rows:,} tokens, {firing:,.4g} latents per token"
    cost = Forecast(what, disk, memory, seconds, resources, facts)
    return dataclasses.replace(cost, refusals=_refusals(cost, run))


def encoding(run: Run, rows: int, batch: int, machine: Machine) -> tuple[float, float]:
    """Return the seconds in which a trained run encodes rows, `batch` at once: those of products, and those of selecting latents."""
    width, r = run.record.d_model, machine.rates
    work = count(run.config.arch, width, batch, _firing(run), block=machine.block)
    # After training, a threshold replaces the selection among a batch
    scan = getattr(r, f"scan_{'above' if work.scan == 'batch' else work.scan}")
    selection = work.scanned / scan + work.picked / r.pick + work.passes / r.passes
    return rows / batch * work.encode / r.flops, rows / batch * selection


def _lens(latents: int, width: int, vocabulary: int, r: Rates) -> float:
    """Return the seconds of the logit lens: a product, two selections of tokens, and passes over the scores."""
    return latents * vocabulary * (2 * width / r.flops + 2 / r.scan_row + 6 / r.passes)


def _firing(run: Run) -> float:
    """Return the latents per token, from the last row of the log if there is one."""
    log = run.log
    return float(log[-1]["l0"]) if log else active(run.config.arch).value


def _refusals(cost: Forecast, run: Run) -> tuple[str, ...]:
    refusals = []
    if total(cost.memory) > rates.memory():
        refusals.append(
            f"too little memory: it takes {size_text(total(cost.memory))} and the machine has {size_text(rates.memory())}; fewer "
            f"--strongest and --sampled would take less"
        )
    need, free = total(cost.disk), files.free_bytes(run.path)
    if need > free:
        refusals.append(
            f"too little disk: it takes {size_text(need)} and {run.path.absolute()} has {size_text(free)} free; fewer --tokens "
            f"would fit"
        )
    return tuple(refusals)
