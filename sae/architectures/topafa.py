"""top-AFA: keep as many latents of each token as make the norm of the code that of the input, so that no k is set.

"Evaluating and Designing Sparse Autoencoders by Approximating Quasi-Orthogonality", arXiv:2503.24277;
authors' code SewoongLee/top-afa-sae 1c7a683, training/sae.py."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from activations.errors import ConfigError
from sae import kernels
from sae.architectures.base import SAE, Loss
from sae.architectures.config import ArchConfig, Selects, TrainingCost
from sae.architectures.shared import reconstruction_loss
from sae.code import SparseCode, offsets_of

FIRST_SORTED = (
    512  # entries of a row that are sorted at first; four times as many while they do not reach its norm
)


@dataclass(frozen=True)
class TopAFAConfig(ArchConfig):
    """top-AFA: as many latents as the token's norm asks for; sparsity is neither set nor guaranteed."""

    name = "topafa"
    rule = "how many latents a row keeps depends on the row's norm"
    revives_dead = True

    advice = (
        "Nothing is to be set. It needs a few thousand steps, and an L0 well below the activations' width: "
        "with less, its low error says nothing."
    )

    afa_weight: float = 1 / 16
    """Weight of the term that pulls the norm of the code to that of the input. 1/16 is what SAELens's port calls most
    stable; the authors try 1/128 to 1/16, and 1/128 fails on one of their three layers."""
    aux_k: int | None = None
    """Dead latents that AuxK lets explain the residual; half the activation width when left out."""
    aux_weight: float = 1 / 32
    """Weight of AuxK (authors' code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_sae < 2:
            raise ConfigError(f"d_sae = {self.d_sae} must be at least 2: top-AFA never keeps all latents")
        if self.afa_weight < 0:
            raise ConfigError(f"afa_weight = {self.afa_weight} must be at least 0, which leaves the term out")

    def selects(self) -> Selects:
        """Return by rank."""
        return Selects.BY_RANK

    def training_cost(self) -> TrainingCost:
        """Return a sort of all pre-activations, the most that it may take: values, places of two words each, and what is
        compared are held."""
        return TrainingCost("sort", passes=10, held=6)


@final
class TopAFA(SAE):
    """a = relu((x - b_dec) W_enc); z = the k largest of a_j |W_dec_j|, k chosen so that their norm is |x - b_dec|.

    If the decoder rows were orthogonal, a code would have the norm of what it reconstructs. k, from 1 to F - 1, is the number
    of latents whose joint norm comes nearest; it passes no gradient. A code too small to reach |x - b_dec| keeps every
    positive latent, so that L0 may exceed D, as in the authors' tables: there any dictionary can reconstruct, and a low FVU
    does not show that features were found. There is no encoder bias: b_enc is a buffer of zeros.

    The authors normalise every token (mean 0, variance 1 over D), which makes |x| one constant, sqrt(D - 1).
    Here inputs are scaled by one number to unit mean square per dimension: |x| is sqrt(D) on average and
    differs between tokens, so the AFA term asks for codes of differing norm, and tokens of extreme norm weigh
    most in it. Choosing costs a sort of each row's largest entries, of all of them at worst."""

    cfg: TopAFAConfig
    config = TopAFAConfig
    start_is_small = False
    """The rule gives each code its input's norm from the first step on, however much its latents overlap: with the demo's
    activations FVU starts at 1.2 for 1,024 latents and 3.3 for 8,192."""

    def make_encoder(self, d_model: int) -> None:
        """Create W_enc as usual, and b_enc as a buffer of zeros, which the optimizer does not reach."""
        super().make_encoder(d_model)
        del self.b_enc
        self.register_buffer("b_enc", torch.zeros(self.d_sae))

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "n D"], centre: Float[Tensor, "D"], generator: torch.Generator
    ) -> None:
        """Start as TopK does, but with b_dec at 0, as in the authors' code.

        k makes |z| meet |x - b_dec|, and the AFA term pulls it to |x|. Where the two are far apart, as when b_dec starts at
        the median of activations with a large mean, latents grow until a single one suffices (LOG.md)."""
        super().initialise(x, torch.zeros_like(centre), generator)

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        u = self.pre_activations(x)
        return u.keep(self._chosen(x, u.dense)).relu()

    def _chosen(self, x: Float[Tensor, "B D"], u: Float[Tensor, "B F"]) -> kernels.Pattern:
        scaled = u.relu() * self.W_dec.detach().norm(dim=1)
        return nearest_norm(scaled, (x - self.b_dec).detach().norm(dim=1))

    def kept_per_row(self, x: Float[Tensor, "B D"], u: Float[Tensor, "B F"]) -> Int[Tensor, "B"]:
        """Return the k that each row's norm leads to now. It would change if a latent grew, which is not taken into account."""
        return self._chosen(x, u).offsets.diff()

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return FVU + aux_weight * AuxK + afa_weight * D * mean((|z| - |x|)^2) / mean(|x|^2).

        As in the authors' code this |x| still has b_dec in it and z is not scaled by decoder norms, unlike in
        the choice of k. The division makes the loss blind to units; at unit mean square it changes nothing.
        FVU is the authors' mean square over the variance: where the mean of x holds much of its square, FVU
        is the larger and the term weighs less beside it. `afa` in the terms is without weight and D."""
        code = self._encode(x)
        loss = reconstruction_loss(self, x, y, dead, code, self.cfg)
        norm = x.norm(dim=1)
        size = kernels.collective().mean_over_rows(norm.square().mean())
        size = torch.where(size > 0, size, self.d_model)  # for rows of zeros, as at unit mean square
        afa = (row_norms(code) - norm).square().mean() / size
        total = loss.total + self.cfg.afa_weight * self.d_model * afa
        return loss._replace(total=total, terms={**loss.terms, "afa": afa.detach()})


def nearest_norm(values: Float[Tensor, "B F"], norm: Float[Tensor, "B"]) -> kernels.Pattern:
    """Select the k largest of each row of values >= 0, with the k from 1 to F - 1 that brings their norm nearest to `norm`.

    Of equally near ones the smallest k. The authors exclude k = F by a sentinel of 1e8 in place of the last squared norm,
    which their inputs do not reach; here the last norm is dropped, which works in any units."""
    width, n = values.shape[1], FIRST_SORTED
    while True:
        n = min(n, width)
        ordered, latents = kernels.top(values, n)
        reached = ordered.square().cumsum(1)[:, : width - 1].sqrt()
        # Sorting all is dear, and no later k is nearer once the norm is reached or nothing is left to add.
        if n == width or ((reached[:, -1] >= norm) | (ordered[:, -1] == 0)).all():
            break
        n *= 4
    k = (reached - norm[:, None]).abs().argmin(1) + 1
    is_kept = torch.arange(n, device=values.device) < k[:, None]
    return kernels.Pattern(latents[is_kept], offsets_of(k))


def row_norms(code: SparseCode) -> Float[Tensor, "B"]:
    """Return the norm of each row of a code. The gradient at a row of zeros is 0."""
    squares = code.values.new_zeros(code.n_rows).index_add(0, code.rows(), code.values.square())
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
