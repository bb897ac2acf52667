"""What a training would take: the time of a step from counted work and rates, memory and disk from shapes."""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from activations.disk import files
from activations.errors import ConfigError
from activations.harvest import HarvestConfig
from activations.shuffle import ShuffledReader
from activations.store import Store
from sae.architectures import ArchConfig, name_of
from sae.architectures.config import ExpectedL0
from sae.plan.forecast import Forecast, duration, size, total
from sae.plan.rates import Machine, Rates
from sae.plan.work import Work, active, count
from sae.training.distributed import Parallel, chosen, traffic
from sae.training.trainer import INIT_ROWS, TrainConfig

SHARD = HarvestConfig().shard_tokens
WINDOW: int = inspect.signature(ShuffledReader).parameters["memory"].default  # bytes of rows mixed at a time
KEPT = 0.9  # of a store's tokens: one document in ten is held out, the first position of each window left out
MATCHING = 1.1e-9  # seconds per n^2.6: one-to-one matching of n rows (scipy, one core)


@dataclass(frozen=True)
class Data:
    """The rows that are trained on."""

    width: int
    rows: int
    """Rows of the training split."""
    bytes_per_number: int
    shard_rows: int
    """Training rows of the largest shard."""
    tokens: int = 0
    """Tokens of the store, where it is not there yet."""

    @classmethod
    def of(cls, store: Store, hook: str) -> "Data":
        """What a store has, held-out documents estimated, nothing read but the index."""
        rows = [int(entry.rows * KEPT) for entry in store.shards]
        itemsize = {"float32": 4}.get(store.spec.dtype, 2)
        return cls(store.width(hook), sum(rows), itemsize, max(rows))

    @classmethod
    def planned(cls, width: int, tokens: int, bytes_per_number: int) -> "Data":
        """Of a store that is not there yet, in shards as `sae harvest` makes them."""
        rows = int(tokens * KEPT)
        return cls(width, rows, bytes_per_number, min(rows, int(SHARD * KEPT)), tokens)

    @property
    def there(self) -> bool:
        """Whether there is a store."""
        return not self.tokens

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return self.width * self.bytes_per_number

    @property
    def window_rows(self) -> int:
        """Rows that the reader mixes at a time: all, or as many shards as its memory takes, two at least."""
        shards = max(2, WINDOW // (self.shard_rows * self.row))
        return min(self.rows, shards * self.shard_rows)

    @property
    def whole(self) -> bool:
        """Whether that is all of them."""
        return self.window_rows == self.rows

    @property
    def held(self) -> float:
        """Bytes of rows in memory, and of the order to read them in; twice where the next ones are read meanwhile."""
        return self.window_rows * (self.row + 8.0) * (1 if self.whole else 2)


def step_seconds(work: Work, rates: Rates, sent: float = 0.0) -> dict[str, float]:
    """Seconds of one step by part, one after the other; `sent` are bytes to other ranks."""
    scan = getattr(rates, f"scan_{work.scan}")
    found = {
        "encode": work.encode / rates.flops + work.weights / rates.weights,
        "selection": work.scanned / scan + work.picked / rates.pick + work.passes / rates.passes,
        "sparse part": work.gathered / rates.gather(work.table),
        "dense gradients": work.products / rates.flops,
        "matching": MATCHING * work.matched**2.6,
        "optimizer": work.parameters / rates.adam,
        "loss and the rest": work.loss / rates.loss + 1 / rates.step,
        "exchange": sent / rates.send,
    }
    return {name: seconds for name, seconds in found.items() if seconds}


RESOURCES = {
    "encode": "compute",
    "selection": "memory bandwidth",
    "sparse part": "memory bandwidth",
    "dense gradients": "compute",
    "matching": "compute",
    "optimizer": "memory bandwidth",
    "loss and the rest": "memory bandwidth",
    "exchange": "network",
    "reading at the start": "disk",
    "waiting for rows": "disk",
    "checkpoints": "disk",
}


@dataclass(frozen=True)
class Job:
    """A training to be planned."""

    arch: ArchConfig
    train: TrainConfig
    data: Data
    l0: float | None = None
    """Latents a token fires, where it is known better than from the settings."""
    dead: float = 0.0
    """Share of latents that AuxK works on."""
    ranks: int = 1
    """Devices that train the SAE together, each like the one planned for."""
    parallel: Parallel = "auto"
    """What they share: each batch, or the latents."""


class Settled(NamedTuple):
    """A job with everything filled in."""

    train: TrainConfig
    steps: int
    firing: ExpectedL0
    parts: int
    """Ranks that share the latents; 1 where they share each batch, or there is one."""
    rows: int
    """Rows of each batch that a device trains on."""
    work: Work
    step: dict[str, float]
    """Seconds of one step, by part."""

    @property
    def tokens(self) -> int:
        """All steps' rows."""
        return self.steps * self.train.batch

    @property
    def checkpoint(self) -> float:
        """Bytes: weights and both moments; with an average of the weights, those of training and the average too."""
        return (12.0 if self.train.ema is None else 20.0) * self.work.parameters * self.parts


def settle(job: Job, machine: Machine) -> Settled:
    """Raises ConfigError when the ranks cannot share the job in the way asked for."""
    width, ranks = job.data.width, job.ranks
    train = job.train.resolved(job.data.rows, job.arch)
    assert train.steps is not None
    way = chosen(job.parallel, job.arch, width, train.batch, ranks)
    parts, rows = (ranks, train.batch) if way == "latents" else (1, train.batch // ranks)
    firing = active(job.arch, job.l0)
    work = count(job.arch, width, rows, firing.value, job.dead, parts)
    sent = traffic(way, job.arch, width, train.batch, ranks)
    return Settled(train, train.steps, firing, parts, rows, work, step_seconds(work, machine.rates, sent))


def forecast(job: Job, machine: Machine, out: Path) -> Forecast:
    """What this training would take, its run in the folder `out`; nothing is read or run.

    Raises ConfigError when the ranks cannot share the job in the way asked for."""
    settled = settle(job, machine)
    seconds = seconds_of(settled, job.data, machine.rates)
    what = f"{job.arch.d_sae:,} latents on width {job.data.width}, {settled.firing.value:,.4g} a token"
    found = Forecast(
        f"train {name_of(job.arch)}: {what}",
        disk_of(settled, job.data),
        memory_of(settled, job.data, machine),
        seconds,
        {name: RESOURCES[name] for name in seconds},
        _facts(settled, job),
        _notes(job, settled.firing, machine),
    )
    return replace(found, refusals=_refusals(found, job, machine, out))


def seconds_of(settled: Settled, data: Data, rates: Rates) -> dict[str, float]:
    """Of the whole training. Rows that do not all fit into memory are read behind the steps, as fast as the disk can."""
    seconds = {name: value * settled.steps for name, value in settled.step.items()}
    if data.whole:
        seconds["reading at the start"] = data.rows * data.row / rates.read
    elif (late := settled.tokens * data.row / rates.read - total(seconds)) > 0:
        seconds["waiting for rows"] = late
    save = settled.checkpoint / rates.write
    between = settled.train.seconds_to_next_checkpoint(save)
    saved = 1 + int(total(seconds) // between) if between else settled.steps
    return {**seconds, "checkpoints": saved * save}


def disk_of(settled: Settled, data: Data) -> dict[str, float]:
    """At the most, while a checkpoint is written and the oldest is still there."""
    kept = settled.train.keep_checkpoints
    disk = {
        f"checkpoints: {kept} and one being written": (kept + 1) * settled.checkpoint,
        "the finished SAE": 4.0 * settled.work.parameters * settled.parts,
    }
    return disk if data.there else {**disk, "the store, not there yet": float(data.tokens * data.row)}


def memory_of(settled: Settled, data: Data, machine: Machine) -> dict[str, float]:
    """What one device holds when it holds most: as training begins, or at a checkpoint.

    On a GPU the store's rows are the computer's to hold, and not counted."""
    D, P, work = data.width, settled.work.parameters, settled.work
    always = {"Python and libraries": float(machine.process), "parameters": 4.0 * P}
    window = {"shuffle window": data.held} if machine.measured else {}
    beginning = {**always, **window, "sample for the start": 5 * 4.0 * min(INIT_ROWS, data.rows) * D}
    training = {
        **always,
        "gradients": 4.0 * P,
        "optimizer": 8.0 * P,
        **({} if settled.train.ema is None else {"average of the weights": 4.0 * P}),
        "copies while saving": 8.0 * P,
        "pre-activations": 4.0 * work.dense,
        "code": 60.0 * work.picked,
        "batch": 32.0 * settled.rows * D + 16 * work.loss,
        **window,
    }
    begins = machine.measured and total(beginning) > total(training)
    return beginning if begins else training


def _facts(settled: Settled, job: Job) -> dict[str, str]:
    train, data, tokens = settled.train, job.data, settled.tokens
    step = total(settled.step)
    shared = "the latents" if settled.parts > 1 else "each batch"
    devices = "1 device" if job.ranks == 1 else f"{job.ranks} devices, which share {shared}"
    share = "all there are" if data.whole else f"{data.window_rows / data.rows:.2%} of the store"
    return {
        "steps": f"{settled.steps:,} of {train.batch:,} tokens: {tokens:,} tokens, {tokens / data.rows:,.2g} passes",
        "speed": f"{train.batch / step:,.0f} tokens/s, {duration(step)} a step, {devices}",
        "parameters": f"{settled.work.parameters * settled.parts:,}",
        "shuffle window": f"{data.window_rows:,} rows, {share}",
    }


def _notes(job: Job, firing: ExpectedL0, machine: Machine) -> tuple[str, ...]:
    notes = []
    if firing.assumed:
        notes.append(
            f"{firing.value:,.4g} latents a token are an assumption ({firing.assumed}): --l0 sets another; in the "
            f"first steps, before the price is warm, there are many more, and steps take longer"
        )
    if not job.dead and job.arch.revives_dead:
        notes.append("no latent is taken to be dead: --dead 0.1 adds what AuxK costs when a tenth is")
    if job.arch.training_cost().matched_pairs:
        notes.append("matching the peers' latents one to one grows faster than the square of their number")
    if job.ranks > 1:
        notes.append(
            f"each of the {job.ranks} ranks is taken to be a device like this one, sending {machine.rates.send / 1e9:.3g} "
            f"GB/s to the others (assumed); memory is that of one"
        )
    if not machine.measured:
        notes.append(
            f"the computer around the GPU needs {size(job.data.held)} of memory for rows; its disk is not looked at"
        )
    return tuple(notes)


def _refusals(found: Forecast, job: Job, machine: Machine, out: Path) -> tuple[str, ...]:
    refusals, need, disk = [], total(found.memory), total(found.disk)
    if need > machine.memory:
        smaller, ranks = _latents_that_fit(job, machine), _ranks_that_fit(job, machine)
        ways = [f"--arch.d-sae {smaller}"] if smaller else []
        ways += [f"--ranks {ranks} --parallel latents"] if ranks else []
        refusals.append(
            f"too little memory: it takes {size(need)} and {machine.name} has {size(machine.memory)}; "
            f"{' or '.join(ways) or 'a smaller --train.batch, or another device,'} would fit"
        )
    if machine.measured and disk > files.free_bytes(out):
        most = max(found.disk, key=lambda name: found.disk[name])
        fewer = "--tokens" if "store" in most else "--train.keep-checkpoints"
        refusals.append(
            f"too little disk: it takes {size(disk)}, most of it {most}, and {out.absolute()} has "
            f"{size(files.free_bytes(out))} free; fewer {fewer}, or an --out on another disk, would fit"
        )
    return tuple(refusals)


def _fits(job: Job, machine: Machine) -> bool:
    return total(memory_of(settle(job, machine), job.data, machine)) <= machine.memory


def _latents_that_fit(job: Job, machine: Machine) -> int | None:
    """The largest half, quarter, eighth ... of the latents asked for that the memory takes."""
    d_sae = job.arch.d_sae // 2
    while d_sae >= 1024:
        try:
            if _fits(replace(job, arch=replace(job.arch, d_sae=d_sae)), machine):
                return d_sae
        except ConfigError:  # no multiple of a head's latents, or fewer than k
            return None
        d_sae //= 2
    return None


def _ranks_that_fit(job: Job, machine: Machine) -> int | None:
    """The smallest power of two of devices, up to 1024, over which latents can be shared out so that they fit."""
    for ranks in (2**n for n in range(1, 11) if 2**n > job.ranks):
        try:
            if _fits(replace(job, ranks=ranks, parallel="latents"), machine):
                return ranks
        except ConfigError:  # latents that cannot be shared out
            return None
    return None
