"""Rows stored as int8 with a bfloat16 scale for every 32 numbers: little more than a quarter of float32, read back as float32."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import BFloat16, Float32, Int8
from torch import Tensor

# One scale a row would be spoilt by the few dimensions that are tens of times larger than the others in every row of a
# language model; with a scale a block they spoil a block (LOG.md has the figures)
BLOCK = 32
LARGEST = 127
AT_ONCE = 4096  # rows that are float32 at one time


def n_blocks(width: int) -> int:
    """Return the number of scales of a row of this width."""
    return -(-width // BLOCK)


def quantise(x: Tensor) -> tuple[Int8[Tensor, "*rows D"], BFloat16[Tensor, "*rows S"]]:
    """Round rows x [*rows, D], of any floating type, to integers q from -127 to 127 and a scale s for each block of a row.

    |x - q s| is at most s / 2 but for float32's rounding, and s is the smallest bfloat16 with 127 s >= |x| in the block, so
    that zeros stay zeros. The scale of a block that holds a NaN or an infinity is not finite."""
    rows = x.reshape(-1, x.shape[-1])
    q, scales = torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows), n_blocks(x.shape[-1]))
    scales = scales.bfloat16()
    for start in range(0, len(rows), AT_ONCE):
        blocks = _blocks(rows[start : start + AT_ONCE].float())
        largest = blocks.abs().amax(-1)
        scale = (largest / LARGEST).bfloat16()
        # Rounded to bfloat16 it may have become too small; the next number up is the next in its bits
        too_small = scale.float() * LARGEST < largest
        scale = (scale.view(torch.int16) + too_small.short()).view(torch.bfloat16)
        divisor = scale.float().masked_fill(scale == 0, 1.0)[..., None]
        rounded = (blocks / divisor).round_().nan_to_num_(0.0, 0.0, 0.0).to(torch.int8).flatten(-2)
        q[start : start + AT_ONCE] = rounded[:, : x.shape[-1]]
        scales[start : start + AT_ONCE] = scale
    return q.view(x.shape), scales.view(*x.shape[:-1], scales.shape[1])


def dequantise(q: Int8[Tensor, "*rows D"], scales: BFloat16[Tensor, "*rows S"]) -> Float32[Tensor, "*rows D"]:
    """Return q s, each number times its block's scale. A product of an int8 and a bfloat16 is exact in float32."""
    return (_blocks(q.float()) * scales.float()[..., None]).flatten(-2)[..., : q.shape[-1]]


def _blocks(x: Tensor) -> Tensor:
    """Return rows [*rows, D] as blocks [*rows, S, BLOCK], the last one filled up with zeros."""
    missing = -x.shape[-1] % BLOCK
    return (torch.nn.functional.pad(x, (0, missing)) if missing else x).unflatten(-1, (-1, BLOCK))


class Int8Activations(Mapping[str, Tensor]):
    """The activations of a shard by hook point, as float32. They are stored as int8 and converted each time they are asked for."""

    def __init__(self, stored: Mapping[str, tuple[Tensor, ...]]):
        self.stored = stored

    def __getitem__(self, hook: str) -> Tensor:
        return dequantise(*self.stored[hook])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def columns(activations: Mapping[str, Tensor], hook: str) -> tuple[Tensor, ...]:
    """Return the tensors that a shard holds for a hook point: its rows, or int8 and their scales. `decoded` is the inverse."""
    return activations.stored[hook] if isinstance(activations, Int8Activations) else (activations[hook],)


def decoded(columns: Sequence[Tensor]) -> list[Tensor]:
    """Return columns as float32, with int8 and the scales that follow it made into one."""
    whole, following = [], iter(columns)
    for column in following:
        whole.append(dequantise(column, next(following)) if column.dtype == torch.int8 else column.float())
    return whole
