"""Training one SAE on several ranks: each has a part of every batch (DataParallel), or a part of the latents (LatentParallel).

Both give what one rank would, up to rounding. The step is the trainer's and the losses are the architectures'; this file
implements `sae.kernels.collective` over torch.distributed, and chooses between the two."""

import math
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from activations.errors import ConfigError
from activations.parallel.ranks import rank, rank_errors, world
from sae.architectures import SAE, ArchConfig, name_of
from sae.kernels import SingleProcess
from sae.training.optimizer import as_rows
from sae.training.trainer import History, Trainer

Parallel = Literal["auto", "data", "latents"]
# The axis of latents of each parameter that LatentParallel splits.
SPLITS = {"W_enc": 1, "W_dec": 0, "b_enc": 0}


class _SeveralRanks(SingleProcess):
    """What both ways of sharing have alike, because every rank has to come to the same decision."""

    def any(self, here: bool) -> bool:
        """Return whether it is true on any rank, by one all-reduce."""
        return anywhere(here)

    def least(self, value: Tensor) -> Tensor:
        """Return the minimum over the ranks, by one all-reduce."""
        return reduced(value, dist.ReduceOp.MIN)

    def largest_of_all(self, keys: Float[Tensor, "n"], k: int) -> Bool[Tensor, "n"]:
        """Return which keys are among the k largest of all ranks, by one all-gather of each rank's k largest."""
        return largest_of_ranks(keys[None], k)[0]


class DataParallel(_SeveralRanks):
    """Every rank holds the whole SAE and an equal part of each batch's rows."""

    by_row = False

    def rows(self, own: int) -> int:
        """Return `own` times the number of ranks: all have equally many rows."""
        return own * world()

    def mean_over_rows(self, mean: Tensor) -> Tensor:
        """Average over the ranks, by one all-reduce."""
        return self.sum_over_rows(mean) / world()

    def sum_over_rows(self, total: Tensor) -> Tensor:
        """Sum over the ranks, by one all-reduce."""
        return reduced(total, dist.ReduceOp.SUM)

    def max_over_rows(self, largest: Tensor) -> Tensor:
        """Return the maximum over the ranks, by one all-reduce; true counts as larger than false."""
        numbers = largest.byte() if largest.dtype == torch.bool else largest
        return reduced(numbers, dist.ReduceOp.MAX).to(largest.dtype)

    def combine_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients over the ranks, which gives the gradient of the mean of their losses."""
        for parameter in parameters:
            if parameter.grad is not None:
                # Autograd may choose another memory order for a gradient; all ranks have to reduce the same one.
                if parameter.grad.stride() != parameter.stride():
                    parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
                rows = as_rows(parameter.grad)
                rows.copy_(self.mean_over_rows(rows))


class LatentParallel(_SeveralRanks):
    """Every rank reads the whole batch and holds F / world of the latents. Creating this cuts `sae` down to them.

    Raises ConfigError for an architecture or a number of latents that cannot be split."""

    shares_latents = True

    def __init__(self, sae: SAE):
        check_latents(sae.cfg, world())
        for name in SPLITS:
            unsharded = getattr(sae, name)
            setattr(sae, name, nn.Parameter(torch.clone(self.own(name, unsharded.detach()))))
        self._parts = {getattr(sae, name) for name in SPLITS}

    @staticmethod
    def own(name: str, unsharded: Tensor) -> Tensor:
        """Return this rank's part of a parameter, as a view."""
        return unsharded.chunk(world(), SPLITS[name])[rank()]

    def sum_over_latents(self, part: Tensor) -> Tensor:
        """Sum over the ranks, by one all-reduce. The backward pass needs none: all ranks have the same gradient there."""
        return cast(Tensor, _Summed.apply(part))

    def to_latents(self, common: Tensor) -> Tensor:
        """Return the tensor itself. Its gradient is summed over the ranks, by one all-reduce in the backward pass."""
        return cast(Tensor, _Common.apply(common))

    def largest_of_row(self, keys: Float[Tensor, "n m"], k: int) -> Bool[Tensor, "n m"]:
        """Return which keys are among their row's k largest of all ranks, by one all-gather of each rank's k largest."""
        return largest_of_ranks(keys, k)

    def squares(self, by_parameter: dict[nn.Parameter, float]) -> float:
        """Sum the squares of split parameters over the ranks, and add those of common ones, which are equal on every rank."""
        parts = sum(square for parameter, square in by_parameter.items() if parameter in self._parts)
        common = sum(square for parameter, square in by_parameter.items() if parameter not in self._parts)
        return reduced(torch.tensor(parts, dtype=torch.float64), dist.ReduceOp.SUM).item() + common


class _Summed(torch.autograd.Function):
    """Sum over the ranks. What follows is computed alike on every rank, so the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return reduced(part, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Common(torch.autograd.Function):
    """A tensor that all ranks have alike and each uses differently: the ranks' gradients are summed."""

    @staticmethod
    def forward(ctx: Any, common: Tensor) -> Tensor:
        return common.view_as(common)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return reduced(grads[0], dist.ReduceOp.SUM)


def reduced(own: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
    """Return the ranks' tensors combined by `how`, with the same bits on each rank, in new memory."""
    combined = own.detach().clone(memory_format=torch.contiguous_format)
    with rank_errors():
        dist.all_reduce(combined, how)
    return combined


def anywhere(here: bool) -> bool:
    """Return whether `here` is true on any rank."""
    return bool(reduced(torch.tensor(int(here)), dist.ReduceOp.MAX))


def largest_of_ranks(keys: Float[Tensor, "n m"], k: int) -> Bool[Tensor, "n m"]:
    """Return which of this rank's keys are among the k largest of their row on all ranks.

    Each rank passes its k largest, or all that it has. Exactly k are kept where the ranks have k: of equal keys, those of the
    lower rank and then the earlier. Every rank comes to the same decision from the same gathered numbers."""
    own = nn.functional.pad(keys.detach(), (0, k - keys.shape[1]), value=-torch.inf).contiguous()
    gathered = [torch.empty_like(own) for _ in range(world())]
    with rank_errors():
        dist.all_gather(gathered, own)
    every = torch.cat(gathered, 1)
    least = every.topk(k, 1).values[:, -1:]
    above, equal = every > least, every == least
    is_kept = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return is_kept[:, rank() * k :][:, : keys.shape[1]]


def traffic(parallel: Parallel, arch: ArchConfig, d_model: int, batch: int, ranks: int) -> float:
    """Return the bytes of float32 that each rank sends in a step, without those of AuxK.

    A ring of S ranks sends 2 (S - 1) / S of what is all-reduced and S - 1 times its own part of what is gathered. With `data`
    the gradients are all-reduced; with `latents` the k largest of each row are gathered and the reconstruction is all-reduced."""
    ring = 2 * (ranks - 1) / ranks * 4
    if parallel == "data":
        return ring * 2 * arch.d_sae * d_model
    k = min(math.ceil(arch.expected_l0().value), arch.d_sae // ranks)
    return batch * (4 * (ranks - 1) * k + ring * d_model)


def chosen(
    parallel: Parallel, arch: ArchConfig, d_model: int, batch: int, ranks: int | None = None
) -> Literal["data", "latents"]:
    """Return `parallel`, or for `auto` whichever of the possible two sends fewer bytes. `ranks` defaults to `world()`.

    Raises ConfigError when the strategy asked for is not possible."""
    ranks = world() if ranks is None else ranks
    if parallel == "auto":
        less = traffic("latents", arch, d_model, batch, ranks) < traffic("data", arch, d_model, batch, ranks)
        able = arch.shards_latents and not arch.d_sae % ranks
        parallel = "latents" if able and (less or batch % ranks) else "data"
    if parallel == "latents":
        check_latents(arch, ranks)
    elif batch % ranks:
        raise ConfigError(f"train.batch = {batch} is not a multiple of the {ranks} ranks that share it")
    return parallel


def check_latents(arch: ArchConfig, ranks: int) -> None:
    """Raise ConfigError unless so many ranks can share the latents of such an SAE."""
    if not arch.shards_latents:
        raise ConfigError(
            f"--parallel latents cannot split what {name_of(arch)} learns over ranks: train it with --parallel data"
        )
    if arch.d_sae % ranks:
        raise ConfigError(f"d_sae = {arch.d_sae} is not a multiple of the {ranks} ranks that share it")


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
