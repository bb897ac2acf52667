"""Feature absorption: a latent for a general feature stays silent where a more specific latent stands in for it.

Chanin et al. 2024, "A is for Absorption: Studying Feature Splitting and Absorption in Sparse Autoencoders", arXiv:2409.14507, by
the formulas of SAEBench (Karvonen et al. 2025, arXiv:2503.09532; `feature_absorption_calculator.py` of sae-bench 0.6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from sae.architectures import SAE
from sae.evaluation.recovery import ROWS, cosines
from sae.evaluation.synthetic import Tree


@dataclass(frozen=True)
class Thresholds:
    """What counts as absorption, with SAEBench's numbers."""

    share: float = 0.4
    """Least share of the activation's projection on the feature that absorbing latents contribute."""
    cosine: float = 0.1
    """Least cosine of an absorbing latent's decoder row with the feature, for the fraction."""
    full_cosine: float = 0.025
    """The same for full absorption."""
    absorbing: int = 3
    """Most latents that together count as absorbing, for the fraction."""
    silent: float = 1e-8
    """Size of a value below which a latent does not fire."""


THRESHOLDS = Thresholds()


class Absorbed(NamedTuple):
    """How much of a feature other latents have absorbed, on each row."""

    fraction: Float[Tensor, "n"]
    """The part of the feature's projection, of what main and absorbing latents contribute, that absorbing ones do, in [0, 1]."""
    full: Bool[Tensor, "n"]
    """Whether no main latent fires, and the latent that contributes most makes up at least `share` of the projection."""


def absorbed(
    x: Float[Tensor, "n D"],
    values: Float[Tensor, "n F"],
    decoder: Float[Tensor, "F D"],
    feature: Float[Tensor, "D"],
    main: Sequence[int],
    rules: Thresholds = THRESHOLDS,
) -> Absorbed:
    """Return how much of a feature is absorbed on rows x that have it, in float64.

    `values` are the latents' values on x, `decoder` their rows, `feature` a direction of any length that says how much of the
    feature a row has, and `main` the latents that stand for it. A latent contributes its value times the projection of its
    decoder row on the feature's direction.

    With T the projection of the row, M the main latents' contribution and A that of the `absorbing` largest others whose cosine
    is at least `cosine`: the fraction is 0 if M ≥ T or A < share · T, else 1 if M ≤ 0, else a / (a + M) with a = min(A, T - M)."""
    direction = normalize(feature.double(), dim=0)
    total = x.double() @ direction
    projections = decoder.double() @ direction
    cosine = projections / decoder.double().norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    contributions = values.double() * projections
    chosen = torch.zeros(len(decoder), dtype=torch.bool)
    chosen[list(main)] = True
    own = contributions[:, chosen].sum(1)
    others = contributions.clamp_min(0) * (~chosen & (cosine >= rules.cosine))
    absorbing = others.topk(min(rules.absorbing, others.shape[1]), dim=1).values.sum(1)
    happens = (own < total) & (total > 0) & (absorbing >= rules.share * total)
    part = torch.minimum(absorbing, total - own)
    fraction = torch.where(own <= 0, 1.0, (part / (part + own)).clamp(0, 1))
    top = contributions.max(1)
    full = (
        (values[:, chosen].abs() < rules.silent).all(1)
        & (cosine[top.indices] >= rules.full_cosine)
        & (total > 0)
        & (top.values >= rules.share * total)
    )
    return Absorbed(torch.where(happens, fraction, 0.0), full)


class TreeAbsorption(NamedTuple):
    """Absorption of a planted parent by its children; 0 is none, 1 all."""

    fraction: float
    """Mean absorbed fraction over rows on which the parent fires with a child."""
    full: float
    """Share of those rows on which it is fully absorbed."""
    alone: float
    """How often the parent's latent fires where the parent fires without a child."""
    with_child: float
    """How often it fires where the parent fires with one."""

    @property
    def gap(self) -> float:
        """How much rarer the parent's latent fires when a child does, in [-1, 1] (github.com/decoderesearch/SAELens, issue 729)."""
        return self.alone - self.with_child


def one_sided(sae: SAE) -> SAE:
    """Return an SAE without negative values that computes the same: latents F to 2 F - 1 are the negative sides of a signed SAE's
    latents 0 to F - 1, their rows negated; any other SAE is returned as it is.

    The formulas know a direction and a value above 0 for each latent, so that they would judge a signed latent by its sign, which
    is arbitrary."""
    if not sae.signed:
        return sae
    form = sae.simpler()
    assert form is not None, f"{type(sae).__name__} is signed and has no unsigned form"
    return form.to(sae.W_dec)


@torch.no_grad()
def tree_absorption(sae: SAE, tree: Tree, rows: int = ROWS, seed: int = 10**6) -> TreeAbsorption:
    """Measure an SAE that reads the tree's own units: is the parent's latent silent where a child fires?

    The parent's latent is the one whose decoder row is nearest to it, a side of one where latents are signed (`one_sided`), and
    the feature that is measured is the true parent. NaN where the drawn rows have no parent with a child, or none without."""
    sae = one_sided(sae)
    x, true = tree.draw(rows, torch.Generator().manual_seed(seed))
    parent = true[:, 0] != 0
    child = (true[:, 1 : 1 + tree.children] != 0).any(1)
    values, decoder = sae.encode(x.to(sae.device)).dense().cpu(), sae.W_dec.cpu()
    main = int(cosines(tree.features[:1], decoder).argmax())
    fires = (values[:, main] != 0).double()
    both = parent & child
    found = absorbed(x[both], values[both], decoder, tree.features[0], [main])
    return TreeAbsorption(
        found.fraction.mean().item(),
        found.full.double().mean().item(),
        fires[parent & ~child].mean().item(),
        fires[both].mean().item(),
    )
