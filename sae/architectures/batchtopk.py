"""BatchTopK: keep the B * k largest latents of a batch, so that hard tokens may use more than easy ones.

Bussmann, Leask, Nanda 2024, "BatchTopK Sparse Autoencoders", arXiv:2412.06410."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.architectures.base import SAE, Loss
from sae.architectures.config import ArchConfig, ExpectedL0, Selects, TrainingCost
from sae.architectures.jumprelu import JumpReLU, thresholded
from sae.architectures.shared import check_k, check_threshold_rate, follow_smallest, reconstruction_loss
from sae.code import SparseCode


@dataclass(frozen=True)
class BatchTopKConfig(ArchConfig):
    """BatchTopK: k latents a token on average, distributed over the batch."""

    name = "batchtopk"
    rule = "it keeps what is above a threshold"
    shards_latents = True
    revives_dead = True

    advice = (
        "As topk. In runs of less than some hundred steps the threshold lags behind and L0 comes out too "
        "high: add --arch.threshold-rate 0.1."
    )

    k: float = 32
    """Latents kept per token on average; B * k is rounded down."""
    aux_k: int | None = None
    """Dead latents that AuxK lets explain the residual; half the activation width when left out."""
    aux_weight: float = 1 / 32
    """Weight of AuxK (section 3)."""
    threshold_rate: float = 0.01
    """Weight of each batch's smallest kept value in the running threshold of inference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self)
        check_threshold_rate(self.threshold_rate)

    def selects(self) -> Selects:
        """Return above one threshold."""
        return Selects.ABOVE_ONE_THRESHOLD

    def expected_l0(self) -> ExpectedL0:
        """Return k."""
        return ExpectedL0(self.k)

    def training_cost(self) -> TrainingCost:
        """Return one selection among all of the batch."""
        return TrainingCost("batch")


@final
class BatchTopK(SAE):
    """Training keeps the floor(B k) largest positive pre-activations of the batch; in use all above `threshold` are kept.

    The threshold is a running mean of the smallest value that a training batch keeps, so that a token's code does not depend
    on its neighbours. It moves in training mode only, and its first value is assigned. Before the first step it is 0, and
    every positive latent fires."""

    cfg: BatchTopKConfig
    config = BatchTopKConfig
    in_activation_units = (*SAE.in_activation_units, "threshold")
    threshold: Float[Tensor, ""]

    def make_rule(self, d_model: int) -> None:
        """Create the running threshold."""
        self.register_buffer("threshold", torch.zeros(()))

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        return self.pre_activations(x).above(self.threshold)

    def thresholds(self) -> Float[Tensor, "F"]:
        """Return one threshold for all latents."""
        return self.threshold.expand(self.d_sae)

    def simpler(self) -> JumpReLU:
        """Return the JumpReLU whose thresholds are all alike."""
        return thresholded(self)

    def training_code(self, x: Float[Tensor, "B D"]) -> SparseCode:
        """Return the batch's floor(B k) largest pre-activations, with negative ones set to zero."""
        return self.pre_activations(x).largest_of_batch(self.cfg.k).relu()

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return FVU + aux_weight * AuxK of the training code. In training mode the threshold follows the code."""
        code = self.training_code(x)
        if self.training:
            follow_smallest(self.threshold, code.values, self.cfg.threshold_rate)
        return reconstruction_loss(self, x, y, dead, code, self.cfg)
