"""TopK: keep the k largest latents of each token, so L0 is set, not tuned.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, sections 2.3-2.4 and A.2."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.architectures.base import SAE, ArchConfig, Loss
from sae.architectures.shared import check_k, reconstruction_loss
from sae.code import SparseCode


@dataclass(frozen=True)
class TopKConfig(ArchConfig):
    """TopK: the k largest latents of each token."""

    k: int = 32
    """Latents kept per token (section 2.3)."""
    aux_k: int | None = None
    """Dead latents that AuxK lets explain the residual; half the activation width when left out (B.1)."""
    aux_weight: float = 1 / 32
    """Weight of AuxK, the loss that brings dead latents back (A.2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self)


@final
class TopK(SAE):
    """u = (x - b_dec) W_enc + b_enc; z = relu of the k largest u; x_hat = z W_dec + b_dec.

    The ReLU comes after the choice, as in the authors' code: a token with fewer than k positive
    pre-activations keeps fewer latents, so L0 <= k and codes are never negative."""

    cfg: TopKConfig

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        return self.pre_activations(x).largest(self.cfg.k).relu()

    def kept_per_row(self, x: Float[Tensor, "B D"], drive: Float[Tensor, "B F"]) -> Int[Tensor, "B"]:
        """k."""
        return torch.full((len(x),), self.cfg.k, device=x.device)

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """FVU + aux_weight * AuxK. Both are relative to a variance, so the weight does not depend on units."""
        return reconstruction_loss(self, x, y, dead, self._encode(x), self.cfg)
