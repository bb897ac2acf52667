"""Rates: how fast a machine does each thing a plan counts; measured here and kept, or computed for a GPU."""

import json
import math
import os
import platform
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from activations.demo_assets import cache_folder
from activations.disk import files

NEAR, FAR = 2048 * 576 * 4, 65_536 * 576 * 4
FORMAT = 1  # of the file of rates: raise it when a rate's meaning changes


@dataclass(frozen=True)
class Rates:
    """Work a second, by kind of work; the training step's are for float32 and all threads together."""

    flops: float
    """Floating-point operations of a large matrix product."""
    weights: float
    """Bytes of a weight matrix brought in anew for each block of rows that it is multiplied with."""
    scan_row: float
    """Pre-activations looked through for the largest of each row."""
    scan_batch: float
    """Pre-activations looked through for the largest of the batch."""
    scan_above: float
    """Pre-activations compared with a threshold."""
    scan_ands: float
    """KronSAE's latents looked through for the largest of each row, by heads."""
    scan_sort: float
    """Pre-activations sorted, row by row."""
    scan_topk: float
    """Pre-activations looked through by `torch.topk`."""
    pick: float
    """Entries selected, out of those scanned."""
    passes: float
    """Numbers of a [B, F] matrix that one plain operation turns into another."""
    gather_near: float
    """Bytes of rows that a code's entries name, read and added up, where all latents' rows are `NEAR` bytes."""
    gather_far: float
    """The same where they are `FAR` bytes, more than caches hold."""
    adam: float
    """Parameters brought on by one step of the optimizer."""
    loss: float
    """Numbers of a batch that go through scaling, loss and its gradient."""
    step: float
    """Training steps with nothing in them: what is spent whatever the size."""
    firing: float
    """A latent's firings taken into statistics and examples."""
    together: float
    """Pairs of firings on one token, counted."""
    pair: float
    """Pairs of latents whose counts are ranked."""
    send: float
    """Bytes that a rank sends to others; assumed, not measured."""
    write: float
    """Bytes written to the disk of the cache folder, checksum and fsync included."""
    read: float
    """Bytes read from there, not in memory before."""

    def gather(self, table: float) -> float:
        """Bytes a second where all latents' rows are `table` bytes: between near and far as powers are."""
        share = min(max(math.log(max(table, 1) / NEAR) / math.log(FAR / NEAR), 0.0), 1.0)
        return self.gather_near ** (1 - share) * self.gather_far**share


@dataclass(frozen=True)
class Machine:
    """A device with its rates."""

    name: str
    rates: Rates
    memory: int
    """Bytes of it that there are: of the machine, or of the GPU."""
    measured: str | None
    """When and how, for people; None when computed."""
    process: int = 0
    """Bytes that Python with its libraries takes."""
    load: float = 0.0
    """How many other programs were busy for each core while it was measured."""


def gpu(name: str, memory_gb: float, flops: float, bandwidth: float) -> Machine:
    """A GPU by its peak rates: products in bf16, and how many bytes each kind of work moves.

    Unfused kernels: pre-activations written, read twice; gradients of rows written; Adam's states in float32. One kernel
    after the other, without launch times but for 0.2 ms a step."""
    rates = Rates(
        flops=flops,
        weights=1e3 * bandwidth,  # behind the product's operations, where blocks have 184 rows or more
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
        step=5000,
        firing=bandwidth / 500,
        together=bandwidth / 64,
        pair=bandwidth / 64,
        send=400e9,
        write=1e9,
        read=3e9,
    )
    return Machine(f"one NVIDIA {name}", rates, int(memory_gb * 1e9), measured=None, process=3 * 10**9)


GPUS = {  # large products in bf16, and copies: what is reached of the peak
    "h100": gpu("H100 (80 GB)", 80, 700e12, 2.9e12),
    "h200": gpu("H200 (141 GB)", 141, 790e12, 4.3e12),
}


def peak_memory() -> int:
    """Bytes this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def this_machine(threads: int) -> str:
    """A name that tells this machine, with this number of threads, from others."""
    return f"{platform.node()}, {_processor()}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}"


def load(threads: int) -> Machine | None:
    """The rates measured here earlier with this number of threads, if they are there and whole."""
    found = recall(this_machine(threads)) or {}
    try:
        return Machine(**{**found, "rates": Rates(**found["rates"]), "memory": memory()})
    except (TypeError, KeyError):
        return None


def save(machine: Machine) -> None:
    """Keep a machine's rates in the user's cache folder, in place of its earlier ones."""
    remember(machine.name, asdict(machine))


def recall(key: str) -> dict[str, Any] | None:
    """What was remembered under a key, if it was by a release that meant the same by it."""
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
        return found["measured"].get(key) if found["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(key: str, content: dict[str, Any]) -> None:
    """Keep a measurement in the user's cache folder."""
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
        measured = found["measured"] if found["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        measured = {}
    files.write_json(_path(), {"format": FORMAT, "measured": {**measured, key: content}})


def memory() -> int:
    """Bytes of memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_free() -> int:
    """Bytes of it that programs could have now; all where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return memory()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _path() -> Path:
    return cache_folder() / "rates.json"
