"""The kernels in plain torch, for any device and precision: the definition that faster backends are tested against.

A backend is a module with these functions. None of them is differentiable (`autograd.py` adds the gradients). Pre-activations
are u = z + bias, where z [n, F] lies in a buffer that is soon overwritten: results must be copies."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae.code import offsets_of


class Picked(NamedTuple):
    """The selected entries of some rows, one row after the other."""

    values: Float[Tensor, "nnz"]
    indices: Int[Tensor, "nnz"]
    counts: Int[Tensor, "n"]
    """Number of entries of each row."""


class Groups(NamedTuple):
    """The entries of a code grouped by latent: those of `latents[i]` are at `entries[starts[i]:starts[i + 1]]` in the code."""

    latents: Int[Tensor, "n"]
    """The latents that have an entry, in rising order."""
    starts: Int[Tensor, "n+1"]
    entries: Int[Tensor, "nnz"]


class Moments(NamedTuple):
    """Adam's running means of a matrix's gradient and of its square, laid out as the matrix is."""

    mean: Float[Tensor, "R C"]
    square: Float[Tensor, "R C"]


class Pace(NamedTuple):
    """The numbers that set the size of one step of Adam."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    step: int
    """The number of this step, counted from 1."""
    shrink: float
    """Factor by which the gradient is multiplied, to clip it."""


def largest_per_row(
    z: Float[Tensor, "n F"], bias: Float[Tensor, "F"], k: int | Int[Tensor, "n"], by_size: bool
) -> Picked:
    """Select the k largest u of each row (k[i] of row i), or the largest |u|; all of a row when k >= F.

    They come in no particular order. Of equal ones some are taken, always k, and on the CPU always the same."""
    u = z + bias
    most = min(k if isinstance(k, int) else int(k.max()) if len(k) else 0, u.shape[1])
    indices = (u.abs() if by_size else u).topk(most, dim=1).indices
    values = u.gather(1, indices)
    if isinstance(k, int):
        return Picked(values.flatten(), indices.flatten(), torch.full((len(u),), most, device=u.device))
    chosen = torch.arange(most, device=u.device) < k[:, None]
    return Picked(values[chosen], indices[chosen], chosen.sum(1))


def strongest(u: Float[Tensor, "n F"], k: int) -> Float[Tensor, "n F"]:
    """Return u where it is among the k < F largest of its row in size, else 0. Of equal ones some are kept, always k."""
    return in_place(u, largest_per_row(u, u.new_zeros(u.shape[1]), k, by_size=True))


def in_place(u: Float[Tensor, "n F"], picked: Picked) -> Float[Tensor, "n F"]:
    """Return u at what was picked, equally many entries of each row, and 0 elsewhere."""
    columns = picked.indices.view(len(u), -1)
    return torch.zeros_like(u).scatter(1, columns, u.gather(1, columns))


def largest_of_batch(z: Float[Tensor, "n F"], bias: Float[Tensor, "F"], total: int, by_size: bool) -> Picked:
    """Select the `total` largest u of all rows together, or the largest |u|: a row may have none or many."""
    u = z + bias
    flat = (u.abs() if by_size else u).flatten().topk(min(total, u.numel()), sorted=False).indices
    flat = flat.sort().values
    counts = torch.bincount(flat // u.shape[1], minlength=len(u))
    return Picked(u.flatten()[flat], flat % u.shape[1], counts)


def above(
    z: Float[Tensor, "n F"], bias: Float[Tensor, "F"], threshold: Float[Tensor, "F"], by_size: bool
) -> Picked:
    """Select all u, or all |u|, above their latent's threshold; within a row in the order of latents."""
    u = z + bias
    chosen = (u.abs() if by_size else u) > threshold
    return Picked(u[chosen], chosen.nonzero()[:, 1], chosen.sum(1))


def largest_ands(u: Float[Tensor, "n hp"], v: Float[Tensor, "n hq"], heads: int, k: int) -> Picked:
    """Select the k largest of each row among KronSAE's latents sqrt(relu u) sqrt(relu v), all pairs within a head.

    Latent (h p + i) q + j is the pair u[h p + i], v[h q + j] of head h."""
    a, b = (side.relu().sqrt().unflatten(1, (heads, -1)) for side in (u, v))
    latents = (a[:, :, :, None] * b[:, :, None, :]).flatten(1)
    return largest_per_row(latents, latents.new_zeros(latents.shape[1]), k, by_size=False)


def weighted_rows(
    values: Float[Tensor, "nnz"],
    indices: Int[Tensor, "nnz"],
    offsets: Int[Tensor, "offsets"],
    W: Float[Tensor, "F D"],
) -> Float[Tensor, "B D"]:
    """Return, for each of the B rows of a code with B + 1 offsets, the sum of its values times the rows of W at its indices."""
    return F.embedding_bag(
        indices, W, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def dots(
    g: Float[Tensor, "B D"], indices: Int[Tensor, "nnz"], offsets: Int[Tensor, "B+1"], W: Float[Tensor, "F D"]
) -> Float[Tensor, "nnz"]:
    """Return, for each entry of a code, the scalar product of its row of g with the row of W at its index."""
    counts = offsets.diff()
    products = torch.empty(len(indices), dtype=g.dtype, device=g.device)
    # In pieces: gathering all rows at once would take [nnz, D], the largest tensor of a training step.
    width = max(1, 2**24 // max(1, g.shape[1]))
    rows = torch.arange(len(counts), device=g.device).repeat_interleave(counts)
    for out, row, index in zip(products.split(width), rows.split(width), indices.split(width), strict=True):
        torch.sum(g[row] * W[index], 1, out=out)
    return products


def group(indices: Int[Tensor, "nnz"], n_latents: int) -> Groups:
    """Group the entries of a code by latent, each latent's in their order in the code."""
    counts = torch.bincount(indices, minlength=n_latents)
    latents = counts.nonzero()[:, 0]
    return Groups(latents, offsets_of(counts[latents]), indices.argsort(stable=True))


def sums_by_latent(
    groups: Groups,
    rows: Int[Tensor, "nnz"],
    values: Float[Tensor, "nnz"],
    x: Float[Tensor, "B D"],
    out: Float[Tensor, "n D"],
) -> None:
    """Write into `out`, for each latent of `groups`, the sum over its entries of the value times the row of x."""
    entries = groups.entries
    out.copy_(weighted_rows(values[entries], rows[entries], groups.starts, x))


def squares(
    gradient: Float[Tensor, "n C"], toward: Float[Tensor, "R C"] | None, which: Int[Tensor, "n"] | None
) -> tuple[Float[Tensor, ""], Float[Tensor, "n"] | None]:
    """Return the sum of squares of gradient rows, in float64, and the component of each along the weight row it belongs to.

    Row i belongs to `toward[which[i]]`, or to `toward[i]`. With `toward` the component along the weights is not counted: row
    i minus `along[i]` times its weights is tangent to them. Without `toward` there is no such component, and None."""
    if toward is None:
        return gradient.double().square().sum(), None
    beside = toward if which is None else toward[which]
    along = (gradient * beside).sum(1) / beside.square().sum(1).clamp_min(torch.finfo(beside.dtype).tiny)
    return (gradient - along[:, None] * beside).double().square().sum(), along


def adam(
    W: Float[Tensor, "R C"],
    moments: Moments,
    gradient: Float[Tensor, "n C"],
    slots: Int[Tensor, "R"] | None,
    along: Float[Tensor, "n"] | None,
    pace: Pace,
    unit_norm: bool,
) -> None:
    """Take one step of Adam on all rows of W, in place; Kingma & Ba 2015, algorithm 1, as torch does.

    Row r has the gradient `gradient[slots[r]]`, or 0 where its slot is -1; without slots it has `gradient[r]`. With `along`
    (see `squares`) the gradient is first made tangent to the row; with `unit_norm` the row is normalised afterwards."""
    if along is not None:
        gradient = gradient - along[:, None] * (W if slots is None else W[_rows_with(slots, len(gradient))])
    if slots is not None:
        all_rows = torch.zeros_like(W)
        all_rows[_rows_with(slots, len(gradient))] = gradient
        gradient = all_rows
    gradient = gradient * pace.shrink
    moments.mean.lerp_(gradient, 1 - pace.beta1)
    moments.square.mul_(pace.beta2).addcmul_(gradient, gradient, value=1 - pace.beta2)
    first, second = 1 - pace.beta1**pace.step, 1 - pace.beta2**pace.step
    W.addcdiv_(moments.mean, (moments.square / second).sqrt_().add_(pace.eps), value=-pace.lr / first)
    if unit_norm:
        W.div_(W.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny))


def _rows_with(slots: Int[Tensor, "R"], n: int) -> Int[Tensor, "n"]:
    """Return the row that each slot belongs to."""
    rows = torch.empty(n, dtype=torch.int64, device=slots.device)
    filled = (slots >= 0).nonzero()[:, 0]
    rows[slots[filled].long()] = filled
    return rows
