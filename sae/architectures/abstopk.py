"""AbsTopK: keep the k latents largest in size, with their sign, so that one latent can stand for both ends of an axis.

"Rethinking Sparse Autoencoders For Bidirectional Features", arXiv:2510.00404 (ICLR 2026)."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.architectures.base import SAE, Loss
from sae.architectures.batchtopk import BatchTopK, BatchTopKConfig
from sae.architectures.config import ArchConfig, ExpectedL0, Selects, TrainingCost
from sae.architectures.shared import check_k, check_threshold_rate, follow_smallest, reconstruction_loss
from sae.architectures.topk import TopK, TopKConfig
from sae.code import SparseCode


@dataclass(frozen=True)
class AbsTopKConfig(ArchConfig):
    """AbsTopK: the k latents largest in size, of either sign; one latent can stand for two opposites."""

    name = "abstopk"
    rule = (
        "it keeps what is largest in size, with its sign: k of each row or, chosen per batch, what is beyond a "
        "threshold on both sides"
    )
    shards_latents = True
    revives_dead = True

    advice = (
        "Set --arch.k to a tenth of the activations' width and choose with --arch.per batch. At a k of a "
        "twentieth of the width or less it has more error than topk."
    )

    k: int = 32
    """Latents kept per token; on average where they are selected per batch."""
    per: Literal["token", "batch"] = "token"
    """token: k of each token, as in the paper. batch: B * k of the batch in training and a threshold in use, as in the
    authors' code, which seems to have made the published numbers."""
    aux_k: int | None = None
    """Dead latents that AuxK lets explain the residual; half the activation width when left out."""
    aux_weight: float = 1 / 32
    """Weight of AuxK (authors' code)."""
    threshold_rate: float = 0.01
    """Weight of each batch's smallest kept size in the running threshold of inference (per batch only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self)
        check_threshold_rate(self.threshold_rate)

    def selects(self) -> Selects:
        """Return by rank, or above one threshold where training selects per batch."""
        return Selects.BY_RANK if self.per == "token" else Selects.ABOVE_ONE_THRESHOLD

    def expected_l0(self) -> ExpectedL0:
        """Return k."""
        return ExpectedL0(self.k)

    def training_cost(self) -> TrainingCost:
        """Return one selection, of each row or among the batch."""
        return TrainingCost("row" if self.per == "token" else "batch")


@final
class AbsTopK(SAE):
    """u = (x - b_dec) W_enc + b_enc; z = u where |u| is among the k largest, else 0; x_hat = z W_dec + b_dec.

    There is no ReLU: codes are signed, and negating a latent's encoder column, bias and decoder row negates its code and
    changes nothing else. z is the k-sparse vector nearest to u. Of equal sizes some are kept, always k (on the CPU always
    the same). b_enc is the paper's; the authors' code has none.

    Where latents are selected per batch, tokens in use keep every |u| above `threshold`, a running mean of the smallest size
    that a training batch keeps. It is two-sided, because a one-sided one would drop all negative codes. It moves in training
    mode only; its first value is assigned. Where latents are selected per token it stays 0 and is not used."""

    cfg: AbsTopKConfig
    config = AbsTopKConfig
    in_activation_units = (*SAE.in_activation_units, "threshold")
    signed = True
    threshold: Float[Tensor, ""]

    def make_rule(self, d_model: int) -> None:
        """Create the running threshold of selection per batch."""
        self.register_buffer("threshold", torch.zeros(()))

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        u = self.pre_activations(x)
        if self.cfg.per == "batch":
            return u.above(self.threshold, by_size=True)
        return u.largest(self.cfg.k, by_size=True)

    def kept_per_row(self, x: Float[Tensor, "B D"], u: Float[Tensor, "B F"]) -> Int[Tensor, "B"] | None:
        """Return k for every row, or None where the threshold decides."""
        if self.cfg.per == "batch":
            return None
        return torch.full((len(x),), self.cfg.k, device=x.device)

    def thresholds(self) -> Float[Tensor, "F"]:
        """Return the threshold that all sizes are compared with; it is 0 where latents are selected per token."""
        return self.threshold.expand(self.d_sae)

    def simpler(self) -> TopK | BatchTopK:
        """Return an unsigned SAE of 2 F latents; in the second half encoder, bias and decoder row are negated.

        The k largest of those are the k largest in size, and the reconstruction is the same."""
        W_enc, b_enc, W_dec = self.W_enc.double(), self.b_enc.double(), self.W_dec.double()
        tensors = {
            "W_enc": torch.cat([W_enc, -W_enc], 1),
            "b_enc": torch.cat([b_enc, -b_enc]),
            "W_dec": torch.cat([W_dec, -W_dec]),
            "b_dec": self.b_dec,
        }
        if self.cfg.per == "token":
            return TopK.from_tensors(TopKConfig(2 * self.d_sae, self.cfg.k), tensors)
        tensors["threshold"] = self.threshold
        return BatchTopK.from_tensors(BatchTopKConfig(2 * self.d_sae, self.cfg.k), tensors)

    def training_code(self, x: Float[Tensor, "B D"]) -> SparseCode:
        """Return the B k pre-activations of the batch that are largest in size, or per token `encode`'s code."""
        if self.cfg.per == "token":
            return self._encode(x)
        return self.pre_activations(x).largest_of_batch(self.cfg.k, by_size=True)

    def activations_of(self, x: Float[Tensor, "B D"], latents: Int[Tensor, "n"]) -> Float[Tensor, "B n"]:
        """Return the pre-activations of these latents with their sign, so that AuxK reaches every dead latent."""
        return self.pre_activations(x).of(latents)

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return FVU + aux_weight * AuxK of the training code. Per batch, in training mode, the threshold follows the code.

        The authors' AuxK is an entrywise mean whose residual is not detached. Here it is that of TopK, with signs."""
        code = self.training_code(x)
        if self.training and self.cfg.per == "batch":
            follow_smallest(self.threshold, code.values, self.cfg.threshold_rate)
        return reconstruction_loss(self, x, y, dead, code, self.cfg)
