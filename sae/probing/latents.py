"""Single latents beside a yes-or-no question: the AUC of each, which differ beyond chance, and Gao et al.'s probe loss."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.errors import LabelError
from sae.architectures import SAE
from sae.probing.probes import Matrix, columns
from sae.probing.records import ProbeLoss

BLOCK = 512  # latents held dense at once
CANDIDATES = 64
"""Latents that are tested on held-out examples: the best on the others."""
SHUFFLES = 9999
"""Shuffled labels that the AUC of each candidate is compared with."""
LEAST = 4  # examples of each set
NEWTON_STEPS, HALVINGS, CONVERGED = 30, 10, 1e-9
RIDGE = 1e-6  # keeps the fit finite where a latent separates the classes


@dataclass(frozen=True)
class FoundLatent:
    """A latent that differs between two sets of texts."""

    latent: int
    sign: int
    """1 where it is higher on the first set, -1 where it is lower, as the examples that chose it say."""
    auc: float
    """On held-out examples: how often one of the first set has the higher `sign` times the latent's value; a tie counts half."""
    chosen_auc: float
    """The same on the examples that chose it, which is too high, because the best were chosen."""
    p: float
    """Share of shuffled labels with an AUC as high on the held-out examples."""
    q: float
    """Smallest false-discovery rate at which it is kept (Benjamini and Hochberg 1995, over the candidates)."""
    fires: tuple[float, float]
    """Share of the held-out examples of the first and the second set on which it is not 0."""


@dataclass(frozen=True)
class Found:
    """The latents that differ most between two sets of texts, the best first."""

    latents: list[FoundLatent]
    chosen_on: Bool[np.ndarray, "n"]
    """Which examples chose them; the others are held out."""

    def kept(self, rate: float) -> list[FoundLatent]:
        """Return those that are kept at a false-discovery rate."""
        return [latent for latent in self.latents if latent.q <= rate]


def find(values: Matrix, first: Bool[np.ndarray, "n"], seed: int = 0) -> Found:
    """Rank latents by how well each alone tells the first set of examples from the second.

    `values` are one value per example and latent [n, F]; `first` says which examples are of the first set. Half of each set,
    drawn at random, ranks the latents by AUC; the other half tests the CANDIDATES best, by permutation, so that neither
    AUC nor q is flattered by the choice. Raises LabelError for a set of fewer than LEAST examples."""
    sizes = int(first.sum()), int((~first).sum())
    if min(sizes) < LEAST:
        raise LabelError(
            f"the sets have {sizes[0]} and {sizes[1]} examples: each must have at least {LEAST}, and {10 * LEAST} say more"
        )
    from scipy.stats import false_discovery_control

    rng = np.random.default_rng(seed)
    chosen_on = np.zeros(len(first), bool)
    for side in (first, ~first):
        rows = np.flatnonzero(side)
        chosen_on[rng.permutation(rows)[: len(rows) // 2]] = True
    aucs = auc_of_each(values[chosen_on], first[chosen_on])
    best = np.argsort(-abs(aucs - 0.5), kind="stable")[:CANDIDATES]
    best = best[aucs[best] != 0.5]
    if not len(best):
        return Found([], chosen_on)
    sign = np.where(aucs[best] > 0.5, 1, -1)
    truth = first[~chosen_on]
    dense = columns(values[~chosen_on], best) * sign
    held_out, p = _tested(dense, truth, rng)
    q = false_discovery_control(p)
    fires = [(dense[side] != 0).mean(0) for side in (truth, ~truth)]
    found = [
        FoundLatent(
            int(latent),
            int(sign[i]),
            float(held_out[i]),
            float(max(aucs[latent], 1 - aucs[latent])),
            float(p[i]),
            float(q[i]),
            (float(fires[0][i]), float(fires[1][i])),
        )
        for i, latent in enumerate(best)
    ]
    return Found(found, chosen_on)


def auc_of_each(values: Matrix, first: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "F"]:
    """Return each latent's AUC for the first set; .5 where it never fires. A tie counts half."""
    blocks = [
        np.arange(start, min(start + BLOCK, values.shape[1])) for start in range(0, values.shape[1], BLOCK)
    ]
    return np.concatenate([_auc_from(_ranks(columns(values, block)), first) for block in blocks])


def _ranks(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    from scipy.stats import rankdata

    return rankdata(x, axis=0)


def _auc_from(ranks: Float[np.ndarray, "n k"], first: Bool[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b k"]:
    """Return the AUC from ranks by the Mann-Whitney U, for one labelling or several."""
    n = first.shape[-1]
    n_first = first.sum(-1, keepdims=True)
    u = first.astype(np.float64) @ ranks - n_first * (n_first + 1) / 2
    return u / (n_first * (n - n_first))


def _tested(
    x: Float[np.ndarray, "n k"], first: Bool[np.ndarray, "n"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Return each column's AUC and its p: the share of shuffled labels, the real ones included, with one as high.

    Exact for any number of examples and any ties, unlike the normal approximation."""
    ranks = _ranks(x)
    auc = _auc_from(ranks, first)
    shuffled = rng.permuted(np.tile(first, (SHUFFLES, 1)), axis=1)
    as_high = np.zeros(len(auc))
    for part in np.array_split(
        shuffled, len(first) // 100 + 1
    ):  # the products of all at once may not fit into memory
        as_high += (_auc_from(ranks, part) >= auc - 1e-12).sum(0)
    return auc, (1 + as_high) / (1 + SHUFFLES)


def threshold_for(scores: Float[np.ndarray, "n"], rate: float) -> float:
    """Return the lowest threshold that at most a share `rate` of these scores exceeds."""
    ordered = np.sort(scores)[::-1]
    return float(ordered[min(int(rate * len(ordered)), len(ordered) - 1)])


@torch.no_grad()
def probe_loss(
    sae: SAE,
    x: Float[Tensor, "n D"],
    y: Bool[Tensor, "n"],
    x_test: Float[Tensor, "m D"],
    y_test: Bool[Tensor, "m"],
) -> ProbeLoss:
    """Return the smallest cross-entropy of a one-dimensional logistic probe on one latent's pre-activation.

    min over latents, w and b of the mean of -y log σ(w z + b) - (1 - y) log(1 - σ(w z + b)), fitted by Newton's method, as in
    Gao et al. 2024, section 4.2, where z is the pre-activation. `fitted` is that minimum; `held_out` is the loss of the same
    latent, w and b on the test rows, which the choice has not seen."""
    u, u_test = (sae.dense_pre_activations(rows.to(sae.device)).cpu() for rows in (x, x_test))
    best = (float("inf"), 0, 0.0, 0.0)
    for start in range(0, u.shape[1], BLOCK):
        losses, w, b = newton(u[:, start : start + BLOCK].double(), y.double())
        place = int(losses.argmin())
        best = min(best, (float(losses[place]), start + place, float(w[place]), float(b[place])))
    fitted, latent, w_best, b_best = best
    held_out = _losses(
        u_test[:, latent, None].double(), y_test.double(), torch.tensor([w_best]), torch.tensor([b_best])
    )
    return ProbeLoss(latent, fitted, float(held_out))


def newton(
    z: Float[Tensor, "n k"], y: Float[Tensor, "n"]
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"], Float[Tensor, "k"]]:
    """Return the cross-entropy, w and b of the logistic probe on each column alone, in nats, float64.

    A step that raises the loss is halved. A column that separates the classes has no finite best w: its loss nears 0."""
    mean, std = z.mean(0), z.std(0, correction=0).clamp_min(1e-12)
    x = (z - mean) / std
    w, b = x.new_zeros(2, x.shape[1])
    loss = _losses(x, y, w, b)
    for _ in range(NEWTON_STEPS):
        p = (w * x + b).sigmoid()
        error, weight = p - y[:, None], p * (1 - p)
        g_w, g_b = (error * x).mean(0) + RIDGE * w, error.mean(0)
        h_ww, h_wb, h_bb = (weight * x * x).mean(0) + RIDGE, (weight * x).mean(0), weight.mean(0) + RIDGE
        determinant = h_ww * h_bb - h_wb**2
        step_w, step_b = (h_bb * g_w - h_wb * g_b) / determinant, (h_ww * g_b - h_wb * g_w) / determinant
        size = torch.ones_like(w)
        new = _losses(x, y, w - step_w, b - step_b)
        for _ in range(HALVINGS):
            if bool((new <= loss + 1e-12).all()):
                break
            size = torch.where(new <= loss + 1e-12, size, size / 2)
            new = _losses(x, y, w - size * step_w, b - size * step_b)
        better = new <= loss + 1e-12
        w, b = w - better * size * step_w, b - better * size * step_b
        gain = torch.where(better, loss - new, 0.0)
        loss = loss - gain
        if float(gain.max()) < CONVERGED:
            break
    return loss, w / std, b - w * mean / std


def _losses(z: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Return the mean cross-entropy of each column in nats."""
    logits = w * z + b
    return (torch.nn.functional.softplus(logits) - y[:, None] * logits).mean(0)
