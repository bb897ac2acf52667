"""This process as one of those that `torchrun` started: its rank, its device, and how it works with the others.

A process that torchrun did not start is rank 0 of 1, and then nothing here has any effect. So code is written once, for
any number of ranks:

    with ranks.group():                  # in a command's main: starts the process group and ends it
        with ranks.first_goes_first():   # rank 0 creates the folder, then the others find it
            folder = make(out)
        for part in parts[ranks.rank() :: ranks.world()]:
            work(part, ranks.device())
        ranks.barrier()                  # all parts are done
        if ranks.rank() == 0:
            finish(folder)

Within `group`, torch.distributed's own calls work, on CPU tensors over gloo and on CUDA tensors over NCCL. Only rank 0
prints. When a rank dies, the next wait of every other rank raises RankError and torchrun ends them all. The same command,
with any number of ranks, must then be able to resume from what is on disk."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from activations.disk import files
from activations.errors import RankError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # how long ranks wait for a slow one; one that has died is noticed at once
EXCHANGE_FORMAT = "sae-share-1"


def rank() -> int:
    """Return the number of this process, 0 to world() - 1, as torchrun set it, whether within `group` or not."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Return the number of processes that work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """Return the device of this rank: the GPU with its local number, or the CPU on a machine without GPUs.

    Raises RankError when the machine has GPUs but fewer than ranks."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise RankError(
            f"this machine has {torch.cuda.device_count()} GPUs and rank {rank()} needs number {number}: "
            f"start at most one process per GPU (--nproc-per-node)"
        )
    return torch.device("cuda", number)


@contextmanager
def group() -> Iterator[None]:
    """Let the ranks communicate within the block. A process has one such block, around all its work."""
    if world() == 1:
        yield
        return
    own = device()
    if own.type == "cuda":
        torch.cuda.set_device(own)
    with rank_errors():
        # torchrun may keep its key-value store when it restarts the ranks, with the addresses of the dead ones in it
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt-{attempt}", next(dist.rendezvous("env://"))[0])
        backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world(), timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank has called this. Raises RankError when one of them has died."""
    if world() > 1:
        with rank_errors():
            dist.all_reduce(torch.zeros(1))  # on the CPU: NCCL would keep the GPU busy while it waits


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Let rank 0 run the block first and the others after it. If rank 0 fails, the others never start."""
    if rank():
        barrier()
    yield
    if not rank():
        barrier()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Create the folder and lock it within the block against other jobs, but not against this job's ranks.

    Raises BusyError, in rank 0, when another job holds the lock."""
    with ExitStack() as stack:
        with first_goes_first():
            if not rank():
                stack.enter_context(files.alone_in(folder))
        yield


def from_first(value: T) -> T:
    """Return rank 0's `value`, which can be anything that pickles, on every rank."""
    if world() == 1:
        return value
    box = [value]
    with rank_errors():
        dist.broadcast_object_list(box)
    return box[0]


def on_any(flag: bool) -> bool:
    """Return whether `flag` is true on any rank; every rank has to call this. Raises RankError when one has died."""
    if world() == 1:
        return flag
    votes = torch.tensor([float(flag)])
    with rank_errors():
        dist.all_reduce(votes)
    return bool(votes[0])


def joined(x: Tensor, sizes: list[int]) -> Tensor:
    """Return the tensors of all ranks joined along their first axis, of which rank r has `sizes[r]` entries."""
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    with rank_errors():
        dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def share_latents(
    folder: Path, name: str, n_latents: int, compute: Callable[[range], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Run `compute` on this rank's slice of the latents and return the results of all ranks, concatenated.

    `compute` takes a range of latents and returns tensors whose first axis is these latents. Results are exchanged through
    files named after `name` in `folder`, which every rank must be able to read."""
    mine = compute(range(n_latents * rank() // world(), n_latents * (rank() + 1) // world()))
    if world() == 1:
        return mine
    files.write_tensors(folder / f"{name}-{rank()}.safetensors", mine, EXCHANGE_FORMAT)
    barrier()
    parts = [load_file(folder / f"{name}-{number}.safetensors") for number in range(world())]
    barrier()  # the caller may delete the folder as soon as every rank has read it
    return {column: torch.cat([part[column] for part in parts]) for column in mine}


@contextmanager
def rank_errors() -> Iterator[None]:
    """Raise what torch.distributed raises within the block when another rank has died as one RankError."""
    try:
        yield
    except RuntimeError as error:  # all errors of torch.distributed are RuntimeErrors
        raise RankError(
            f"rank {rank()} of {world()} lost the others: the message of the rank that ended first says why; "
            f"the same command continues from here"
        ) from error


@contextmanager
def peer_errors() -> Iterator[None]:
    """Raise RankError when another rank dies within the block, in which other RuntimeErrors may be raised too, and stay."""
    try:
        yield
    except RuntimeError as error:
        # gloo has no class of its own for this
        if not isinstance(error, dist.DistError) and "by peer" not in str(error):
            raise
        with rank_errors():
            raise
