"""Choose the windows that show each latent: the strongest of either sign, and a uniform sample for activation intervals."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.code import offsets_of
from sae.features import numba_pass
from sae.features.firings import Firings

NONE = torch.iinfo(torch.int64).min  # key of an empty place: smaller than every other
LOW = 0xFFFFFFFF  # the lower half of a key


class Selection:
    """Keeps the best windows seen so far for each latent of a range, in whatever order and pieces firings arrive.

    `strongest`: the n windows with the largest value, and the n with the most negative one. `sampled`: R windows
    drawn uniformly from all in which the latent fires, namely those with the smallest hash of (latent, window), so that
    the draw does not depend on the order either. Each entry is one int64 key that orders windows totally, the value in
    its upper half and the window in its lower (the earlier of equal windows first): merging two selections is taking the
    largest keys of both. State: 8 (2 n + R) bytes a latent."""

    def __init__(self, latents: range, strongest: int, sampled: int):
        self.latents = latents
        self.positive = torch.full((len(latents), strongest), NONE)
        self.negative = torch.full((len(latents), strongest), NONE)
        self.sampled = torch.full((len(latents), sampled), NONE)

    def add(self, firings: Firings, context: int) -> None:
        """Add firings of these latents on windows of `context` rows. A window's firings must come in one piece."""
        state = self.positive, self.negative, self.sampled
        if numba_pass.worthwhile(len(firings.values)):
            starts, rows, values, first_row = firings
            bits = values.view(torch.int32)
            numba_pass.by_latents(
                numba_pass.selection,
                starts,
                rows,
                values,
                bits,
                first_row,
                context,
                self.latents.start,
                *state,
            )
        else:
            _add(firings, context, self.latents.start, *state)

    def windows(self) -> dict[str, Int[Tensor, "F n"]]:
        """Return window numbers by kind, strongest first for `positive` and `negative`; -1 where there are fewer."""
        strongest = {
            name: LOW - (keys & LOW)
            for name, keys in (("positive", self.positive), ("negative", self.negative))
        }
        by_kind = {**strongest, "sampled": (-self.sampled) & LOW}
        return {
            kind: torch.where(getattr(self, kind) == NONE, -1, windows) for kind, windows in by_kind.items()
        }


class Traces(NamedTuple):
    """The values of latents in the windows chosen for them: E (latent, window) pairs with N firings, compressed."""

    latents: Int[Tensor, "E"]
    windows: Int[Tensor, "E"]
    offsets: Int[Tensor, "E+1"]
    """Pair e owns positions and values offsets[e] to offsets[e + 1] - 1."""
    positions: Int[Tensor, "N"]
    values: Float[Tensor, "N"]


def wanted_pairs(chosen: dict[str, Int[Tensor, "F n"]]) -> Int[Tensor, "E"]:
    """Return every (latent, window) pair that is chosen in any kind once, as latent << 32 | window, sorted."""
    windows = torch.cat([*chosen.values()], 1).sort(1).values
    once = windows >= 0
    once[:, 1:] &= windows.diff(dim=1) != 0
    latents, place = once.nonzero(as_tuple=True)
    return latents << 32 | windows[latents, place]


def gather(wanted: Int[Tensor, "E"], firings: Firings, context: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a shard's firings that lie in wanted pairs: (place of the pair in `wanted`, position in the window, value)."""
    if numba_pass.worthwhile(len(firings.values)):
        edges = torch.searchsorted(wanted, torch.arange(len(firings.starts)) << 32)
        place = torch.empty(len(firings.values), dtype=torch.int64)
        starts, rows, _, first_row = firings
        numba_pass.by_latents(numba_pass.gather, starts, rows, first_row, context, wanted, edges, place)
    else:
        place = _places(wanted, firings, context)
    hit = (place >= 0).nonzero()[:, 0]
    positions = (firings.rows[hit].long() + firings.first_row) % context
    return place[hit], positions, firings.values[hit]


def traces(wanted: Int[Tensor, "E"], gathered: list[tuple[Tensor, Tensor, Tensor]]) -> Traces:
    """Concatenate what `gather` found in each shard and sort it by latent, window and position."""
    place, positions, values = (torch.cat(parts) for parts in zip(*gathered, strict=True))
    offsets = offsets_of(torch.bincount(place, minlength=len(wanted)))
    # A window lies in one shard, so a pair's firings follow one another and are in order: a counting sort of runs is enough.
    _, runs = place.unique_consecutive(return_counts=True)
    rank = torch.arange(len(place)) - offsets_of(runs)[:-1].repeat_interleave(runs)
    order = torch.empty_like(place).scatter_(0, offsets[place] + rank, torch.arange(len(place)))
    return Traces(wanted >> 32, wanted & LOW, offsets, positions[order], values[order])


def _places(wanted: Int[Tensor, "E"], firings: Firings, context: int) -> Int[Tensor, "nnz"]:
    """Do in plain torch what `numba_pass.gather` does: the place in `wanted` of each firing's pair, or -1."""
    pairs = firings.latents() << 32 | (firings.rows.long() + firings.first_row) // context
    if not len(wanted):
        return torch.full_like(pairs, -1)
    place = torch.searchsorted(wanted, pairs).clamp_max(len(wanted) - 1)
    return torch.where(wanted[place] == pairs, place, -1)


def _add(
    firings: Firings, context: int, first_latent: int, positive: Tensor, negative: Tensor, sampled: Tensor
) -> None:
    """Do in plain torch what `numba_pass.selection` does."""
    if not len(firings.values):
        return
    windows = (firings.rows.long() + firings.first_row) // context
    pairs, place = (firings.latents() << 32 | windows).unique(return_inverse=True)
    latents, windows = pairs >> 32, pairs & LOW
    zeros = torch.zeros(len(pairs))
    highest = zeros.scatter_reduce(0, place, firings.values, "amax", include_self=False)
    lowest = zeros.scatter_reduce(0, place, firings.values, "amin", include_self=False)
    for state, peak in ((positive, highest), (negative, -lowest)):
        shows = peak > 0
        heights = (
            peak[shows].view(torch.int32).long()
        )  # the bits of positive floats are in the order of their values
        keys = heights << 32 | (LOW - windows[shows])
        _keep_largest(state, latents[shows], keys)
    _keep_largest(sampled, latents, -(hash31(pairs + (first_latent << 32)) << 32 | windows))


def _keep_largest(state: Int[Tensor, "F n"], latents: Int[Tensor, "c"], keys: Int[Tensor, "c"]) -> None:
    """Merge candidate keys into `state`, whose rows stay each latent's n largest keys in falling order."""
    large = keys > state[latents, -1]  # most candidates end here
    latents, keys = latents[large], keys[large]
    order = keys.argsort(descending=True)
    order = order[latents[order].argsort(stable=True)]
    latents, keys = latents[order], keys[order]
    starts = torch.searchsorted(latents, latents)  # where each latent's candidates begin
    rank = torch.arange(len(latents)) - starts
    first = rank < state.shape[1]
    candidates = torch.full_like(state, NONE)
    candidates[latents[first], rank[first]] = keys[first]
    state.copy_(torch.cat([state, candidates], 1).topk(state.shape[1], dim=1).values)


def hash31(pairs: Int[Tensor, "c"]) -> Int[Tensor, "c"]:
    """Return 31 hashed bits of each pair. int64 multiplications wrap around, in torch and numba alike."""
    h = pairs * -7046029254386353131  # 2^64 over the golden ratio, made odd
    h = (h ^ (h >> 32 & LOW)) * -4658895280553007687  # the first multiplier of splitmix64
    return (h ^ (h >> 29 & 0x7FFFFFFFF)) >> 33 & 0x7FFFFFFF
