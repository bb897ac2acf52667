"""Measure how much faster two ranks of one thread train than one, and the bytes they send, for both ways of sharing.

The bytes are set beside those that `--parallel auto` computes to choose a way.

    python benchmarks/ranks.py [--d-sae 8192] [--d-model 576] [--k 32] [--batch 2048] [--steps 6] [--repeats 3]
Ranks are processes on this machine, over gloo; the ways take turns. `bytes` are counted at each call of
torch.distributed, a ring's traffic, as `sae.training.distributed.traffic` counts them."""

import argparse
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from activations.parallel import ranks
from sae.architectures import TopKConfig, build
from sae.config import TrainConfig
from sae.training import distributed
from sae.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {
        "d-sae": 8192,
        "d-model": 576,
        "k": 32,
        "batch": 2048,
        "steps": 6,
        "repeats": 3,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    arch = TopKConfig(d_sae=args.d_sae, k=args.k)
    ways: dict[str, tuple[int, distributed.Parallel]] = {
        "one rank": (1, "data"),
        "data": (2, "data"),
        "latents": (2, "latents"),
    }
    found = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, (world, parallel) in ways.items():
            found[name].append(together(world, measure, (arch, args, parallel)))
    print("| | tokens/s | x one rank | MB sent a step by each | model |\n|---|---|---|---|---|")
    alone = median(speed for speed, _ in found["one rank"])
    for name, (world, parallel) in ways.items():
        speed, sent = median(s for s, _ in found[name]), found[name][0][1]
        model = distributed.traffic(parallel, arch, args.d_model, args.batch, world)
        print(f"| {name} | {speed:,.0f} | {speed / alone:.2f} | {sent / 1e6:.2f} | {model / 1e6:.2f} |")


def measure(arch: TopKConfig, args: argparse.Namespace, parallel: str) -> tuple[float, float]:
    """Return the tokens per second of all ranks, and the bytes per step that this rank sends."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(args.batch, args.d_model, generator=generator)
    settings = TrainConfig(steps=10**6, batch=args.batch, lr=1e-4, warmup_steps=0, dead_after_tokens=10**9)
    trainer = Trainer(build(arch, args.d_model), settings)
    if ranks.world() > 1:
        trainer = distributed.share(trainer, parallel, torch.device("cpu"))
        if parallel == "data":
            x = x[ranks.rank() :: ranks.world()]
    for _ in range(2):
        trainer.train_step(x, x)
    ranks.barrier()
    with counted() as sent:
        started = time.perf_counter()
        for _ in range(args.steps):
            trainer.train_step(x, x)
        seconds = time.perf_counter() - started
    return args.steps * args.batch / seconds, sum(sent) / args.steps


@contextmanager
def counted() -> Iterator[list[float]]:
    """Collect the bytes that each collective call sends from this rank in a ring."""
    sent: list[float] = []
    reduce, gather = dist.all_reduce, dist.all_gather

    def all_reduce(tensor: torch.Tensor, *rest: Any) -> None:
        sent.append(2 * (ranks.world() - 1) / ranks.world() * tensor.nbytes)
        reduce(tensor, *rest)

    def all_gather(parts: list[torch.Tensor], tensor: torch.Tensor) -> None:
        sent.append((ranks.world() - 1) * tensor.nbytes)
        gather(parts, tensor)

    dist.all_reduce, dist.all_gather = all_reduce, all_gather
    try:
        yield sent
    finally:
        dist.all_reduce, dist.all_gather = reduce, gather


def together(world: int, job: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Run `job` in `world` processes, each with the environment that torchrun would give it, and return rank 0's result."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.SimpleQueue()
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        spawn.Process(target=begin, args=({**shared, "RANK": str(rank)}, job, arguments, answers))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    answer = answers.get()
    for process in processes:
        process.join()
    return answer


def begin(environment: dict[str, str], job: Callable[..., Any], arguments: Any, answers: Any) -> None:
    os.environ.update(environment)
    with ranks.group():
        answer = job(*arguments)
        if not ranks.rank():
            answers.put(answer)


if __name__ == "__main__":
    main()
