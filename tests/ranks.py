"""Start several ranks without torchrun, which takes seconds, by setting the environment that it would set."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any


def environments(world: int) -> list[dict[str, str]]:
    """Return the environment variables that torchrun sets for each of `world` processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def together(world: int, job: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Run `job(*arguments)` in `world` real processes, each a rank, and return their exit codes."""

    def start(environment: dict[str, str]) -> None:
        os.environ.update(environment)
        job(*arguments)

    fork = multiprocessing.get_context("fork")  # so that a child imports nothing again
    processes = [fork.Process(target=start, args=(environment,)) for environment in environments(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    return [process.exitcode for process in processes]
