"""Match the latents of two SAEs: nearest, mutually nearest and one to one; which are shared, split, new and lost."""

from typing import NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from activations.progress import Advance, ignore
from sae.code import SparseCode
from sae.evaluation.similarity import Similarity, correlation, cosine

CANDIDATES = 16  # partners considered for each latent of either SAE when the whole matrix is too large
EXACT_CELLS = 4096**2  # matrices with at most this many cells are matched exactly
LEVELS = (0.7, 0.9)  # the share of matches at least this similar is reported


class Nearest(NamedTuple):
    """For each of F latents, the n most similar latents of the other SAE, best first; the order of ties is arbitrary."""

    latents: Int[Tensor, "F n"]
    similarities: Float[Tensor, "F n"]


class OneToOne(NamedTuple):
    """A matching of all latents of the smaller SAE with distinct latents of the larger one."""

    first: Int[Tensor, "n"]
    """Latents of the first SAE, ascending."""
    second: Int[Tensor, "n"]
    """Their partners in the second SAE, each of them once."""
    similarities: Float[Tensor, "n"]
    at_most: float
    """An upper bound on the mean similarity of any one-to-one matching; this one's own mean if it is known to be optimal."""


class Matching(NamedTuple):
    """The matching of two SAEs' latents under one similarity."""

    first: Nearest
    second: Nearest
    mutual: Bool[Tensor, "F_a"]
    """Whether a latent of the first SAE is the nearest one of its nearest latent."""
    one_to_one: OneToOne


Levels = dict[str, float | None]
"""`count`, `mean` and the share that reaches each of LEVELS, as `above_0.7`."""


class Summary(TypedDict):
    """What `summary` returns."""

    one_to_one: Levels
    nearest: dict[str, Levels]
    mutual: Levels


class LatentLists(TypedDict):
    """Lists over the latents of one SAE, as `latents` documents them."""

    nearest: list[int]
    similarity: list[float]
    partner: list[int]
    partner_similarity: list[float]
    kind: list[str]


class ComparedBy(TypedDict):
    """Two SAEs compared by one similarity; `latents` by side, `first` and `second`."""

    summary: Summary
    latents: dict[str, LatentLists]


class Compared(TypedDict):
    """What `compare` returns, as compare-NAME.json has it."""

    tokens: int
    absolute: bool
    near: float
    firing: dict[str, float]
    cosine: ComparedBy
    activation: ComparedBy


def compare(
    decoders: tuple[Float[Tensor, "F_a D"], Float[Tensor, "F_b D"]],
    codes: tuple[SparseCode, SparseCode],
    near: float = LEVELS[0],
    absolute: bool | None = None,
    block: int = 1024,
    advance: Advance = ignore,
) -> Compared:
    """Match two SAEs by the `cosine` of decoder rows and by `activation` correlation: a `summary` and `latents` of each.

    `codes` are two codes of the same rows. `absolute` matches by |similarity|, so that a signed latent and its mirror image
    count as equal; None means that it is set if any value of either code is negative. The result also has `absolute` as it
    was used, `near` (see `kinds`), the number of `tokens`, and the share of latents `firing` on them. `advance` is told
    after every block how many more latents of the first SAE are done, once for each of the two similarities."""
    if absolute is None:
        absolute = any(bool((code.values < 0).any()) for code in codes)
    measures = cosine(*decoders, absolute), correlation(*codes, absolute)
    cosines, activations = (_compared(match(similarity, block, advance), near) for similarity in measures)
    firing = [code.fired().double().mean().item() for code in codes]
    return {
        "tokens": codes[0].n_rows,
        "absolute": absolute,
        "near": near,
        "firing": {"first": firing[0], "second": firing[1]},
        "cosine": cosines,
        "activation": activations,
    }


def _compared(matching: Matching, near: float) -> ComparedBy:
    return {"summary": summary(matching), "latents": latents(matching, near)}


def match(similarity: Similarity, block: int = 1024, advance: Advance = ignore) -> Matching:
    """Match two SAEs of F_a and F_b latents.

    Memory: about 20 bytes per cell of a block (block * F_b cells), 2 kB per latent for the candidates, and 12 bytes per cell
    of the whole matrix if it has at most 4096 * 4096 cells: 0.2 GB for 16,384 by 16,384 latents."""
    n = min(CANDIDATES, *similarity.shape)
    first, second = nearest(similarity, n, block, advance)
    return Matching(first, second, mutual(first, second), one_to_one(similarity, first, second, block))


def nearest(
    similarity: Similarity, n: int, block: int = 1024, advance: Advance = ignore
) -> tuple[Nearest, Nearest]:
    """Return the n most similar latents for each latent of the first SAE and of the second, in one pass over the matrix."""
    rows: list[Nearest] = []
    columns: Nearest | None = None
    for numbers in torch.arange(similarity.shape[0]).split(block):
        values = similarity.rows(numbers)
        best = values.topk(n, dim=1)
        rows.append(Nearest(best.indices, best.values))
        columns = _merged(columns, numbers, values, n)
        advance(len(numbers))
    assert columns is not None
    return Nearest(*(torch.cat(parts) for parts in zip(*rows, strict=True))), columns


def mutual(first: Nearest, second: Nearest) -> Bool[Tensor, "F_a"]:
    """Return which latents of the first SAE are the nearest ones of their nearest latents."""
    return second.latents[first.latents[:, 0], 0] == torch.arange(len(first.latents))


def one_to_one(similarity: Similarity, first: Nearest, second: Nearest, block: int = 1024) -> OneToOne:
    """Return the one-to-one matching with the largest summed similarity, exactly or approximately with a bound.

    It is optimal (Hungarian algorithm) when the matrix has at most 4096 * 4096 cells. Otherwise the optimum over pairs of
    candidates alone is found (`_match_candidates`), and latents left over are matched block by block."""
    if similarity.shape[0] > similarity.shape[1]:
        transposed = one_to_one(similarity.T, second, first, block)
        order = transposed.second.argsort()
        return OneToOne(
            transposed.second[order],
            transposed.first[order],
            transposed.similarities[order],
            transposed.at_most,
        )
    size = similarity.shape[0]
    if size * similarity.shape[1] <= EXACT_CELLS:
        # No partners yet, and one block: `_complete` then solves the whole matrix
        partner, values, at_most, block = torch.full((size,), -1), torch.zeros(size), -1.0, size
    else:
        partner, values, at_most = _match_candidates(first, second)
    _complete(similarity, partner, values, block)
    return OneToOne(torch.arange(size), partner, values, max(at_most, values.double().mean().item()))


def _match_candidates(first: Nearest, second: Nearest) -> tuple[Tensor, Tensor, float]:
    """Return the best matching among candidates: each latent's partner or -1, its similarity, a bound on the mean.

    The bound holds for every one-to-one matching of the whole matrix."""
    n_first, n_second = len(first.latents), len(second.latents)
    # Every latent of the first SAE may also stay unmatched, on a dummy column of its own, for the similarity of its last
    # candidate. No latent outside its candidates is more similar than that. Replacing such pairs of any matching of the
    # whole matrix by dummies therefore never lowers its sum, so that the optimum found here is an upper bound.
    ours, theirs, width = torch.arange(n_first), torch.arange(n_second), n_first + n_second
    cells = torch.cat(
        [
            (ours[:, None] * width + first.latents).flatten(),
            (second.latents * width + theirs[:, None]).flatten(),
            ours * width + n_second + ours,
        ]
    )
    unmatched = first.similarities[:, -1]
    values = torch.cat([first.similarities.flatten(), second.similarities.flatten(), unmatched]).double()
    # Flat cell numbers: a pair that both latents propose must be one edge, as csr_matrix would add the two up
    edges, index = np.unique(cells.numpy(), return_index=True)
    costs = 2 - values.numpy()[index]  # 1 to 3: a cost of 0 would read as no edge
    graph = csr_matrix((costs, np.divmod(edges, width)), shape=(n_first, width))
    partner = torch.from_numpy(min_weight_full_bipartite_matching(graph)[1]).long()
    chosen = 2 - costs[np.searchsorted(edges, (ours * width + partner).numpy())]
    return partner.where(partner < n_second, -1), torch.from_numpy(chosen).float(), chosen.mean().item()


def _complete(similarity: Similarity, partner: Tensor, values: Tensor, block: int) -> None:
    """Give a partner to each latent that has -1, in place: the best matching of each block with the latents still free."""
    for rows in (partner < 0).nonzero()[:, 0].split(block):
        free = torch.ones(similarity.shape[1], dtype=torch.bool)
        free[partner[partner >= 0]] = False
        candidates = free.nonzero()[:, 0]
        block_values = similarity.rows(rows)[:, candidates]
        chosen = torch.from_numpy(linear_sum_assignment(block_values.numpy(), maximize=True)[1])
        partner[rows], values[rows] = candidates[chosen], block_values[torch.arange(len(rows)), chosen]


def _merged(before: Nearest | None, numbers: Tensor, values: Float[Tensor, "b F_b"], n: int) -> Nearest:
    """Return the n best rows of each column, given those so far and the similarities of another block of rows."""
    best = values.topk(min(n, len(values)), dim=0)
    latents, similarities = numbers[best.indices].T, best.values.T
    if before is not None:
        latents = torch.cat([before.latents, latents], 1)
        similarities = torch.cat([before.similarities, similarities], 1)
    best = similarities.topk(min(n, similarities.shape[1]), dim=1)
    return Nearest(latents.gather(1, best.indices), best.values)


def kinds(matching: Matching, near: float = LEVELS[0]) -> tuple[list[str], list[str]]:
    """Return what became of each latent of the first SAE, and where each latent of the second came from.

    shared: mutually nearest with a similarity of at least `near`. lost (first) and new (second): no latent of the other SAE
    is that similar. split (second): not shared; its nearest latent in the first SAE is near, but nearer to another latent
    of the second. merged (first): not shared; its nearest latent in the second is near, but nearer to another of the
    first."""
    shared_first = matching.mutual & (matching.first.similarities[:, 0] >= near)
    shared_second = torch.zeros(len(matching.second.latents), dtype=torch.bool)
    shared_second[matching.first.latents[shared_first, 0]] = True
    return (
        _named(shared_first, matching.first, near, "merged", "lost"),
        _named(shared_second, matching.second, near, "split", "new"),
    )


def _named(shared: Tensor, own: Nearest, near: float, crowded: str, alone: str) -> list[str]:
    return [
        "shared" if is_shared else crowded if best >= near else alone
        for is_shared, best in zip(shared.tolist(), own.similarities[:, 0].tolist(), strict=True)
    ]


def latents(matching: Matching, near: float = LEVELS[0]) -> dict[str, LatentLists]:
    """Return lists over the latents of either SAE, as JSON: `nearest` and its `similarity`; `partner`, one to one or -1 for
    none, and `partner_similarity`; and `kind` (see `kinds`). Similarities have four decimals."""
    pairs, both = matching.one_to_one, kinds(matching, near)
    return {
        "first": _listed(matching.first, pairs.first, pairs.second, pairs.similarities, both[0]),
        "second": _listed(matching.second, pairs.second, pairs.first, pairs.similarities, both[1]),
    }


def _listed(own: Nearest, mine: Tensor, theirs: Tensor, similarities: Tensor, kind: list[str]) -> LatentLists:
    size = len(own.latents)
    return {
        "nearest": own.latents[:, 0].tolist(),
        "similarity": _rounded(own.similarities[:, 0]),
        "partner": torch.full((size,), -1).index_put((mine,), theirs).tolist(),
        "partner_similarity": _rounded(torch.zeros(size).index_put((mine,), similarities)),
        "kind": kind,
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def summary(matching: Matching) -> Summary:
    """Return, as JSON, the count, the mean and the shares of at least 0.7 and 0.9 of several sets of similarities.

    one_to_one: those of the matched pairs, with the bound `at_most` on their mean. nearest: those of all latents of either
    SAE with their nearest latent in the other (seed consistency). mutual: those of the mutually nearest pairs."""
    pairs = matching.one_to_one
    return {
        "one_to_one": {**_levels(pairs.similarities), "at_most": pairs.at_most},
        "nearest": {
            "first": _levels(matching.first.similarities[:, 0]),
            "second": _levels(matching.second.similarities[:, 0]),
        },
        "mutual": _levels(matching.first.similarities[matching.mutual, 0]),
    }


def _levels(values: Tensor) -> Levels:
    """Return the number of values, their mean (None without values) and the share that reaches each level."""
    n = len(values)
    shares = {f"above_{level}": (values >= level).sum().item() / max(n, 1) for level in LEVELS}
    return {"count": n, "mean": values.double().mean().item() if n else None, **shares}
