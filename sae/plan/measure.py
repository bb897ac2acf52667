"""Measure this machine's rates, in a few seconds, with the same functions that training and `sae features` use."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from activations import precision
from activations.demo_assets import cache_folder
from activations.disk import files
from sae import kernels, losses
from sae.architectures import TopK, TopKConfig
from sae.code import SparseCode
from sae.config import TrainConfig
from sae.features.cofiring import add_together, cofiring
from sae.features.examples import Selection
from sae.features.firings import Statistics, by_latent
from sae.kernels import Moments, Pace
from sae.plan.rates import Machine, Rates, memory, this_machine
from sae.training.trainer import Trainer

B, D, F, K = 2048, 576, 8192, 32  # the sizes of a training step of the demo
WIDE, FEW = 65_536, 64  # latents whose weights fit no cache; rows of a block when there are a million latents
NARROW = 2048  # latents whose weights fit a cache
SEND = 1e9  # bytes per second between ranks on one machine, or over a network of 10 Gbit/s
FILE = 96 << 20  # bytes written and read

Clock = Callable[[], float]


class Trial(NamedTuple):
    """A function to time, and the amount of work it does."""

    run: Callable[[], object]
    work: float


def measure(clock: Clock = time.perf_counter, rounds: int = 5) -> Machine:
    """Measure this machine with as many threads as torch uses now. Takes a few seconds and 0.6 GB of memory.

    Each rate is the median of several rounds. On a busy machine, rates by wall-clock time are those of the share left over;
    `time.process_time` with one thread measures what the work takes regardless of other programs."""
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    generator = torch.Generator().manual_seed(0)
    process = _resident_elsewhere()
    rates: dict[str, float] = {}
    for trials in (_products, _selections, _optimizer, _losses, _features):
        for name, trial in trials(generator):
            rates[name] = trial.work / _seconds(trial.run, clock, rounds)
    for name, latents in (("gather_near", NARROW), ("gather_far", WIDE)):
        trial = _sparse_part(latents, generator)
        rates[name] = trial.work / _seconds(trial.run, clock, rounds)
    if rates["selecting_flops"] < precision.AT_LEAST * rates["flops"]:
        rates["selecting_flops"] = rates["flops"]
    rates["weights"] = _weights(rates["flops"], generator, clock, rounds)
    rates |= _choosing(generator, clock, rounds)
    rates |= _disk() | {"send": SEND}
    when = f"measured {datetime.now():%Y-%m-%d %H:%M}, medians of {rounds}"
    threads = torch.get_num_threads()
    return Machine(this_machine(threads), Rates(**rates), memory(), when, process, round(busy, 2))


def _seconds(run: Callable[[], object], clock: Clock, rounds: int) -> float:
    run()  # not timed: compiles kernels and touches the memory
    times = []
    for _ in range(rounds):
        started = clock()
        run()
        times.append(clock() - started)
    return max(statistics.median(times), 1e-9)


def _products(generator: torch.Generator) -> Iterator[tuple[str, Trial]]:
    x, W = torch.randn(B, D, generator=generator), torch.randn(F, D, generator=generator).T
    out = torch.empty(B, F)
    low = [tensor.bfloat16() for tensor in (x[: B // 8], W, out[: B // 8])]
    yield "flops", Trial(lambda: torch.mm(x, W, out=out), 2 * B * D * F)
    yield "selecting_flops", Trial(lambda: torch.mm(*low[:2], out=low[2]), 2 * len(low[0]) * D * F)


def _selections(generator: torch.Generator) -> Iterator[tuple[str, Trial]]:
    rows = B // 4
    z, bias = torch.randn(rows, F, generator=generator), torch.zeros(F)
    of, level = kernels.backend(z), torch.full((F,), 2.66)  # one normal number in 256 is larger
    u, v = (torch.randn(rows, F // 8 * n, generator=generator) for n in (2, 4))
    yield "scan_batch", Trial(lambda: of.largest_of_batch(z, bias, K * rows, False), z.numel())
    yield "scan_above", Trial(lambda: of.above(z, bias, level, False), z.numel())
    yield "scan_ands", Trial(lambda: of.largest_ands(u, v, F // 8, K), z.numel())
    yield "scan_sort", Trial(lambda: z[:64].sort(dim=1, descending=True), 64 * F)
    yield "scan_topk", Trial(lambda: z.topk(K, dim=1), z.numel())
    yield "passes", Trial(lambda: z + 1.0, z.numel())


def _optimizer(generator: torch.Generator) -> Iterator[tuple[str, Trial]]:
    W, gradient = (torch.randn(4 * F, D, generator=generator) for _ in range(2))
    moments = Moments(torch.zeros_like(W), torch.ones_like(W))
    slots, pace = torch.arange(len(W), dtype=torch.int32), Pace(1e-6, 0.9, 0.999, 1e-8, 10, 1.0)
    of = kernels.backend(W)

    def run() -> None:
        _, along = of.squares(gradient, W, None)
        of.adam(W, moments, gradient, slots, along, pace, True)

    yield "adam", Trial(run, W.numel())


def _losses(generator: torch.Generator) -> Iterator[tuple[str, Trial]]:
    x, bias = torch.randn(B, D, generator=generator), torch.zeros(D)
    y = torch.randn(B, D, generator=generator).requires_grad_()
    stored = torch.randn(32 * B, D, generator=generator).half()  # the reader holds rows in the store's type
    order = torch.randperm(len(stored), generator=generator)[:B]

    def run() -> None:
        read = torch.cat([stored[order]]).float()
        losses.fvu(read * 1.1 - bias, y + x).backward()

    yield "loss", Trial(run, x.numel())
    small = torch.randn(4, 4, generator=generator)
    arch = TopKConfig(d_sae=4, k=1)
    trainer = Trainer(TopK(4, arch), TrainConfig(steps=2**40, batch=4).resolved(4, arch))
    yield "step", Trial(lambda: trainer.train_step(small, small), 1)


def _features(generator: torch.Generator) -> Iterator[tuple[str, Trial]]:
    code = _code(generator, F, B)
    rows, values = code.rows(), code.values.detach()
    statistics_, selection = Statistics(F, 1.0), Selection(range(F), 20, 40)

    def run() -> None:
        firings = by_latent(rows, code.indices, values, F)
        statistics_.add(firings)
        selection.add(firings, 128)

    yield "firing", Trial(run, len(values))
    few = F // 8
    fired = torch.full((few,), B)
    yield "pair", Trial(lambda: cofiring(lambda: [], range(few), fired, B, 10, 10), few**2)
    many = _code(generator, F, 8 * B)  # as in a shard, each latent fires on many rows
    counts = torch.zeros(F, F, dtype=torch.int32)
    firings = by_latent(many.rows(), many.indices, many.values, F)
    yield "together", Trial(lambda: add_together(counts, firings, range(F)), len(many.values) * K)


def _code(generator: torch.Generator, latents: int, rows: int) -> SparseCode:
    """Return a random code with K latents per row, all equally frequent."""
    indices = torch.randint(latents, (rows * K,), generator=generator)
    offsets = torch.arange(0, rows * K + 1, K)
    return SparseCode(torch.rand(rows * K, generator=generator), indices, offsets, latents)


def _sparse_part(latents: int, generator: torch.Generator) -> Trial:
    """Return a trial of decoding and the gradients of values, decoder and encoder: the rows of all entries, four times."""
    code, x = _code(generator, latents, B), torch.randn(B, D, generator=generator)
    W, sums = torch.randn(latents, D, generator=generator), torch.empty(latents, D)
    of, rows = kernels.backend(W), code.rows()

    def run() -> None:
        of.weighted_rows(code.values, code.indices, code.offsets, W)
        of.dots(x, code.indices, code.offsets, W)
        for _ in range(2):
            groups = of.group(code.indices, latents)
            of.sums_by_latent(groups, rows, code.values, x, sums[: len(groups.latents)])

    return Trial(run, 4 * B * K * D * 4)


def _weights(flops: float, generator: torch.Generator, clock: Clock, rounds: int) -> float:
    """Return the bytes per second of reading weights: a product with few rows takes longer than its operations alone."""
    x, W = torch.randn(FEW, D, generator=generator), torch.randn(WIDE, D, generator=generator).T
    out = torch.empty(FEW, WIDE)
    seconds = _seconds(lambda: torch.mm(x, W, out=out), clock, rounds)
    return 4 * D * WIDE / max(seconds - 2 * FEW * D * WIDE / flops, seconds / 20)


def _choosing(generator: torch.Generator, clock: Clock, rounds: int) -> dict[str, float]:
    """Return the rates of searching numbers and of selecting them, told apart by selecting few and many per row."""
    z, bias = torch.randn(B // 4, F, generator=generator), torch.zeros(F)
    of = kernels.backend(z)
    few, many = (
        _seconds(lambda k=k: of.largest_per_row(z, bias, k, False), clock, rounds) for k in (K // 2, 4 * K)
    )
    each = max(many - few, many / 20) / (len(z) * 3.5 * K)
    return {"pick": 1 / each, "scan_row": z.numel() / max(few - each * len(z) * K / 2, few / 20)}


def _disk() -> dict[str, float]:
    """Return the rates of the disk. Wall-clock time is used in any case, because waiting for the disk takes no CPU time."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        path = Path(folder) / "rate.safetensors"
        started = time.perf_counter()
        files.write_tensors(path, {"x": torch.zeros(FILE, dtype=torch.uint8)}, "rate")
        files.sha256(path)
        written = time.perf_counter()
        _forget(path)
        opened = time.perf_counter()
        with safe_open(path, "pt") as file:
            file.get_tensor("x").sum()
        return {"write": FILE / (written - started), "read": FILE / (time.perf_counter() - opened)}


def _forget(path: Path) -> None:
    """Ask the system to drop a file from its file cache, if it can be asked."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident() -> int:
    """Return the bytes of memory this process holds after a training step has loaded all libraries.

    Half a gigabyte if the system does not say."""
    x = torch.zeros(64, 64)
    arch = TopKConfig(d_sae=4096)
    trainer = Trainer(TopK(64, arch), TrainConfig(steps=1, batch=64).resolved(64, arch))
    trainer.train_step(x, x)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 1 << 29


def _resident_elsewhere() -> int:
    """Return `resident` of a new process, because this one may hold a model."""
    command = [sys.executable, "-c", "from sae.plan.measure import resident; print(resident())"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
