"""Which windows show a latent best: the strongest of either sign, and a uniform sample for value bands."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

NONE = torch.iinfo(torch.int64).min  # an empty place among the keys
LOW = 0xFFFFFFFF


class Selection:
    """Keeps, for each latent, the best windows seen so far; the result depends on no order and no division.

    `strongest`: the n windows with the largest value, and with the most negative one. `sampled`: R windows
    drawn uniformly from all in which the latent fires, as those with the smallest hash of (latent, window).
    Every place is one int64 key that orders windows totally (equal values: the earlier window first), so
    merging two selections is taking the largest keys of both. State: 8 (2 n + R) bytes a latent."""

    def __init__(self, n_latents: int, strongest: int, sampled: int):
        self.positive = torch.full((n_latents, strongest), NONE)
        self.negative = torch.full((n_latents, strongest), NONE)
        self.sampled = torch.full((n_latents, sampled), NONE)

    def add(
        self, windows: Int[Tensor, "nnz"], latents: Int[Tensor, "nnz"], values: Float[Tensor, "nnz"]
    ) -> None:
        """Take in firings (window number in the store, latent, value != 0); windows must come whole."""
        if not len(values):
            return
        pairs, place = (latents.long() << 32 | windows).unique(return_inverse=True)
        pair_latents, pair_windows = pairs >> 32, pairs & LOW
        zeros = torch.zeros(len(pairs))
        highest = zeros.scatter_reduce(0, place, values, "amax", include_self=False)
        lowest = zeros.scatter_reduce(0, place, values, "amin", include_self=False)
        for state, peak in ((self.positive, highest), (self.negative, -lowest)):
            shows = peak > 0
            keys = _ordered(peak[shows]) << 32 | (LOW - pair_windows[shows])
            _keep_largest(state, pair_latents[shows], keys)
        _keep_largest(self.sampled, pair_latents, -(_hash31(pairs) << 32 | pair_windows))

    def windows(self) -> dict[str, Int[Tensor, "F n"]]:
        """Window numbers by kind, best first for `positive` and `negative`; -1 where there are fewer."""
        best = {
            name: LOW - (keys & LOW)
            for name, keys in (("positive", self.positive), ("negative", self.negative))
        }
        found = {**best, "sampled": (-self.sampled) & LOW}
        return {
            name: torch.where(getattr(self, name) == NONE, -1, windows) for name, windows in found.items()
        }


class Traces(NamedTuple):
    """What a latent does throughout the windows chosen for it: E pairs, compressed."""

    latents: Int[Tensor, "E"]
    windows: Int[Tensor, "E"]
    offsets: Int[Tensor, "E+1"]
    positions: Int[Tensor, "N"]
    values: Float[Tensor, "N"]


def wanted_pairs(chosen: dict[str, Int[Tensor, "F n"]]) -> Int[Tensor, "E"]:
    """All (latent, window) pairs chosen in any kind, once each, as latent << 32 | window, sorted."""
    pairs = []
    for windows in chosen.values():
        latents, _ = (windows >= 0).nonzero(as_tuple=True)
        pairs.append(latents << 32 | windows[windows >= 0])
    return torch.cat(pairs).unique()


def gather(
    wanted: Int[Tensor, "E"],
    rows: Int[Tensor, "nnz"],
    latents: Int[Tensor, "nnz"],
    values: Tensor,
    context: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a shard's firings those in wanted pairs: (place of the pair in `wanted`, position, value)."""
    pairs = latents.long() << 32 | rows // context
    place = torch.searchsorted(wanted, pairs).clamp_max(len(wanted) - 1)
    hit = wanted[place] == pairs if len(wanted) else torch.zeros(len(pairs), dtype=torch.bool)
    return place[hit], (rows % context)[hit], values[hit]


def traces(wanted: Int[Tensor, "E"], found: list[tuple[Tensor, Tensor, Tensor]]) -> Traces:
    """Put what `gather` found in all shards in order: by latent, window, position."""
    place, positions, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = positions.argsort(stable=True)
    order = order[place[order].argsort(stable=True)]
    counts = torch.bincount(place, minlength=len(wanted))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Traces(wanted >> 32, wanted & LOW, offsets, positions[order], values[order])


def _keep_largest(state: Int[Tensor, "F n"], latents: Int[Tensor, "c"], keys: Int[Tensor, "c"]) -> None:
    """Merge candidates into `state`, whose rows stay the n largest keys in falling order."""
    hopeful = keys > state[latents, -1]
    latents, keys = latents[hopeful], keys[hopeful]
    order = keys.argsort(descending=True)
    order = order[latents[order].argsort(stable=True)]
    latents, keys = latents[order], keys[order]
    starts = torch.searchsorted(latents, latents)  # of each latent's run
    rank = torch.arange(len(latents)) - starts
    first = rank < state.shape[1]
    candidates = torch.full_like(state, NONE)
    candidates[latents[first], rank[first]] = keys[first]
    state.copy_(torch.cat([state, candidates], 1).topk(state.shape[1], dim=1).values)


def _ordered(values: Float[Tensor, "c"]) -> Int[Tensor, "c"]:
    """The bits of positive float32 values, as integers that compare as they do."""
    return values.float().contiguous().view(torch.int32).long()


def _hash31(pairs: Int[Tensor, "c"]) -> Int[Tensor, "c"]:
    """31 mixed bits of each pair; multiplications wrap around."""
    h = pairs * -7046029254386353131  # the golden ratio's bits, odd
    h = (h ^ (h >> 32 & LOW)) * -4658895280553007687  # splitmix64's first multiplier
    return (h ^ (h >> 29 & 0x7FFFFFFFF)) >> 33 & 0x7FFFFFFF
