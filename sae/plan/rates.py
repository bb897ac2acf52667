"""Rates at which a machine does each kind of work that a plan counts: measured once and stored, or computed for a GPU."""

import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from activations.demo_assets import cache_folder
from activations.disk import files
from activations.disk.schema import build
from sae.kernels.autograd import BLOCK, GPU_BLOCK

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
M = TypeVar("M", bound="DataclassInstance")

NEAR, FAR = 2048 * 576 * 4, 65_536 * 576 * 4  # bytes of all latents' rows: fits a cache, fits none
FORMAT = 2  # of the file of rates; raise it when the meaning of a rate changes


@dataclass(frozen=True)
class Rates:
    """Work per second, by kind of work. Those of the training step are for all threads together, and for float32 where nothing else is said."""

    flops: float
    """Floating-point operations of a large matrix product."""
    selecting_flops: float
    """Those of a product that latents are selected by, in the precision that training takes by itself on this machine."""
    weights: float
    """Bytes of a weight matrix read from memory again for each block of rows that it is multiplied with."""
    scan_row: float
    """Pre-activations searched for the largest of each row."""
    scan_batch: float
    """Pre-activations searched for the largest of the batch."""
    scan_above: float
    """Pre-activations compared with a threshold."""
    scan_ands: float
    """KronSAE's latents searched, head by head, for the largest of each row."""
    scan_sort: float
    """Pre-activations sorted, row by row."""
    scan_topk: float
    """Pre-activations searched by `torch.topk`."""
    pick: float
    """Entries selected from those searched."""
    passes: float
    """Numbers of a [B, F] matrix that one elementwise operation reads and writes."""
    gather_near: float
    """Bytes of the rows at a code's entries, read and summed, when all latents' rows together are `NEAR` bytes."""
    gather_far: float
    """`gather_near` when all latents' rows together are `FAR` bytes, more than caches hold."""
    adam: float
    """Parameters updated by one step of the optimizer."""
    loss: float
    """Numbers of a batch that go through scaling, the loss and its gradient."""
    step: float
    """Training steps of negligible size, which cost only the fixed overhead."""
    firing: float
    """Firings added to statistics and examples."""
    together: float
    """Pairs of firings on the same token counted."""
    pair: float
    """Pairs of latents whose counts are ranked."""
    send: float
    """Bytes that a rank sends to the others; assumed, not measured."""
    write: float
    """Bytes written to the disk of the cache folder, including checksum and fsync."""
    read: float
    """Bytes read from the disk of the cache folder, not from the system's file cache."""

    def gather(self, table: float) -> float:
        """Return the bytes per second when all latents' rows are `table` bytes: near and far interpolated on a log scale."""
        share = min(max(math.log(max(table, 1) / NEAR) / math.log(FAR / NEAR), 0.0), 1.0)
        return self.gather_near ** (1 - share) * self.gather_far**share


@dataclass(frozen=True)
class Machine:
    """A device and its rates."""

    name: str
    rates: Rates
    memory: int
    """Bytes of memory of the machine, or of the GPU."""
    measured: str | None
    """When and how the rates were measured, as text; None when they were computed."""
    process: int = 0
    """Bytes that Python and its libraries take."""
    load: float = 0.0
    """Number of busy programs per core while the rates were measured."""
    block: int = BLOCK
    """Numbers in the buffer of pre-activations."""


def gpu(name: str, memory_gb: float, flops: float, bandwidth: float) -> Machine:
    """Return a GPU whose rates are computed from its peak rates and from the bytes that each kind of work moves.

    `flops` are per second in bf16, `bandwidth` is in bytes per second. Kernels are taken to be unfused: pre-activations are
    written once and read twice, gradients of rows are written, Adam's states are float32. Kernels run one after the other,
    and all launches together take 5 ms per step: on an H200 a step of 2.5 ms of kernels took 6.8 ms (LOG.md)."""
    rates = Rates(
        flops=flops,
        selecting_flops=flops,
        weights=1e3
        * bandwidth,  # negligible: hidden behind the product's operations in blocks of 184 rows or more
        scan_row=bandwidth / 6,  # bf16, written once and read twice
        scan_batch=bandwidth / 8,
        scan_above=bandwidth / 6,
        scan_ands=bandwidth / 6,
        scan_sort=bandwidth / 60,
        scan_topk=bandwidth / 12,
        pick=bandwidth / 20,
        passes=bandwidth / 4,
        gather_near=2 * bandwidth,  # counted in float32, moved in bf16
        gather_far=2 * bandwidth,
        adam=bandwidth / 28,
        loss=bandwidth / 60,
        step=200,
        firing=bandwidth / 500,
        together=bandwidth / 64,
        pair=bandwidth / 64,
        send=400e9,
        write=1e9,
        read=3e9,
    )
    return Machine(f"one NVIDIA {name}", rates, int(memory_gb * 1e9), None, 3 * 10**9, block=GPU_BLOCK)


GPUS = {  # rates that large products in bf16, and copies, reach in practice
    "h100": gpu("H100 (80 GB)", 80, 700e12, 2.9e12),
    "h200": gpu("H200 (141 GB)", 141, 790e12, 4.3e12),
}


def peak_memory() -> int:
    """Return the most bytes this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def this_machine(threads: int) -> str:
    """Return a name that is unique to this machine with this number of threads."""
    return f"{platform.node()}, {_processor()}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}"


def load(threads: int) -> Machine | None:
    """Return this machine as it was measured earlier with this number of threads; None if it was not, or is damaged."""
    machine = recall(this_machine(threads), Machine)
    return None if machine is None else replace(machine, memory=memory())


def save(machine: Machine) -> None:
    """Store a machine's rates in the user's cache folder, replacing earlier ones."""
    remember(machine.name, machine)


def recall(key: str, kind: type[T]) -> T | None:
    """Return the measurement stored under a key, or None if there is none in a file of this format, or it is damaged."""
    try:
        content = json.loads(_path().read_text(encoding="utf-8"))
        return build(kind, content["measured"][key]) if content["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(key: str, measurement: "DataclassInstance") -> None:
    """Store a measurement, a dataclass, in the user's cache folder. A damaged file, or one of another format, is replaced."""
    try:
        stored = json.loads(_path().read_text(encoding="utf-8"))
        measured = stored["measured"] if stored["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        measured = {}
    files.write_json(_path(), {"format": FORMAT, "measured": {**measured, key: asdict(measurement)}})


def measured_once(key: str, kind: type[M], measure: Callable[[], M], again: bool) -> M:
    """Return the measurement stored under a key; where there is none, or with `again`, measure now and store the result."""
    found = None if again else recall(key, kind)
    if found is None:
        found = measure()
        remember(key, found)
    return found


def now() -> str:
    """Return the time of a measurement as a plan tells it."""
    return f"measured {time.strftime('%Y-%m-%d %H:%M')}"


def memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _path() -> Path:
    return cache_folder() / "rates.json"
