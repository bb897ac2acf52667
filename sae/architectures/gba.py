"""GBA: biases set by how often a latent fires, group by group, not by gradients; no sparsity penalty, no k.

"Taming Polysemanticity in LLMs: Provable Feature Recovery via Sparse Autoencoders" 2025, arXiv:2506.14002.
The paper's code was not at hand: the form of the activation, the input norm and the initialisation are
reconstructions, settled by recovery of planted features (LOG.md)."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from sae import kernels, losses
from sae.architectures.base import SAE, ArchConfig, Loss
from sae.code import SparseCode
from sae.errors import ConfigError


@dataclass(frozen=True)
class GBAConfig(ArchConfig):
    """GBA: groups of latents, each held near a firing frequency of its own by adapting biases."""

    groups: int = 10
    """Groups of latents, of equal size but for one latent; 1 is the paper's BA."""
    p_first: float = 0.1
    """Target firing frequency of the first group: no latent in it should fire on more than this share of rows."""
    p_last: float = 0.001
    """Target firing frequency of the last group; in between the targets fall geometrically."""
    update_every: int = 50
    """Steps between updates of the biases; statistics are of these steps and then begin anew."""
    gamma_plus: float = 0.01
    """How far a silent latent's bias rises, as a share of its group's mean strongest activation."""
    gamma_minus: float = 0.01
    """How far the bias of one that fires too often falls, as a share of its own strongest activation."""
    eps: float = 1e-6
    """Frequency below which a latent counts as silent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.groups <= self.d_sae:
            raise ConfigError(f"groups = {self.groups} must lie between 1 and d_sae = {self.d_sae}")
        if not 0 < self.p_last <= self.p_first < 1:
            raise ConfigError(
                f"targets p_first = {self.p_first} and p_last = {self.p_last} must fall from below 1 to above 0"
            )
        if self.update_every < 1:
            raise ConfigError(f"update_every = {self.update_every} must be at least 1")
        if min(self.gamma_plus, self.gamma_minus, self.eps) < 0:
            raise ConfigError("gamma_plus, gamma_minus and eps must not be negative")

    def targets(self) -> Float[Tensor, "K"]:
        """Target frequency of each group, geometric from p_first to p_last, both exact."""
        share = torch.linspace(0, 1, self.groups)
        return self.p_first ** (1 - share) * self.p_last**share


@final
class GBA(SAE):
    """y = cos(w, x - b_dec) + b_enc; z = a <w, x - b_dec> where y > 0, else 0; x_hat = z W_dec + b_dec.

    Encoder and decoder share the unit rows w of W_dec; a is an amplitude for each latent. b_enc lies in
    [-1, 0] and is a buffer: no gradient and no optimizer reach it. Rows are judged by their cosine, as in the
    paper, whose samples have unit norm, so b_enc has no unit and nothing but b_dec need follow the input's
    scale. The output leaves the bias out: just above the switch it is -b_enc |x - b_dec| a, not 0, without
    which features are not recovered.

    In training mode `loss` counts how often y > 0 and its maximum; every `update_every` steps `after_step`
    moves the biases (Algorithm 1) and forgets the counts."""

    cfg: GBAConfig
    in_activation_units = ("b_dec",)
    rows_seen: Int[Tensor, ""]
    times_fired: Int[Tensor, "F"]
    strongest: Float[Tensor, "F"]
    group: Int[Tensor, "F"]
    """Which group a latent belongs to: F / K of them each, in order."""
    target: Float[Tensor, "K"]

    def __init__(self, d_model: int, cfg: GBAConfig):
        super().__init__(d_model, cfg)
        self.due = False  # whether this step ends with an update of the biases

    def make_encoder(self, d_model: int) -> None:
        """The encoder is the decoder's transpose; beside it amplitudes, biases and the statistics they follow."""
        F, K = self.d_sae, self.cfg.groups
        self.amplitude = nn.Parameter(torch.ones(F))
        self.register_buffer("b_enc", torch.zeros(F))
        self.register_buffer("rows_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("times_fired", torch.zeros(F, dtype=torch.int64))
        self.register_buffer("strongest", torch.zeros(F))
        self.register_buffer("group", torch.arange(F) * K // F, persistent=False)
        self.register_buffer("target", self.cfg.targets(), persistent=False)

    @torch.no_grad()
    def initialise(
        self, x: Float[Tensor, "n D"], centre: Float[Tensor, "D"], generator: torch.Generator
    ) -> None:
        """Random directions, biases at 0, amplitudes at 1."""
        self.W_dec.copy_(normalize(torch.randn(self.W_dec.shape, generator=generator), dim=1))
        self.b_dec.copy_(centre)

    def encoder_directions(self) -> Float[Tensor, "F D"]:
        """The decoder's own rows."""
        return self.W_dec

    def pre_activations(self, x: Float[Tensor, "B D"]) -> kernels.Projection:
        """<w, x - b_dec>, without the bias."""
        return kernels.project(x, self.W_dec.T, torch.zeros_like(self.b_enc), self.b_dec)

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        u = self.pre_activations(x)
        return self._code(u, self._switch(u))

    def drive(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        """y: the cosine plus the bias."""
        return self._switch(self.pre_activations(x))

    @torch.no_grad()
    def _switch(self, u: kernels.Projection) -> Float[Tensor, "B F"]:
        """y, above 0 where a latent fires: its cosine with the row plus its bias."""
        size = u.centred.norm(dim=1, keepdim=True).clamp_min(torch.finfo(u.x.dtype).tiny)
        return u.dense / size + self.b_enc

    def _code(self, u: kernels.Projection, y: Tensor) -> SparseCode:
        code = u.keep(kernels.where(y > 0))
        return code._replace(values=code.values * code.spread(self.amplitude))

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """FVU alone: what is sparse about the code is the biases' doing. In training mode counts who fires.

        Logged for each group k: `frequency_ratio_k`, its latents' mean frequency in this batch over its target;
        and `resonant`, the share of latents that fire in it, yet not above their target."""
        u = self.pre_activations(x)
        switch = self._switch(u)
        code = self._code(u, switch)
        reconstruction = losses.fvu(y, self.decode(code))
        others = kernels.others()
        rows, fired = others.rows(len(x)), others.sum_over_rows((switch > 0).sum(0))
        if self.training:
            self._count(rows, fired, others.max_over_rows(switch.amax(0)))
        terms = {
            "fvu": reconstruction.detach(),
            "l0": code.l0().float().mean(),
            **self._frequencies(fired / rows),
        }
        return Loss(reconstruction, terms, fired > 0)

    def _count(self, rows: int, fired: Int[Tensor, "F"], strongest: Float[Tensor, "F"]) -> None:
        self.rows_seen += rows
        self.times_fired += fired
        torch.maximum(self.strongest, strongest, out=self.strongest)

    def _frequencies(self, frequency: Float[Tensor, "F"]) -> dict[str, Tensor]:
        sizes = torch.bincount(self.group, minlength=self.cfg.groups)
        ratios = self._by_group(frequency) / sizes / self.target
        within = (frequency >= self.cfg.eps) & (frequency <= self.target[self.group])
        named = {f"frequency_ratio_{k + 1}": ratio for k, ratio in enumerate(ratios)}
        return {**named, "resonant": within.float().mean()}

    def _by_group(self, values: Float[Tensor, "F"]) -> Float[Tensor, "K"]:
        return torch.zeros_like(self.target).index_add_(0, self.group, values)

    def begin_step(self, step: int, steps: int) -> None:
        """Every `update_every`-th step ends with an update."""
        self.due = (step + 1) % self.cfg.update_every == 0

    @torch.no_grad()
    def after_step(self) -> None:
        """When it is time, new biases."""
        if self.due and self.rows_seen > 0:
            self.adapt()

    @torch.no_grad()
    def adapt(self) -> None:
        """Move the biases by the statistics gathered, and begin them anew.

        A latent that fired on more than its target share of rows falls by gamma_minus times its own strongest
        y. One that was silent rises by gamma_plus times the mean of its group's strongest y (those above 0):
        its own is 0. All stay in [-1, 0]; between the two nothing moves. Algorithm 1, with the minimum and
        maximum of its clamps, swapped in print, put right."""
        cfg, frequency = self.cfg, self.times_fired / self.rows_seen
        positive = self._by_group((self.strongest > 0).to(self.target.dtype)).clamp_min(1)
        mean = (self._by_group(self.strongest) / positive)[self.group]
        fall = (frequency > self.target[self.group]) * cfg.gamma_minus * self.strongest
        rise = (frequency < cfg.eps) * cfg.gamma_plus * mean
        self.b_enc.add_(rise - fall).clamp_(-1, 0)
        for statistic in (self.rows_seen, self.times_fired, self.strongest):
            statistic.zero_()
