"""Shapes, data, timing by turns and tables, shared by the benchmarks of training."""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BATCHES, ACTIVE, NOISE, MEAN = 4, 24, 0.1, 0.3


class Shape(NamedTuple):
    """The sizes of one training step."""

    width: int
    """D, of the activations."""
    latents: int
    """F, of the dictionary."""
    k: int = 32
    batch: int = 2048
    """B, tokens."""

    def __str__(self) -> str:
        return f"{self.width} x {self.latents:,}, k = {self.k}, B = {self.batch:,}"


@dataclass(frozen=True)
class Times:
    """Seconds of one contestant, a number a round: by the clock, and of processors (all threads together)."""

    wall: list[float]
    cpu: list[float]

    def over(self, other: "Times") -> tuple[float, float]:
        """Return how many times as long this took as `other` in the same round, median over rounds: wall time, CPU time."""
        pairs = (self.wall, other.wall), (self.cpu, other.cpu)
        wall, cpu = (statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in pairs)
        return wall, cpu

    def milliseconds(self) -> tuple[float, float]:
        """Return the medians of wall and CPU time."""
        return 1e3 * statistics.median(self.wall), 1e3 * statistics.median(self.cpu)


def by_turns(
    contestants: Mapping[str, Callable[[], object]], repeats: int, unmeasured: int = 2
) -> dict[str, Times]:
    """Time each once a round, so that what disturbs the machine disturbs all; the first rounds do not count."""
    times = {name: Times([], []) for name in contestants}
    for number in range(unmeasured + repeats):
        for name, run in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number >= unmeasured:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
    return times


class Used(NamedTuple):
    """What a command took: seconds by the clock and of processors, its child processes included, and its largest memory in bytes."""

    wall: float
    cpu: float
    memory: int


def used_by(*args: object, threads: int | None = None) -> Used:
    """Run `sae` with these arguments in a process of its own, with as many threads as torch takes by itself if no number is given.

    Raises SystemExit when the command fails."""
    # Set by the process itself, as producers of a stream do: with one thread that makes the model's pass some 8 % faster than the
    # same number in the environment
    chosen = "" if threads is None else f"torch.set_num_threads({threads}); "
    command = f"import sys, torch; {chosen}from sae.cli.main import main; sys.exit(main())"
    environment = dict(os.environ) if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    began = time.perf_counter()
    words = [sys.executable, "-c", command, *map(str, args)]
    child = os.spawnve(os.P_NOWAIT, sys.executable, words, environment)
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"sae {args[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return Used(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def mixture(rows: int, width: int, seed: int = 0) -> Float[Tensor, "rows width"]:
    """Return deterministic activations: each row is the weighted sum of 24 of 4 D unit directions, drawn by Zipf's law, and noise
    around a mean."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(4 * width, width, generator=generator))
    frequency = torch.arange(1, 4 * width + 1, dtype=torch.float32).pow(-0.8)
    chosen = torch.multinomial(frequency.expand(rows, -1), ACTIVE, generator=generator)
    weights = 0.5 + 2 * torch.rand(rows, ACTIVE, generator=generator)
    x = F.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum")
    return x + NOISE * torch.randn(rows, width, generator=generator) + MEAN


def endless(shape: Shape) -> tuple[Float[Tensor, "B D"], ...]:
    """Return the few batches that all contestants of a shape read in turn."""
    return mixture(BATCHES * shape.batch, shape.width).split(shape.batch)


def turning(step: Callable[[Tensor], object], batches: tuple[Tensor, ...]) -> Callable[[], object]:
    """Return a call that takes the step on one batch after the other, round and round."""
    stream = cycle(batches)
    return lambda: step(next(stream))


def product(shape: Shape) -> Callable[[Tensor], object]:
    """Return the encoder's matrix product alone, into a reused buffer: the lower bound of every step."""
    W = torch.randn(shape.latents, shape.width, generator=torch.Generator().manual_seed(1))
    z = torch.empty(shape.batch, shape.latents)
    return lambda x: torch.mm(x, W.T, out=z)


def shapes(text: str) -> tuple[int, int]:
    """Parse D and F from the command line, such as 576x8192."""
    width, latents = text.split("x")
    return int(width), int(latents)


def arguments(
    doc: str | None, repeats: int = 7, default: str = "576x8192 768x32768"
) -> argparse.ArgumentParser:
    """Return a parser with the options that most of these scripts take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = [shapes(text) for text in default.split()]
    parser.add_argument("--shapes", nargs="+", type=shapes, default=given, metavar="DxF", help=default)
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds that count")
    parser.add_argument(
        "--threads", type=int, default=1, help="1: read CPU times; more: wall, on a quiet machine"
    )
    return parser


def heading(shape: object, threads: int) -> str:
    """Return a table's heading: shape, threads, the machine's load and torch's version."""
    return f"\n{shape}, {threads} thread{'s' * (threads > 1)}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table with columns as wide as they must be, all but the first aligned to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *others = (
            cell.ljust(w) if n == 0 else cell.rjust(w)
            for n, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"

    rule = [("-" * w if n == 0 else "-" * (w - 1) + ":") for n, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])
