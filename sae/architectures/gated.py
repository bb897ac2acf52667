"""Gated: one path decides which latents fire, another how strongly, so that a penalty on firing does not shrink values.

Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders", arXiv:2404.16014,
section 3 and appendix D.1."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae import kernels, losses
from sae.architectures.base import SAE, Loss, ParameterGroup
from sae.architectures.config import ArchConfig, Selects, TrainingCost
from sae.architectures.jumprelu import JumpReLU, thresholded
from sae.architectures.shared import check_at_least_0, check_share, gain, penalised_loss, warmed
from sae.code import SparseCode


@dataclass(frozen=True)
class GatedConfig(ArchConfig):
    """Gated: an L1 penalty on a gate that decides what fires, and magnitudes free of its shrinkage."""

    name = "gated"
    price = "l1_weight"
    rule = "one path decides which latents fire, another how strongly"

    advice = (
        "L0 follows from l1_weight, the learning rate and the length of the run: sweep three weights over "
        "short runs, then train the best one long. At a width of 576, with 600 steps at the default rate, the "
        "default, which is 1.2 there, gives an L0 of 48, 2.5 one of 17 and 3.8 one of 9."
    )

    l1_weight: float | None = None
    """Price of the gate's pre-activations, against squared errors summed over dimensions, where inputs have
    unit mean square per dimension (as `scale_inputs` makes them); when left out, sqrt(D) / 20. Multiply a weight that is
    meant for inputs of unit mean squared norm by sqrt(D)."""
    l1_warmup_share: float = 0.05
    """Share of all steps over which the weight rises from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_0("l1_weight", self.l1_weight or 0.0)
        check_share("l1_warmup_share", self.l1_warmup_share)

    def selects(self) -> Selects:
        """Return above each latent's own threshold."""
        return Selects.ABOVE_OWN_THRESHOLDS

    def training_cost(self) -> TrainingCost:
        """Return one selection, and the gate's own reconstruction, which teaches no decoder."""
        return TrainingCost("above", reads=6, errors=1.5)


@final
class Gated(SAE):
    """v = (x - b_dec) W_enc; pi = v + b_enc; z = relu(v exp(r_mag) + b_mag) where pi > 0, else 0.

    W_enc and b_enc are the paper's W_gate and b_gate; the magnitudes share W_enc up to one factor per latent (section 3.2).
    It equals a JumpReLU whose thresholds are b_mag - exp(r_mag) b_enc (appendix E). Adam runs without momentum (D.1). The
    authors' resampling of dead latents is left out: nothing revives them."""

    cfg: GatedConfig
    config = GatedConfig
    in_activation_units = (*SAE.in_activation_units, "b_mag")

    def make_rule(self, d_model: int) -> None:
        """Create the magnitudes' parameters, and set the penalty weight, which nothing has warmed up yet."""
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.penalty_weight = d_model**0.5 / 20 if self.cfg.l1_weight is None else self.cfg.l1_weight
        self.warmth = 1.0

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        return self.gate_and_magnitudes(x)[1]

    def thresholds(self) -> Float[Tensor, "F"]:
        """Return the gate's threshold: 0, or where the magnitude rises above 0 if that is higher."""
        return (self.b_enc - self.b_mag * (-self.r_mag).exp()).clamp_min(0)

    @torch.no_grad()
    def simpler(self) -> JumpReLU:
        """Return the JumpReLU of its magnitudes (appendix E).

        The gate is open where v > -b_enc, and there the latent is v exp(r_mag) + b_mag: a threshold of the magnitude."""
        slope, b_mag = self.r_mag.double().exp(), self.b_mag.double()
        threshold = (b_mag - slope * self.b_enc.double()).clamp_min(0)
        return thresholded(self, self.W_enc.double() * slope, b_mag, threshold)

    @torch.no_grad()
    def shift_pre_activations(self, shift: Float[Tensor, "F"]) -> None:
        """Add to v, which both paths read."""
        super().shift_pre_activations(shift)
        self.b_mag.add_(shift * self.r_mag.exp())

    @torch.no_grad()
    def multiply_latents(self, factors: Float[Tensor, "F"]) -> None:
        """Multiply the gate and the magnitudes alike."""
        super().multiply_latents(factors)
        self.b_mag.mul_(factors)

    def gate_and_magnitudes(self, x: Float[Tensor, "B D"]) -> tuple[SparseCode, SparseCode]:
        """Return relu(pi) and the code z, over the entries where pi > 0. No gradient of z reaches b_enc."""
        v = kernels.project(x, self.W_enc, torch.zeros_like(self.b_enc), self.b_dec)
        open_ = v.above(-self.b_enc)
        gate = open_.values + open_.spread(self.b_enc)
        magnitudes = open_.values * open_.spread(self.r_mag.exp()) + open_.spread(self.b_mag)
        return open_._replace(values=gate.relu()), open_._replace(values=magnitudes.relu())

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return ||y - y_hat||^2 + weight |relu(pi)|_1 + ||y - y_gate||^2, mean over rows; in squared units of y.

        y_gate decodes relu(pi) with W_dec and b_dec held fixed, so that it trains the gate and not the decoder (eq. 8)."""
        gate, code = self.gate_and_magnitudes(x)
        y_gate = kernels.decode(gate, self.W_dec.detach()) + self.b_dec.detach()
        penalties = {
            "l1": (self.warmth * self.penalty_weight, gate.values.sum() / len(x)),
            "gate_error": (1.0, losses.squared_error(y, y_gate)),
        }
        return penalised_loss(y, self.decode(code), code, penalties)

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "n D"], centre: Float[Tensor, "D"], generator: torch.Generator
    ) -> None:
        """Start as TopK does, with the encoder divided by the gain.

        Half of all latents fire at first, and F / 2 overlapping ones add up: without the division the first reconstructions
        are F / 2 sqrt(3) D times the input, 4 times for 8,192 latents on width 576. With it FVU starts at .13 there."""
        super().initialise(x, centre, generator)
        self.W_enc.div_(gain(self, generator))

    def begin_step(self, step: int, steps: int) -> None:
        """Set the warm-up of the penalty weight."""
        self.warmth = warmed(step, steps, self.cfg.l1_warmup_share)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters as one group without momentum (D.1)."""
        return [{"params": list(self.parameters()), "betas": (0.0, 0.999)}]
