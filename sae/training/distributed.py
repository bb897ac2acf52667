"""Several ranks train one SAE: each on a part of every batch (Data), or each a part of the latents (Latents).

Both come to what one rank would, up to rounding. The step itself is the trainer's, the losses are the architectures': here
are the answers of `sae.kernels.collective` over torch.distributed, and the choice between the two."""

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
from sae.training.optimizers import as_rows

Parallel = Literal["auto", "data", "latents"]
# the axis of latents, of what Latents gives each rank a part of
SPLITS = {"W_enc": 1, "W_dec": 0, "b_enc": 0}


class Data(SingleProcess):
    """Every rank holds the whole SAE and as many rows of each batch."""

    by_row = False

    def rows(self, own: int) -> int:
        """All ranks have as many."""
        return own * world()

    def mean_over_rows(self, mean: Tensor) -> Tensor:
        """One all-reduce."""
        return self.sum_over_rows(mean) / world()

    def sum_over_rows(self, total: Tensor) -> Tensor:
        """One all-reduce."""
        return reduced(total, dist.ReduceOp.SUM)

    def max_over_rows(self, largest: Tensor) -> Tensor:
        """One all-reduce; true is more than false."""
        whole = largest.byte() if largest.dtype == torch.bool else largest
        return reduced(whole, dist.ReduceOp.MAX).to(largest.dtype)

    def any(self, here: bool) -> bool:
        """One all-reduce."""
        return anywhere(here)

    def least(self, value: Tensor) -> Tensor:
        """One all-reduce."""
        return reduced(value, dist.ReduceOp.MIN)

    def largest_of_all(self, keys: Float[Tensor, "n"], k: int) -> Bool[Tensor, "n"]:
        """From the k best of each rank."""
        return largest_of_ranks(keys[None], k)[0]

    def settle(self, parameters: Iterable[nn.Parameter]) -> None:
        """The mean of the ranks' gradients, which is that of the mean of their losses."""
        for parameter in parameters:
            if parameter.grad is not None:
                if parameter.grad.stride() != parameter.stride():
                    parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
                rows = as_rows(parameter.grad)
                rows.copy_(self.mean_over_rows(rows))


class Latents(SingleProcess):
    """Every rank sees the whole batch and holds F / world latents of `sae`: all it has, once this is made.

    Raises ConfigError for a method or a number of latents that cannot be split so."""

    def __init__(self, sae: SAE):
        check_latents(sae.cfg, world())
        for name in SPLITS:
            whole = getattr(sae, name)
            setattr(sae, name, nn.Parameter(torch.clone(self.own(name, whole.detach()))))
        self._parts = {getattr(sae, name) for name in SPLITS}

    @staticmethod
    def own(name: str, whole: Tensor) -> Tensor:
        """This rank's part of a tensor of latents; a view."""
        return whole.chunk(world(), SPLITS[name])[rank()]

    def sum_over_latents(self, part: Tensor) -> Tensor:
        """One all-reduce; none in the backward pass, where all ranks have the same gradient."""
        return cast(Tensor, _Summed.apply(part))

    def to_latents(self, common: Tensor) -> Tensor:
        """Nothing; one all-reduce in the backward pass."""
        return cast(Tensor, _Common.apply(common))

    def any(self, here: bool) -> bool:
        """One all-reduce."""
        return anywhere(here)

    def least(self, value: Tensor) -> Tensor:
        """One all-reduce."""
        return reduced(value, dist.ReduceOp.MIN)

    def largest_of_row(self, keys: Float[Tensor, "n m"], k: int) -> Bool[Tensor, "n m"]:
        """From the k best of each rank."""
        return largest_of_ranks(keys, k)

    def largest_of_all(self, keys: Float[Tensor, "n"], k: int) -> Bool[Tensor, "n"]:
        """From the k best of each rank."""
        return largest_of_ranks(keys[None], k)[0]

    def squares(self, found: dict[nn.Parameter, float]) -> float:
        """The parts' added up over the ranks; the others are the same on each."""
        parts = sum(square for parameter, square in found.items() if parameter in self._parts)
        common = sum(square for parameter, square in found.items() if parameter not in self._parts)
        return reduced(torch.tensor(parts, dtype=torch.float64), dist.ReduceOp.SUM).item() + common


class _Summed(torch.autograd.Function):
    """The sum over ranks of what each has; whatever is made of it, all ranks make alike."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return reduced(part, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Common(torch.autograd.Function):
    """What all ranks have alike, and each makes something else of."""

    @staticmethod
    def forward(ctx: Any, common: Tensor) -> Tensor:
        return common.view_as(common)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return reduced(grads[0], dist.ReduceOp.SUM)


def reduced(own: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
    """The ranks' tensors put together, the same bits on each; in new memory."""
    whole = own.detach().clone(memory_format=torch.contiguous_format)
    with rank_errors():
        dist.all_reduce(whole, how)
    return whole


def anywhere(here: bool) -> bool:
    """Whether something is so on any rank."""
    return bool(reduced(torch.tensor(int(here)), dist.ReduceOp.MAX))


def largest_of_ranks(keys: Float[Tensor, "n m"], k: int) -> Bool[Tensor, "n m"]:
    """Which of the keys here are among the k largest of their row on all ranks; each gives its k largest or all it has.

    Exactly k are kept where there are as many: of equal ones those of the lower rank, then the earlier."""
    own = nn.functional.pad(keys.detach(), (0, k - keys.shape[1]), value=-torch.inf).contiguous()
    found = [torch.empty_like(own) for _ in range(world())]
    with rank_errors():
        dist.all_gather(found, own)
    every = torch.cat(found, 1)
    least = every.topk(k, 1).values[:, -1:]
    above, equal = every > least, every == least
    kept = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return kept[:, rank() * k :][:, : keys.shape[1]]


def traffic(parallel: Parallel, arch: ArchConfig, d_model: int, batch: int, ranks: int) -> float:
    """Bytes of float32 that each rank sends in a step: a ring's 2 (S - 1) / S of what is all-reduced, (S - 1) of its own
    part of what is gathered. Data: the gradients. Latents: the k best of each row, and the reconstruction. Without AuxK."""
    ring = 2 * (ranks - 1) / ranks * 4
    if parallel == "data":
        return ring * 2 * arch.d_sae * d_model
    k = min(math.ceil(arch.expected_l0().value), arch.d_sae // ranks)
    return batch * (4 * (ranks - 1) * k + ring * d_model)


def chosen(
    parallel: Parallel, arch: ArchConfig, d_model: int, batch: int, ranks: int | None = None
) -> Literal["data", "latents"]:
    """What `auto` comes to for this many ranks, `world()` when not given: what moves fewer bytes, of what can be done.

    Raises ConfigError when what is asked for cannot be done."""
    ranks = world() if ranks is None else ranks
    if parallel == "auto":
        less = traffic("latents", arch, d_model, batch, ranks) < traffic("data", arch, d_model, batch, ranks)
        able = arch.shards_latents and not arch.d_sae % ranks
        parallel = "latents" if able and (less or batch % ranks) else "data"
    if parallel == "latents":
        check_latents(arch, ranks)
    elif batch % ranks:
        raise ConfigError(
            f"train.batch = {batch} is no multiple of the {ranks} ranks that share it: choose one that is"
        )
    return parallel


def check_latents(arch: ArchConfig, ranks: int) -> None:
    """Raise ConfigError unless so many ranks can share the latents of such an SAE."""
    if not arch.shards_latents:
        raise ConfigError(
            f"--parallel latents cannot split what {name_of(arch)} learns over ranks: train it with --parallel data"
        )
    if arch.d_sae % ranks:
        raise ConfigError(
            f"d_sae = {arch.d_sae} is no multiple of the {ranks} ranks that share it: choose one that is"
        )
