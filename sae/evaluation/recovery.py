"""Measures of how well an SAE recovers the features of a planted world: directions, firings, and what becomes of parents."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from sae import losses
from sae.architectures import SAE
from sae.evaluation.synthetic import World

ROWS = 20_000
FOUND = 0.9
"""A planted feature is found when a decoder row has at least this cosine with it."""


class Recovery(NamedTuple):
    """Measures of how well an SAE recovers the features of a planted world, on fresh rows."""

    nmse: float
    """Fraction of variance unexplained: 0 is perfect."""
    l0: float
    """Latents != 0 per row."""
    dead: int
    """Latents that are zero on every row."""
    mmcs: float
    """Mean over true features of the largest cosine with a decoder row (Sharkey, Braun, Millidge 2022)."""
    mmcs_matched: float
    """Mean cosine under the best one-to-one matching with decoder rows; never above mmcs, up to rounding."""
    frr_80: float
    """Share of true features with a cosine above 0.8."""
    frr_90: float
    """Share of true features with a cosine above 0.9."""
    gamma: float
    """Shrinkage: 1 means none, below 1 reconstructions are too short."""
    l0_correlation: float
    """Correlation over rows between L0 and the true number of active features; nan when either is constant."""
    f1: float
    """Mean over latents of their F1 as classifiers of the feature that they are most like (`classified`)."""
    precision: float
    """The same of precision: the share of a latent's firings on which its feature is active."""
    recall: float
    """The same of recall: the share of its feature's rows on which a latent fires."""
    mcc: float
    """Mean |cosine| of latents and features matched one to one, over the smaller number of the two (`mean_matched_cosine`)."""
    uniqueness: float
    """Different features that latents are most like, as a share of all latents (`uniqueness`)."""
    parents_found: float
    """Share of the features with children that are found; nan in a world without a hierarchy, as are the next two."""
    parent_recall: float
    """Mean over parents of the share of rows beside a child on which the latent nearest to the parent fires."""
    absorption: float
    """Mean over found parents of their latent's recall on rows without a child, minus that beside a child: about 0 where the
    parent has a latent of its own, about 1 where the children's latents have absorbed it. nan where no parent is found."""


@torch.no_grad()
def recovery(sae: SAE, world: World, rows: int = ROWS, seed: int = 10**6) -> Recovery:
    """Measure an SAE that reads the world's own units. Cosines are absolute if the true codes are signed; those of f1, precision,
    recall, mcc and uniqueness always are, as in SynthSAEBench."""
    x, true = world.draw(rows, torch.Generator().manual_seed(seed))
    code = sae.encode(x.to(sae.device))
    x_hat, l0, fires = sae.decode(code).cpu(), code.l0().cpu().float(), (code.dense() != 0).cpu()
    plain = cosines(world.features, sae.W_dec.cpu())
    similarity = plain.abs() if (true < 0).any() else plain
    precision, recall, f1 = classified(fires, true != 0, most_like(plain))
    parents = _parents(world, similarity, fires, true != 0)
    return Recovery(
        nmse=losses.fvu(x, x_hat).item(),
        l0=l0.mean().item(),
        dead=int((~code.fired()).sum()),
        mmcs=similarity.max(1).values.mean().item(),
        mmcs_matched=losses.matched_mean(similarity).item(),
        frr_80=recovery_rate(similarity, 0.8),
        frr_90=recovery_rate(similarity, 0.9),
        gamma=shrinkage(x, x_hat),
        l0_correlation=correlation(l0, (true != 0).sum(1).float()),
        f1=f1.mean().item(),
        precision=precision.mean().item(),
        recall=recall.mean().item(),
        mcc=mean_matched_cosine(plain),
        uniqueness=uniqueness(plain),
        parents_found=parents.found.double().mean().item(),
        parent_recall=parents.beside.nanmean().item(),
        absorption=(parents.alone - parents.beside)[parents.found].nanmean().item(),
    )


def cosines(
    features: Float[Tensor, "n D"], atoms: Float[Tensor, "F D"], signed: bool = False
) -> Float[Tensor, "n F"]:
    """Return the cosine of every feature with every atom; 0 with an atom of length 0.

    It is absolute when `signed`, because the SAE may then learn a feature with either sign."""
    similarity = normalize(features, dim=1) @ normalize(atoms, dim=1).T
    return similarity.abs() if signed else similarity


def recovery_rate(cosines: Float[Tensor, "n F"], tau: float) -> float:
    """Return FRR(tau), the share of features whose best cosine exceeds tau (GBA, arXiv:2506.14002)."""
    return (cosines.max(1).values > tau).float().mean().item()


def most_like(cosines: Float[Tensor, "n F"]) -> Int[Tensor, "F"]:
    """Return for each latent the feature with the largest |cosine|. Several latents may have the same."""
    return cosines.abs().argmax(0)


def classified(
    fires: Bool[Tensor, "rows F"], on: Bool[Tensor, "rows n"], features: Int[Tensor, "F"]
) -> tuple[Float[Tensor, "F"], Float[Tensor, "F"], Float[Tensor, "F"]]:
    """Return precision, recall and F1 of each latent as a classifier of its feature (`features`): it fires, the feature is active.

    They lie in 0 to 1, in float64; each is 0 where it is not defined, as for a latent that never fires. SynthSAEBench,
    arXiv:2602.14687, reports their means over latents."""
    active = on[:, features]
    both, fired, wanted = (counts.sum(0).double() for counts in (fires & active, fires, active))
    return (
        both / fired.clamp_min(1),
        both / wanted.clamp_min(1),
        2 * both / (fired + wanted).clamp_min(1),
    )


def mean_matched_cosine(cosines: Float[Tensor, "n F"]) -> float:
    """Return the MCC: the mean |cosine| of features and latents matched one to one for the largest sum, 0 to 1.

    Only min(n, F) pairs can be matched, and the mean is over these: unlike `mmcs_matched`, which counts features beyond F as 0.
    SynthSAEBench, arXiv:2602.14687; the name stands for mean correlation coefficient, arXiv:2505.20254."""
    sizes = cosines.abs()
    return losses.matched_mean(sizes if len(sizes) <= sizes.shape[1] else sizes.T).item()


def uniqueness(cosines: Float[Tensor, "n F"]) -> float:
    """Return how many different features are the most like of some latent, as a share of the latents F.

    It is 1 where every latent has a feature of its own, and at most n / F. SynthSAEBench, arXiv:2602.14687."""
    return len(most_like(cosines).unique()) / cosines.shape[1]


def shrinkage(x: Float[Tensor, "B D"], x_hat: Float[Tensor, "B D"]) -> float:
    """Return gamma = argmin |x_hat / gamma - x|^2 = E<x_hat, x_hat> / E<x_hat, x>; nan when x_hat is 0.

    Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders",
    arXiv:2404.16014, section 5."""
    return (x_hat.square().sum() / (x_hat * x).sum()).item()


def correlation(a: Float[Tensor, "B"], b: Float[Tensor, "B"]) -> float:
    """Return the Pearson correlation; nan when either is constant."""
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


class Parents(NamedTuple):
    """What becomes of the p planted features that have children, in the order of their indices."""

    found: Bool[Tensor, "p"]
    """Whether a decoder row has a cosine of FOUND or more with the parent."""
    alone: Float[Tensor, "p"]
    """Share of the rows on which the parent is active and none of its children is on which the latent nearest to the parent
    fires; nan without such rows."""
    beside: Float[Tensor, "p"]
    """The same of rows on which a child is active too. Chanin et al. 2024, "A is for Absorption", arXiv:2409.14507: a latent that
    stands for a parent falls silent where the child's latent writes the parent's direction too."""


@torch.no_grad()
def parents(sae: SAE, world: World, rows: int = ROWS, seed: int = 10**6) -> Parents:
    """Measure the parents of a world on fresh rows; without a hierarchy all have length 0."""
    x, true = world.draw(rows, torch.Generator().manual_seed(seed))
    fires = (sae.encode(x.to(sae.device)).dense() != 0).cpu()
    similarity = cosines(world.features, sae.W_dec.cpu(), signed=bool((true < 0).any()))
    return _parents(world, similarity, fires, true != 0)


def _parents(
    world: World,
    similarity: Float[Tensor, "n F"],
    fires: Bool[Tensor, "rows F"],
    on: Bool[Tensor, "rows n"],
) -> Parents:
    children = (world.parents >= 0).nonzero()[:, 0]
    own, place = world.parents[children].unique(return_inverse=True)
    n_children = torch.zeros(len(on), len(own)).index_add_(1, place, on[:, children].float())
    best = similarity[own].max(1)
    fired = fires[:, best.indices]

    def recall(wanted: Bool[Tensor, "rows p"]) -> Float[Tensor, "p"]:
        return (fired & wanted).sum(0).double() / wanted.sum(0)  # 0 / 0 is nan

    return Parents(
        best.values >= FOUND, recall(on[:, own] & (n_children == 0)), recall(on[:, own] & (n_children > 0))
    )
