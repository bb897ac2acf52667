"""A rank's share of a trainer, and the whole trainer again: what is on disk is always the whole, for any number of ranks."""

import torch
import torch.distributed as dist
from torch import Tensor

from activations.parallel.ranks import rank, rank_errors, world
from sae.training.distributed import SPLITS, Data, Latents
from sae.training.history import History
from sae.training.trainer import Trainer

AXES = {**SPLITS, **dict.fromkeys(History.__annotations__, 0)}


def share(whole: Trainer, parallel: str, device: torch.device) -> Trainer:
    """This rank's trainer, made from the whole one, which every rank has alike on the CPU and which is used up."""
    for tensor in whole.sae.state_dict().values():
        align(tensor)
    tensors = whole.tensors()
    if parallel == "latents":
        tensors = {name: _part(name, tensor) for name, tensor in tensors.items()}
    ranks = Latents(whole.sae) if parallel == "latents" else Data()
    trainer = Trainer(whole.sae.to(device), whole.cfg, whole.scale, ranks)
    trainer.restore(whole.step, tensors)
    return trainer


def whole(trainer: Trainer) -> Trainer | None:
    """The whole trainer, as one rank would have it, on rank 0; None on the others. All ranks are to ask at the same step."""
    if not isinstance(trainer.ranks, Latents):
        return None if rank() else trainer
    sae = trainer.sae
    weights = {name: _gathered(name, tensor) for name, tensor in sae.state_dict().items()}
    tensors = {name: _gathered(name, tensor) for name, tensor in trainer.tensors().items()}
    if rank():
        return None
    found = Trainer(type(sae)(sae.d_model, sae.cfg, seed=None), trainer.cfg, trainer.scale)
    found.sae.load_state_dict(weights)
    found.restore(trainer.step, tensors)
    return found


def align(tensor: Tensor) -> None:
    """Rank 0's numbers on every rank, in place: machines may round differently in what they begin with."""
    own = tensor.cpu().contiguous()
    with rank_errors():
        dist.broadcast(own, 0)
    tensor.copy_(own)


def _axis(name: str, tensor: Tensor) -> int | None:
    """The axis of latents, None where a tensor has none: the name may be that of what belongs to a parameter."""
    axes = [AXES[part] for part in name.split(".") if part in AXES]
    return axes[0] if axes and tensor.dim() else None


def _part(name: str, tensor: Tensor) -> Tensor:
    axis = _axis(name, tensor)
    return tensor if axis is None else tensor.chunk(world(), axis)[rank()]


def _gathered(name: str, part: Tensor) -> Tensor:
    """The ranks' parts as one tensor on the CPU, on rank 0; what is not split as it is here."""
    axis, part = _axis(name, part), part.detach().cpu()
    if axis is None:
        return part
    own = part.movedim(axis, 0).contiguous()
    found = None if rank() else [torch.empty_like(own) for _ in range(world())]
    with rank_errors():
        dist.gather(own, found)
    return part if found is None else torch.cat(found).movedim(0, axis)
