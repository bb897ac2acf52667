"""`sae pool`: one SAE of several that differ in seed."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from activations.errors import quoted
from activations.progress import show_progress
from sae.cli import arguments
from sae.cli.train import show_problems
from sae.runs.pool import pool_of
from sae.runs.run import POOL, Run
from sae.workflows.pool import PoolConfig, pool


@dataclass(frozen=True)
class Pool:
    """Make one SAE of runs that differ in seed: latents that fire alike become one, those that most runs have come first, and
    the result is trained further on the runs' store.

    Example: sae pool runs/seed-0 runs/seed-1 runs/seed-2 --out runs/pooled. What is done, and what it brings: docs/pooling.md."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of two finished runs or more, of one store and hook point, with the same settings but for the seed."""
    out: Path
    """Folder of the new run."""
    resume: bool = False
    """Continue the pool in --out where it stopped; begin it where there is none."""
    config: PoolConfig = field(default_factory=PoolConfig)


def main(args: list[str]) -> int:
    """Parse the arguments of `sae pool` and run it."""
    command = arguments.parse(Pool, "sae pool", args, tyro.conf.OmitArgPrefixes)
    run = pool(
        [Run(path) for path in command.runs], command.out, command.config, command.resume, show_progress
    )
    found_in = pool_of(Run(run.path / POOL)).found_in
    counts = ", ".join(f"{count:,} in {n}" for n, count in enumerate(found_in, 1))
    print(f"{run.path}: {sum(found_in):,} latents, found in how many of the {len(found_in)} runs: {counts}")
    show_problems(run)
    print(f"{run.path}: trained; next: sae evaluate {quoted(run.path)}")
    return 0
