"""AdaptiveK: a linear probe predicts how complex a token's text is, which sets how many latents the token may use.

"AdaptiveK Sparse Autoencoders: Dynamic Sparsity Allocation for Interpretable LLM Representations",
arXiv:2508.17320, and the authors' code, hiyukie/adaptiveK 3d03020."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from activations.errors import ConfigError
from sae import kernels
from sae.architectures.base import SAE, Loss, ParameterGroup
from sae.architectures.config import ArchConfig, ExpectedL0, LabelUnit, Selects
from sae.architectures.shared import check_k, reconstruction_loss
from sae.code import SparseCode

SLOPE = 6  # slope of the sigmoid from score to k
NATS = 10.0  # the surprise that counts as the highest score: the token had a probability of 1 in 22,000
EDGE = 0.25  # latents; how near to k_min and k_max labels are taken to lie at most
FOLDS = 5  # of cross-validation


@dataclass(frozen=True)
class AdaptiveKConfig(ArchConfig):
    """AdaptiveK: more latents for the tokens of complex texts; needs a store with labels."""

    name = "adaptivek"
    rule = "how many latents a row keeps is said by a probe, row by row"
    revives_dead = True

    advice = (
        "First train a batchtopk run of the same width with the k you want, then label the store with it "
        "(`sae store label STORE --labels needed:RUN`), and set k_min and k_max to about k / 8 and 3 k. Both "
        "runs together take twice the time of one."
    )

    reads_labels: ClassVar[bool] = True

    k_min: int = 20
    """Latents of the simplest token. A sigmoid leads from k_min to k_max and reaches neither: scores of 0, half and all of
    score_max give 34, 170 and 306 latents when k_min is 20 and k_max 320."""
    k_max: int = 320
    """Latents of the most complex token; see k_min. Compare with a TopK of the mean L0 in the log, not of k_max."""
    score_max: float = 10.0
    """The label of the most complex text possible; labels lie between 0 and this."""
    labels_in: Literal["auto", "score", "latents", "nats"] = "auto"
    """How a label is read: `score` as it is, from 0 to score_max; `latents` as the number of latents that a token needs, which
    the sigmoid then returns; `nats` as the model's surprise at a token, where 10 nats or more are score_max. `auto` follows
    the source of the store's labels."""
    ridge_lambdas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    """Ridge penalties the probe may be fitted with before training; cross-validation chooses."""
    joint_share: float = 0.1
    """Share of all steps, at the end, in which the probe is trained too; before, it stays as it was fitted."""
    probe_weight: float = 0.9
    """Weight of the probe's loss in these last steps (that of the authors' code; their README says 0.05)."""
    l1_weight: float = 0.005
    """Weight of the mean L1 norm of codes over the mean norm of inputs."""
    aux_k: int | None = None
    """Dead latents that AuxK lets explain the residual; half the activation width when left out."""
    aux_weight: float = 1 / 32
    """Weight of AuxK, the loss that revives dead latents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k_max, self)
        if not 1 <= self.k_min <= self.k_max:
            raise ConfigError(f"k_min = {self.k_min} must lie between 1 and k_max = {self.k_max}")
        if not self.score_max > 0:
            raise ConfigError(f"score_max = {self.score_max} must be above 0")
        if not 0 <= self.joint_share <= 1:
            raise ConfigError(f"joint_share = {self.joint_share} must lie between 0 and 1")
        if not self.ridge_lambdas or min(self.ridge_lambdas) <= 0:
            raise ConfigError(f"ridge_lambdas = {self.ridge_lambdas} must be one or more numbers above 0")

    def selects(self) -> Selects:
        """Return by rank."""
        return Selects.BY_RANK

    def expected_l0(self) -> ExpectedL0:
        """Return halfway from k_min to k_max."""
        return ExpectedL0(
            (self.k_min + self.k_max) / 2, "texts of middling complexity: halfway from k_min to k_max"
        )

    @classmethod
    def small(cls, d_sae: int, k: int) -> dict[str, int]:
        """Return settings for a small dictionary: k from 1 to about three times k."""
        return {"d_sae": d_sae, "k_min": 1, "k_max": min(3 * k + 1, d_sae)}

    def reading(self, unit: LabelUnit) -> "AdaptiveKConfig":
        """Return this configuration for labels in a unit. It does not change where `labels_in` is set."""
        # `auto` means scores, as in the runs of older releases, whose configurations must stay equal.
        return replace(self, labels_in=unit) if self.labels_in == "auto" and unit != "score" else self


@final
class AdaptiveK(SAE):
    """score = x probe_w + probe_b within [0, score_max]; k follows from the score; then TopK with each token's own k.

    Stage 1, before training, fits the probe by ridge regression. Stage 2 trains the SAE alone. Stage 3, the last
    `joint_share` of steps, trains both: k is rounded, so that no gradient of the reconstruction reaches the probe, which
    follows the labels and is held near its ridge solution. Without labels the probe says half of score_max for every token.
    The error of the reconstruction is the FVU, where the authors have the mean squared error."""

    cfg: AdaptiveKConfig
    config = AdaptiveKConfig
    per_activation_unit = ("probe_w", "probe_w_start")
    probe_w_start: Float[Tensor, "D"]
    probe_b_start: Float[Tensor, ""]
    penalty: Float[Tensor, ""]
    delta: Float[Tensor, ""]
    recent: Float[Tensor, "2"]

    def make_rule(self, d_model: int) -> None:
        """Create the probe, which says half of score_max for every token, and what follows it in training."""
        self.joint = False
        middle = torch.tensor(self.cfg.score_max / 2)
        self.probe_w = nn.Parameter(torch.zeros(d_model))
        self.probe_b = nn.Parameter(middle.clone())
        self.register_buffer("probe_w_start", torch.zeros(d_model))
        self.register_buffer("probe_b_start", middle.clone())
        self.register_buffer(
            "penalty", torch.zeros(())
        )  # the ridge penalty that cross-validation chose, for a mean squared error
        self.register_buffer("delta", torch.tensor(0.2))  # weight of the probe's distance from its start
        self.register_buffer("recent", torch.full((2,), torch.inf))  # probe losses: two steps ago, one ago

    def score(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
        """Return how complex the probe takes each row's text to be, from 0 to score_max.

        Where labels are numbers of latents, scores lie between that of k_min and that of k_max."""
        return (x @ self.probe_w + self.probe_b).clamp(*self.score_range)

    @property
    def score_range(self) -> tuple[float, float]:
        """The lowest and the highest score."""
        if self.cfg.labels_in != "latents":
            return 0.0, self.cfg.score_max
        lowest, highest = self.scores_of(
            torch.tensor([self.cfg.k_min, self.cfg.k_max], dtype=torch.float32)
        ).tolist()
        return lowest, highest

    @torch.no_grad()
    def scores_of(self, labels: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Return the scores that labels stand for (`labels_in`); NaN stays NaN.

        For numbers of latents, `k_of` of the score is the label, rounded and within k_min and k_max."""
        labels, k_min, span = labels.double(), self.cfg.k_min, self.cfg.k_max - self.cfg.k_min
        if self.cfg.labels_in == "nats":
            scores = self.cfg.score_max * (labels / NATS).clamp(0, 1)
        elif self.cfg.labels_in == "latents":
            # The sigmoid reaches k_min and k_max only at infinity, and a quarter of a latent away rounds to them.
            share = (labels - k_min).clamp(EDGE, max(span - EDGE, EDGE)) / max(span, 2 * EDGE)
            scores = self.cfg.score_max * (0.5 + torch.logit(share) / SLOPE)
        else:
            scores = labels
        return scores.float()

    @torch.no_grad()
    def k_of(self, score: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
        """Return the latents of rows with these scores: a sigmoid of slope 6 between k_min and k_max, rounded.

        As in hiyukie/adaptiveK, `map_complexity_to_k`, where `base_k` has no effect."""
        share = torch.sigmoid(SLOPE * (score / self.cfg.score_max - 0.5))
        return (self.cfg.k_min + share * (self.cfg.k_max - self.cfg.k_min)).round().long()

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        return self.pre_activations(x).largest(self.k_of(self.score(x))).relu()

    def kept_per_row(self, x: Float[Tensor, "B D"], u: Float[Tensor, "B F"]) -> Int[Tensor, "B"]:
        """Return each row's own k."""
        return self.k_of(self.score(x))

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Tensor) -> Loss:
        """Return FVU + l1_weight * L1 + aux_weight * AuxK. Each is relative to the inputs, so that no weight depends on units."""
        code = self._encode(x)
        size = kernels.collective().mean_over_rows(x.norm(dim=1).sum())
        size = torch.where(
            size > 0, size, len(x) * self.d_model**0.5
        )  # for rows of zeros, as at unit mean square
        l1 = code.values.sum() / size  # both are sums over the same rows, so this is the ratio of the means
        loss = reconstruction_loss(self, x, y, dead, code, self.cfg)
        return loss.plus(self.cfg.l1_weight * l1, {"l1": l1.detach()})

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the SAE and the probe as groups of their own, so that they are clipped separately."""
        probe = [self.probe_w, self.probe_b]
        rest = [parameter for name, parameter in self.named_parameters() if not name.startswith("probe_")]
        return [{"params": rest}, {"params": probe}]

    def begin_step(self, step: int, steps: int) -> None:
        """Begin stage 3 in the last `joint_share` of all steps."""
        self.joint = step >= steps - round(self.cfg.joint_share * steps)

    @torch.no_grad()
    def fit_labels(self, x: Float[Tensor, "n D"], labels: Float[Tensor, "n"]) -> None:
        """Fit the probe by ridge regression on labelled rows (stage 1). Raises ConfigError for unusable labels."""
        x, labels = x[labels.isfinite()], self.scores_of(labels[labels.isfinite()])
        if len(labels.unique()) < 2:
            raise ConfigError(
                f"{len(labels):,} of the sampled rows have a label, with {len(labels.unique())} different values: "
                f"the probe needs at least two; harvest with other --labels"
            )
        lowest, highest = self.score_range
        if labels.min() < lowest or labels.max() > highest:
            raise ConfigError(
                f"labels lie between {labels.min():g} and {labels.max():g}, outside 0 to score_max = "
                f"{self.cfg.score_max:g}: set --arch.score-max, or shift the labels"
            )
        chosen = cross_validated(x, labels, self.cfg.ridge_lambdas)
        (w,), (b,) = ridge(x, labels, [chosen])
        for target in (self.probe_w, self.probe_w_start):
            target.copy_(w)
        for target in (self.probe_b, self.probe_b_start):
            target.copy_(b)
        self.penalty.fill_(chosen / len(x))

    def label_loss(
        self, x: Float[Tensor, "B D"], labels: Float[Tensor, "B"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return probe_weight * (probe loss + delta * deviation) in stage 3, and 0 before. Logs `probe_mse` in both.

        The probe loss is the mean squared error of the scores plus the ridge penalty, with the weight that ridge gave it (the
        authors use the number that belongs to a sum of squares for a mean, which is n times as strong). The deviation is
        |w - w_start| + |b - b_start|. Rows without a label take no part. In training mode this updates `delta`."""
        labelled = labels.isfinite()
        count = kernels.collective().mean_over_rows(labelled.sum(dtype=x.dtype))
        if not count:
            return x.new_zeros(()), {}
        with torch.set_grad_enabled(self.joint and torch.is_grad_enabled()):
            mse = (self.score(x[labelled]) - self.scores_of(labels[labelled])).square().sum() / count
        terms = {"probe_mse": mse.detach()}
        if not self.joint:
            return x.new_zeros(()), terms
        probe = mse + self.penalty * self.probe_w.square().sum()
        deviation = (self.probe_w - self.probe_w_start).norm() + (self.probe_b - self.probe_b_start).abs()
        total = self.cfg.probe_weight * (probe + self.delta.clone() * deviation)
        if self.training:
            self._follow(kernels.collective().mean_over_rows(probe.detach()))
        return total, {**terms, "probe_deviation": deviation.detach()}

    def _follow(self, probe_loss: Float[Tensor, ""]) -> None:
        """Weaken the tie to the start when the probe's loss fell by more than 5 % in two steps, else strengthen it."""
        before = self.recent[0].clone()
        self.recent.copy_(torch.stack([self.recent[1], probe_loss]))
        if before.isinf():  # stage 3 has just begun
            return
        fell = before - probe_loss > 0.05 * before
        self.delta.copy_((0.8 * self.delta).clamp_min(0.01) if fell else (1.2 * self.delta).clamp_max(0.5))


def ridge(
    x: Float[Tensor, "n D"], y: Float[Tensor, "n"], penalties: Sequence[float]
) -> tuple[Float[Tensor, "L D"], Float[Tensor, "L"]]:
    """Fit y ~ x w + b, b free: return for each penalty the w and b that make sum of (x w + b - y)^2 + penalty * |w|^2 least, in float64."""
    x, y = x.double(), y.double()
    x_mean, y_mean = x.mean(0), y.mean()
    centred = x - x_mean
    gram, target = centred.T @ centred, centred.T @ (y - y_mean)
    ones = torch.eye(len(gram), dtype=gram.dtype)
    w = torch.stack([torch.linalg.solve(gram + penalty * ones, target) for penalty in penalties])
    return w, y_mean - w @ x_mean


def cross_validated(x: Float[Tensor, "n D"], y: Float[Tensor, "n"], penalties: Sequence[float]) -> float:
    """Return the penalty with the least squared error in five-fold cross-validation, the first of equal ones.

    Rows with the same label stay in one fold, because they may be of one document, which the probe could otherwise remember
    from the other folds. Needs at least two different labels."""
    values, label_of = y.unique(return_inverse=True)
    folds = min(FOLDS, len(values))
    fold = (torch.randperm(len(values), generator=torch.Generator().manual_seed(0)) % folds)[label_of]
    errors = torch.zeros(len(penalties), dtype=torch.float64)
    for number in range(folds):
        out = fold == number
        w, b = ridge(x[~out], y[~out], penalties)
        errors += (x[out].double() @ w.T + b - y[out, None]).square().sum(0)
    return penalties[int(errors.argmin())]
