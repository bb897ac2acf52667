"""Work on latents shared out over ranks: each does some, and all get the whole."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from activations.disk import files
from activations.parallel import ranks

FORMAT = "sae-share-1"


def of_latents(
    folder: Path, name: str, n_latents: int, find: Callable[[range], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """find(range(n_latents)), where find's tensors for some latents and the next, one behind the other, are those of
    them all. Each rank finds its part and leaves it in `folder`, which all see, for the others."""
    rank, world = ranks.rank(), ranks.world()
    found = find(range(n_latents * rank // world, n_latents * (rank + 1) // world))
    if world == 1:
        return found
    files.write_tensors(folder / f"{name}-{rank}.safetensors", found, FORMAT)
    ranks.barrier()
    parts = [load_file(folder / f"{name}-{number}.safetensors") for number in range(world)]
    ranks.barrier()  # until all have read: the folder may go then
    return {column: torch.cat([part[column] for part in parts]) for column in found}
