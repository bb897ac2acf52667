"""ReLU: the classic SAE, with a penalty on the sum of latents (L1), each weighted by the norm of its decoder row.

The form of Anthropic's "Update on how we train SAEs", April 2024; constants as public libraries record them
(dictionary_learning 60ec6bf, `standard.py`; SAELens 6.18)."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from sae.architectures.base import SAE, Loss
from sae.architectures.config import ArchConfig, Selects
from sae.architectures.jumprelu import JumpReLU, thresholded
from sae.architectures.shared import (
    check_at_least_0,
    check_share,
    move_norms,
    penalised_loss,
    start_centred,
    warmed,
)
from sae.code import SparseCode

DECODER_NORM = 0.1  # norm of decoder rows before training


@dataclass(frozen=True)
class ReLUConfig(ArchConfig):
    """ReLU: the classic baseline, all positive latents, made sparse by an L1 penalty."""

    name = "relu"
    price = "l1_weight"
    rule = "it keeps every positive latent"

    advice = (
        "L0 follows from l1_weight, the learning rate and the length of the run: sweep three weights over "
        "short runs, then train the best one long. At a width of 576, with 600 steps at the default rate, the "
        "default, which is 1 there, gives an L0 of 38 and 2 one of 11."
    )

    l1_weight: float | None = None
    """Price of a latent's value times its decoder row's norm, against the squared error summed over
    dimensions, where inputs have unit mean square per dimension (as `scale_inputs` makes them); when left out,
    sqrt(D) / 24. An equal weight counts more on narrow models: values of latents grow as sqrt(D), errors as D."""
    l1_warmup_share: float = 0.05
    """Share of all steps over which the weight rises from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_0("l1_weight", self.l1_weight or 0.0)
        check_share("l1_warmup_share", self.l1_warmup_share)

    def selects(self) -> Selects:
        """Return above each latent's own threshold."""
        return Selects.ABOVE_OWN_THRESHOLDS


@final
class ReLU(SAE):
    """z = relu(x W_enc + b_enc); x_hat = z W_dec + b_dec.

    b_dec is not subtracted from x. Decoder rows may have any norm: the penalty counts it, so that shrinking latents while
    growing rows gains nothing. On saving, the norms move into the latents. Nothing revives dead latents."""

    cfg: ReLUConfig
    config = ReLUConfig
    pre_bias = False
    unit_norm_decoder = False

    def make_rule(self, d_model: int) -> None:
        """Set the penalty weight, which nothing has warmed up yet."""
        self.penalty_weight = d_model**0.5 / 24 if self.cfg.l1_weight is None else self.cfg.l1_weight
        self.warmth = 1.0

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        # What a rounded product finds above 0 may be below it exactly.
        return self.pre_activations(x).above(x.new_zeros(())).relu()

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return ||y - y_hat||^2 + weight * sum_j z_j ||W_dec_j||, mean over rows; in squared units of y."""
        code = self._encode(x)
        of_latents = torch.zeros_like(self.b_enc).index_add(0, code.indices, code.values)
        l1 = of_latents @ self.W_dec.norm(dim=1) / len(x)
        return penalised_loss(y, self.decode(code), code, {"l1": (self.warmth * self.penalty_weight, l1)})

    def simpler(self) -> JumpReLU:
        """Return the JumpReLU whose thresholds are 0."""
        return thresholded(self)

    def begin_step(self, step: int, steps: int) -> None:
        """Set the warm-up of the penalty weight."""
        self.warmth = warmed(step, steps, self.cfg.l1_warmup_share)

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "n D"], centre: Float[Tensor, "D"], generator: torch.Generator
    ) -> None:
        """Draw decoder rows of norm 0.1 in random directions; the encoder is their transpose."""
        rows = torch.empty_like(self.W_dec).normal_(generator=generator)
        self.W_dec.copy_(DECODER_NORM * normalize(rows, dim=1))
        self.W_enc.copy_(self.W_dec.T)
        start_centred(self, centre)

    @torch.no_grad()
    def fold_decoder_norms(self) -> None:
        """Divide decoder rows by their norms and multiply latents by them: the function and the loss stay."""
        move_norms(self)

    def folded_tensors(self) -> dict[str, Tensor]:
        """Return the biases, and both weights: the norms move from one to the other."""
        return {**super().folded_tensors(), "W_enc": self.W_enc, "W_dec": self.W_dec}
