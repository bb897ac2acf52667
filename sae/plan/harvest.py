"""Predict what a harvest takes: time from the model's speed on a few real windows, disk and memory from shapes."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from activations.capture import ShardBuffer
from activations.disk import files
from activations.disk.files import size_text
from activations.document_labels import SURPRISE, per_token
from activations.engines import Engine
from activations.errors import HarvestError
from activations.harvest import HarvestConfig, store_spec
from activations.language_model import LanguageModel
from activations.store import row_bytes
from activations.text import documents
from activations.tokens import windows
from sae.plan import rates
from sae.plan.features import encoding
from sae.plan.forecast import Forecast, duration
from sae.plan.measure import Clock
from sae.plan.rates import Machine
from sae.plan.training import WINDOW
from sae.runs.run import Run

BATCHES = 3  # timed after a first one, which is slower
LABELLED = 2048  # rows that `label` encodes at once
INDEX = 1600  # bytes per shard of the index and of the shard's header


@dataclass(frozen=True)
class Pace:
    """The measured speed of a model up to its deepest hook point, or to its logits, and its memory."""

    tokens_per_second: float
    start: float
    """Seconds until it runs: to load it and to hash its weights."""
    memory: int
    """Most bytes the process took: model, batch and libraries together."""
    widths: dict[str, int]
    """Hook point -> width."""
    itemsize: int
    """Bytes of a number in the model's own type."""
    when: str
    """When this was measured, as text."""


def pace(
    key: str,
    load: Callable[[], tuple[LanguageModel, HarvestConfig]],
    again: bool,
    clock: Clock = time.perf_counter,
) -> Pace:
    """Return the pace stored under this key, or measure it now on the first windows of the text and store it.

    `again` measures in any case. Call this before anything else takes memory: the process' peak counts as the model's."""

    def measure() -> Pace:
        started = clock()
        model, config = load()
        spec = store_spec(model, config)
        ready = clock() - started
        speed = _speed(model, config, clock)
        itemsize = model.plain.dtype.itemsize
        return Pace(speed, ready, rates.peak_memory(), dict(spec.hooks), itemsize, rates.now())

    return rates.measured_once(key, Pace, measure, again)


def key(
    machine: str, engine: Engine, model: str, revision: str | None, dtype: str, config: HarvestConfig
) -> str:
    """Return the key of a pace: everything that the model's speed depends on."""
    shape = f"{config.packing.context} x {max(1, config.batch_tokens // config.packing.context)}"
    by = "" if engine == "bridge" else f" by {engine}"
    to = ", to the logits" if config.labels == SURPRISE else ""
    return f"{machine}: {model} {revision or ''} {dtype}{by}, {config.hooks or 'default hook'}{to}, {shape} tokens"


def _speed(model: LanguageModel, config: HarvestConfig, clock: Clock) -> float:
    """Return the median tokens per second over a few batches of the text's first windows."""
    per_batch = max(1, config.batch_tokens // config.packing.context)
    stream = windows(documents(config.text), model.tokenizer, config.packing)
    read = list(islice(stream, per_batch * (BATCHES + 1)))
    if not read:
        raise HarvestError(
            f"{config.text.dataset} fills no window of {config.packing.context} tokens: use more text, or a smaller "
            f"--context"
        )
    buffer = ShardBuffer(per_batch, config.packing.context, surprise=config.labels == SURPRISE)
    speeds = []
    for first in range(0, len(read), per_batch):
        block = read[first : first + per_batch]
        started = clock()
        buffer.fill(model, block, config.hook_names, config.batch_tokens, lambda n: None)
        buffer.collect()
        if first or len(read) <= per_batch:  # the first batch counts only when there is no other
            speeds.append(len(block) * config.packing.context / (clock() - started))
    return statistics.median(speeds)


def forecast(
    config: HarvestConfig,
    pace: Pace,
    machine: Machine,
    out: Path,
    ranks: int = 1,
    labeller: Run | None = None,
) -> Forecast:
    """Predict what this harvest takes when each rank has a machine like this one and all write to the disk of `out`.

    `labeller` is the run of `--labels needed:RUN`, which reads the finished store."""
    context = config.packing.context
    tokens = config.tokens // context * context
    row = sum(row_bytes(config.dtype, width) for width in pace.widths.values())
    shard = min(config.shard_tokens // context * context or context, tokens)
    shards = -(-tokens // shard)
    disk = {"activations": float(tokens * row), "tokens, documents, index": tokens * 4.4 + shards * INDEX}
    numbers = shard * sum(pace.widths.values())
    if per_token(config.labels):
        disk["labels"] = tokens * 4.0
    memory = {
        "model, batch, Python and libraries": float(pace.memory),
        "two shards as the model gives them": 2.0 * numbers * pace.itemsize,
        "a shard being checked and written": shard * 2.0 * row + numbers,
    }
    forward = tokens / pace.tokens_per_second / ranks
    writing = disk["activations"] / machine.rates.write
    last = shard * row / machine.rates.write
    seconds = {"start": pace.start, "the model's forward pass": forward}
    # Shards are written in the background: only what exceeds the forward pass is waited for, and the last shard
    seconds["waiting for the disk"] = max(writing - forward, last)
    if labeller:  # rank 0 adds its labels to the finished store
        seconds["labels by the run"] = sum(encoding(labeller, tokens, LABELLED, machine))
    resources = {name: "disk" if "disk" in name else "compute" for name in seconds}
    widest = row_bytes(config.dtype, max(pace.widths.values()))
    window = max(2, WINDOW // max(1, shard * widest)) * shard
    facts = {
        "speed": f"{pace.tokens_per_second:,.0f} tokens/s per rank up to the deepest hook point ({pace.when})",
        "shards": f"{shards:,} of {shard:,} tokens, {size_text(shard * row)} each; a crash costs at most one, "
        f"{duration(shard / pace.tokens_per_second)}",
        "shuffle window": "all rows in training" if window >= tokens
        else f"{window:,} tokens at a time in training ({window / tokens:.1%})",
    }  # fmt: skip
    hooks = ", ".join(f"{hook} [{width}]" for hook, width in pace.widths.items())
    forecast = Forecast(
        f"harvest {tokens:,} tokens: {hooks}, {config.dtype}", disk, memory, seconds, resources, facts
    )
    return dataclasses.replace(forecast, refusals=_refusals(forecast, config, row, out))


def _refusals(forecast: Forecast, config: HarvestConfig, row: int, out: Path) -> tuple[str, ...]:
    free = files.free_bytes(out)
    written = sum(file.stat().st_size for file in out.glob("shard-*.safetensors"))
    need = sum(forecast.disk.values()) - written
    refusals = []
    if need > free:
        fits = int(free * 0.95 / (row + 5)) // config.packing.context * config.packing.context
        half = {"float32": ", --dtype float16 halves it, int8 takes .27", "int8": ""}
        smaller = half.get(config.dtype, ", --dtype int8 takes .53 of it")
        refusals.append(
            f"too little disk: it takes {size_text(need)} and {out.absolute()} has {size_text(free)} free; --tokens {fits} would fit{smaller}; sae train --ring needs no store"
        )
    memory = rates.memory()
    if sum(forecast.memory.values()) > memory:
        refusals.append(
            f"too little memory: it takes {size_text(sum(forecast.memory.values()))} and the machine has {size_text(memory)}; "
            f"use a smaller --shard-tokens than {config.shard_tokens}, or a smaller model"
        )
    return tuple(refusals)
