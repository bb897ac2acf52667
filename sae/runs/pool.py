"""The pooled SAE that a run of `sae pool` started from: what it was made of (FORMAT.md, Pool)."""

from dataclasses import dataclass

import torch
from jaxtyping import Int

from activations.errors import RunError
from sae.runs.run import Run
from sae.runs.saved_sae import as_written, read_record, read_tensors

FORMAT = 1
INDEX = "pool.json"
MEMBERS = "pool.safetensors"


@dataclass(frozen=True)
class PooledFrom:
    """One of the runs that were pooled."""

    run: str
    sae_sha256: str
    seed: int


@dataclass(frozen=True)
class PoolRecord:
    """The content of pool.json."""

    runs: list[PooledFrom]
    near: float
    """Correlation from which latents of two runs counted as one."""
    tokens: int
    """Training rows on which they were compared."""
    found_in: list[int]
    """Latents that were found in 1, 2, … of the runs."""
    sha256: dict[str, str]


def pool_of(run: Run) -> PoolRecord:
    """Return what a pooled SAE was made of. Raises RunError when the run is none, or its pool.json is damaged."""
    path = run.path / INDEX
    if not path.exists():
        raise RunError(
            f"{run.path} is not a pool: expected {INDEX}, as `sae pool` writes it into the folder pool of its run"
        )
    return read_record(path, "pool", FORMAT, PoolRecord)


def members_of(run: Run) -> Int[torch.Tensor, "F S"]:
    """Return the latent of each pooled run that each latent of a pooled SAE was made of, -1 for none. Raises RunError as `pool_of` does."""
    record = pool_of(run)
    path = as_written(run.path / MEMBERS, record.sha256.get(MEMBERS), INDEX)
    members = read_tensors(path).get("members")
    if members is None or members.shape != (run.config.arch.d_sae, len(record.runs)):
        raise RunError(f"{path} is damaged: it does not hold a member of each run for each latent")
    return members
