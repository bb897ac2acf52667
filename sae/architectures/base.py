"""SAE, the class of every architecture: one convention for weights, encode for users, loss for training, a few hooks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Required, TypedDict, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from activations.errors import ConfigError, ShapeError
from sae import kernels
from sae.architectures.config import ArchConfig, EncoderCost
from sae.code import SparseCode

S = TypeVar("S", bound="SAE")


class Loss(NamedTuple):
    """The loss of one batch, and what is logged of it."""

    total: Float[Tensor, ""]
    """The scalar to minimise."""
    terms: dict[str, Tensor]
    """Scalars to log, detached, by name: `fvu` and `l0` always, and the parts of the total."""
    fired: Bool[Tensor, "F"]
    """Whether each latent took part in the reconstruction of at least one row."""

    def plus(self, total: Float[Tensor, ""], terms: dict[str, Tensor]) -> "Loss":
        """Return this loss with a summand and terms to log added."""
        return self._replace(total=self.total + total, terms={**self.terms, **terms})


class Firing(NamedTuple):
    """The distance of some latents from firing, on each row."""

    pre_activation: Float[Tensor, "B n"]
    """The number that decides whether each fires (`SAE.dense_pre_activations`)."""
    needed: Float[Tensor, "B n"]
    """The number that the pre-activation has to exceed, in size where latents are signed, if all others stay as they are."""
    margin: Float[Tensor, "B n"]
    """The excess over `needed`: above 0 where the latent fires, below 0 where it does not. It is 0 where two latents tie for
    the last place of a row; the architecture keeps one of them, or both."""


class ParameterGroup(TypedDict, total=False):
    """A group of torch's optimizers: parameters that are clipped together, and settings that differ from the optimizer's."""

    params: Required[list[nn.Parameter]]
    lr_scale: float
    """Factor of the learning rate."""
    betas: tuple[float, float]
    eps: float


class SAE(ABC, nn.Module):
    """A sparse autoencoder over activations of width D with F latents.

    Parameters, in memory and on disk: W_enc [D, F], W_dec [F, D] (a row is a feature), b_enc [F], b_dec [D].
    `encode` is pure and treats each row independently; whatever needs a batch, or learns, is in `loss`.

    An architecture names its `config`, and implements `_encode` and `loss`. It may override the hooks, which are called
    in this order: `make_decoder`, `make_encoder` and `make_rule` when it is built; `parameter_groups` for the optimizer;
    `initialise` once before the first step, and `fit_labels` if it reads labels; then in each step
    `begin_step` (warm-ups and stages), `loss` and `label_loss`, backward, optimizer, `after_step` (restore what the
    optimizer's step broke). A tensor that the optimizer must not change is a buffer. `in_activation_units` names the tensors
    in the units of x, `per_activation_unit` those in the units of 1 / x, so that input scaling can be folded into them."""

    config: ClassVar[type[ArchConfig]]
    """The class of its settings, which also says what is true of the architecture without any weights."""
    in_activation_units: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")
    per_activation_unit: ClassVar[tuple[str, ...]] = ()
    pre_bias: ClassVar[bool] = True
    """Whether b_dec is subtracted from x before the encoder reads it."""
    unit_norm_decoder: bool = True
    """Whether the optimizer keeps decoder rows at norm 1, with gradients tangent to them: the component along a row would
    only change its norm."""
    start_is_small: bool = True
    """Whether training starts from an FVU of at most 1. From reconstructions that are too large learning is slow, because
    the size of Adam's steps does not depend on the error. A method that starts otherwise says why."""
    signed: ClassVar[bool] = False
    """Whether latents are selected by the size of their pre-activation and fire with its sign."""

    W_dec: Float[Tensor, "F D"]
    b_dec: Float[Tensor, "D"]
    W_enc: Float[Tensor, "D F"]
    b_enc: Float[Tensor, "F"]

    def __init__(self, d_model: int, cfg: ArchConfig | None = None, *, seed: int | None = 0, **settings: Any):
        """Build from a configuration, or from its fields as keywords: TopK(d_model=576, d_sae=8192, k=32).

        Initialised around 0, the same for the same seed; with seed=None parameters are left at 0, for weights that are
        loaded next. Raises ConfigError for a setting out of range, or when the SAE does not fit into memory."""
        super().__init__()
        if cfg is not None and (settings or not isinstance(cfg, self.config)):
            raise TypeError(f"{type(self).__name__} takes a {self.config.__name__} or its fields, not both")
        self.cfg = self.config(**settings) if cfg is None else cfg
        try:
            for make in (self.make_decoder, self.make_encoder, self.make_rule):
                make(d_model)
        except (RuntimeError, MemoryError, OverflowError) as error:  # torch on the CPU has no class for this
            size = 4 * 2 * self.cfg.d_sae * d_model / 1e9
            raise ConfigError(
                f"d_sae = {self.cfg.d_sae} over activations of width {d_model} takes {size:,.3g} GB for the weights alone, "
                f"which memory does not hold: choose fewer latents (sae plan train says what fits)"
            ) from error
        if seed is not None:
            centre = torch.zeros(d_model)
            self.initialise(centre[None], centre, torch.Generator().manual_seed(seed))

    @classmethod
    def from_tensors(cls: type[S], cfg: ArchConfig, tensors: Mapping[str, Tensor]) -> S:
        """Return an SAE of these tensors, in float64 and without gradients; buffers left out are as in a new one."""
        sae = cls(tensors["W_dec"].shape[1], cfg, seed=None).double()
        sae.load_state_dict({**sae.state_dict(), **tensors})
        return sae.requires_grad_(False)

    def make_decoder(self, d_model: int) -> None:
        """Create W_dec and b_dec. Here they are parameters; where they follow from other parameters, they are buffers."""
        self.W_dec = nn.Parameter(torch.zeros(self.cfg.d_sae, d_model))
        self.b_dec = nn.Parameter(torch.zeros(d_model))

    def make_encoder(self, d_model: int) -> None:
        """Create the encoder's parameters. Here W_enc and b_enc; a factorised or tied encoder has others."""
        # Shape [D, F], memory order [F, D]: the gradient of a sparse code writes whole latents, so one latent's weights
        # lie together in memory.
        self.W_enc = nn.Parameter(torch.zeros(self.d_sae, d_model).T)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))

    def make_rule(self, d_model: int) -> None:
        """Create the buffers and numbers that the rule needs and that follow from the settings. By default it needs none."""

    @property
    def d_model(self) -> int:
        """The width D of the activations that it reads."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """The number F of latents."""
        return self.W_dec.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the weights; the caller moves rows there."""
        return self.W_dec.device

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Return the reconstruction of x, in its shape."""
        return self.decode(self.encode(x)).view_as(x)

    def encode(self, x: Float[Tensor, "*rows D"]) -> SparseCode:
        """Return the code of every row of x, with leading axes flattened. Pure; a row's code depends on that row alone.

        Raises ShapeError unless the last axis has width D."""
        if x.shape[-1] != self.d_model:
            raise ShapeError(
                f"activations have shape {tuple(x.shape)} and this SAE reads width {self.d_model}: "
                f"take them from the hook point that it was trained on"
            )
        return self._encode(x.reshape(-1, self.d_model))

    def decode(self, code: SparseCode) -> Float[Tensor, "B D"]:
        """Return the sum of decoder rows weighted by the code, plus b_dec. Raises ShapeError for a code of another F."""
        if code.n_latents != self.d_sae:
            raise ShapeError(f"the code has {code.n_latents} latents and this SAE has {self.d_sae}")
        return kernels.decode(code, self.decoder_rows()).add_(self.b_dec)  # in place: rows are many

    def decoder_rows(self) -> Float[Tensor, "F D"]:
        """Return W_dec as what training changes: where it is a buffer, with the gradient of the weights that it follows from."""
        return self.W_dec

    @abstractmethod
    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode: ...

    @abstractmethod
    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return the loss of reconstructing y from x, which are the same tensor for an autoencoder.

        `dead` marks latents that have been silent for longer than the trainer's threshold. x comes scaled to unit mean
        square per dimension where the trainer scales inputs. In training mode this may update buffers."""

    def training_code(self, x: Float[Tensor, "B D"]) -> SparseCode:
        """Return the code that `loss` reconstructs from. Pure; it differs from `encode`'s where training looks at the whole
        batch."""
        return self._encode(x)

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "n D"], centre: Float[Tensor, "D"], generator: torch.Generator
    ) -> None:
        """Set all parameters before training, from a sample of inputs and its geometric median. Runs on the CPU."""
        tied_init(self, generator)
        self.b_dec.copy_(centre)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return what the optimizer trains, as torch's parameter groups; `lr_scale` multiplies the learning rate.

        A group may have betas and eps of its own. The gradient of each group is clipped by its own norm. Here one group
        of every parameter."""
        return [{"params": list(self.parameters())}]

    def fit_labels(self, x: Float[Tensor, "n D"], labels: Float[Tensor, "n"]) -> None:
        """Learn from a sample of inputs and their labels, NaN for none, before training. Runs on the CPU. By default it does nothing.

        Raises ConfigError for labels it cannot learn from."""

    def label_loss(
        self, x: Float[Tensor, "B D"], labels: Float[Tensor, "B"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return what a batch's labels, NaN for none, add to the loss's total and terms. By default it does nothing.

        Called after `loss`, on the same x, for architectures that read labels."""
        return x.new_zeros(()), {}

    def begin_step(self, step: int, steps: int) -> None:
        """Note that step `step`, of 0 to steps - 1, begins: for warm-ups and stages. By default it does nothing.

        Whatever this sets follows from the step alone, so that checkpoints need not hold it."""

    def after_step(self, step: int, steps: int) -> None:
        """Update, after the optimizer, what follows from the parameters or is learned without gradients.

        `step` is the step that ends, of 0 to steps - 1; training end to end counts its own here, where `begin_step` is told
        the last. By default it does nothing."""

    def refresh(self) -> None:
        """Recompute buffers that follow from the parameters alone, after these were set from outside.

        By default it does nothing."""

    def pre_activations(self, x: Float[Tensor, "B D"]) -> kernels.Projection:
        """Return (x - b_dec) W_enc + b_enc: dense to select from, sparse to differentiate. Without `pre_bias`, x W_enc + b_enc."""
        return kernels.project(x, self.W_enc, self.b_enc, self.b_dec if self.pre_bias else None)

    def activations_of(self, x: Float[Tensor, "B D"], latents: Int[Tensor, "n"]) -> Float[Tensor, "B n"]:
        """Return the values of these latents if all of them were selected: relu of their pre-activations. AuxK uses it.

        A latent whose pre-activation is negative on every row therefore gets no gradient from AuxK."""
        return self.pre_activations(x).of(latents).relu()

    def dense_pre_activations(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        """Return the numbers u that decide which latents fire on each row. Here the pre-activations.

        A number added to a latent's encoder bias is added to its u unchanged."""
        return self.pre_activations(x).dense

    def kept_per_row(self, x: Float[Tensor, "B D"], u: Float[Tensor, "B F"]) -> Int[Tensor, "B"] | None:
        """Return how many latents each row keeps, where they are selected by rank. Here None: all above `thresholds`."""
        return None

    def thresholds(self) -> Float[Tensor, "F"]:
        """Return what each latent's u has to exceed, whatever the other latents do. Here 0."""
        return torch.zeros(self.d_sae, device=self.device)

    @torch.no_grad()
    def firing(self, x: Float[Tensor, "B D"], latents: Int[Tensor, "n"]) -> Firing:
        """Return how far these latents are from firing on each row, in the units of their u."""
        u = self.dense_pre_activations(x)
        return self.firing_of(u, self.kept_per_row(x, u), latents)

    def firing_of(
        self, u: Float[Tensor, "B F"], k_per_row: Int[Tensor, "B"] | None, latents: Int[Tensor, "n"]
    ) -> Firing:
        """Return `firing` from the `dense_pre_activations` and `kept_per_row` of the rows."""
        level = u.abs() if self.signed else u
        own = level[:, latents]
        needed = self.thresholds()[latents].expand_as(own)
        if k_per_row is not None:
            needed = torch.maximum(needed, to_be_among(level, k_per_row, own))
        return Firing(u[:, latents], needed, own - needed)

    def encoder_cost(self) -> EncoderCost:
        """Return the encoder's parameters and its FLOPs per token. Here the 2 D F of the dense product.

        Biases, activation functions and the selection of latents are not counted as operations. Decoding costs 2 L0 D more
        for every architecture."""
        parameters = sum(p.numel() for name, p in self.named_parameters() if name not in ("W_dec", "b_dec"))
        return EncoderCost(parameters, 2 * self.d_model * self.d_sae)

    def encoder_directions(self) -> Float[Tensor, "F D"]:
        """Return the direction of x that each latent reads. Its length has no meaning."""
        return self.W_enc.T

    def encoder_bias(self) -> Float[Tensor, "F"] | None:
        """Return the number added to each latent's pre-activation, or None where latents have none."""
        return self.b_enc

    def simpler(self) -> "SAE | None":
        """Return an SAE of a simpler architecture that computes the same in use, in float64; None if there is none.

        File formats that lack this architecture's rule hold the simpler one. Its latents are the same ones, in the
        same order; where this SAE's are signed there may be two for each, of which the second fires on negative values."""
        return None

    @torch.no_grad()
    def shift_pre_activations(self, shift: Float[Tensor, "F"]) -> None:
        """Add a constant to what each latent reads off x, in place."""
        self.b_enc.add_(shift)

    @torch.no_grad()
    def multiply_latents(self, factors: Float[Tensor, "F"]) -> None:
        """Multiply each latent's value, and its own threshold if it has one, by a positive number, in place."""
        self.W_enc.mul_(factors)
        self.b_enc.mul_(factors)

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """Turn an SAE that reads scale * x into the same function of raw x, in place.

        Latents and reconstructions are then divided by `scale`, so that they are in the units of x; W_enc, W_dec and
        which latents fire do not change. Exact for encoders that are homogeneous of degree 1, as all here are."""
        for name in self.in_activation_units:
            getattr(self, name).div_(scale)
        for name in self.per_activation_unit:
            getattr(self, name).mul_(scale)

    def fold_decoder_norms(self) -> None:
        """Divide decoder rows by their norms and multiply latents by them, in place: the reconstruction stays.

        By default it does nothing: rows have norm 1 already, or which latents fire depends on their norms."""

    def folded_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the two foldings change, by name: a checkpoint keeps them as training has them."""
        return {name: getattr(self, name) for name in (*self.in_activation_units, *self.per_activation_unit)}


def tied_init(sae: SAE, generator: torch.Generator) -> None:
    """Draw the encoder from U(±1/sqrt D); make the decoder its transpose with unit rows.

    As in openai/sparse_autoencoder 4965b94, model.py. Their train.py then divides the encoder by the SAE's `gain` and notes
    no clear benefit. Here the encoder is not divided where latents are selected by rank: its weights are then half as large,
    Adam's steps, whose size is given, lead further, and a short run on the demo's activations ends with a sixth less error
    (LOG.md)."""
    bound = sae.d_model**-0.5
    rows = torch.empty_like(sae.W_dec).uniform_(-bound, bound, generator=generator)
    sae.W_enc.copy_(rows.T)
    sae.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))


def to_be_among(
    level: Float[Tensor, "B F"], k: Int[Tensor, "B"], own: Float[Tensor, "B n"]
) -> Float[Tensor, "B n"]:
    """Return what each of `own`, entries of a row of `level`, has to exceed to be among the row's k[b] largest.

    That is the k-th largest of the row's other entries, which stay as they are; -inf where there are fewer than k."""
    most = min(int(k.max()) + 1, level.shape[1])
    largest = torch.nn.functional.pad(level.topk(most, dim=1).values, (0, 1), value=-torch.inf)
    last, next_ = (largest.gather(1, (k + place).clamp_max(most)[:, None]) for place in (-1, 0))
    return torch.where(own >= last, next_, last)
