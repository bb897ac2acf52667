"""Measure training on a GPU: each kernel against plain torch, the whole step against its lower bounds, the memory it needs.

    TRITON_INTERPRET=0 python -m pytest tests/sae/test_triton.py   # first: the kernels are right on this card
    python benchmarks/gpu.py                                       # then: about 10 minutes on an H100
    TRITON_INTERPRET=1 python benchmarks/gpu.py --dry              # tiny shapes without a GPU, to see that all runs

Times are medians of rounds in which all contestants take their turns, by the GPU's own clock. `floor` is what a kernel
has to read and write at the speed at which this card copies. A step's floors: the encoder's product in bfloat16 alone, and
the fused step of perf.md 1.4, 2 B D F operations at the measured speed and 26 bytes a parameter, B k D + 4 B D numbers of
16 bits at the measured bandwidth. SAELens runs where it is installed (pip install sae-lens==6.54.12).
Needs PYTHONPATH=. where this project is not installed.
A part that fails says so, and the others go on."""
# pyright: reportMissingImports=false

import argparse
import contextlib
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from sae.architectures import TopKConfig, build
from sae.code import offsets_of
from sae.config import TrainConfig
from sae.kernels import Moments, Pace, reference
from sae.training.trainer import Trainer

PARTS = ("kernels", "step", "million")
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")


@dataclass(frozen=True)
class Shape:
    """Width, latents, latents a token, tokens a step."""

    D: int
    F: int
    k: int
    B: int

    def __str__(self) -> str:
        return f"D = {self.D}, F = {self.F:,}, k = {self.k}, B = {self.B:,}"


SHAPES = (Shape(576, 16_384, 32, 8192), Shape(768, 65_536, 32, 8192))
DRY = (Shape(24, 200, 3, 4),)
MILLION = Shape(768, 2**20, 32, 8192)


@dataclass(frozen=True)
class Card:
    """Measured speeds."""

    flops: float
    """Operations a second of a large bfloat16 product."""
    bandwidth: float
    """Bytes a second read and written by a large copy."""


class Operands:
    """Inputs of the kernels at one shape, with a code of k random latents for each token."""

    def __init__(self, shape: Shape):
        D, F, k, B = shape.D, shape.F, shape.k, shape.B
        self.shape = shape
        self.x, self.W = random(B, D), random(F, D)
        self.low = self.x.bfloat16(), self.W.T.bfloat16()
        self.z, self.bias = torch.empty(B, F, dtype=torch.bfloat16, device=DEVICE), random(F) * 0.01
        torch.mm(*self.low, out=self.z)
        self.values = random(B * k)
        self.indices = torch.stack([torch.randperm(F)[:k] for _ in range(min(B, 64))]).repeat(-(-B // 64), 1)[
            :B
        ]
        self.indices = ((self.indices + torch.arange(B)[:, None] * 131) % F).flatten().to(DEVICE)
        self.offsets = offsets_of(torch.full((B,), k, device=DEVICE))
        self.rows = torch.arange(B, device=DEVICE).repeat_interleave(k)
        self.groups = reference.group(self.indices, F)
        self.moments = Moments(torch.zeros_like(self.W), torch.zeros_like(self.W))

    @cached_property
    def slots(self) -> Tensor:
        """Return the place of each latent's gradient row among those that fired; -1 for a silent latent."""
        slots = torch.full((self.shape.F,), -1, dtype=torch.int32, device=DEVICE)
        slots[self.groups.latents] = torch.arange(len(self.groups.latents), dtype=torch.int32, device=DEVICE)
        return slots

    @cached_property
    def gradient(self) -> Tensor:
        """Return the gradient rows of the latents that fired."""
        return random(len(self.groups.latents), self.shape.D) * 1e-3


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def kernels(o: Operands) -> dict[str, tuple[Callable, float]]:
    """Return by name the work, as a function of the module that does it, and the bytes that it has to move."""
    D, F, k, B = o.shape.D, o.shape.F, o.shape.k, o.shape.B
    fired = len(o.groups.latents)
    level = torch.full((F,), o.z[:64].float().quantile(1 - k / F, dim=1).mean().item(), device=DEVICE)
    sums, dense = torch.empty(fired, D, device=DEVICE), 2 * B * F
    pace = Pace(1e-4, 0.9, 0.999, 1e-8, 5, 1.0)
    heads = F // 8
    u, v = random(B, 2 * heads), random(B, 4 * heads)
    return {
        "largest_per_row": (lambda m: m.largest_per_row(o.z, o.bias, k, False), dense),
        "largest_of_batch": (lambda m: m.largest_of_batch(o.z, o.bias, B * k, False), dense),
        "above": (lambda m: m.above(o.z, o.bias, level, False), dense),
        "largest_ands": (lambda m: m.largest_ands(u, v, heads, k), 4 * B * 6 * heads),
        "weighted_rows": (
            lambda m: m.weighted_rows(o.values, o.indices, o.offsets, o.W),
            4 * B * (k + 1) * D,
        ),
        "dots": (lambda m: m.dots(o.x, o.indices, o.offsets, o.W), 4 * B * (k + 1) * D),
        "group": (lambda m: m.group(o.indices, F), 16 * B * k),
        "sums_by_latent": (
            lambda m: m.sums_by_latent(o.groups, o.rows, o.values, o.x, sums),
            4 * B * k * D + 4 * fired * D,
        ),
        "squares": (lambda m: m.squares(o.gradient, o.W, o.groups.latents), 8 * fired * D),
        "adam": (
            lambda m: m.adam(o.W, o.moments, o.gradient, o.slots, None, pace, True),
            24 * F * D + 4 * fired * D,
        ),
    }


def by_turns(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each contestant, after three rounds that compile and do not count."""
    for run in contestants.values():
        for _ in range(min(rounds, 3)):
            run()
    found = [[seconds(run) for run in contestants.values()] for _ in range(rounds)]
    return {
        name: statistics.median(times)
        for name, times in zip(contestants, zip(*found, strict=True), strict=True)
    }


def seconds(run: Callable[[], object]) -> float:
    if not GPU:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def measure_card(rounds: int) -> Card:
    n = 8192 if GPU else 64
    a, b, out = (random(n, n, dtype=torch.bfloat16) for _ in range(3))
    source, target = (
        torch.empty(2**30 if GPU else 2**20, dtype=torch.uint8, device=DEVICE) for _ in range(2)
    )
    times = by_turns({"mm": lambda: torch.mm(a, b, out=out), "copy": lambda: target.copy_(source)}, rounds)
    card = Card(2 * n**3 / times["mm"], 2 * len(source) / times["copy"])
    print(f"{card.flops / 1e12:.0f} TFLOP/s in bfloat16, {card.bandwidth / 1e12:.2f} TB/s copied")
    return card


def compare_kernels(shape: Shape, card: Card, rounds: int) -> None:
    from sae.kernels import triton

    operands = Operands(shape)
    product = by_turns({"mm": lambda: torch.mm(*operands.low, out=operands.z)}, rounds)["mm"]
    print(
        f"encoder's product in bfloat16: {1e3 * product:.3f} ms, {2 * shape.B * shape.D * shape.F / product / 1e12:.0f} TFLOP/s"
    )
    print(
        f"{'kernel':18}{'triton ms':>11}{'torch ms':>11}{'torch / triton':>16}{'triton / floor':>16}{'of product':>12}"
    )
    for name, (work, moved) in kernels(operands).items():
        with guarded(name):
            times = by_turns({"triton": partial(work, triton), "torch": partial(work, reference)}, rounds)
            ours, theirs = times["triton"], times["torch"]
            print(
                f"{name:18}{1e3 * ours:11.3f}{1e3 * theirs:11.3f}{theirs / ours:16.1f}"
                f"{ours * card.bandwidth / moved:16.2f}{ours / product:12.2f}"
            )


def trainer(shape: Shape) -> Trainer:
    """Return a trainer whose matrix products are in bfloat16, as they are on any GPU."""
    sae = build(TopKConfig(d_sae=shape.F, k=shape.k), shape.D, seed=0).to(DEVICE)
    made = Trainer(sae, TrainConfig(steps=10_000, batch=shape.B).resolved(10_000 * shape.B, sae.cfg))
    made.precision = torch.bfloat16
    return made


def optimizer_seconds(made: Trainer, x: Tensor, rounds: int) -> float:
    """Return the median seconds that the optimizer takes of a step."""
    step, spent = made.optimizer.step, []

    def timed() -> float:
        norms: list[float] = []
        spent.append(seconds(lambda: norms.append(step())))
        return norms[0]

    made.optimizer.step = timed
    for _ in range(rounds):
        made.train_step(x, x)
    made.optimizer.step = step
    return statistics.median(spent)


def saelens(shape: Shape, x: Tensor) -> Callable[[], object]:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=shape.D, d_sae=shape.F, k=shape.k, device=DEVICE.type))
    settings = SAETrainerConfig(
        total_training_samples=10_000 * shape.B,
        train_batch_size_samples=shape.B,
        device=DEVICE.type,
        lr_end=3e-5,  # what its runner derives
        autocast=True,
        logger=LoggingConfig(log_to_wandb=False),
    )
    made = SAETrainer(settings, sae, iter(()))
    return lambda: made.step(x)


def compare_step(shape: Shape, card: Card, rounds: int) -> None:
    D, F, k, B = shape.D, shape.F, shape.k, shape.B
    x, W = random(B, D), random(D, F, dtype=torch.bfloat16)
    low, z = x.bfloat16(), torch.empty(B, F, dtype=torch.bfloat16, device=DEVICE)
    made = trainer(shape)
    contestants = {"product": lambda: torch.mm(low, W, out=z), "ours": lambda: made.train_step(x, x)}
    with guarded("SAELens"):
        contestants["SAELens"] = saelens(shape, x)
    times = by_turns(contestants, rounds)
    product, step = times["product"], times["ours"]
    fused = product + (26 * 2 * F * D + 2 * B * k * D + 8 * B * D) / card.bandwidth
    optimizer = optimizer_seconds(made, x, rounds)
    print(f"step in bfloat16: {1e3 * step:.2f} ms, {B / step / 1e6:.2f} Mtok/s")
    print(f"  {step / product:.2f} x the encoder's product alone ({1e3 * product:.2f} ms)")
    print(f"  {step / fused:.2f} x the fused floor ({1e3 * fused:.2f} ms); wanted at 65k: <= 1.6")
    print(f"  optimizer: {optimizer / step:.0%} of it; wanted: <= 35 %")
    if "SAELens" in times:
        print(f"  SAELens takes {times['SAELens'] / step:.1f} times as long; wanted: >= 3")


def fit_a_million(shape: Shape) -> None:
    made, x = trainer(shape), random(shape.B, shape.D)
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    times = [seconds(lambda: made.train_step(x, x)) for _ in range(4)]
    states = 12 * 2 * shape.F * shape.D / 1e9
    peak = torch.cuda.max_memory_allocated() / 1e9 if GPU else float("nan")
    print(
        f"trains: {1e3 * min(times):.1f} ms a step; peak {peak:.1f} GB, of which weights and moments {states:.1f}"
    )


@contextlib.contextmanager
def guarded(part: str) -> Iterator[None]:
    """Run a part of the benchmark; print its failure and continue with the next part."""
    try:
        yield
    except Exception as error:
        print(f"{part}: FAILED, {type(error).__name__}: {str(error)[:300]}")
        if not isinstance(error, ImportError):
            traceback.print_exc()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="tiny shapes, also without a GPU")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="a fault on the GPU ends all after it"
    )
    args = parser.parse_args()
    if args.dry:
        os.environ.setdefault("SAE_KERNELS", "triton")
    elif not GPU:
        parser.error("no GPU is here; --dry with TRITON_INTERPRET=1 runs tiny shapes without one")
    rounds = 1 if args.dry else args.rounds
    torch.manual_seed(0)
    print(torch.cuda.get_device_name() if GPU else "no GPU", "torch", torch.__version__)
    card = measure_card(rounds)
    work: dict[str, Callable[[Shape], None]] = {
        "kernels": partial(compare_kernels, card=card, rounds=rounds),
        "step": partial(compare_step, card=card, rounds=rounds),
        "million": fit_a_million,
    }
    for part in args.only:
        for shape in DRY if args.dry else (MILLION,) if part == "million" else SHAPES:
            print(f"\n{part}: {shape}")
            with guarded(part):
                work[part](shape)
            if GPU:
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
