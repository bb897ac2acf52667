"""What an architecture is: one weight convention, encode for users, loss for training, a few small hooks."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae import kernels, losses
from sae.code import SparseCode
from sae.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class ArchConfig:
    """What every architecture has; each adds its own fields."""

    d_sae: int = 8192
    """Latents in the dictionary (its width, F)."""

    def __post_init__(self) -> None:
        if self.d_sae < 1:
            raise ConfigError(f"d_sae = {self.d_sae} must be at least 1")


class Loss(NamedTuple):
    """What one batch says."""

    total: Float[Tensor, ""]
    """The scalar to minimise."""
    terms: dict[str, Tensor]
    """Scalars to log, detached: `fvu` and `l0` always, the parts of the total by name."""
    fired: Bool[Tensor, "F"]
    """Latents that took part in the reconstruction of some row."""


class SAE(ABC, nn.Module):
    """A sparse autoencoder over activations of width D with F latents.

    Parameters, in memory and on disk: W_enc [D, F], W_dec [F, D] (a row is a feature), b_enc [F], b_dec [D].
    `encode` is pure and treats every row alone; whatever needs a batch, or learns, is in `loss`.

    An architecture implements `_encode` and `loss`. It may override the hooks, which the trainer calls in
    this order: `make_encoder` when it is built; `parameter_groups` for the optimizer; `initialise` once
    before the first step; then in each step `begin_step` (warm-ups and stages), `loss`, backward,
    `before_step` (mend gradients), optimizer, `after_step` (mend parameters). What the optimizer is not to
    touch is a buffer. Tensors in the units of x, beyond b_enc and b_dec, are named in `in_activation_units`,
    so that input scaling can be folded into them."""

    in_activation_units: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")
    pre_bias: ClassVar[bool] = True
    """Whether b_dec is taken off x before the encoder reads it."""
    unit_norm_decoder: bool = True
    """Whether decoder rows are held at norm 1, with gradients tangent to them."""

    W_enc: Float[Tensor, "D F"]
    b_enc: Float[Tensor, "F"]

    def __init__(self, d_model: int, cfg: ArchConfig):
        super().__init__()
        self.cfg = cfg
        self.W_dec = nn.Parameter(torch.zeros(cfg.d_sae, d_model))
        self.b_dec = nn.Parameter(torch.zeros(d_model))
        self.make_encoder(d_model)

    def make_encoder(self, d_model: int) -> None:
        """Create the encoder's parameters: here W_enc and b_enc. One that is factorised or tied has others."""
        # [D, F] by shape, [F, D] in memory: one latent's weights lie together, where its gradient writes them
        self.W_enc = nn.Parameter(torch.zeros(self.d_sae, d_model).T)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    @property
    def d_model(self) -> int:
        """D, the width of the activations it reads."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """F, the number of latents."""
        return self.W_dec.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are; rows are brought there by whoever calls."""
        return self.W_dec.device

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Reconstruction of x, of the same shape."""
        return self.decode(self.encode(x)).view_as(x)

    def encode(self, x: Float[Tensor, "*rows D"]) -> SparseCode:
        """The code of every row of x, leading axes flattened into rows. Pure; row i depends on row i alone.

        Raises ShapeError unless the last axis has width D."""
        if x.shape[-1] != self.d_model:
            raise ShapeError(
                f"activations of shape {tuple(x.shape)} given, this SAE reads width {self.d_model}: "
                f"take them from the hook point it was trained on"
            )
        return self._encode(x.reshape(-1, self.d_model))

    def decode(self, code: SparseCode) -> Float[Tensor, "B D"]:
        """Reconstruction: decoder rows weighted by the code, plus b_dec. Raises ShapeError on another F."""
        if code.n_latents != self.d_sae:
            raise ShapeError(f"a code of {code.n_latents} latents given, this SAE has {self.d_sae}")
        return kernels.decode(code, self.W_dec) + self.b_dec

    @abstractmethod
    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode: ...

    @abstractmethod
    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Loss of reconstructing y from x (the same tensor for an autoencoder).

        `dead` marks latents silent for longer than the trainer's threshold. x is what the trainer feeds:
        scaled to unit mean square per dimension when it scales inputs. In training mode this may move buffers."""

    def training_code(self, x: Float[Tensor, "B D"]) -> SparseCode:
        """The code `loss` reconstructs from; pure. `encode`'s, unless the rule of training looks at the whole batch."""
        return self._encode(x)

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "n D"], centre: Float[Tensor, "D"], generator: torch.Generator
    ) -> None:
        """Set all parameters before training, given a sample of inputs and its geometric median; on the CPU."""
        tied_init(self, generator)
        self.b_dec.copy_(centre)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer owns, as torch's parameter groups; `lr_scale` multiplies the learning rate.

        A group may also set betas, eps and weight_decay of its own. Here: every parameter, one group."""
        return [{"params": list(self.parameters())}]

    def begin_step(self, step: int, steps: int) -> None:
        """Before the loss of step 0 ... steps - 1: where training stands, for warm-ups and stages. Here nothing.

        What it sets follows from the step alone, so that a resumed run needs nothing saved."""

    def before_step(self) -> None:
        """Between backward and the optimizer: here, keep the gradient tangent to unit-norm decoder rows."""
        if self.unit_norm_decoder:
            drop_radial_gradient(self.W_dec)

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimizer: here, bring every decoder row back to unit norm."""
        if not self.unit_norm_decoder:
            return
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.W_dec.dtype).tiny))

    def pre_activations(self, x: Float[Tensor, "B D"]) -> kernels.Projection:
        """(x - b_dec) W_enc + b_enc, dense to choose from, sparse to differentiate; without `pre_bias` x as it is."""
        return kernels.project(x - self.b_dec if self.pre_bias else x, self.W_enc, self.b_enc)

    def encoder_directions(self) -> Float[Tensor, "F D"]:
        """The direction of x that each latent listens to; its length is not given a meaning."""
        return self.W_enc.T

    def encoder_bias(self) -> Float[Tensor, "F"] | None:
        """What is added to each latent's pre-activation, or None where there is no such number."""
        return self.b_enc

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """Turn an SAE that reads scale * x into the same function of raw x, in place.

        Latents and reconstruction come out divided by `scale`, i.e. in the units of x; W_enc, W_dec and which
        latents fire stay. Exact for encoders that are homogeneous of degree 1, which all here are."""
        for name in self.in_activation_units:
            getattr(self, name).div_(scale)

    def fold_decoder_norms(self) -> None:
        """Bring decoder rows to norm 1 and let latents carry the norms, in place: the same reconstruction.

        Here nothing: rows have norm 1, or which latents fire depends on the norms they have."""

    def folded_tensors(self) -> dict[str, Tensor]:
        """What the two foldings change, by name: a checkpoint keeps these as training has them."""
        return {name: getattr(self, name) for name in self.in_activation_units}


def tied_init(sae: SAE, generator: torch.Generator) -> None:
    """Encoder U(±1/sqrt D); decoder its transpose with unit rows; then the encoder divided by one number.

    The number is the mean norm of the reconstruction of 256 random unit vectors, so that outputs begin at
    the size of inputs. openai/sparse_autoencoder 4965b94, train.py `init_from_data_`."""
    bound = sae.d_model**-0.5
    rows = torch.empty_like(sae.W_dec).uniform_(-bound, bound, generator=generator)
    sae.W_enc.copy_(rows.T)
    sae.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
    sae.W_enc.div_(reconstruction_size(sae, generator))


def reconstruction_size(sae: SAE, generator: torch.Generator) -> Float[Tensor, ""]:
    """Mean norm of the reconstruction of 256 random unit vectors, biases at 0; 1 where nothing fires."""
    probe = torch.randn(256, sae.d_model, generator=generator)
    probe /= probe.norm(dim=1, keepdim=True)
    size = sae.decode(sae.training_code(probe + sae.b_dec)).sub(sae.b_dec).norm(dim=1).mean()
    return size if size > 0 else torch.ones(())


def start_centred(sae: SAE, centre: Float[Tensor, "D"]) -> None:
    """Without `pre_bias`: biases with which latents first see x - centre, as where b_dec is taken off x.

    With a centre of 0 they are 0, as in the papers; activations of language models are far from centred."""
    sae.b_dec.copy_(centre)
    sae.b_enc.copy_(-(centre @ sae.W_enc))


def move_norms(sae: SAE) -> Float[Tensor, "F"]:
    """Divide decoder rows by their norms, multiply W_enc and b_enc by them, in place; returns the norms."""
    norms = sae.W_dec.norm(dim=1).clamp_min(torch.finfo(sae.W_dec.dtype).tiny)
    sae.W_dec.div_(norms[:, None])
    sae.W_enc.mul_(norms)
    sae.b_enc.mul_(norms)
    return norms


def warmed(step: int, steps: int, share: float) -> float:
    """Linear warm-up: 0 at step 0, 1 from the step on that ends this share of all steps; 1 when share is 0."""
    return min(1.0, step / (share * steps)) if share > 0 else 1.0


def drop_radial_gradient(W_dec: nn.Parameter) -> None:
    """Remove from each row's gradient its component along the row: it would only change the norm."""
    if W_dec.grad is not None:
        rows = W_dec.detach()
        W_dec.grad -= (W_dec.grad * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True) * rows


def auxk_term(sae: SAE, x: Tensor, residual: Tensor, dead: Tensor, k: int | None) -> Float[Tensor, ""]:
    """`losses.auxk` of an SAE's dead latents; 0 when none is dead. k defaults to D / 2 (appendix B.1)."""
    chosen = dead.nonzero()[:, 0]
    if not len(chosen):
        return residual.new_zeros(())
    u = (x - sae.b_dec) @ sae.W_enc[:, chosen] + sae.b_enc[chosen]
    return losses.auxk(u, sae.W_dec[chosen], residual, k or max(1, sae.d_model // 2))


def check_k(k: float, cfg: ArchConfig) -> None:
    """Raise ConfigError unless 0 < k <= d_sae."""
    if not 0 < k <= cfg.d_sae:
        raise ConfigError(f"k = {k} must lie between 1 and d_sae = {cfg.d_sae}")


def check_share(name: str, value: float) -> None:
    """Raise ConfigError unless the setting lies between 0 and 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} = {value} must lie between 0 and 1")


def check_at_least_0(name: str, value: float) -> None:
    """Raise ConfigError when the setting is negative or not finite."""
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} = {value} must be a number of at least 0")


def reconstruction_loss(sae: SAE, x: Tensor, y: Tensor, dead: Tensor, code: SparseCode, cfg: Any) -> Loss:
    """FVU of the code's reconstruction plus `cfg.aux_weight` times AuxK: the loss of the TopK family."""
    y_hat = sae.decode(code)
    reconstruction = losses.fvu(y, y_hat)
    aux = auxk_term(sae, x, y - y_hat, dead, cfg.aux_k)
    terms = {"fvu": reconstruction, "auxk": aux, "l0": code.l0().float().mean()}
    return Loss(
        reconstruction + cfg.aux_weight * aux, {n: t.detach() for n, t in terms.items()}, code.fired()
    )


def penalised_loss(
    y: Tensor, y_hat: Tensor, code: SparseCode, penalties: dict[str, tuple[float, Tensor]]
) -> Loss:
    """Squared error plus weighted penalties, by name: the loss of the methods that put a price on sparsity."""
    error = losses.squared_error(y, y_hat)
    total = error + sum(weight * term for weight, term in penalties.values())
    terms = {"fvu": losses.fvu(y, y_hat.detach()), "l0": code.l0().float().mean(), "squared_error": error}
    terms |= {name: term for name, (_, term) in penalties.items()}
    return Loss(total, {name: term.detach() for name, term in terms.items()}, code.fired())
