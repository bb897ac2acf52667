"""What a harvest would take: the model's own speed on a few real windows, disk and memory from shapes."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from activations.disk import files
from activations.errors import HarvestError
from activations.harvest import HarvestConfig, store_spec
from activations.language_model import LanguageModel
from activations.store import DTYPES
from activations.text import documents
from activations.tokens import windows
from sae.plan import rates
from sae.plan.forecast import Forecast, duration, size
from sae.plan.measure import Clock
from sae.plan.rates import Machine
from sae.plan.training import WINDOW

BATCHES = 3  # timed, after one that is not
INDEX = 1600  # bytes of the index and of a shard's header, a shard


@dataclass(frozen=True)
class Pace:
    """How a model runs up to its deepest hook point."""

    tokens_per_second: float
    start: float
    """Seconds until it runs: loaded, its weights' checksum taken."""
    memory: int
    """Bytes the process took at most, model, batch and libraries together."""
    widths: dict[str, int]
    """Hook point -> width."""
    itemsize: int
    """Bytes of a number as the model gives it."""
    when: str


def pace(
    key: str,
    load: Callable[[], tuple[LanguageModel, HarvestConfig]],
    again: bool,
    clock: Clock = time.perf_counter,
) -> Pace:
    """Remembered under this key, or measured now on the first windows of the text and remembered.

    To be asked for before anything else takes memory: what the process has taken at most counts as the model's."""
    found = None if again else rates.recall(key)
    if found is None:
        started = clock()
        model, config = load()
        spec = store_spec(model, config)
        ready = clock() - started
        speed = _speed(model, config, clock)
        when = f"measured {time.strftime('%Y-%m-%d %H:%M')}"
        found = asdict(Pace(speed, ready, rates.peak_memory(), spec.hooks, model.plain.dtype.itemsize, when))
        rates.remember(key, found)
    return Pace(**found)


def key(machine: str, model: str, revision: str | None, dtype: str, config: HarvestConfig) -> str:
    """What the model's pace depends on."""
    shape = f"{config.packing.context} x {max(1, config.batch_tokens // config.packing.context)}"
    return f"{machine}: {model} {revision or ''} {dtype}, {config.hooks or 'default hook'}, {shape} tokens"


def _speed(model: LanguageModel, config: HarvestConfig, clock: Clock) -> float:
    per_batch = max(1, config.batch_tokens // config.packing.context)
    stream = windows(documents(config.text), model.tokenizer, config.packing)
    found = [window.tokens for window in islice(stream, per_batch * (BATCHES + 1))]
    if not found:
        raise HarvestError(
            f"{config.text.dataset} gave no full window of {config.packing.context} tokens: needed is more text, or "
            f"a smaller --context"
        )
    speeds = []
    for number, batch in enumerate(torch.from_numpy(np.stack(found)).split(per_batch)):
        started = clock()
        model.capture(batch, config.hook_names)
        if number or len(found) <= per_batch:
            speeds.append(batch.numel() / (clock() - started))
    return statistics.median(speeds)


def forecast(config: HarvestConfig, found: Pace, machine: Machine, out: Path, ranks: int = 1) -> Forecast:
    """What this harvest would take; each of the ranks on a machine like this one, all writing to the disk of `out`."""
    context, number = config.packing.context, DTYPES[config.dtype].itemsize
    tokens = config.tokens // context * context
    row = sum(found.widths.values()) * number
    shard = min(config.shard_tokens // context * context or context, tokens)
    shards = -(-tokens // shard)
    disk = {"activations": float(tokens * row), "tokens, documents, index": tokens * 4.4 + shards * INDEX}
    numbers = shard * sum(found.widths.values())
    memory = {
        "model, batch, Python and libraries": float(found.memory),
        "two shards as the model gives them": 2.0 * numbers * found.itemsize,
        "a shard being checked and written": numbers * (number + 1.0 + number),
    }
    forward = tokens / found.tokens_per_second / ranks
    writing = disk["activations"] / machine.rates.write
    last = shard * row / machine.rates.write
    seconds = {"start": found.start, "the model's forward pass": forward}
    seconds["waiting for the disk"] = max(writing - forward, last)  # shards are written behind the model
    resources = {name: "disk" if "disk" in name else "compute" for name in seconds}
    mixed = max(2, WINDOW // max(1, shard * max(found.widths.values()) * number)) * shard
    facts = {
        "speed": f"{found.tokens_per_second:,.0f} tokens/s and rank up to the deepest hook point ({found.when})",
        "shards": f"{shards:,} of {shard:,} tokens, {size(shard * row)} each: what a crash can cost, "
        f"{duration(shard / found.tokens_per_second)}",
        "shuffle window": "all rows, when trained on" if mixed >= tokens
        else f"{mixed:,} tokens at a time, when trained on ({mixed / tokens:.1%})",
    }  # fmt: skip
    hooks = ", ".join(f"{hook} [{width}]" for hook, width in found.widths.items())
    forecast = Forecast(
        f"harvest {tokens:,} tokens: {hooks}, {config.dtype}", disk, memory, seconds, resources, facts
    )
    return dataclasses.replace(forecast, refusals=_refusals(forecast, config, row, out))


def _refusals(forecast: Forecast, config: HarvestConfig, row: int, out: Path) -> tuple[str, ...]:
    free = files.free_bytes(out)
    there = sum(file.stat().st_size for file in out.glob("shard-*.safetensors"))
    need = sum(forecast.disk.values()) - there
    found = []
    if need > free:
        fits = int(free * 0.95 / (row + 5)) // config.packing.context * config.packing.context
        half = ", --dtype float16 halves it" if config.dtype == "float32" else ""
        found.append(
            f"too little disk: it takes {size(need)} and {out.absolute()} has {size(free)} free; --tokens {fits} would fit{half}"
        )
    memory = rates.memory()
    if sum(forecast.memory.values()) > memory:
        found.append(
            f"too little memory: it takes {size(sum(forecast.memory.values()))} and there are {size(memory)}; "
            f"take a smaller --shard-tokens than {config.shard_tokens}, or a smaller model"
        )
    return tuple(found)
