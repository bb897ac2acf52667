"""Predict what a training takes: the time of a step from counted work and rates, memory and disk from shapes."""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from activations.disk import files
from activations.disk.files import size_text
from activations.errors import ConfigError
from activations.harvest import HarvestConfig
from activations.shuffle import ShuffledReader
from activations.store import Store, row_bytes
from sae.architectures import ArchConfig, name_of
from sae.architectures.config import ExpectedL0
from sae.config import Precision, TrainConfig
from sae.plan.forecast import Forecast, Work, active, count, duration, total
from sae.plan.rates import Machine, Rates
from sae.training.distributed import Parallel, chosen, traffic
from sae.training.trainer import INIT_ROWS

SHARD = HarvestConfig().shard_tokens
WINDOW: int = inspect.signature(ShuffledReader).parameters["memory"].default  # bytes of the shuffle window
TRAINED = (
    0.9  # share of a store's tokens: one document in ten is held out, a window's first position left out
)
MATCHING = 1.1e-9  # seconds of one-to-one matching of n rows, divided by n^2.6 (scipy, one core)


@dataclass(frozen=True)
class Data:
    """The rows that the SAE is trained on."""

    width: int
    rows: int
    """Rows of the training split."""
    row: int
    """Bytes of a row."""
    shard_rows: int
    """Training rows of the largest shard."""
    tokens: int = 0
    """Tokens of a store that does not exist yet; 0 for one that does."""

    @classmethod
    def of(cls, store: Store, hook: str) -> "Data":
        """Describe a store, reading only its index; the number of held-out rows is estimated."""
        rows = [int(entry.rows * TRAINED) for entry in store.shards]
        width = store.width(hook)
        return cls(width, sum(rows), row_bytes(store.spec.dtype, width), max(rows))

    @classmethod
    def planned(cls, width: int, tokens: int, row: int) -> "Data":
        """Describe a store that does not exist yet, with shards of the size that `sae harvest` makes by default."""
        rows = int(tokens * TRAINED)
        return cls(width, rows, row, min(rows, int(SHARD * TRAINED)), tokens)

    @property
    def exists(self) -> bool:
        """Whether the store exists."""
        return not self.tokens

    @property
    def window_rows(self) -> int:
        """Rows of the shuffle window: all, or as many shards as the reader's memory takes, at least two."""
        shards = max(2, WINDOW // (self.shard_rows * self.row))
        return min(self.rows, shards * self.shard_rows)

    @property
    def fits_window(self) -> bool:
        """Whether the shuffle window holds all rows."""
        return self.window_rows == self.rows

    @property
    def window_bytes(self) -> float:
        """Memory of the window's rows and of their order; twice that if the next window is read in the meantime."""
        return self.window_rows * (self.row + 8.0) * (1 if self.fits_window else 2)


def step_seconds(
    work: Work, rates: Rates, sent: float = 0.0, precision: Precision = "auto"
) -> dict[str, float]:
    """Return the seconds of one step by part, which run one after the other; `sent` are the bytes sent to other ranks."""
    scan = getattr(rates, f"scan_{work.scan}")
    encoding = rates.flops if precision == "float32" else rates.selecting_flops
    seconds = {
        "encode": work.encode / encoding + work.weights / rates.weights,
        "selection": work.scanned / scan + work.picked / rates.pick + work.passes / rates.passes,
        "sparse part": work.gathered / rates.gather(work.table),
        "dense gradients": work.products / rates.flops,
        "matching": MATCHING * work.matched**2.6,
        "optimizer": work.parameters / rates.adam,
        "loss and the rest": work.loss / rates.loss + 1 / rates.step,
        "exchange": sent / rates.send,
    }
    return {name: value for name, value in seconds.items() if value}


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
    """A training to plan."""

    arch: ArchConfig
    train: TrainConfig
    data: Data
    l0: float | None = None
    """Latents per token, if known better than from the settings."""
    dead: float = 0.0
    """Share of latents that are dead, which AuxK works on."""
    ranks: int = 1
    """Devices that train the SAE together, each like the one the plan is for."""
    parallel: Parallel = "auto"
    """How the devices share the training: each batch, or the latents."""


class ResolvedJob(NamedTuple):
    """A job with all automatic settings resolved, and the work of one step."""

    train: TrainConfig
    steps: int
    firing: ExpectedL0
    parts: int
    """Ranks that share the latents; 1 if they share each batch or there is only one rank."""
    rows: int
    """Rows of each batch that one device trains on."""
    work: Work
    step: dict[str, float]
    """Seconds of one step, by part."""
    held_out: int
    """Bytes of the held-out rows that a run measures itself on, which every checkpoint has."""

    @property
    def tokens(self) -> int:
        """Tokens of all steps together."""
        return self.steps * self.train.batch

    @property
    def checkpoint(self) -> float:
        """Bytes of a checkpoint: the weights and both of Adam's moments, and two more copies if weights are averaged; and
        the held-out rows."""
        copies = 12.0 if self.train.ema is None else 20.0
        return copies * self.work.parameters * self.parts + self.held_out


def resolve(job: Job, machine: Machine) -> ResolvedJob:
    """Fill in all automatic settings of a job. Raises ConfigError when its ranks cannot share it as `parallel` says."""
    width, ranks = job.data.width, job.ranks
    train = job.train.resolved(job.data.rows, job.arch)
    assert train.steps is not None
    way = chosen(job.parallel, job.arch, width, train.batch, ranks)
    parts, rows = (ranks, train.batch) if way == "latents" else (1, train.batch // ranks)
    firing = active(job.arch, job.l0)
    work = count(job.arch, width, rows, firing.value, job.dead, parts, machine.block)
    sent = traffic(way, job.arch, width, train.batch, ranks)
    seconds = step_seconds(work, machine.rates, sent, train.precision)
    held_out = 4 * width * train.batch if train.held_out_every else 0
    return ResolvedJob(train, train.steps, firing, parts, rows, work, seconds, held_out)


def forecast(job: Job, machine: Machine, out: Path) -> Forecast:
    """Predict what this training takes with its run in the folder `out`. Nothing is read or run.

    Raises ConfigError when its ranks cannot share the job as `parallel` says."""
    resolved = resolve(job, machine)
    seconds = seconds_of(resolved, job.data, machine.rates)
    what = f"{job.arch.d_sae:,} latents on width {job.data.width}, {resolved.firing.value:,.4g} per token"
    cost = Forecast(
        f"train {name_of(job.arch)}: {what}",
        disk_of(resolved, job.data),
        memory_of(resolved, job.data, machine),
        seconds,
        {name: RESOURCES[name] for name in seconds},
        _facts(resolved, job),
        _notes(job, resolved.firing, machine),
    )
    return replace(cost, refusals=refusals(cost, job, machine, out))


def seconds_of(resolved: ResolvedJob, data: Data, rates: Rates) -> dict[str, float]:
    """Return the seconds of the whole training by part.

    Rows that do not all fit into memory are read in the background; only the time beyond that of the steps counts."""
    seconds = {name: value * resolved.steps for name, value in resolved.step.items()}
    if data.fits_window:
        seconds["reading at the start"] = data.rows * data.row / rates.read
    elif (waiting := resolved.tokens * data.row / rates.read - total(seconds)) > 0:
        seconds["waiting for rows"] = waiting
    save = resolved.checkpoint / rates.write
    between = resolved.train.seconds_to_next_checkpoint(save)
    number = 1 + int(total(seconds) // between) if between else resolved.steps
    return {**seconds, "checkpoints": number * save}


def disk_of(resolved: ResolvedJob, data: Data) -> dict[str, float]:
    """Return the most disk space by part: while a checkpoint is written, the oldest one still exists."""
    n_kept = resolved.train.keep_checkpoints
    disk = {
        f"checkpoints: {n_kept} and one being written": (n_kept + 1) * resolved.checkpoint,
        "the finished SAE": 4.0 * resolved.work.parameters * resolved.parts,
    }
    return disk if data.exists else {**disk, "the store, not there yet": float(data.tokens * data.row)}


def memory_of(resolved: ResolvedJob, data: Data, machine: Machine) -> dict[str, float]:
    """Return the most memory of one device by part: either when training begins or when a checkpoint is saved."""
    beginning, training = phases_of(resolved, data, machine)
    starts_larger = machine.measured and total(beginning) > total(training)
    return beginning if starts_larger else training


def phases_of(
    resolved: ResolvedJob, data: Data, machine: Machine
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the memory of one device by part, when training begins and when a checkpoint is saved.

    For a GPU the store's rows are not counted, because they lie in the memory of its computer."""
    D, P, work = data.width, resolved.work.parameters, resolved.work
    always = {"Python and libraries": float(machine.process), "parameters": 4.0 * P}
    window = {"shuffle window": data.window_bytes} if machine.measured else {}
    beginning = {**always, **window, "sample for the start": 5 * 4.0 * min(INIT_ROWS, data.rows) * D}
    training = {
        **always,
        "gradients": 4.0 * P,
        "optimizer": 8.0 * P,
        **({} if resolved.train.ema is None else {"average of the weights": 4.0 * P}),
        "copies while saving": 8.0 * P,
        "pre-activations": 4.0 * work.dense,
        "code": 60.0 * work.picked,
        "batch": 32.0 * resolved.rows * D + 16 * work.loss,
        **window,
    }
    return beginning, training


def _facts(resolved: ResolvedJob, job: Job) -> dict[str, str]:
    train, data, tokens = resolved.train, job.data, resolved.tokens
    step = total(resolved.step)
    shared = "the latents" if resolved.parts > 1 else "each batch"
    devices = "1 device" if job.ranks == 1 else f"{job.ranks} devices, which share {shared}"
    share = "all of them" if data.fits_window else f"{data.window_rows / data.rows:.2%} of the store"
    return {
        "steps": f"{resolved.steps:,} of {train.batch:,} tokens: {tokens:,} tokens, {tokens / data.rows:,.2g} passes",
        "speed": f"{train.batch / step:,.0f} tokens/s, {duration(step)} a step, {devices}",
        "parameters": f"{resolved.work.parameters * resolved.parts:,}",
        "shuffle window": f"{data.window_rows:,} rows, {share}",
    }


def _notes(job: Job, firing: ExpectedL0, machine: Machine) -> tuple[str, ...]:
    notes = []
    if firing.assumed:
        notes.append(
            f"{firing.value:,.4g} latents per token are an assumption ({firing.assumed}): --l0 sets another "
            f"number; in the first steps, while the sparsity penalty warms up, many more latents fire and steps take longer"
        )
    if not job.dead and job.arch.revives_dead:
        notes.append(
            "no latent is assumed to be dead: --dead 0.1 adds what AuxK costs when a tenth of them are"
        )
    if job.arch.training_cost().matched_pairs:
        notes.append("matching the peers' latents one to one grows faster than the square of their number")
    if job.ranks > 1:
        notes.append(
            f"each of the {job.ranks} ranks is assumed to be a device like this one that sends {machine.rates.send / 1e9:.3g} "
            f"GB/s to the others; memory is that of one device"
        )
    if not machine.measured:
        notes.append(note_on_computer(job.data.window_bytes))
    return tuple(notes)


def note_on_computer(rows: float) -> str:
    """Return what a plan says of the computer that a GPU is in, which holds `rows` bytes of the shuffle window."""
    return f"the GPU's computer needs {size_text(rows)} of memory for rows; its disk is not considered"


def refusals(cost: Forecast, job: Job, machine: Machine, out: Path) -> tuple[str, ...]:
    """Return why a training cannot be done here, each with what would fit; none where it can."""
    found, need, disk = [], total(cost.memory), total(cost.disk)
    if need > machine.memory:
        smaller, ranks = _latents_that_fit(job, machine), _ranks_that_fit(job, machine)
        ways = [f"--arch.d-sae {smaller}"] if smaller else []
        ways += [f"--ranks {ranks} --parallel latents"] if ranks else []
        found.append(
            f"too little memory: it takes {size_text(need)} and {machine.name} has {size_text(machine.memory)}; "
            f"{' or '.join(ways) or 'a smaller --train.batch, or another device,'} would fit"
        )
    if machine.measured and disk > files.free_bytes(out):
        largest = max(cost.disk, key=lambda name: cost.disk[name])
        fewer = (
            "--tokens"
            if "store" in largest
            else "--ring"
            if "ring" in largest
            else "--train.keep-checkpoints"
        )
        found.append(
            f"too little disk: it takes {size_text(disk)}, most of it {largest}, and {out.absolute()} has "
            f"{size_text(files.free_bytes(out))} free; fewer {fewer}, or an --out on another disk, would fit"
        )
    return tuple(found)


def _fits(job: Job, machine: Machine) -> bool:
    return total(memory_of(resolve(job, machine), job.data, machine)) <= machine.memory


def _latents_that_fit(job: Job, machine: Machine) -> int | None:
    """Return the largest half, quarter, eighth ... of the latents asked for that fits the memory, or None."""
    d_sae = job.arch.d_sae // 2
    while d_sae >= 1024:
        try:
            if _fits(replace(job, arch=replace(job.arch, d_sae=d_sae)), machine):
                return d_sae
        except ConfigError:  # not a multiple of a head's latents, or fewer than k
            return None
        d_sae //= 2
    return None


def _ranks_that_fit(job: Job, machine: Machine) -> int | None:
    """Return the smallest power of two of devices, up to 1024, that can share the latents so that they fit, or None."""
    for ranks in (2**n for n in range(1, 11) if 2**n > job.ranks):
        try:
            if _fits(replace(job, ranks=ranks, parallel="latents"), machine):
                return ranks
        except ConfigError:  # the latents cannot be split
            return None
    return None
