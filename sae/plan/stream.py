"""Plan a training on a stream: the time that training and the language model take beside each other, and the ring's disk."""

from dataclasses import dataclass, replace
from pathlib import Path

from activations.disk.files import size_text
from activations.streaming.folder import StreamConfig
from activations.streaming.producer import file_bytes
from sae.plan import training
from sae.plan.forecast import Forecast, duration, total
from sae.plan.rates import Machine
from sae.plan.training import TRAINED, Job

# Share of a device's rate of large products that a forward pass reaches. Of the embedded model's pass on a CPU, 66 % is products
EFFICIENCY = 0.5
WINDOW, KEPT = "shuffle window", "kept for later commands"
FROM_STORE = ("reading at the start", "waiting for rows")


@dataclass(frozen=True)
class Producers:
    """The devices that run the language model beside those that train."""

    parameters: float
    """Parameters of the layers up to the hook point, each of which costs 2 operations a token."""
    devices: int
    """Devices like the one that trains. On a CPU the model and training share the one machine."""

    def tokens_per_second(self, machine: Machine) -> float:
        """Return the tokens that all devices together run the model on, computed and not measured."""
        devices = 1 if machine.measured else self.devices
        return devices * EFFICIENCY * machine.rates.selecting_flops / (2 * self.parameters)


def forecast(
    job: Job,
    machine: Machine,
    out: Path,
    ring: int,
    producers: Producers,
    shuffle_tokens: int,
    kept_tokens: int,
) -> Forecast:
    """Predict what training on a stream takes, with its run in the folder `out` and a ring of `ring` bytes, of which `shuffle_tokens`
    are shuffled at a time and `kept_tokens` stay.

    On GPUs the model and training run beside each other, so that the slower of the two sets the time. On a CPU they share it,
    and their times add up."""
    cost = training.forecast(job, machine, out)
    resolved = training.resolve(job, machine)
    seconds = {part: value for part, value in cost.seconds.items() if part not in FROM_STORE}
    speed = producers.tokens_per_second(machine)
    # The model also reads what is held out, and the first position of every window
    made = resolved.tokens / TRAINED
    forward = made / speed
    if machine.measured:
        seconds["the model's pass"] = forward
    elif forward > total(seconds):
        seconds["waiting for the model"] = forward - total(seconds)
    disk = {part: size for part, size in cost.disk.items() if "store" not in part}
    disk[KEPT] = float(min(job.data.tokens, kept_tokens) * job.data.row)
    groups = 2 * shuffle_tokens * job.data.row  # one is read while the next is filled
    memory = {**cost.memory, WINDOW: float(groups)} if WINDOW in cost.memory else cost.memory
    step = total(resolved.step)
    wanted = resolved.train.batch / step / TRAINED
    needed = wanted * 2 * producers.parameters / EFFICIENCY / machine.rates.selecting_flops
    where = "the CPU that trains" if machine.measured else f"{producers.devices} devices"
    both = min(wanted, speed) * job.data.row
    facts = {
        **{name: fact for name, fact in cost.facts.items() if name != WINDOW},
        "the model": f"{speed:,.0f} tokens/s on {where}, {duration(forward)} for {made:,.0f} tokens; it needs "
        f"{size_text(2 * producers.parameters)} of their memory in bfloat16",
        "balance": f"training reads {resolved.train.batch / step:,.0f} tokens/s, which {needed:,.3g} devices would make",
        "the ring": f"{ring / job.data.row:,.0f} tokens; a store of all {job.data.tokens:,} would take "
        f"{size_text(job.data.tokens * job.data.row)}; {size_text(both)} a second are written, and read by each training device",
    }
    store_window = training.note_on_computer(job.data.window_bytes)
    notes = [training.note_on_computer(groups) if note == store_window else note for note in cost.notes]
    note = f"the model's speed is computed: {EFFICIENCY:.0%} of the products' rate, 2 operations a token for each parameter"
    whole = replace(
        cost,
        what=f"{cost.what}, on a stream",
        disk={**disk, "the ring": float(ring)},
        memory=memory,
        seconds=seconds,
        resources={**cost.resources, "the model's pass": "compute", "waiting for the model": "the model"},
        facts=facts,
        notes=(*notes, note),
    )
    refusals = training.refusals(whole, job, machine, out) + _refusals(ring, shuffle_tokens, job.data.row)
    return replace(whole, refusals=refusals)


def _refusals(ring: int, shuffle_tokens: int, row: int) -> tuple[str, ...]:
    """Return why a training would refuse a ring of so many bytes; nothing where it would not."""
    shard = StreamConfig.shard_tokens
    least = 2 * max(1, shuffle_tokens // shard) * file_bytes(shard, row)
    if ring >= least:
        return ()
    return (
        f"too small a ring: {size_text(ring)}, and two shuffle groups of {shuffle_tokens:,} tokens take {size_text(least)}, one in "
        f"use and one being read; use a larger --ring",
    )
