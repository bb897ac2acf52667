"""TopK: keep the k largest latents of each token, so that L0 is set and not tuned.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, sections 2.3-2.4 and A.2."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae import losses
from sae.architectures.base import SAE, Loss
from sae.architectures.config import ArchConfig, ExpectedL0, Selects, TrainingCost
from sae.architectures.shared import check_k, reconstruction_loss
from sae.code import SparseCode


@dataclass(frozen=True)
class TopKConfig(ArchConfig):
    """TopK: the k largest latents of each token."""

    name = "topk"
    rule = "it keeps the k largest latents of each row"
    shards_latents = True
    revives_dead = True

    advice = (
        "The defaults suit runs of minutes and of days: the learning rate follows the width and the number of "
        "steps. In two minutes of two cores train 2,048 latents for 600 steps of 1,024 tokens, in an hour "
        "8,192 for 5,000 steps of 2,048. From 10,000 steps on add --train.ema 0.999."
    )

    k: int = 32
    """Latents kept per token (section 2.3)."""
    aux_k: int | None = None
    """Dead latents that AuxK lets explain the residual; half the activation width when left out (B.1)."""
    aux_weight: float = 1 / 32
    """Weight of AuxK, the loss that revives dead latents (A.2)."""
    multi_weight: float = 0.0
    """Weight of the error with 4 k latents beside that with k (Multi-TopK), for SAEs that are used at other k too. The
    paper has 1 / 8. 0 leaves it out; otherwise each step encodes twice."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self)

    def selects(self) -> Selects:
        """Return by rank."""
        return Selects.BY_RANK

    def expected_l0(self) -> ExpectedL0:
        """Return k."""
        return ExpectedL0(self.k)

    def training_cost(self) -> TrainingCost:
        """Return one selection, or two where Multi-TopK selects 4 k latents beside the k."""
        usual = super().training_cost()
        return usual._replace(codes=2, entries=5) if self.multi_weight else usual

    @property
    def multi_k(self) -> int:
        """Latents of Multi-TopK's second code: 4 k, but at most all of them."""
        return min(4 * self.k, self.d_sae)


@final
class TopK(SAE):
    """u = (x - b_dec) W_enc + b_enc; z = relu of the k largest u; x_hat = z W_dec + b_dec.

    The ReLU comes after the selection, as in the authors' code: a token with fewer than k positive pre-activations keeps
    fewer latents, so L0 <= k and codes are never negative."""

    cfg: TopKConfig
    config = TopKConfig

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        return self.pre_activations(x).largest(self.cfg.k).relu()

    def kept_per_row(self, x: Float[Tensor, "B D"], u: Float[Tensor, "B F"]) -> Int[Tensor, "B"]:
        """Return k for every row."""
        return torch.full((len(x),), self.cfg.k, device=x.device)

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return FVU + aux_weight * AuxK (+ multi_weight * FVU with 4 k latents).

        Each is relative to a variance, so that the weights do not depend on units. A latent among the 4 k but not among the k
        has not fired."""
        loss = reconstruction_loss(self, x, y, dead, self._encode(x), self.cfg)
        if not self.cfg.multi_weight:
            return loss
        more = self.pre_activations(x).largest(self.cfg.multi_k).relu()
        error = losses.fvu(y, self.decode(more))
        return loss.plus(self.cfg.multi_weight * error, {"fvu_multi": error.detach()})
