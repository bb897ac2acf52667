"""The measures of `sae evaluate`: one table that the command line, the app, model cards and the docs read.

A measure is shown wherever eval.json has a number under its name. One that has no line here, as in a file that a newer
release wrote, is shown under its name in the file."""

from dataclasses import dataclass
from typing import NamedTuple

DENSE = 0.1
"""A latent that fires on more than this share of tokens is dense."""


class Measure(NamedTuple):
    """The names, the definition and the number format of one measure."""

    symbol: str
    """Short name for the heads of tables and for figures."""
    title: str
    """Full name of the measure."""
    formula: str
    """Its definition as docs/metrics.md gives it; x is an activation, x̂ its reconstruction, z its code."""
    help: str
    """A sentence that says how to read the number."""
    format: str = ".4g"
    """Format specification of a value."""
    compared: bool = True
    """Whether it is shown where several runs stand side by side, because it differs between them."""
    lower_is_better: bool | None = None
    """The direction in which an SAE is better; None where neither is, as for L0."""


MEASURES = {
    "fvu": Measure(
        "FVU",
        "fraction of variance unexplained",
        "Σ‖x − x̂‖² / Σ‖x − μ‖²",
        "Fraction of variance unexplained: 0 is a perfect reconstruction, 1 is no better than the mean.",
        lower_is_better=True,
    ),
    "explained_variance": Measure(
        "explained variance", "explained variance", "1 − fvu", "1 − FVU.", compared=False
    ),
    "cosine": Measure(
        "cosine",
        "cosine(x, x̂)",
        "mean of x·x̂ / (‖x‖ ‖x̂‖)",
        "Mean cosine between an activation and its reconstruction.",
        lower_is_better=False,
    ),
    "l0": Measure(
        "L0",
        "L0 (latents firing per token)",
        "mean number of latents with z ≠ 0",
        "How many features fire on a token, on average.",
    ),
    "norm_ratio": Measure(
        "norm ratio",
        "‖x̂‖ / ‖x‖",
        "mean of ‖x̂‖ / ‖x‖",
        "Norm of the reconstruction over norm of the activation; below 1 the SAE shrinks.",
    ),
    "ce_clean": Measure(
        "CE, unchanged model",
        "cross-entropy, unchanged model",
        "mean of −log p(next token)",
        "Cross-entropy of the model's next-token predictions, in nats per token.",
        compared=False,
    ),
    "ce_spliced": Measure(
        "CE, SAE spliced in",
        "cross-entropy, SAE spliced in",
        "mean of −log p(next token)",
        "Cross-entropy when the reconstruction replaces the activation.",
        compared=False,
    ),
    "ce_mean": Measure(
        "CE, mean-ablated",
        "cross-entropy, mean-ablated",
        "mean of −log p(next token)",
        "Cross-entropy when the mean activation replaces the activation.",
        compared=False,
    ),
    "ce_zero": Measure(
        "CE, zero-ablated",
        "cross-entropy, zero-ablated",
        "mean of −log p(next token)",
        "Cross-entropy when zeros replace the activation.",
        compared=False,
    ),
    "kl": Measure(
        "KL divergence",
        "KL(unchanged ‖ spliced)",
        "mean over tokens of KL(p clean ‖ p spliced)",
        "How far the model's predictions move when the SAE is spliced in, in nats per token.",
        lower_is_better=True,
    ),
    "recovered_zero": Measure(
        "CE recovered (zero)",
        "cross-entropy recovered (zero ablation)",
        "(CE zero − CE spliced) / (CE zero − CE clean)",
        "Share of the loss caused by zero ablation that the SAE recovers.",
        lower_is_better=False,
    ),
    "recovered_mean": Measure(
        "CE recovered (mean)",
        "cross-entropy recovered (mean ablation)",
        "(CE mean − CE spliced) / (CE mean − CE clean)",
        "Share of the loss caused by mean ablation that the SAE recovers.",
        compared=False,
    ),
}


def shown(value: float | None, how: str) -> str:
    """Return a value formatted by a format specification, a dash for None."""
    return "–" if value is None else format(value, how)


def measure(name: str) -> Measure:
    """Return the measure of this name in eval.json; for a name that this release does not know, one called by it."""
    return MEASURES.get(name, Measure(name, name, "", ""))


@dataclass(frozen=True)
class QuasiOrthogonality:
    """The norms of inputs and codes in eval.json; `eps_lbo` has its quantiles by name, the norms are of some rows."""

    rows: int
    silent: int
    eps_lbo: dict[str, float]
    input_norms: list[float]
    code_norms: list[float]


@dataclass(frozen=True)
class L0Proxies:
    """The decoder's proxies of the right L0 in eval.json (`l0_proxies.py`): how many inputs and latents they are of, and both."""

    rows: int
    latents: int
    decoder_cosine: float
    decoder_projection: float


@dataclass(frozen=True)
class Estimate:
    """A measure with its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class EffectGroup:
    """The effects of ablating one kind of thing in eval.json: latents, or one of the controls."""

    sparsity: Estimate
    """Mean of `values`, with a bootstrap interval over latents."""
    quantiles: dict[str, float]
    """Quantiles of `values` by name, such as 0.5."""
    size: Estimate
    """Mean root mean square change of a logit, after the median of each position is taken off."""
    values: list[float]
    """Sparsity of the effect, (L1 / L2)^2 as a share of all logits and positions, for each sampled latent; of a control, for
    what was ablated in its place."""
    less_than: Estimate | None
    """How much smaller the latents' mean is than this control's, with a paired interval; None for the latents themselves."""


@dataclass(frozen=True)
class AblationEffects:
    """The sparsity of what ablating a latent does to the logits, in eval.json (`ablation.py`)."""

    latents: list[int]
    """The latents that were sampled among those that fire."""
    live: int
    """Latents that fire where they could be measured; the sample is of these."""
    firings: int
    """Firings ablated, over all latents."""
    positions: int
    """Positions compared after each ablation, the ablated one included."""
    vocabulary: int
    windows: int
    """Held-out windows that the firings lie in."""
    groups: dict[str, EffectGroup]
    """By name: `latents`, `random-dictionary`, `random-directions`."""
