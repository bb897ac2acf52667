"""Plan the runs of a sweep, one after the other or together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from activations.disk import files
from activations.disk.files import size_text
from sae.plan import training
from sae.plan.forecast import Forecast, total
from sae.plan.rates import Machine
from sae.plan.stream import KEPT, WINDOW
from sae.plan.training import Job

SHARED = ("Python and libraries",)  # there once, however many runs train together
# One run needs these at a time
IN_TURN = ("copies while saving", "sample for the start", "pre-activations", "code", "batch")
STREAM_NOTES = ("the model's pass is not in the time: sae plan harvest tells how long it takes",)


def forecast(
    jobs: Mapping[str, Job],
    machine: Machine,
    out: Path,
    together: bool,
    readers: int = 1,
    hooks: int = 1,
    groups: int = 0,
    ring: int = 0,
    kept: int = 0,
) -> Forecast:
    """Predict what the runs of a sweep take with their folders in `out`. Nothing is read or run.

    One after the other, times and disk add up and the largest memory counts. Together, every SAE and its optimizer are in
    memory at once, and a shuffle window for each of the `readers`, the different orders of rows; where the window holds a whole store,
    its rows are there once for each of the `hooks`. On a stream, `groups` bytes are a reader's shuffle group, which is there twice,
    `ring` bytes of disk hold the activations, and `kept` bytes of them stay."""
    costs = {name: training.forecast(job, machine, out / name) for name, job in jobs.items()}
    memories = {name: _memories(job, machine, groups) for name, job in jobs.items()}
    if together:
        windows = _windows(next(iter(jobs.values())), readers, hooks, groups)
        memory = max((_together(phase, windows) for phase in zip(*memories.values(), strict=True)), key=total)
    else:
        memory = max((phase for phases in memories.values() for phase in phases), key=total)
    left_out = ("reading at the start", "waiting for rows") if groups else ()
    seconds = {
        part: s for part, s in _sum([cost.seconds for cost in costs.values()]).items() if part not in left_out
    }
    if together and "reading at the start" in seconds:
        seconds["reading at the start"] *= hooks / len(jobs)
    disk = _sum(
        [{part: size for part, size in cost.disk.items() if "store" not in part} for cost in costs.values()]
    )
    largest = max(memories, key=lambda name: max(map(total, memories[name])))
    whole = Forecast(
        f"{len(jobs)} runs, {'together' if together else 'one after the other'}",
        {**disk, **({"the ring": float(ring)} if ring else {}), **({KEPT: float(kept)} if kept else {})},
        memory,
        seconds,
        {part: training.RESOURCES[part] for part in seconds},
        {"the largest run": f"{largest}, {size_text(max(map(total, memories[largest])))} of memory alone"},
        (
            *dict.fromkeys(note for cost in costs.values() for note in cost.notes),
            *(STREAM_NOTES if groups else ()),
        ),
    )
    return replace(whole, refusals=_refusals(whole, machine, out, together))


def _memories(job: Job, machine: Machine, groups: int) -> list[dict[str, float]]:
    """Return a run's memory by part, when training begins and later; with two shuffle groups as its window if they are given."""
    phases = training.phases_of(training.resolve(job, machine), job.data, machine)
    return [{**phase, WINDOW: 2.0 * groups} if groups and machine.measured else phase for phase in phases]


def _windows(job: Job, readers: int, hooks: int, groups: int) -> float:
    """Return the bytes of all readers' windows on a machine whose memory holds them."""
    data = job.data
    if groups:
        return readers * 2.0 * groups
    if data.fits_window:
        return data.rows * (8.0 * readers + data.row * hooks)
    return readers * data.window_bytes


def _together(runs: Sequence[dict[str, float]], windows: float) -> dict[str, float]:
    """Return the memory of runs at once: what each needs all the time adds up, what only one needs at a time does not."""
    memory: dict[str, float] = {}
    for run in runs:
        for part, size in run.items():
            once = part in (*SHARED, *IN_TURN, WINDOW)
            memory[part] = max(memory.get(part, 0.0), size) if once else memory.get(part, 0.0) + size
    if WINDOW in memory:
        memory[WINDOW] = windows
    return memory


def _sum(parts: list[dict[str, float]]) -> dict[str, float]:
    whole: dict[str, float] = {}
    for one in parts:
        for name, value in one.items():
            whole[name] = whole.get(name, 0.0) + value
    return whole


def _refusals(cost: Forecast, machine: Machine, out: Path, together: bool) -> tuple[str, ...]:
    refusals = []
    if (need := total(cost.memory)) > machine.memory:
        way = (
            "fewer runs, or smaller dictionaries, would fit" if together else "smaller dictionaries would fit"
        )
        refusals.append(
            f"too little memory: it takes {size_text(need)} and {machine.name} has {size_text(machine.memory)}; {way}"
        )
    if machine.measured and (need := total(cost.disk)) > (free := files.free_bytes(out)):
        refusals.append(
            f"too little disk: it takes {size_text(need)} and {out.absolute()} has {size_text(free)} free; an out on another disk "
            f"would fit"
        )
    return tuple(refusals)
