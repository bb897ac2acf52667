"""Sharding a trainer over ranks, and putting it together again: files always hold the full trainer, for any number of ranks."""

import torch
import torch.distributed as dist
from torch import Tensor

from activations.parallel.ranks import rank, rank_errors, world
from sae.training.distributed import SPLITS, DataParallel, LatentParallel
from sae.training.history import History
from sae.training.trainer import Trainer

AXES = {**SPLITS, **dict.fromkeys(History.__annotations__, 0)}


def share(full: Trainer, parallel: str, device: torch.device) -> Trainer:
    """Turn a full trainer, identical on every rank and on the CPU, into this rank's shard.

    The full trainer must not be used afterwards."""
    for tensor in full.sae.state_dict().values():
        align(tensor)
    tensors = full.tensors()
    if parallel == "latents":
        tensors = {name: _part(name, tensor) for name, tensor in tensors.items()}
    ranks = LatentParallel(full.sae) if parallel == "latents" else DataParallel()
    trainer = Trainer(full.sae.to(device), full.cfg, full.scale, ranks)
    trainer.restore(full.step, tensors)
    return trainer


def unsharded(trainer: Trainer) -> Trainer | None:
    """Return the full trainer, as a single rank would have it, on rank 0, and None on the others.

    Every rank must call this after the same step."""
    if not isinstance(trainer.ranks, LatentParallel):
        return None if rank() else trainer
    sae = trainer.sae
    weights = {name: _gathered(name, tensor) for name, tensor in sae.state_dict().items()}
    tensors = {name: _gathered(name, tensor) for name, tensor in trainer.tensors().items()}
    if rank():
        return None
    full = Trainer(type(sae)(sae.d_model, sae.cfg, seed=None), trainer.cfg, trainer.scale)
    full.sae.load_state_dict(weights)
    full.restore(trainer.step, tensors)
    return full


def align(tensor: Tensor) -> None:
    """Copy rank 0's numbers to every rank, in place: machines may round differently in what training starts from."""
    own = tensor.cpu().contiguous()
    with rank_errors():
        dist.broadcast(own, 0)
    tensor.copy_(own)


def _axis(name: str, tensor: Tensor) -> int | None:
    """Return a tensor's axis of latents, None where it has none. The name may be that of a parameter's Adam state."""
    axes = [AXES[part] for part in name.split(".") if part in AXES]
    return axes[0] if axes and tensor.dim() else None


def _part(name: str, tensor: Tensor) -> Tensor:
    axis = _axis(name, tensor)
    return tensor if axis is None else tensor.chunk(world(), axis)[rank()]


def _gathered(name: str, part: Tensor) -> Tensor:
    """Return the ranks' parts as one tensor on the CPU of rank 0, and a tensor that is not split as it is."""
    axis, part = _axis(name, part), part.detach().cpu()
    if axis is None:
        return part
    own = part.movedim(axis, 0).contiguous()
    parts = None if rank() else [torch.empty_like(own) for _ in range(world())]
    with rank_errors():
        dist.gather(own, parts)
    return part if parts is None else torch.cat(parts).movedim(0, axis)
