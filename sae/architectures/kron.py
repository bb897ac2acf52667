"""KronSAE: latents as ANDs of a few factors, so that a wide dictionary has a narrow encoder.

"Train Sparse Autoencoders Efficiently by Utilizing Features Correlation", arXiv:2505.22255v3."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from activations.errors import ConfigError
from sae import kernels
from sae.architectures.base import SAE, Loss
from sae.architectures.config import ArchConfig, EncoderCost, ExpectedL0, Selects, TrainingCost
from sae.architectures.shared import check_k, check_threshold_rate, follow_smallest, reconstruction_loss
from sae.code import SparseCode


@dataclass(frozen=True)
class KronConfig(ArchConfig):
    """KronSAE: latents are pairwise ANDs of factors, so that the encoder is smaller and cheaper than the dictionary."""

    name = "kron"
    rule = "its latents are square roots of products of two pre-activations"
    revives_dead = True

    advice = (
        "Its paper has dictionaries of 14 to 85 times the activations' width. In narrower ones, and in runs "
        "of minutes, a topk of fewer latents has the same error for the same encoder cost. Keep m = 2 and n = "
        "4: with m = n = 4 the encoder costs a third less and the error is higher."
    )

    k: int = 32
    """Latents kept per token; on average with batchtopk. The paper trains with 50."""
    m: int = 2
    """Factors of a head's first group. The paper's advice: the smallest m, as many heads as possible."""
    n: int = 4
    """Factors of a head's second group; a head has m * n latents, and m = n = 2 saves nothing."""
    select: Literal["topk", "batchtopk"] = "topk"
    """topk: k of each token. batchtopk: B * k of the batch in training, a threshold in use."""
    aux_k: int | None = None
    """Dead latents that AuxK lets explain the residual; half the activation width when left out."""
    aux_weight: float = 1 / 32
    """Weight of AuxK (section 4)."""
    threshold_rate: float = 0.01
    """Weight of each batch's smallest kept value in the running threshold of inference (batchtopk only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self)
        check_threshold_rate(self.threshold_rate)
        if self.m < 1 or self.n < 1:
            raise ConfigError(f"m = {self.m} and n = {self.n} must be at least 1")
        latents = self.m * self.n
        if self.d_sae % latents:
            below, above = self.d_sae // latents * latents, (self.d_sae // latents + 1) * latents
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ConfigError(
                f"d_sae = {self.d_sae} is not a multiple of m * n = {latents}, the latents of a head: "
                f"the nearest would be {nearest}"
            )

    def selects(self) -> Selects:
        """Return by rank, or above one threshold where training selects per batch."""
        return Selects.BY_RANK if self.select == "topk" else Selects.ABOVE_ONE_THRESHOLD

    def expected_l0(self) -> ExpectedL0:
        """Return k."""
        return ExpectedL0(self.k)

    def training_cost(self) -> TrainingCost:
        """Return a selection among ANDs that are never all held, or among the batch's; a gradient for either factor."""
        if self.select == "batchtopk":
            return TrainingCost("batch", passes=2, held=3, reads=5)
        return TrainingCost("ands", held=(self.m + self.n) / (self.m * self.n), reads=5)

    @property
    def heads(self) -> int:
        """h, the number of heads."""
        return self.d_sae // (self.m * self.n)


class Ands(NamedTuple):
    """All latents of some rows: dense to select from, sparse to differentiate; no [B, F] tensor is in the graph."""

    u: kernels.Projection
    """Pre-activations of the first groups, [B, h m]."""
    v: kernels.Projection
    """Pre-activations of the second groups, [B, h n]."""
    cfg: KronConfig

    @torch.no_grad()
    def dense(self) -> Float[Tensor, "B F"]:
        """Return every latent, without gradients: each head's outer product of square roots."""
        p, q = (side.dense.relu().sqrt().unflatten(1, (self.cfg.heads, -1)) for side in (self.u, self.v))
        return (p[:, :, :, None] * q[:, :, None, :]).flatten(1)

    def keep(self, pattern: kernels.Pattern) -> SparseCode:
        """Return the selected latents; gradients flow through their own two factors alone."""
        left, right = factors_of(pattern.indices, self.cfg)
        u = self.u.keep(kernels.Pattern(left, pattern.offsets)).values
        v = self.v.keep(kernels.Pattern(right, pattern.offsets)).values
        return SparseCode(mand(u, v), *pattern, self.cfg.d_sae)


@final
class KronSAE(SAE):
    """u = (x - b_dec) P + b_P, v = (x - b_dec) Q + b_Q; latent (k m + i) n + j is mAND(u_ki, v_kj), k the head.

    mAND is the geometric mean of two positive numbers and 0 otherwise: a latent is on when both factors are. TopK or
    BatchTopK over all F latents follows, and a decoder like any other. The parameters in place of W_enc and b_enc are P [D, h m], Q [D, h n], b_P [h m], b_Q [h n], columns by head. The paper does not subtract b_dec from
    x; the biases can undo that, so the functions are the same. A latent is exactly 0 when it is off, where the
    paper's listing has sqrt(1e-5); L0 <= k.

    The paper trains with AdamW at 8e-4, cosine decay to 1e-6, a tenth of linear warm-up, batches of 8192, and an
    unnamed weight decay. Here all architectures use the trainer's Adam, without decay."""

    cfg: KronConfig
    config = KronConfig
    in_activation_units = ("b_P", "b_Q", "b_dec", "threshold")
    threshold: Float[Tensor, ""]

    def make_rule(self, d_model: int) -> None:
        """Create the running threshold of selection per batch."""
        self.register_buffer("threshold", torch.zeros(()))

    def make_encoder(self, d_model: int) -> None:
        """Create P, Q and their biases. As in W_enc, one factor's weights are contiguous in memory."""
        heads, m, n = self.cfg.heads, self.cfg.m, self.cfg.n
        self.P = nn.Parameter(torch.zeros(heads * m, d_model).T)
        self.Q = nn.Parameter(torch.zeros(heads * n, d_model).T)
        self.b_P = nn.Parameter(torch.zeros(heads * m))
        self.b_Q = nn.Parameter(torch.zeros(heads * n))

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "N D"], centre: Float[Tensor, "D"], generator: torch.Generator
    ) -> None:
        """Draw P and Q from N(0, 1 / 2F); the decoder row of (k, i, j) is the unit vector along P_ki + Q_kj (appendix H).

        Columns start at norm sqrt(D / 2F). They are not divided by the SAE's gain: that would make them five to nine times as
        long and the first reconstructions twice too large, and a short run would end with an eighth more error."""
        for factor in (self.P, self.Q):
            drawn = torch.randn(factor.T.shape, generator=generator)
            factor.copy_(drawn.T * (2 * self.d_sae) ** -0.5)
        rows = self.encoder_directions()
        self.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
        self.b_dec.copy_(centre)

    def ands(self, x: Float[Tensor, "B D"]) -> Ands:
        """Return all latents of x, before any is selected."""
        u = kernels.project(x, self.P, self.b_P, self.b_dec)
        v = kernels.project(x, self.Q, self.b_Q, self.b_dec)
        return Ands(u, v, self.cfg)

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        ands = self.ands(x)
        if self.cfg.select == "batchtopk":
            return ands.keep(kernels.where(ands.dense() > self.threshold))
        return ands.keep(kernels.largest_ands(ands.u, ands.v, self.cfg.heads, self.cfg.k))

    def dense_pre_activations(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        """Return each latent where both factors are positive, else the lower of the two, which keeps the latent off."""
        ands = self.ands(x)
        u, v = (side.dense.unflatten(1, (self.cfg.heads, -1)) for side in (ands.u, ands.v))
        lower = torch.minimum(u[:, :, :, None], v[:, :, None, :]).flatten(1)
        return torch.where(lower > 0, ands.dense(), lower)

    def kept_per_row(self, x: Float[Tensor, "B D"], u: Float[Tensor, "B F"]) -> Int[Tensor, "B"] | None:
        """Return k for every row, or None with batchtopk, where the threshold decides."""
        if self.cfg.select == "batchtopk":
            return None
        return torch.full((len(x),), self.cfg.k, device=x.device)

    def thresholds(self) -> Float[Tensor, "F"]:
        """Return one threshold for all latents; it is 0 where latents are selected per token."""
        return self.threshold.expand(self.d_sae)

    def training_code(self, x: Float[Tensor, "B D"]) -> SparseCode:
        """Return the B k largest latents of the batch, or with topk `encode`'s code."""
        if self.cfg.select == "topk":
            return self._encode(x)
        ands = self.ands(x)
        return ands.keep(kernels.largest_of_batch(ands.dense(), self.cfg.k))

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return FVU + aux_weight * AuxK of the training code. With batchtopk, in training mode, the threshold follows it."""
        code = self.training_code(x)
        if self.training and self.cfg.select == "batchtopk":
            follow_smallest(self.threshold, code.values, self.cfg.threshold_rate)
        return reconstruction_loss(self, x, y, dead, code, self.cfg)

    def activations_of(self, x: Float[Tensor, "B D"], latents: Int[Tensor, "n"]) -> Float[Tensor, "B n"]:
        """Return mAND of these latents' factors. AuxK therefore moves factors that live latents of the head share."""
        centred, (left, right) = x - self.b_dec, factors_of(latents, self.cfg)
        u = (centred @ self.P + self.b_P)[:, left]
        v = (centred @ self.Q + self.b_Q)[:, right]
        return mand(u, v)

    def encoder_cost(self) -> EncoderCost:
        """Return h (m + n) (D + 1) parameters and FLOPs of 2 (D h (m + n) + m n h): two products, and one for each latent."""
        factors = self.cfg.heads * (self.cfg.m + self.cfg.n)
        return EncoderCost(super().encoder_cost().parameters, 2 * (self.d_model * factors + self.d_sae))

    def encoder_directions(self) -> Float[Tensor, "F D"]:
        """Return the sum of each latent's two factors' directions."""
        left, right = factors_of(torch.arange(self.d_sae, device=self.device), self.cfg)
        return self.P.T[left] + self.Q.T[right]

    def encoder_bias(self) -> None:
        """Return None: the factors have biases, the latents have none."""


def factors_of(latents: Int[Tensor, "n"], cfg: KronConfig) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Return the columns of P and of Q that latents (k m + i) n + j are ANDs of: k m + i and k n + j."""
    return latents // cfg.n, latents // (cfg.m * cfg.n) * cfg.n + latents % cfg.n


def mand(u: Float[Tensor, "*s"], v: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Return sqrt(u v) where both are positive, else 0 (section 3.2).

    Its gradient is (sqrt(v / u), sqrt(u / v)) / 2 where it is on and 0 where it is off. Zeros are replaced before the root,
    whose infinite slope at 0 would give NaN. Two roots are taken because the product u v may underflow."""
    on = (u > 0) & (v > 0)
    mean = torch.where(on, u, 1.0).sqrt() * torch.where(on, v, 1.0).sqrt()
    return torch.where(on, mean, 0.0)
