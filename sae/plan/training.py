"""What a training would take: the time of a step from counted work and rates, memory and disk from shapes."""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path

from activations import files
from activations.harvest import HarvestConfig
from activations.shuffle import ShuffledReader
from activations.store import Store
from sae.architectures import ArchConfig, name_of
from sae.errors import ConfigError
from sae.plan.forecast import Forecast, duration, size, total
from sae.plan.rates import Machine, Rates
from sae.plan.work import Active, Work, active, count
from sae.training.trainer import TrainConfig

INIT_ROWS = 32_768  # rows the initialisation sees
SHARD = HarvestConfig().shard_tokens
WINDOW: int = inspect.signature(ShuffledReader).parameters["memory"].default  # bytes of rows mixed at a time
KEPT = (
    0.9  # of a store's tokens: one document in ten is held out, and the first position of a window left out
)
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
        return cls(width, rows, bytes_per_number, min(rows, int(SHARD * KEPT)))

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return self.width * self.bytes_per_number

    @property
    def window_rows(self) -> int:
        """Rows that the reader mixes at a time: all, or as many shards as its memory takes, two at least."""
        shards = max(2, WINDOW // (self.shard_rows * self.row))
        return min(self.rows, shards * self.shard_rows)


def step_seconds(work: Work, rates: Rates, exchanged: float = 0.0) -> dict[str, float]:
    """Seconds of one step by part. `exchanged`: bytes that each device sends to the others, at the rate of gathering."""
    scan = getattr(rates, f"scan_{work.scan}")
    found = {
        "encode": work.encode / rates.flops + work.weights / rates.weights,
        "selection": work.scanned / scan + work.picked / rates.pick + work.passes / rates.passes,
        "sparse part": work.gathered / rates.gather(work.table),
        "dense gradients": work.products / rates.flops,
        "matching": MATCHING * work.matched**2.6,
        "optimizer": work.parameters / rates.adam,
        "loss and the rest": work.loss / rates.loss + 1 / rates.step,
        "exchange": exchanged / rates.gather_far,
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
    "exchange": "memory bandwidth",
    "reading": "disk",
    "checkpoints": "disk",
    "start": "compute",
}


def memory_bytes(work: Work, data: Data, train: TrainConfig, machine: Machine) -> dict[str, float]:
    """What is held on one device when most is: while rows are loaded, or at a checkpoint.

    On a GPU the rows are the computer's to hold, and not counted."""
    B, D, P = train.batch, data.width, work.parameters
    always = {"Python and libraries": float(machine.process), "parameters": 4.0 * P}
    window = {} if machine.measured is None else {"shuffle window": data.window_rows * (data.row + 8.0)}
    joined, sample = float(data.window_rows * data.row), 5 * 4.0 * min(INIT_ROWS, data.rows) * D
    loading = {**always, **window, "rows put together, then a sample": max(joined, sample)}
    training = {
        **always,
        "gradients": 4.0 * P,
        "optimizer": 8.0 * P,
        "copies while saving": 4.0 * P,
        "pre-activations": 4.0 * work.dense,
        "code": 60.0 * work.picked,
        "batch": 12.0 * 4 * B * D,
        **window,
    }
    if machine.measured is None or total(loading) <= total(training):
        return training
    return loading


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
    """Devices that the dictionary's latents are shared out over, each like the one planned for."""


def forecast(job: Job, machine: Machine, out: Path) -> Forecast:
    """What this training would take, its run in the folder `out`; nothing is read or run."""
    found = _forecast(job, machine)
    return replace(found, refusals=_refusals(found, job, machine, out))


def _forecast(job: Job, machine: Machine) -> Forecast:
    data, ranks = job.data, job.ranks
    train = job.train.resolved(data.rows, job.arch.d_sae)
    assert train.steps is not None
    firing = active(job.arch, job.l0)
    work = count(job.arch, data.width, train.batch, firing.number, job.dead, ranks)
    exchanged = 0.0 if ranks == 1 else 4.0 * train.batch * (ranks * firing.number + 2 * data.width)
    step = step_seconds(work, machine.rates, exchanged)
    tokens, whole = train.steps * train.batch, data.window_rows == data.rows
    checkpoint = 12.0 * work.parameters * ranks  # weights and both moments
    seconds = {name: value * train.steps for name, value in step.items()}
    seconds["reading"] = (data.rows if whole else tokens) * data.row / machine.rates.read
    seconds["checkpoints"] = (1 + train.steps // train.checkpoint_every) * checkpoint / machine.rates.write
    share = data.window_rows / data.rows
    facts = {
        "steps": f"{train.steps:,} of {train.batch:,} tokens: {tokens:,} tokens, {tokens / data.rows:,.2g} passes",
        "speed": f"{train.batch / total(step):,.0f} tokens/s, {duration(total(step))} a step, {ranks} device"
        + "s" * (ranks > 1),
        "parameters": f"{work.parameters * ranks:,}",
        "shuffle window": f"{data.window_rows:,} rows, "
        + ("all there are" if whole else f"{share:.2%} of the store"),
    }
    return Forecast(
        f"train {name_of(job.arch)}: {job.arch.d_sae:,} latents on width {data.width}, {firing.number:,.4g} a token",
        disk={
            f"checkpoints: {train.keep_checkpoints} and one being written": (train.keep_checkpoints + 1)
            * checkpoint,
            "the finished SAE": checkpoint / 3,
        },
        memory=memory_bytes(work, data, train, machine),
        seconds=seconds,
        resources={name: RESOURCES[name] for name in seconds},
        facts=facts,
        notes=_notes(job, firing, machine),
    )


def _notes(job: Job, firing: Active, machine: Machine) -> tuple[str, ...]:
    notes = []
    if firing.assumed:
        notes.append(
            f"{firing.number:,.4g} latents a token are an assumption ({firing.assumed}): --l0 sets another; in the "
            f"first steps, before the price is warm, there are many more, and steps take longer"
        )
    if not job.dead and getattr(job.arch, "aux_weight", 0):
        notes.append("no latent is taken to be dead: --dead 0.1 adds what AuxK costs when a tenth is")
    if name_of(job.arch) == "mfr":
        notes.append("matching the peers' latents one to one grows faster than the square of their number")
    if job.ranks > 1:
        notes.append(
            f"latents are shared out over {job.ranks} devices, each like this one; memory is that of one"
        )
    return tuple(notes)


def _refusals(found: Forecast, job: Job, machine: Machine, out: Path) -> tuple[str, ...]:
    refusals = []
    need = total(found.memory)
    if need > machine.memory:
        smaller, ranks = _latents_that_fit(job, machine), _ranks_that_fit(job, machine)
        ways = [f"--arch.d-sae {smaller}"] * bool(smaller) + [f"--ranks {ranks}"] * bool(ranks)
        ways = ways or ["a smaller --train.batch, or another device"]
        refusals.append(
            f"too little memory: it takes {size(need)} and {machine.name} has {size(machine.memory)}; "
            f"{' or '.join(ways)} would fit"
        )
    need, free = total(found.disk), files.free_bytes(out)
    if need > free:
        refusals.append(
            f"too little disk: it takes {size(need)} and {out} has {size(free)} free; fewer "
            f"--train.keep-checkpoints, a smaller --arch.d-sae or another --out would fit"
        )
    return tuple(refusals)


def _latents_that_fit(job: Job, machine: Machine) -> int | None:
    """The largest half, quarter, eighth ... of the latents asked for that the memory takes."""
    d_sae = job.arch.d_sae // 2
    while d_sae >= 1024:
        try:
            smaller = replace(job, arch=replace(job.arch, d_sae=d_sae))
            if total(_forecast(smaller, machine).memory) <= machine.memory:
                return d_sae
        except ConfigError:  # no multiple of a head's latents, or fewer than k
            return None
        d_sae //= 2
    return None


def _ranks_that_fit(job: Job, machine: Machine) -> int | None:
    """The smallest power of two of devices that the dictionary fits on, up to 1024."""
    for ranks in (2**n for n in range(1, 11)):
        if (
            ranks > job.ranks
            and total(_forecast(replace(job, ranks=ranks), machine).memory) <= machine.memory
        ):
            return ranks
    return None
