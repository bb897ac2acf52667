"""JumpReLU: each latent fires above a threshold of its own, which is learned through a smoothed step.

Rajamanoharan et al. 2024, "Jumping Ahead", arXiv:2407.14435 ("l0"); Anthropic, "Circuits Updates", January
2025 ("tanh"), its constants as SAELens 6.18 records them."""

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from activations.errors import ConfigError
from sae.architectures.base import SAE, Loss, ParameterGroup, tied_init
from sae.architectures.config import ArchConfig, Selects
from sae.architectures.shared import (
    check_at_least_0,
    check_share,
    gain,
    move_norms,
    penalised_loss,
    start_centred,
    warmed,
)
from sae.code import SparseCode

LEAST = 1e-6  # threshold, of rows with unit mean square, from which one of 0 is trained further


@dataclass(frozen=True)
class JumpReLUConfig(ArchConfig):
    """JumpReLU: a learned threshold for each latent, and a penalty on how many latents fire."""

    name = "jumprelu"
    price = "sparsity_weight"
    rule = "it keeps what is above a threshold of each latent's own"

    advice = (
        "L0 follows from sparsity_weight, the learning rate and the length of the run: sweep three weights "
        "over short runs. At a width of 576, with 600 steps at the default rate, the default, which is 0.58 "
        "there, gives an L0 of 20, and with --arch.loss-form tanh, where it is 0.22, one of 34. At a rate of "
        "3.9e-3, 0.43 gives an L0 of 32."
    )

    loss_form: Literal["l0", "tanh"] = "l0"
    """l0: a penalty on the number of latents that fire, unit-norm decoder (the paper). tanh: a penalty on the sum of
    tanh(c z ||W_dec row||), free decoder norms, and a pull on dead latents (Anthropic, January 2025)."""
    sparsity_weight: float | None = None
    """Price of a latent that fires, against the squared error summed over dimensions, where inputs have unit
    mean square per dimension; when left out, D / 1000 (l0), i.e. 0.001 where they have unit mean squared norm,
    or D / 2600 (tanh). On the embedded model's activations a short run ends at L0 20 and 34 (LOG.md)."""
    warmup_share: float | None = None
    """Share of all steps over which the weight rises from 0; when left out, 0.05 (l0) or 1 (tanh)."""
    threshold: float | None = None
    """Thresholds before training, in units of scaled inputs; when left out, sqrt(D) / 1000 (l0) or 0.1 (tanh)."""
    bandwidth: float | None = None
    """Width of the kernel around a threshold, in units of scaled inputs; when left out, sqrt(D) / 1000 (l0)
    or 2 (tanh)."""
    threshold_lr_scale: float | None = None
    """Learning rate of log thresholds over that of the weights; when left out, 10 (l0) or 1 (tanh). In the l0
    form only thresholds make a code sparser, and at 1, as in the paper, they need some ten thousand steps."""
    tanh_slope: float = 4.0
    """c of the tanh form."""
    pre_act_weight: float = 3e-6
    """Weight, in the tanh form, of the distance of dead latents below their thresholds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_form not in ("l0", "tanh"):
            raise ConfigError(f"loss_form = {self.loss_form!r} must be l0 or tanh")
        check_at_least_0("sparsity_weight", self.sparsity_weight or 0.0)
        check_share("warmup_share", self.warmup_share or 0.0)
        check_at_least_0("pre_act_weight", self.pre_act_weight)
        for name in ("threshold", "bandwidth", "threshold_lr_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} = {value} must be above 0")

    def selects(self) -> Selects:
        """Return above each latent's own threshold."""
        return Selects.ABOVE_OWN_THRESHOLDS


@final
class JumpReLU(SAE):
    """y = x W_enc + b_enc; z = y where y > theta, else 0; x_hat = z W_dec + b_dec; theta = exp(log_threshold).

    b_dec is not subtracted from x. theta stays above 0 whatever the optimizer does. Sizes that the papers give for inputs of
    unit mean squared norm are multiplied by sqrt(D), sparsity weights by D. In the tanh form the decoder's norms are free in training
    and move into the latents on saving. Adam runs without momentum."""

    cfg: JumpReLUConfig
    config = JumpReLUConfig
    pre_bias = False

    def make_rule(self, d_model: int) -> None:
        """Create thresholds, and set what follows from the loss's form: weight, bandwidth, warm-up."""
        cfg = self.cfg
        self.log_threshold = nn.Parameter(torch.zeros(cfg.d_sae))
        self.unit_norm_decoder = cfg.loss_form == "l0"
        small = d_model**0.5 / 1000
        l0, tanh = (small, small, 10.0, 0.05, 1 / 1000), (0.1, 2.0, 1.0, 1.0, 1 / 2600)
        threshold, bandwidth, lr_scale, share, weight = l0 if self.unit_norm_decoder else tanh
        self.first_threshold = cfg.threshold or threshold
        self.bandwidth = cfg.bandwidth or bandwidth
        self.threshold_lr_scale = cfg.threshold_lr_scale or lr_scale
        self.warmup_share = share if cfg.warmup_share is None else cfg.warmup_share
        self.penalty_weight = d_model * weight if cfg.sparsity_weight is None else cfg.sparsity_weight
        self.warmth = 1.0

    @property
    def threshold(self) -> Float[Tensor, "F"]:
        """The value above which each latent fires, in the units of x; above 0."""
        return self.log_threshold.exp()

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        # What a rounded product finds above a small threshold may be below 0 exactly.
        return self.pre_activations(x).above(self.threshold).relu()

    def thresholds(self) -> Float[Tensor, "F"]:
        """Return each latent's own threshold."""
        return self.threshold

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return ||y - y_hat||^2 + weight * sparsity (+ pre_act_weight * pull), mean over rows; in squared units of y.

        The graph holds the latents that fire, and those so little below their threshold that the kernel reaches them."""
        near = self.pre_activations(x).above(self.threshold - self.bandwidth / 2)
        thresholds = near.spread(self.threshold)
        code = near._replace(values=jump(near.values, thresholds, self.bandwidth))
        weight = self.warmth * self.penalty_weight
        if self.cfg.loss_form == "l0":
            fire = step(near.values, thresholds, self.bandwidth)
            penalties = {"sparsity": (weight, fire.sum() / len(x))}
        else:
            counted = self.cfg.tanh_slope * code.values * code.spread(self.W_dec.norm(dim=1))
            penalties = {
                "sparsity": (weight, counted.tanh().sum() / len(x)),
                "pre_act": (self.cfg.pre_act_weight, self._pull(x, dead)),
            }
        return penalised_loss(y, self.decode(code), code, penalties)

    def _pull(self, x: Tensor, dead: Tensor) -> Float[Tensor, ""]:
        """Return the distance of dead latents below their thresholds, weighted by the norms of their decoder rows.

        0 when none is dead."""
        below = self.threshold[dead] - self.pre_activations(x).of(dead.nonzero()[:, 0])
        return (below.relu() @ self.W_dec[dead].norm(dim=1)).mean()

    def begin_step(self, step: int, steps: int) -> None:
        """Set the warm-up of the penalty weight."""
        self.warmth = warmed(step, steps, self.warmup_share)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return weights, and log thresholds with a learning rate of their own; without momentum, eps 1e-8."""
        weights = [p for name, p in self.named_parameters() if name != "log_threshold"]
        adam: ParameterGroup = {"params": weights, "betas": (0.0, 0.999), "eps": 1e-8}
        return [adam, {**adam, "params": [self.log_threshold], "lr_scale": self.threshold_lr_scale}]

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "n D"], centre: Float[Tensor, "D"], generator: torch.Generator
    ) -> None:
        """Make encoder and decoder transposes of each other up to a factor, the gain, so that outputs have the inputs' size.

        l0 starts as TopK does; tanh draws W_enc from U(±1/sqrt F). Thresholds are low at first and nearly half of all
        latents fire, so that without the factor they would add up to several times the input, as in Gated."""
        self.log_threshold.fill_(-torch.inf)  # the gain is measured without thresholds
        if self.cfg.loss_form == "l0":
            tied_init(self, generator)
            self.W_enc.div_(gain(self, generator))
        else:
            bound = self.d_sae**-0.5
            self.W_dec.uniform_(-bound, bound, generator=generator)
            self.W_enc.copy_(self.W_dec.T)
            self.W_dec.div_(gain(self, generator))
        start_centred(self, centre)
        self.log_threshold.fill_(self.first_threshold).log_()

    @torch.no_grad()
    def raise_zero_thresholds(self) -> int:
        """Set thresholds of 0, which other tools' SAEs have, to LEAST, in place, and return how many there were."""
        zero = self.log_threshold == -torch.inf
        self.log_threshold[zero] = math.log(LEAST)
        return int(zero.sum())

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """Fold as every architecture does; thresholds are divided by `scale` too."""
        super().fold_input_scale(scale)
        self.log_threshold.sub_(math.log(scale))

    @torch.no_grad()
    def multiply_latents(self, factors: Float[Tensor, "F"]) -> None:
        """Multiply latents and thresholds."""
        super().multiply_latents(factors)
        self.log_threshold.add_(factors.log())

    @torch.no_grad()
    def fold_decoder_norms(self) -> None:
        """Divide the rows of a free decoder by their norms; latents and thresholds are multiplied by them."""
        if not self.unit_norm_decoder:
            move_norms(self)

    def folded_tensors(self) -> dict[str, Tensor]:
        """Return biases and thresholds, and with a free decoder both weights."""
        weights = {} if self.unit_norm_decoder else {"W_enc": self.W_enc, "W_dec": self.W_dec}
        return {**super().folded_tensors(), "log_threshold": self.log_threshold, **weights}


@torch.no_grad()
def thresholded(
    sae: SAE,
    W_enc: Float[Tensor, "D F"] | None = None,
    b_enc: Float[Tensor, "F"] | None = None,
    threshold: Float[Tensor, "F"] | None = None,
) -> JumpReLU:
    """Return an SAE that fires above thresholds as a JumpReLU, in float64: z = y where y > threshold, else 0.

    y are its pre-activations and `threshold` its `thresholds()` unless others are given, in float64. b_dec is moved into
    the encoder's bias where the SAE subtracts it from x."""
    W_enc = sae.W_enc.double() if W_enc is None else W_enc
    b_enc = sae.b_enc.double() if b_enc is None else b_enc
    threshold = sae.thresholds().double() if threshold is None else threshold
    b_dec = sae.b_dec.double()
    tensors = {
        "W_enc": W_enc,
        "b_enc": b_enc - b_dec @ W_enc if sae.pre_bias else b_enc,
        "W_dec": sae.W_dec.double(),
        "b_dec": b_dec,
        "log_threshold": threshold.log(),
    }
    return JumpReLU.from_tensors(JumpReLUConfig(sae.d_sae), tensors)


def jump(y: Float[Tensor, "nnz"], threshold: Float[Tensor, "nnz"], bandwidth: float) -> Float[Tensor, "nnz"]:
    """Return y where y > threshold, else 0. Its derivative by y is 1 or 0 in the same places; by the threshold it is that of
    the jump smoothed by a rectangle: -threshold / bandwidth within half a bandwidth, else 0 (eq. 11)."""
    return _Jump.apply(y, threshold, bandwidth)


def step(y: Float[Tensor, "nnz"], threshold: Float[Tensor, "nnz"], bandwidth: float) -> Float[Tensor, "nnz"]:
    """Return 1 where y > threshold, else 0. Its derivative by the threshold is -1 / bandwidth within half a bandwidth, else 0
    (eq. 12); it has none by y. y is the pre-activation, so that both sides of the threshold count."""
    return _Step.apply(y, threshold, bandwidth)


def _near(y: Tensor, threshold: Tensor, bandwidth: float) -> Bool[Tensor, "nnz"]:
    return (y - threshold).abs() < bandwidth / 2


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(y, threshold)
        ctx.bandwidth = bandwidth
        return y * (y > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        y, threshold = ctx.saved_tensors
        (grad,) = grads
        slope = -threshold / ctx.bandwidth * _near(y, threshold, ctx.bandwidth)
        return grad * (y > threshold), grad * slope, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(_near(y, threshold, bandwidth))
        ctx.bandwidth = bandwidth
        return (y > threshold).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (near,) = ctx.saved_tensors
        (grad,) = grads
        return None, grad * near / -ctx.bandwidth, None
