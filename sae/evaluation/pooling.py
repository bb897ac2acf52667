"""Pool SAEs that differ in seed: group the latents that fire alike, keep the groups that most SAEs have, one latent for each.

Gerasimov et al. 2026, "Unstable Features, Reproducible Subspaces", arXiv:2606.12138, pool the features of several seeds into one
dictionary. Which latents count as one, how groups are ranked and what becomes of them are choices made here, by measurement
(LOG.md, docs/pooling.md)."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.errors import ConfigError
from activations.progress import Advance, ignore
from sae.architectures import SAE, build, name_of
from sae.code import SparseCode
from sae.evaluation.matching import CANDIDATES, Nearest, nearest
from sae.evaluation.similarity import correlation

NEAR = 0.3  # correlation from which latents of two SAEs count as one
ALONE = -1  # in the place of a member that an SAE does not have
LATENT_AXES = {"W_dec": 0, "W_enc": 1}  # of matrices; vectors of F numbers have one axis


class Pooled(NamedTuple):
    """One SAE made of several."""

    sae: SAE
    members: Int[Tensor, "F S"]
    """The latent of each of the S SAEs that each latent stands for, ALONE where an SAE has none."""

    def found_in(self) -> Int[Tensor, "F"]:
        """Return how many of the SAEs have each latent."""
        return (self.members != ALONE).sum(1)


def refuse(sae: SAE) -> None:
    """Raise ConfigError when single latents cannot be taken out of this SAE, because they share weights or running statistics."""
    F = sae.d_sae
    for name, tensor in sae.state_dict().items():
        whole = name == "b_dec" or tensor.dim() == 0
        per_latent = name in LATENT_AXES or tensor.shape == (F,)
        if not (whole or per_latent) or not tensor.is_floating_point():
            raise ConfigError(
                f"{name_of(sae.cfg)} cannot be pooled: its {name} does not belong to single latents; pool runs of another "
                f"method, such as topk"
            )


@torch.no_grad()
def pool(
    saes: Sequence[SAE], codes: Sequence[SparseCode], near: float = NEAR, advance: Advance = ignore
) -> Pooled:
    """Return one SAE of the same method and width as `saes`, which differ in seed and have unit decoder rows, as saved runs do.

    `codes` are theirs of the same rows. Latents of different SAEs are alike by the correlation of their values there, in size where latents are signed. A
    latent's group holds, of each other SAE, the latent that is most alike and in no group yet, if the correlation is at least
    `near`. Latents begin a group in this order: those with such a partner in the most SAEs first, and among them those that
    explain most, by the sum of the squared lengths of what they add to the reconstruction. The first F groups make the SAE, in this order: decoder rows are the groups' normalised means; encoders, biases and thresholds are means.

    `advance` is told how many latents of first SAEs have been matched, of F for each pair. Raises ConfigError for a method
    whose latents cannot be taken apart."""
    for sae in saes:
        refuse(sae)
    members = groups([sae.d_sae for sae in saes], _alike(saes, codes, advance), _explained(codes), near)
    return Pooled(_merged(saes, members), members)


Alike = dict[tuple[int, int], Nearest]
"""For two of the SAEs, in either order: the latents of the second that are most like each latent of the first."""


def _alike(saes: Sequence[SAE], codes: Sequence[SparseCode], advance: Advance) -> Alike:
    alike: Alike = {}
    for a, b in combinations(range(len(saes)), 2):
        similarity = correlation(codes[a], codes[b], absolute=saes[a].signed)
        alike[a, b], alike[b, a] = nearest(similarity, min(CANDIDATES, *similarity.shape), advance=advance)
    return alike


def _explained(codes: Sequence[SparseCode]) -> list[Float[Tensor, "F"]]:
    """Return the sum over rows of each latent's squared value, for each SAE: the squared length of what it adds, with unit rows."""
    return [
        torch.zeros(code.n_latents, dtype=torch.float64).index_add(
            0, code.indices, code.values.double().square()
        )
        for code in codes
    ]


def groups(
    sizes: Sequence[int], alike: Alike, explained: Sequence[Float[Tensor, "F"]], near: float
) -> Int[Tensor, "F S"]:
    """Return the members of the first F groups, of the size of the first SAE, as `pool` describes them."""
    partners = {pair: (best.latents.tolist(), best.similarities.tolist()) for pair, best in alike.items()}
    order = []
    for one, size in enumerate(sizes):
        bests = [best.similarities[:, 0] for (first, _), best in alike.items() if first == one]
        found = (torch.stack(bests) >= near).sum(0)
        order += [(-int(found[j]), -float(explained[one][j]), one, j) for j in range(size)]
    taken = [[False] * size for size in sizes]
    members = []
    for *_, one, latent in sorted(order):
        if taken[one][latent]:
            continue
        group = [ALONE] * len(sizes)
        group[one] = latent
        for other in range(len(sizes)):
            if other == one:
                continue
            candidates, similarities = (lists[latent] for lists in partners[one, other])
            for candidate, similarity in zip(candidates, similarities, strict=True):
                if similarity >= near and not taken[other][candidate]:
                    group[other] = candidate
                    break
        for which, member in enumerate(group):
            if member != ALONE:
                taken[which][member] = True
        members.append(group)
        if len(members) == sizes[0]:
            break
    return torch.tensor(members)


def _merged(saes: Sequence[SAE], members: Int[Tensor, "F S"]) -> SAE:
    """Return the SAE whose latents are the means of their members."""
    here = (members != ALONE).float()
    weight = here / here.sum(1, keepdim=True)
    signs = _signs(saes, members)
    made = build(saes[0].cfg, saes[0].d_model, seed=0)
    states = [{name: tensor.cpu() for name, tensor in sae.state_dict().items()} for sae in saes]
    for name, tensor in made.state_dict().items():
        theirs = [state[name] for state in states]
        if name == "b_dec" or tensor.dim() == 0:
            tensor.copy_(torch.stack(theirs).mean(0))
            continue
        axis = LATENT_AXES.get(name, 0)
        turned = name in ("W_dec", "W_enc", "b_enc")
        total = torch.zeros_like(tensor.movedim(axis, 0))
        for which, part in enumerate(theirs):
            share = weight[:, which] * (signs[:, which] if turned else 1)
            rows = part.movedim(axis, 0)[members[:, which].clamp_min(0)]
            # Not `share * rows`: the threshold of a latent that is not a member may be infinite, and 0 times that is NaN.
            chosen = torch.where(here[:, which].bool().view(-1, *[1] * (rows.dim() - 1)), rows, 0.0)
            total += share.view(-1, *[1] * (rows.dim() - 1)) * chosen
        if name == "W_dec":
            total = torch.nn.functional.normalize(total, dim=1)
        tensor.copy_(total.movedim(0, axis))
    return made.requires_grad_(False).eval()


def _signs(saes: Sequence[SAE], members: Int[Tensor, "F S"]) -> Float[Tensor, "F S"]:
    """Return -1 for members of signed SAEs whose decoder row points away from that of their group's first member, else 1."""
    rows = torch.stack(
        [sae.W_dec.cpu()[members[:, which].clamp_min(0)] for which, sae in enumerate(saes)], dim=1
    )
    if not saes[0].signed:
        return torch.ones(members.shape)
    first = (members != ALONE).int().argmax(1)
    cosine = (rows * rows[torch.arange(len(rows)), first][:, None]).sum(2)
    return torch.where(cosine < 0, -1.0, 1.0)
