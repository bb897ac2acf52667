"""PlainK: the k largest latents of each token, and nothing that revives dead ones. What an author outside this tree writes."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae import losses
from sae.architectures.base import SAE, Loss
from sae.architectures.config import ArchConfig, ExpectedL0, Selects
from sae.architectures.shared import check_k
from sae.architectures.topk import TopK, TopKConfig
from sae.code import SparseCode


@dataclass(frozen=True)
class PlainKConfig(ArchConfig):
    """PlainK: the k largest latents of each token, without AuxK."""

    name = "plaink"
    rule = "it keeps the k largest latents of each row"
    advice = "Set k."

    k: int = 32
    """Latents kept per token (section 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self)

    def selects(self) -> Selects:
        """Return by rank."""
        return Selects.BY_RANK

    def expected_l0(self) -> ExpectedL0:
        """Return k."""
        return ExpectedL0(self.k)


@final
class PlainK(SAE):
    """z = relu of the k largest u; the loss is the FVU alone."""

    cfg: PlainKConfig
    config = PlainKConfig

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        return self.pre_activations(x).largest(self.cfg.k).relu()

    def kept_per_row(self, x: Float[Tensor, "B D"], u: Float[Tensor, "B F"]) -> Int[Tensor, "B"]:
        """Return k for every row."""
        return torch.full((len(x),), self.cfg.k, device=x.device)

    def simpler(self) -> TopK:
        """Return the TopK that it is in use."""
        return TopK.from_tensors(TopKConfig(self.d_sae, self.cfg.k), self.state_dict())

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """FVU."""
        code = self._encode(x)
        error = losses.fvu(y, self.decode(code))
        terms = {"fvu": error.detach(), "l0": code.l0().float().mean()}
        return Loss(error, terms, code.fired())
