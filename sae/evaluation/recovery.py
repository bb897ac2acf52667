"""How much of a planted world an SAE recovers: cosines with the true features, errors, shrinkage."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sae import losses
from sae.architectures import SAE
from sae.evaluation.synthetic import Tree, World

ROWS = 20_000


class Recovery(NamedTuple):
    """How well an SAE recovers a planted world, on fresh rows."""

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


@torch.no_grad()
def recovery(sae: SAE, world: World, rows: int = ROWS, seed: int = 10**6) -> Recovery:
    """Measure an SAE that reads the world's own units. Cosines are absolute if the true codes are signed."""
    x, true = world.draw(rows, torch.Generator().manual_seed(seed))
    code = sae.encode(x.to(sae.device))
    x_hat, l0 = sae.decode(code).cpu(), code.l0().cpu().float()
    similarity = cosines(world.features, sae.W_dec.cpu(), signed=bool((true < 0).any()))
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


def shrinkage(x: Float[Tensor, "B D"], x_hat: Float[Tensor, "B D"]) -> float:
    """Return gamma = argmin |x_hat / gamma - x|^2 = E<x_hat, x_hat> / E<x_hat, x>; nan when x_hat is 0.

    Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders",
    arXiv:2404.16014, section 5."""
    return (x_hat.square().sum() / (x_hat * x).sum()).item()


def correlation(a: Float[Tensor, "B"], b: Float[Tensor, "B"]) -> float:
    """Return the Pearson correlation; nan when either is constant."""
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


@torch.no_grad()
def parent_recall(sae: SAE, tree: Tree, rows: int = ROWS, seed: int = 10**6) -> float:
    """Return how often the latent nearest to the parent fires on rows where the parent fires with a child.

    1 means no absorption: the parent's own latent fires whichever child comes with it."""
    x, true = tree.draw(rows, torch.Generator().manual_seed(seed))
    both = (true[:, 1 : 1 + tree.children] != 0).any(1)  # a child never fires without the parent
    nearest = int(cosines(tree.features[:1], sae.W_dec.cpu()).argmax())
    return (sae.encode(x[both].to(sae.device)).dense()[:, nearest] != 0).float().mean().item()
