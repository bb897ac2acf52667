"""Compare the peak memory of training with 16 bytes a parameter, and one tensor of [B, F].

    python -m benchmarks.memory [--quick] [--dead 0.1]
The 16 bytes are the weight, its gradient and Adam's two moments. All pre-activations would take 4 B F bytes; a step holds
those of a block of rows alone. Each line of the table is
measured in its own process: it makes the activations, trains a small SAE so that all code is loaded and compiled, notes its
memory, then builds the SAE in question and takes four steps. The memory taken is the peak (getrusage) less what was noted,
and may exceed that sum by a tenth.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import Shape, mixture, table
from benchmarks.trained import silence, trainer

STEPS, SPARE, MIB = 4, 0.1, 2**20
SMALL = Shape(128, 4096, 32, 256)  # large enough for the code that large ones use
GROWING = [
    *(Shape(576, 8192, 32, batch) for batch in (512, 2048, 8192, 16384)),
    Shape(576, 32768),
    Shape(768, 32768),
]
QUICK = [Shape(576, 8192, 32, batch) for batch in (512, 2048, 8192)]


@dataclass(frozen=True)
class Peak:
    """The memory that one process took, in bytes."""

    shape: Shape
    taken: int
    """Peak less what was there before the SAE."""

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return 2 * self.shape.width * self.shape.latents + self.shape.width + self.shape.latents

    @property
    def buffer(self) -> int:
        """Bytes of all pre-activations of a batch."""
        return 4 * self.shape.batch * self.shape.latents

    @property
    def share(self) -> float:
        """The memory taken over the memory needed; the target is at most 1.1."""
        return self.taken / (16 * self.parameters + self.buffer)

    def row(self) -> list[str]:
        """Return the process's line of the table."""
        beyond = (self.taken - 16 * self.parameters) / self.buffer
        needs = (16 * self.parameters / MIB, self.buffer / MIB, self.taken / MIB)
        holds = "yes" if self.share <= 1 + SPARE else "NO"
        return [
            str(self.shape),
            *(f"{need:.0f}" for need in needs),
            f"{beyond:.2f}",
            f"{self.share:.2f}",
            holds,
        ]


def resident() -> int:
    """Return the bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def train(shape: Shape, x: torch.Tensor, dead: float) -> None:
    """Train for a few steps."""
    made = trainer(shape, x)
    for _ in range(STEPS):
        silence(made.history.silent_tokens, dead, made)
        made.train_step(x, x)


def taken(shape: Shape, dead: float) -> int:
    """Return the bytes at the peak beyond those before the SAE was built. Run this in a process of its own."""
    small, x = mixture(SMALL.batch, SMALL.width), mixture(shape.batch, shape.width)
    train(SMALL, small, dead)
    before = resident()
    train(shape, x, dead)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def measured(shape: Shape, dead: float, threads: int) -> Peak:
    """Start a process that runs `taken`, and return what it measured."""
    command = [sys.executable, "-m", "benchmarks.memory", "--dead", str(dead), "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--one", json.dumps(shape)], check=True, stdout=subprocess.PIPE, text=True
    )
    return Peak(shape, int(done.stdout.split()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="growing B alone")
    parser.add_argument("--dead", type=float, default=0.0, help="share of latents that AuxK is given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(taken(Shape(*args.one), args.dead))
        return
    header = [
        "shape",
        "16 bytes a parameter, MiB",
        "4 B F, MiB",
        "taken, MiB",
        "beyond parameters / 4 B F",
        "taken / need",
        "<= 1.1",
    ]
    print(f"\npeak memory of {STEPS} steps, {args.dead:.0%} of latents dead, {args.threads} thread(s)\n")
    rows = [measured(shape, args.dead, args.threads).row() for shape in (QUICK if args.quick else GROWING)]
    print(table(header, rows))


if __name__ == "__main__":
    main()
