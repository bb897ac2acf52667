"""This process among those `torchrun` started: its rank, its device, and how it waits for the others.

The whole contract for work by ranks. A process that torchrun did not start is rank 0 of 1, and everything here
then does nothing; so code is written once, for any number of ranks:

    with ranks.group():                  # in a command's main: makes the process group, and ends it
        with ranks.first_goes_first():   # rank 0 makes the folder, then the others find it
            folder = make(out)
        for part in parts[ranks.rank() :: ranks.world()]:
            work(part, ranks.device())
        ranks.barrier()                  # all parts are there
        if ranks.rank() == 0:
            finish(folder)

Within `group` torch.distributed's own calls work, on CPU tensors over gloo and on CUDA tensors over NCCL. Only
rank 0 prints. When a rank ends before its time the others' next wait raises RankError, torchrun ends them all, and
the same command is to go on from what is on disk, with any number of ranks.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from activations.disk import locks
from activations.errors import RankError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # for ranks far behind the others; one that ended is noticed at once


def rank() -> int:
    """Number of this process among all, 0 to world() - 1; as torchrun set it, within `group` or not."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Number of processes that work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """Where this rank computes: the GPU of its number on this machine, or the CPU where there is none.

    Raises RankError when this machine has GPUs, but fewer than ranks."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise RankError(
            f"this machine has {torch.cuda.device_count()} GPUs and rank {rank()} needs number {number}: "
            f"start at most one process a GPU (--nproc-per-node)"
        )
    return torch.device("cuda", number)


@contextmanager
def group() -> Iterator[None]:
    """Within the block the ranks can wait for and talk to each other. One block a process, around all its work."""
    if world() == 1:
        yield
        return
    place = device()
    if place.type == "cuda":
        torch.cuda.set_device(place)
    with others_needed():
        # torchrun may keep its store when it starts the ranks again: addresses of the dead ones must not be found
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt-{attempt}", next(dist.rendezvous("env://"))[0])
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world(), timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here. Raises RankError when one of them has ended instead."""
    if world() > 1:
        with others_needed():
            dist.all_reduce(torch.zeros(1))  # on the CPU, so that waiting for hours keeps no GPU busy


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Rank 0 runs the block; when it is through, the others do. Where rank 0 fails, the others never start."""
    if rank():
        barrier()
    yield
    if not rank():
        barrier()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within the block these ranks are the only job at work in the folder, which is made. Raises BusyError in rank 0
    when another one is."""
    with ExitStack() as held:
        with first_goes_first():
            if not rank():
                held.enter_context(locks.alone_in(folder))
        yield


def from_first(value: T) -> T:
    """Rank 0's `value`, on every rank: anything that pickles, such as a run's random id."""
    if world() == 1:
        return value
    box = [value]
    with others_needed():
        dist.broadcast_object_list(box)
    return box[0]


@contextmanager
def others_needed() -> Iterator[None]:
    """Turn the engine's many ways to say that a peer is gone into one line."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors, all of them
        raise RankError(
            f"rank {rank()} of {world()} lost the others: the message of the one that ended first says why; "
            f"the same command goes on from here"
        ) from error
