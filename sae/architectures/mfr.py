"""MFR: several SAEs trained side by side and pulled towards the same features, since what two of them find is likelier real.

Marks et al. 2024, "Enhancing Neural Network Interpretability with Feature-Aligned Sparse Autoencoders",
arXiv:2411.01220, and its code, luke-marks0/mutual-feature-regularization e9ec664."""

import copy
import itertools
import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from activations.errors import ConfigError
from sae import kernels, losses
from sae.architectures.base import SAE, Loss
from sae.architectures.config import ArchConfig, ExpectedL0, Selects, TrainingCost
from sae.architectures.shared import check_k
from sae.code import SparseCode


@dataclass(frozen=True)
class MFRConfig(ArchConfig):
    """MFR: peers that must agree on their features; the first of them is the SAE in use."""

    name = "mfr"
    rule = "of a row with fewer than k positive pre-activations it keeps negative ones"

    advice = (
        "In runs of minutes take at most 2,048 latents: matching the peers takes a second a step from some "
        "4,000 on. Every peer costs as much as a run of its own."
    )

    k: int = 32
    """Latents kept per token."""
    peers: int = 2
    """SAEs trained together on the same batches, at least 2. Time and memory grow in proportion."""
    penalty_weight: float = 0.05
    """Weight of the peers' disagreement, 1 - mean matched cosine over pairs; 0 trains them independently. Matching takes
    time of order d_sae^3 per step and pair: a second or more from some 4,000 latents on."""
    penalty_warmup_steps: int = 100
    """Steps over which the weight rises, as half a cosine wave, from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self)
        if self.peers < 2:
            raise ConfigError(
                f"peers = {self.peers} must be at least 2: a single SAE has no peer to agree with"
            )
        if self.penalty_weight < 0:
            raise ConfigError(f"penalty_weight = {self.penalty_weight} must not be negative")
        if self.penalty_warmup_steps < 1:
            raise ConfigError(f"penalty_warmup_steps = {self.penalty_warmup_steps} must be at least 1")

    def selects(self) -> Selects:
        """Return by rank."""
        return Selects.BY_RANK

    def expected_l0(self) -> ExpectedL0:
        """Return k."""
        return ExpectedL0(self.k)

    def training_cost(self) -> TrainingCost:
        """Return one selection for each peer, and every two peers matched."""
        pairs = self.peers * (self.peers - 1) // 2
        return TrainingCost("topk", passes=5, held=3, dictionaries=self.peers, matched_pairs=pairs)


@final
class MFR(SAE):
    """Every peer computes u = (x - b_dec) W^T + b; z = u where it is among the k largest; x_hat = z unit(W) + b_dec.

    There is no ReLU: a row with fewer than k positive u keeps negative ones, and all that equal the k-th are kept. The
    decoder is the encoder's rows at unit norm. `weights` and `biases` hold all peers. Peer 0 is the SAE that encodes and
    decodes, and W_dec holds its unit rows; `member` returns the others. b_dec, which the paper does not have, is the data's
    centre, shared and not learned: activations of language models lie far from 0.

    The authors' code reinitialises an SAE whose latents fire at other rates than 1/16, a number of its synthetic data. That
    is left out."""

    cfg: MFRConfig
    config = MFRConfig
    in_activation_units = ("biases", "b_dec")
    unit_norm_decoder = False  # the optimizer's own weights keep their lengths

    weights: Float[Tensor, "N F D"]
    biases: Float[Tensor, "N F"]

    def make_rule(self, d_model: int) -> None:
        """Set the penalty's weight in force."""
        self.warmth = 1.0  # share of the penalty's weight in force

    def make_decoder(self, d_model: int) -> None:
        """Create W_dec and b_dec as buffers: they follow from the encoder and from the data."""
        self.register_buffer("W_dec", torch.zeros(self.cfg.d_sae, d_model))
        self.register_buffer("b_dec", torch.zeros(d_model))

    def make_encoder(self, d_model: int) -> None:
        """Create the weights and biases of all peers."""
        self.weights = nn.Parameter(torch.zeros(self.cfg.peers, self.d_sae, d_model))
        self.biases = nn.Parameter(torch.zeros(self.cfg.peers, self.d_sae))

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "n D"], centre: Float[Tensor, "D"], generator: torch.Generator
    ) -> None:
        """Draw an orthogonal matrix for each peer; biases start at 0."""
        for weights in self.weights:
            nn.init.orthogonal_(weights, generator=generator)
        self.b_dec.copy_(centre)
        self.refresh()

    def member(self, i: int) -> "MFR":
        """Return peer i as an SAE in use, with its own copy of the weights. Raises ConfigError unless 0 <= i < peers."""
        if not 0 <= i < self.cfg.peers:
            raise ConfigError(f"member {i} does not exist: members are 0 to {self.cfg.peers - 1}")
        member = copy.deepcopy(self)
        with torch.no_grad():
            member.weights.copy_(self.weights.roll(-i, 0))
            member.biases.copy_(self.biases.roll(-i, 0))
        member.refresh()
        return member

    def encoder_directions(self) -> Float[Tensor, "F D"]:
        """Return peer 0's rows."""
        return self.weights[0]

    def encoder_bias(self) -> Float[Tensor, "F"]:
        """Return peer 0's biases."""
        return self.biases[0]

    def pre_activations(self, x: Float[Tensor, "B D"], peer: int = 0) -> kernels.Projection:
        """Return u of one peer."""
        return kernels.project(x, self.weights[peer].T, self.biases[peer], self.b_dec)

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        return self._code(x, 0)

    def decoder_rows(self) -> Float[Tensor, "F D"]:
        """Return the unit rows of peer 0, with their gradient: training end to end decodes with them."""
        if torch.is_grad_enabled() and self.weights.requires_grad:
            return normalize(self.weights[0], dim=1)
        return self.W_dec

    def kept_per_row(self, x: Float[Tensor, "B D"], u: Float[Tensor, "B F"]) -> Int[Tensor, "B"]:
        """Return k for every row."""
        return torch.full((len(x),), self.cfg.k, device=x.device)

    def thresholds(self) -> Float[Tensor, "F"]:
        """Return -inf: negative latents of a row with fewer than k positive ones are kept too."""
        return torch.full((self.d_sae,), -torch.inf, device=self.device)

    def _code(self, x: Float[Tensor, "B D"], peer: int) -> SparseCode:
        u = self.pre_activations(x, peer)
        least = u.dense.topk(self.cfg.k, dim=1).values[:, -1:]
        return u.keep(kernels.where(u.dense >= least))

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return the sum of the peers' FVUs + penalty_weight * warmth * (1 - agreement).

        Agreement is the mean over pairs of peers of the mean cosine of their rows, matched one to one; its gradient reaches
        both peers, through matched rows alone. Each peer's FVU depends on its own weights only, so the sum trains each on its
        own error. Logged are `fvu` and `l0` of peer 0, `fvu_others` (mean) and `agreement`."""
        codes = [self._code(x, peer) for peer in range(self.cfg.peers)]
        rows = normalize(self.weights, dim=2)
        errors = torch.stack(
            [
                losses.fvu(y, kernels.decode(code, own) + self.b_dec)
                for code, own in zip(codes, rows, strict=True)
            ]
        )
        agreement = mean_agreement(rows)
        total = errors.sum() + self.cfg.penalty_weight * self.warmth * (1 - agreement)
        terms = {
            "fvu": errors[0],
            "l0": codes[0].l0().float().mean(),
            "fvu_others": errors[1:].mean(),
            "agreement": agreement,
        }
        return Loss(total, {name: term.detach() for name, term in terms.items()}, codes[0].fired())

    def begin_step(self, step: int, steps: int) -> None:
        """Set the penalty's warm-up: half a cosine wave from 0 to 1."""
        share = min(step / self.cfg.penalty_warmup_steps, 1.0)
        self.warmth = (1 - math.cos(math.pi * share)) / 2

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """Let W_dec follow peer 0."""
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Set W_dec to the unit rows of peer 0."""
        self.W_dec.copy_(normalize(self.weights[0], dim=1))


def mean_agreement(rows: Float[Tensor, "N F D"]) -> Float[Tensor, ""]:
    """Return the mean, over pairs of dictionaries with unit rows, of the mean cosine of rows matched one to one."""
    pairs = itertools.combinations(rows, 2)
    return torch.stack([losses.matched_mean(a @ b.T) for a, b in pairs]).mean()
