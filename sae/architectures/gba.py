"""GBA: biases follow how often a latent fires, group by group, and not gradients; it has no sparsity penalty and no k.

"Taming Polysemanticity in LLMs: Provable Feature Recovery via Sparse Autoencoders" 2025, arXiv:2506.14002.
The paper's code was not available: the form of the activation, the input norm and the initialisation are reconstructions,
chosen by the recovery of planted features (LOG.md)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from activations.errors import ConfigError
from sae import kernels, losses
from sae.architectures.base import SAE, Loss
from sae.architectures.config import ArchConfig, ExpectedL0, Selects, TrainingCost
from sae.code import SparseCode

SPREAD = 0.01  # ratio of the last group's target to the first's, where only L0 is set
MEASURED_TIED, MEASURED_UNTIED = 0.68, 0.35  # ratio of L0 after training to the sum of all latents' targets
UPDATES = 100  # least number of bias updates in a run
COSINES_AT_ONCE = 2**22  # numbers held while biases are initialised
AMPLITUDE_ROWS = 4096  # rows of the sample that amplitudes are fitted on


@dataclass(frozen=True)
class GBAConfig(ArchConfig):
    """GBA: groups of latents, each kept near a firing frequency of its own by adapting biases."""

    name = "gba"
    rule = "whether a latent fires depends on its cosine with the row, so its threshold grows with the row's norm"
    rate = 2.0

    advice = (
        "The defaults suit runs of minutes; --arch.l0 says how many latents are to fire. With --arch.no-tied "
        "it has about 5 % less error than topk at the same L0, which then comes out less exactly: correct "
        "--arch.l0 after a short run. Runs of many million tokens can follow the paper: --arch.p-first 0.5 "
        "--arch.p-last 0.001, which fires 7 % of the dictionary."
    )

    groups: int = 10
    """Groups of latents, whose sizes differ by at most one; 1 is the paper's BA."""
    l0: float | None = None
    """Latents that should fire per token at the end of training; the groups' target frequencies follow from it.
    When left out, 32, or d_sae / 16 if that is less. Measured L0 is met within about a fifth."""
    p_first: float | None = None
    """Target firing frequency of the first group, instead of l0: no latent in it should fire on more than this share of
    rows. The paper has 0.5 since its second version; L0 is then 7 % of the dictionary."""
    p_last: float | None = None
    """Target firing frequency of the last group, together with p_first; targets in between fall geometrically. When left out,
    p_first / 100. The paper has 0.001."""
    start: Literal["quantile", "zero"] = "quantile"
    """Biases before training. quantile: each latent fires as often as its target says, on a sample of rows. zero:
    half of all latents fire, and a short run ends before it has unlearned that."""
    tied: bool = True
    """Whether encoder and decoder share their directions, as in the paper. A separate encoder reaches a lower error at its
    L0."""
    update_rows: int | None = None
    """Rows between updates of the biases; the statistics of these rows are then reset. When left out, as many as it takes for
    a latent at the last group's target to fire five times, or fewer where a run would have less than 100 updates."""
    gamma_plus: float = 0.01
    """Rise of a silent latent's bias, as a share of its group's mean strongest activation."""
    gamma_minus: float = 0.01
    """Fall of the bias of a latent that fires too often, as a share of its own strongest activation."""
    eps: float = 1e-6
    """Frequency below which a latent counts as silent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.groups <= self.d_sae:
            raise ConfigError(f"groups = {self.groups} must lie between 1 and d_sae = {self.d_sae}")
        if self.p_first is None and self.p_last is not None:
            raise ConfigError(f"p_last = {self.p_last} needs p_first: give both, or l0 alone")
        if self.p_first is not None:
            if self.l0 is not None:
                raise ConfigError(
                    f"l0 = {self.l0:g} and p_first = {self.p_first} both set the targets: leave one out"
                )
            first, last = self._ends()
            if not 0 < last <= first < 1:
                raise ConfigError(
                    f"targets p_first = {first} and p_last = {last} must fall from below 1 to above 0"
                )
        most = self._firing(self._falling(1.0, SPREAD))
        if self.p_first is None and not 0 < self._l0() < most:
            raise ConfigError(
                f"l0 = {self._l0():g} must lie above 0 and below {most:.4g}, where the first of {self.groups} groups of "
                f"d_sae = {self.d_sae} latents would fire on every row"
            )
        if self.update_rows is not None and self.update_rows < 1:
            raise ConfigError(f"update_rows = {self.update_rows} must be at least 1")
        if min(self.gamma_plus, self.gamma_minus, self.eps) < 0:
            raise ConfigError("gamma_plus, gamma_minus and eps must not be negative")

    @classmethod
    def upgraded(cls, fields: Mapping[str, object], batch: int | None = None) -> Mapping[str, object]:
        """Read version 0.1.0's settings: updates were counted in steps, of `batch` rows, and biases began at 0."""
        if "update_every" not in fields:
            return fields
        unchanged = {name: value for name, value in fields.items() if name != "update_every"}
        steps = fields["update_every"]
        rows = steps * batch if batch and isinstance(steps, int) else batch and steps
        return {**unchanged, "start": "zero", "update_rows": rows}

    def targets(self) -> Float[Tensor, "K"]:
        """Return the target frequency of each group, falling geometrically from the first to the last, both exact."""
        return torch.tensor(self._falling(*self._ends()))

    def lowest_target(self) -> float:
        """Return the target frequency of the last group."""
        return self._falling(*self._ends())[-1]

    def expected_l0(self) -> ExpectedL0:
        """Return l0, or about what a trained SAE has with its targets: its latents stay below them on average."""
        if self.l0 is not None:
            return ExpectedL0(self.l0)
        return ExpectedL0(
            self._firing(self._falling(*self._ends())),
            "latents fire below their groups' targets by as much as was measured",
        )

    def selects(self) -> Selects:
        """Return above each latent's own threshold."""
        return Selects.ABOVE_OWN_THRESHOLDS

    def training_cost(self) -> TrainingCost:
        """Return one selection, after operations on all cosines."""
        return TrainingCost("above", passes=8, held=3)

    def _l0(self) -> float:
        return min(32.0, self.d_sae / 16) if self.l0 is None else self.l0

    def _ends(self) -> tuple[float, float]:
        if self.p_first is not None:
            return self.p_first, self.p_first * SPREAD if self.p_last is None else self.p_last
        first = self._l0() / self._firing(self._falling(1.0, SPREAD))  # targets are proportional to it
        return first, first * SPREAD

    def _falling(self, first: float, last: float) -> list[float]:
        shares = [k / max(1, self.groups - 1) for k in range(self.groups)]
        return [first ** (1 - share) * last**share for share in shares]

    def _firing(self, targets: list[float]) -> float:
        return (MEASURED_TIED if self.tied else MEASURED_UNTIED) * self.d_sae * sum(targets) / self.groups


@final
class GBA(SAE):
    """y = cos(w, x - b_dec) + b_enc; z = a <w, x - b_dec> where y > 0, else 0; x_hat = z W_dec + b_dec.

    w are the unit rows of W_dec, or untied the columns of W_enc, which start as those rows; a is an amplitude for each
    latent. b_enc lies in [-1, 0] and is a buffer: no gradient and no optimizer reach it. Rows are compared by their cosine,
    as in the paper, whose samples have unit norm; b_enc therefore has no unit, and only b_dec follows the input's scale. The
    output leaves the bias out: just above the switch it is -b_enc |x - b_dec| a and not 0. Otherwise features are not
    recovered.

    In training mode `loss` counts how often y > 0 and its maximum; every `update_rows` rows `after_step`
    moves the biases (Algorithm 1) and forgets the counts."""

    cfg: GBAConfig
    config = GBAConfig
    in_activation_units = ("b_dec",)
    rows_seen: Int[Tensor, ""]
    times_fired: Int[Tensor, "F"]
    strongest: Float[Tensor, "F"]
    group: Int[Tensor, "F"]
    """The group of each latent: F / K latents each, in order."""
    target: Float[Tensor, "K"]

    def make_rule(self, d_model: int) -> None:
        """Note where training stands before it begins."""
        self.batch = 1  # rows of the last batch
        self.start_is_small = self.cfg.start != "zero"  # from there half of all latents fire

    def make_encoder(self, d_model: int) -> None:
        """Create W_enc unless it is the decoder's transpose, amplitudes, biases and the statistics they follow."""
        F, K = self.d_sae, self.cfg.groups
        if not self.cfg.tied:
            self.W_enc = nn.Parameter(torch.zeros(F, d_model).T)
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
        """Draw random directions; set amplitudes to 1 and biases to 0, or to their targets' quantiles on the sample.

        In the latter case the amplitudes, all equal, are those with which the sample is reconstructed best: overlapping
        latents add up, and with amplitudes of 1 the first reconstructions of a wide dictionary are too large."""
        self.W_dec.copy_(normalize(torch.randn(self.W_dec.shape, generator=generator), dim=1))
        if not self.cfg.tied:
            self.W_enc.copy_(self.W_dec.T)
        self.b_dec.copy_(centre)
        if self.cfg.start == "quantile":
            self._fire_at_targets(normalize(x - centre, dim=1))
            some = x[:AMPLITUDE_ROWS]
            wanted, size = some - centre, self.decode(self.encode(some)) - centre
            best = (wanted * size).sum() / size.square().sum()
            self.amplitude.fill_(best if best > 0 else 1.0)  # nan where no latent fires

    def _fire_at_targets(self, directions: Float[Tensor, "n D"]) -> None:
        """Set biases with which each latent fires on its target's share of these rows, rounded down."""
        n, targets = len(directions), self.target[self.group]
        latents = torch.arange(self.d_sae).split(max(1, COSINES_AT_ONCE // n))
        for some in latents:
            cosines = self.W_dec[some] @ directions.T
            for target in targets[some].unique():
                alike = targets[some] == target
                # Halfway between the last row on which it fires and the first on which it does not: otherwise rounding
                # would decide about the row at the threshold.
                last = n - 1 - int(target * n)
                places = [last, min(last + 1, n - 1)]
                # torch.kthvalue takes ten times as long.
                ordered = np.partition(cosines[alike].numpy(), places, axis=1)
                self.b_enc[some[alike]] = -torch.from_numpy(ordered[:, places].mean(1))
        self.b_enc.clamp_(-1, 0)

    def encoder_directions(self) -> Float[Tensor, "F D"]:
        """Return the decoder's rows, or, untied, the columns of W_enc."""
        return self.W_dec if self.cfg.tied else self.W_enc.T

    def pre_activations(self, x: Float[Tensor, "B D"]) -> kernels.Projection:
        """Return <w, x - b_dec>, without the bias."""
        return kernels.project(x, self.encoder_directions().T, torch.zeros_like(self.b_enc), self.b_dec)

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        return self._switched_on(x)[0]

    def dense_pre_activations(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        """Return y, the cosine plus the bias."""
        u = self.pre_activations(x)
        return u.dense / _length(u.centred, 1)[:, None] / self._lengths() + self.b_enc

    def _switched_on(self, x: Float[Tensor, "B D"]) -> tuple[SparseCode, Float[Tensor, "nnz"]]:
        """Return the code of the latents with y > 0, and their y without gradients."""
        u = self.pre_activations(x)
        with torch.no_grad():
            size, lengths = _length(u.centred, 1), self._lengths()
            unit = kernels.project(u.centred / size[:, None], u.W, u.b).above(-self.b_enc * lengths)
            y = unit.values / lengths[unit.indices] + self.b_enc[unit.indices]
        code = u.keep(kernels.Pattern(unit.indices, unit.offsets), unit.values * size[unit.rows()])
        return code._replace(values=code.values * code.spread(self.amplitude)), y

    def _lengths(self) -> Float[Tensor, "F"]:
        """Return the length of each latent's w, which is 1 where the encoder is tied to the decoder."""
        return torch.ones_like(self.b_enc) if self.cfg.tied else _length(self.W_enc.detach(), 0)

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return the FVU alone: the biases make the code sparse. In training mode this counts which latents fire.

        Logged are `frequency_ratio_k` for each group k, its latents' mean frequency in this batch over its target, and
        `resonant`, the share of all latents that fire in this batch, but not above their target."""
        code, switch = self._switched_on(x)
        reconstruction = losses.fvu(y, self.decode(code))
        collective = kernels.collective()
        rows = collective.rows(len(x))
        fired = collective.sum_over_rows(torch.bincount(code.indices, minlength=self.d_sae))
        if self.training:
            strongest = torch.zeros_like(self.strongest).scatter_reduce_(0, code.indices, switch, "amax")
            self._count(rows, fired, collective.max_over_rows(strongest))
        terms = {
            "fvu": reconstruction.detach(),
            "l0": code.l0().float().mean(),
            **self._frequencies(fired / rows),
        }
        return Loss(reconstruction, terms, fired > 0)

    def _count(self, rows: int, fired: Int[Tensor, "F"], strongest: Float[Tensor, "F"]) -> None:
        self.batch = rows
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

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """Move the biases when enough rows have been seen since the last update."""
        if (step + 1) % self.steps_between(steps) == 0 and self.rows_seen > 0:
            self.adapt()

    def steps_between(self, all_steps: int) -> int:
        """Return the steps from one update of the biases to the next, for batches of the size of the last one.

        Steps are counted and not `rows_seen`, for which the host would have to wait for a GPU."""
        wanted = self.cfg.update_rows or 5 / self.cfg.lowest_target()
        steps = math.ceil(wanted / self.batch)
        return steps if self.cfg.update_rows else max(1, min(steps, all_steps // UPDATES))

    @torch.no_grad()
    def adapt(self) -> None:
        """Move the biases according to the statistics, and reset these.

        The bias of a latent that fired on more than its target share of rows falls by gamma_minus times the latent's own
        strongest y. That of a silent latent rises by gamma_plus times the mean of its group's strongest y above 0, because
        its own is 0. Others do not move, and all stay in [-1, 0]. This is Algorithm 1, with the minimum and maximum of its
        clamps, which are swapped in print, corrected."""
        cfg, frequency = self.cfg, self.times_fired / self.rows_seen
        positive = self._by_group((self.strongest > 0).to(self.target.dtype)).clamp_min(1)
        mean = (self._by_group(self.strongest) / positive)[self.group]
        fall = (frequency > self.target[self.group]) * cfg.gamma_minus * self.strongest
        rise = (frequency < cfg.eps) * cfg.gamma_plus * mean
        self.b_enc.add_(rise - fall).clamp_(-1, 0)
        for statistic in (self.rows_seen, self.times_fired, self.strongest):
            statistic.zero_()


def _length(w: Tensor, dim: int) -> Tensor:
    """Return norms along an axis, which may be divided by."""
    return w.norm(dim=dim).clamp_min(torch.finfo(w.dtype).tiny)
