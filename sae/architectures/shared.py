"""Functions that several architectures share: losses, running thresholds, warm-ups, starts, checks of settings."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from activations.errors import ConfigError
from sae import kernels, losses
from sae.architectures.base import SAE, Loss
from sae.architectures.config import ArchConfig
from sae.code import SparseCode


def start_centred(sae: SAE, centre: Float[Tensor, "D"]) -> None:
    """Set b_dec to the centre, and b_enc so that latents read x - centre at first, where b_dec is not subtracted from x.

    With a centre of 0 both are 0, as in the papers. Activations of language models are far from centred."""
    sae.b_dec.copy_(centre)
    sae.b_enc.copy_(-(centre @ sae.W_enc))


def gain(sae: SAE, generator: torch.Generator) -> Float[Tensor, ""]:
    """Return the mean norm of the reconstructions of 256 random unit vectors, without b_dec; 1 when all are 0.

    An encoder is divided by it where about half of all latents fire at first. Where few are selected by rank, dividing makes
    the first reconstructions too large: they are far from parallel to the input, and best at half its norm."""
    probe = torch.randn(256, sae.d_model, generator=generator)
    probe /= probe.norm(dim=1, keepdim=True)
    size = sae.decode(sae.training_code(probe + sae.b_dec)).sub(sae.b_dec).norm(dim=1).mean()
    return size if size > 0 else torch.ones_like(size)


def move_norms(sae: SAE) -> Float[Tensor, "F"]:
    """Divide decoder rows by their norms and multiply the latents by them, in place. Return the norms."""
    norms = sae.W_dec.norm(dim=1).clamp_min(torch.finfo(sae.W_dec.dtype).tiny)
    sae.W_dec.div_(norms[:, None])
    sae.multiply_latents(norms)
    return norms


def warmed(step: int, steps: int, share: float) -> float:
    """Return a linear warm-up's factor: 0 at step 0, 1 once this share of all steps is done; always 1 for a share of 0."""
    return min(1.0, step / (share * steps)) if share > 0 else 1.0


def auxk_term(
    sae: SAE, x: Tensor, y: Tensor, y_hat: Tensor, dead: Tensor, k: int | None
) -> Float[Tensor, ""]:
    """Return `losses.auxk` of an SAE's dead latents; 0 when none is dead. k defaults to D / 2 (Gao et al. 2024, B.1)."""
    chosen = dead.nonzero()[:, 0]
    if not kernels.collective().any(len(chosen) > 0):
        return y.new_zeros(())
    active = sae.activations_of(x, chosen)
    rows = kernels.rows_of(sae.W_dec, chosen)
    return losses.auxk(active, rows, (y - y_hat).detach(), k or max(1, sae.d_model // 2))


@torch.no_grad()
def follow_smallest(threshold: Float[Tensor, ""], values: Float[Tensor, "nnz"], rate: float) -> None:
    """Move a running threshold, in place, by `rate` of the way to the smallest |value| that a batch keeps.

    Zeros do not count, and a batch of zeros changes nothing. A threshold of 0 has no history: it is assigned."""
    sizes = values.abs()[values != 0]
    least = kernels.collective().least(sizes.min() if len(sizes) else values.new_tensor(torch.inf))
    if least.isfinite():
        threshold.lerp_(least, rate if threshold > 0 else 1.0)


def check_k(k: float, cfg: ArchConfig) -> None:
    """Raise ConfigError unless 0 < k <= d_sae."""
    if not 0 < k <= cfg.d_sae:
        raise ConfigError(f"k = {k} must lie between 1 and d_sae = {cfg.d_sae}")


def check_threshold_rate(rate: float) -> None:
    """Raise ConfigError unless 0 < rate <= 1."""
    if not 0 < rate <= 1:
        raise ConfigError(f"threshold_rate = {rate} must lie in (0, 1]")


def check_share(name: str, value: float) -> None:
    """Raise ConfigError unless the setting lies between 0 and 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} = {value} must lie between 0 and 1")


def check_at_least_0(name: str, value: float) -> None:
    """Raise ConfigError when the setting is negative or not finite."""
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} = {value} must be a number of at least 0")


def reconstruction_loss(sae: SAE, x: Tensor, y: Tensor, dead: Tensor, code: SparseCode, cfg: Any) -> Loss:
    """Return the FVU of the code's reconstruction plus `cfg.aux_weight` times AuxK: the loss of the TopK family."""
    y_hat = sae.decode(code)
    reconstruction = losses.fvu(y, y_hat)
    aux = auxk_term(sae, x, y, y_hat, dead, cfg.aux_k)
    l0 = kernels.collective().sum_over_latents(code.l0().float().mean())
    terms = {"fvu": reconstruction, "auxk": aux, "l0": l0}
    return Loss(
        reconstruction + cfg.aux_weight * aux, {n: t.detach() for n, t in terms.items()}, code.fired()
    )


def penalised_loss(
    y: Tensor, y_hat: Tensor, code: SparseCode, penalties: dict[str, tuple[float, Tensor]]
) -> Loss:
    """Return the squared error plus penalties, given by name as (weight, term): the loss of methods with a sparsity penalty."""
    error = losses.squared_error(y, y_hat)
    total = error + sum(weight * term for weight, term in penalties.values())
    terms = {"fvu": losses.fvu(y, y_hat.detach()), "l0": code.l0().float().mean(), "squared_error": error}
    terms |= {name: term for name, (_, term) in penalties.items()}
    return Loss(total, {name: term.detach() for name, term in terms.items()}, code.fired())


def geometric_median(
    x: Float[Tensor, "n D"], tolerance: float = 1e-5, steps: int = 100
) -> Float[Tensor, "D"]:
    """Return the point with the least summed Euclidean distance to the rows of x; float32.

    It is the centre that `SAE.initialise` starts from, because a few huge rows do not pull it away as they do the mean.
    Weiszfeld's fixed-point iteration starts at the mean and ends when a step moves less than `tolerance` times the rows'
    mean distance from it."""
    estimate = x.mean(0)
    spread = (x - estimate).norm(dim=1).mean()
    if not spread:
        return estimate
    for _ in range(steps):
        # A row that coincides with the estimate gets a tiny distance instead of 0, so that its weight stays finite
        weights = 1 / (x - estimate).norm(dim=1).clamp_min(1e-6 * spread)
        new = (weights / weights.sum()) @ x
        moved = (new - estimate).norm()
        estimate = new
        if moved <= tolerance * spread:
            break
    return estimate
