"""Matching the latents of two SAEs: nearest, mutually nearest, one to one; what is shared, split, new and lost."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from sae.code import SparseCode
from sae.evaluation.similarity import Similarity, correlation, cosine

CANDIDATES = 16  # partners that each latent of either SAE proposes when the whole matrix is too large
EXACT_CELLS = 4096**2  # matrices up to this size are solved whole
LEVELS = (0.7, 0.9)  # similarities whose shares are reported


class Nearest(NamedTuple):
    """For each of F latents the n most similar ones of the other SAE, best first; which of equals is left open."""

    latents: Int[Tensor, "F n"]
    similarities: Float[Tensor, "F n"]


class OneToOne(NamedTuple):
    """A matching of all latents of the smaller SAE with as many of the larger one's."""

    first: Int[Tensor, "n"]
    """Latents of the first SAE, rising."""
    second: Int[Tensor, "n"]
    """Their partners, each once."""
    similarities: Float[Tensor, "n"]
    at_most: float
    """No such matching has a larger mean similarity: this one's own mean when it is known to be the best."""


class Matching(NamedTuple):
    """Everything found about two SAEs under one similarity."""

    first: Nearest
    second: Nearest
    mutual: Bool[Tensor, "F_a"]
    """Latents of the first SAE that are the nearest of their nearest."""
    one_to_one: OneToOne


def compare(
    decoders: tuple[Float[Tensor, "F_a D"], Float[Tensor, "F_b D"]],
    codes: tuple[SparseCode, SparseCode],
    near: float = LEVELS[0],
    absolute: bool | None = None,
    block: int = 1024,
    on_latents: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """Match two SAEs by decoder `cosine` and by `activation` correlation; a `summary` and lists of `latents` of each.

    `codes` are of the same rows. `absolute` matches by |similarity|: a signed latent and its mirror image are
    one. When None it is set if any value of either code is negative. Which it was is in the result, with
    `near` (see `kinds`), `tokens` looked at and the share of latents `firing` on them. `on_latents` hears of
    each block of the first SAE's latents, once a measure."""
    if absolute is None:
        absolute = any(bool((code.values < 0).any()) for code in codes)
    measures = {"cosine": cosine(*decoders, absolute), "activation": correlation(*codes, absolute)}
    found = {name: match(similarity, block, on_latents) for name, similarity in measures.items()}
    firing = [code.fired().double().mean().item() for code in codes]
    return {
        "tokens": codes[0].n_rows,
        "absolute": absolute,
        "near": near,
        "firing": {"first": firing[0], "second": firing[1]},
        **{n: {"summary": summary(found[n]), "latents": latents(found[n], near)} for n in measures},
    }


def match(
    similarity: Similarity, block: int = 1024, on_latents: Callable[[int], None] = lambda n: None
) -> Matching:
    """Match two SAEs of F_a and F_b latents.

    Memory: some 20 bytes for each cell of a block (block * F_b), 2 kB a latent for the candidates, and 12
    bytes a cell for the whole matrix if it has at most 4096 x 4096: 0.2 GB for 16,384 by 16,384 latents."""
    n = min(CANDIDATES, *similarity.shape)
    first, second = nearest(similarity, n, block, on_latents)
    return Matching(first, second, mutual(first, second), one_to_one(similarity, first, second, block))


def nearest(
    similarity: Similarity, n: int, block: int = 1024, on_latents: Callable[[int], None] = lambda n: None
) -> tuple[Nearest, Nearest]:
    """The n most similar latents for each latent of the first SAE, and of the second, in one pass over the matrix."""
    rows: list[Nearest] = []
    columns: Nearest | None = None
    for numbers in torch.arange(similarity.shape[0]).split(block):
        values = similarity.rows(numbers)
        best = values.topk(n, dim=1)
        rows.append(Nearest(best.indices, best.values))
        columns = _merged(columns, numbers, values, n)
        on_latents(len(numbers))
    assert columns is not None
    return Nearest(*(torch.cat(parts) for parts in zip(*rows, strict=True))), columns


def mutual(first: Nearest, second: Nearest) -> Bool[Tensor, "F_a"]:
    """Which latents of the first SAE are the nearest of their nearest."""
    return second.latents[first.latents[:, 0], 0] == torch.arange(len(first.latents))


def one_to_one(similarity: Similarity, first: Nearest, second: Nearest, block: int = 1024) -> OneToOne:
    """The matching with the largest summed similarity (Hungarian), or nearly that, with a bound.

    The best there is when the matrix has at most 4096 x 4096 cells. Beyond, only pairs among each other's
    candidates are weighed up (`_through_candidates`), and latents left over are matched block by block."""
    if similarity.shape[0] > similarity.shape[1]:
        turned = one_to_one(similarity.T, second, first, block)
        order = turned.second.argsort()
        return OneToOne(turned.second[order], turned.first[order], turned.similarities[order], turned.at_most)
    size = similarity.shape[0]
    if size * similarity.shape[1] <= EXACT_CELLS:
        partner, values, at_most, block = torch.full((size,), -1), torch.zeros(size), -1.0, size
    else:
        partner, values, at_most = _through_candidates(first, second)
    _complete(similarity, partner, values, block)
    return OneToOne(torch.arange(size), partner, values, max(at_most, values.double().mean().item()))


def _through_candidates(first: Nearest, second: Nearest) -> tuple[Tensor, Tensor, float]:
    """The best matching among candidates: each latent's partner or -1, the similarity, a bound on the mean.

    Every latent of the first SAE may also stay alone, for the similarity of its last candidate. Whatever lies
    outside its candidates is no better than that, so the optimum with this way out is at least that of the
    whole matrix: the bound."""
    n_first, n_second = len(first.latents), len(second.latents)
    ours, theirs, width = torch.arange(n_first), torch.arange(n_second), n_first + n_second
    cells = torch.cat(
        [
            (ours[:, None] * width + first.latents).flatten(),
            (second.latents * width + theirs[:, None]).flatten(),
            ours * width + n_second + ours,
        ]
    )
    alone = first.similarities[:, -1]
    values = torch.cat([first.similarities.flatten(), second.similarities.flatten(), alone]).double()
    edges, places = np.unique(cells.numpy(), return_index=True)
    costs = 2 - values.numpy()[places]  # from 1 to 3: a cost of 0 would read as no edge
    graph = csr_matrix((costs, np.divmod(edges, width)), shape=(n_first, width))
    partner = torch.from_numpy(min_weight_full_bipartite_matching(graph)[1]).long()
    chosen = 2 - costs[np.searchsorted(edges, (ours * width + partner).numpy())]
    return partner.where(partner < n_second, -1), torch.from_numpy(chosen).float(), chosen.mean().item()


def _complete(similarity: Similarity, partner: Tensor, values: Tensor, block: int) -> None:
    """Give a partner to whoever has -1, in place: the best matching of each block with who is still free."""
    for rows in (partner < 0).nonzero()[:, 0].split(block):
        free = torch.ones(similarity.shape[1], dtype=torch.bool)
        free[partner[partner >= 0]] = False
        candidates = free.nonzero()[:, 0]
        found = similarity.rows(rows)[:, candidates]
        chosen = torch.from_numpy(linear_sum_assignment(found.numpy(), maximize=True)[1])
        partner[rows], values[rows] = candidates[chosen], found[torch.arange(len(rows)), chosen]


def _merged(before: Nearest | None, numbers: Tensor, values: Float[Tensor, "b F_b"], n: int) -> Nearest:
    """The best of each column so far, and of another block of rows."""
    best = values.topk(min(n, len(values)), dim=0)
    latents, similarities = numbers[best.indices].T, best.values.T
    if before is not None:
        latents = torch.cat([before.latents, latents], 1)
        similarities = torch.cat([before.similarities, similarities], 1)
    kept = similarities.topk(min(n, similarities.shape[1]), dim=1)
    return Nearest(latents.gather(1, kept.indices), kept.values)


def kinds(matching: Matching, near: float = LEVELS[0]) -> tuple[list[str], list[str]]:
    """What became of each latent of the first SAE, and where each of the second came from.

    shared: mutually nearest, at least `near`. lost (first) and new (second): nothing in the other SAE is as
    near as that. split (second): not shared, but near to one of the first, which is nearer still to another
    of the second. merged (first): not shared, but near to one of the second, which is nearer to another."""
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


def latents(matching: Matching, near: float = LEVELS[0]) -> dict[str, dict[str, list[Any]]]:
    """A list over the latents of either SAE, as JSON: `nearest` and its `similarity`, `partner` (one to one; -1
    for none) and its `partner_similarity`, and `kind` (see `kinds`). Similarities to four decimals."""
    pairs, both = matching.one_to_one, kinds(matching, near)
    return {
        "first": _listed(matching.first, pairs.first, pairs.second, pairs.similarities, both[0]),
        "second": _listed(matching.second, pairs.second, pairs.first, pairs.similarities, both[1]),
    }


def _listed(
    own: Nearest, mine: Tensor, theirs: Tensor, similarities: Tensor, kind: list[str]
) -> dict[str, list[Any]]:
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


def summary(matching: Matching) -> dict[str, Any]:
    """Counts, means, and shares of at least 0.7 and 0.9, as JSON.

    one_to_one: of its pairs, with the bound `at_most` on its mean. nearest: of all latents of either SAE and
    their nearest in the other (seed consistency). mutual: of the mutually nearest pairs."""
    pairs = matching.one_to_one
    return {
        "one_to_one": {**_levels(pairs.similarities), "at_most": pairs.at_most},
        "nearest": {
            "first": _levels(matching.first.similarities[:, 0]),
            "second": _levels(matching.second.similarities[:, 0]),
        },
        "mutual": _levels(matching.first.similarities[matching.mutual, 0]),
    }


def _levels(values: Tensor) -> dict[str, float | None]:
    """How many values, their mean (None of none), and the share of all that reaches each level."""
    n = len(values)
    shares = {f"above_{level}": (values >= level).sum().item() / max(n, 1) for level in LEVELS}
    return {"count": n, "mean": values.double().mean().item() if n else None, **shares}
