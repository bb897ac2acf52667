"""Name the cause of a latent's death by rules, tried in order, and say the evidence for it in words.

Sources: Bricken et al. 2023, "Towards Monosemanticity" (collapse, resampling); Gao et al. 2024, arXiv:2406.04093,
appendix A.2 (AuxK); arXiv:2605.31518 (latents turned away from the mean activation never fire)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.report.numbers import percent

# Causes in the order in which they are tried: the first whose rule applies is the main cause.
CAUSES = {
    "encoder collapsed": "its encoder is far shorter than those of live latents, so its pre-activation is tiny",
    "turned to special positions": "its encoder points at the activation of special positions, and it fires there",
    "bias too low": "its bias is lower than those of nearly all live latents, and with their median it would fire, or at least be positive",
    "threshold too high": "its threshold is higher than those of nearly all live latents, and with their median it would fire",
    "turned away from the mean": "the mean activation lowers its pre-activation, and without that it would fire, or at least be positive",
    "duplicate": "a live latent has nearly the same encoder and decoder direction and fires instead",
    "encoder short": "its encoder is shorter than those of nearly all live latents, and with their median norm it would fire",
    "outcompeted": "it is positive on some rows, but others are always stronger",
    "below its threshold": "it is positive on some rows, but never above its threshold",
    "unexplained": "no rule applies",
    "rare": "it fires, but on so few tokens that training may take it for dead by chance",
    "only in training text": "it fires in training text, and in none of the held-out text that was read",
}
OF_KIND = {
    "rare": "rare",
    "training only": "only in training text",
}  # kinds that do fire have a cause of their own
FIRES_ON = ("text", "training text only", "special positions only", "off-distribution only", "special positions and off-distribution", "nothing")  # fmt: skip
TRAINING = ("not recorded", "never fired", "died", "revived and lost", "alive at the end")


@dataclass(frozen=True)
class Rules:
    """Thresholds of the rules that name causes."""

    collapsed: float = 0.1
    """Share of the live latents' median norm below which an encoder counts as collapsed."""
    outlying: float = 0.01
    """Share of the live latents that may lie as far out as a bias, threshold or mean projection that counts as extreme."""
    special: float = 0.5
    """Cosine with the mean activation of special positions from which an encoder points at them."""
    duplicate: float = 0.95
    """Decoder cosine from which two latents write the same direction."""
    duplicate_encoder: float = 0.9
    """Encoder cosine from which they read the same direction."""
    expected: float = 10.0
    """Held-out firings expected from the density in training text, from which none at all means "training text only".

    Chance alone gives none more often than exp(-10), because firings come in clusters, within documents."""
    rare: float = 3.0
    """Firings expected in `dead_after_tokens` below which a live latent is rare: with fewer, chance gives none with
    p > exp(-3) = 5 %, and training takes the latent for dead."""


RULES = Rules()


@dataclass(frozen=True)
class Living:
    """Typical values among the live latents: medians, and bounds that all but a share `outlying` stay within."""

    encoder_norm: float
    shortest_encoder: float
    decoder_norm: float
    bias: float | None
    lowest_bias: float | None
    threshold: float
    highest_threshold: float
    lowest_projection: float
    """Lowest contribution of the mean activation to a latent's pre-activation."""
    latents: int
    """Number of live latents."""


@dataclass(frozen=True, kw_only=True)
class Fate:
    """The history of a latent in training; all numbers are None where it was not recorded."""

    training: str = "not recorded"
    """One of TRAINING."""
    times_died: int | None = None
    times_revived: int | None = None
    first_death: int | None = None
    """Step; None if it never died."""
    last_death: int | None = None
    last_fired: int | None = None
    """In tokens from the start of training; None if it never fired."""


@dataclass(frozen=True, kw_only=True)
class Evidence(Fate):
    """Measurements of a latent that is dead, rare or fires in training text only: its columns of latents.parquet.

    FORMAT.md says what each column means. None stands for what was not measured or has no meaning for the SAE."""

    latent: int
    kind: str
    fires_on: str
    density: float
    fired_train: int
    fired_held_out: int
    fired_special: int
    fired_random: int | None = None
    fired_shuffled: int | None = None
    fired_features: int | None
    margin: float
    needed: float
    positive_share: float
    best_drive: float
    mean_drive: float
    mean_projection: float | None
    best_rank: int
    missing_places: int
    encoder_norm: float
    decoder_norm: float
    bias: float | None
    threshold: float | None
    mean_cosine: float
    special_cosine: float | None
    near_decoder: int
    near_decoder_cosine: float | None
    near_decoder_encoder_cosine: float | None
    near_encoder: int
    near_encoder_cosine: float | None
    by_competition: bool
    """Whether other latents can keep it from firing: rank decides, or all latents share one threshold."""
    signed: bool
    """Whether latents fire with both signs."""


def cause_of(latent: Evidence, living: Living, rules: Rules = RULES) -> tuple[str, list[str]]:
    """Return the main cause of a latent's death, one of CAUSES, and the others that apply too."""
    applies = {
        "encoder collapsed": latent.encoder_norm < rules.collapsed * living.encoder_norm,
        "bias too low": _bias_too_low(latent, living),
        "threshold too high": _threshold_too_high(latent, living),
        "turned to special positions": latent.fired_special > 0
        and (latent.special_cosine or 0.0) >= rules.special,
        "turned away from the mean": _turned_away(latent, living),
        "duplicate": (latent.near_decoder_cosine or 0.0) >= rules.duplicate
        and (latent.near_decoder_encoder_cosine or 0.0) >= rules.duplicate_encoder,
        "encoder short": _encoder_short(latent, living),
        "outcompeted": latent.positive_share > 0 and latent.by_competition,
        "below its threshold": latent.positive_share > 0 and not latent.by_competition,
    }
    causes = [cause for cause in CAUSES if applies.get(cause)]
    if latent.kind in OF_KIND:  # the other causes explain why it fired on none of these rows, if it did not
        return OF_KIND[latent.kind], [] if latent.margin > 0 else causes
    return (causes or ["unexplained"])[0], causes[1:]


def _bias_too_low(latent: Evidence, living: Living) -> bool:
    if latent.bias is None or living.bias is None or living.lowest_bias is None:
        return False
    return latent.bias < living.lowest_bias and _enough(latent, living.bias - latent.bias)


def _threshold_too_high(latent: Evidence, living: Living) -> bool:
    if latent.threshold is None:
        return False
    higher = latent.threshold > living.highest_threshold
    return higher and latent.margin + latent.threshold - living.threshold > 0


def _turned_away(latent: Evidence, living: Living) -> bool:
    share = latent.mean_projection
    return share is not None and share < min(living.lowest_projection, 0) and _enough(latent, -share)


def _encoder_short(latent: Evidence, living: Living) -> bool:
    """Return whether the latent would fire with an encoder of the live latents' median norm, on the row where it came nearest.

    Lengthening the encoder scales the pre-activation without its bias. A result within 1 % of what was needed does not
    count: for latents chosen by rank it may be a tie with a duplicate."""
    if latent.encoder_norm >= living.shortest_encoder or latent.bias is None:
        return False
    bias = 0.0 if latent.signed else latent.bias
    lengthened = (latent.best_drive - bias) * living.encoder_norm / max(latent.encoder_norm, 1e-30) + bias
    return lengthened > 1.01 * latent.needed and lengthened > 0


def _enough(latent: Evidence, more: float) -> bool:
    """Return whether a pre-activation higher by `more` would fire, or be positive on some row where it is on none."""
    return latent.margin + more > 0 or (latent.positive_share == 0 and latent.best_drive + more > 0)


def fires_on(counts: dict[str, int], rows: dict[str, int], rules: Rules = RULES) -> str:
    """Return on which data a latent fires, one of FIRES_ON, from its firings and the numbers of rows by group."""
    train, held_out = counts["train"], counts["held_out"]
    if train + held_out:
        expected = train / max(rows["train"], 1) * rows["held_out"]
        return "training text only" if not held_out and expected >= rules.expected else "text"
    special = counts.get("special", 0) > 0
    off = counts.get("random", 0) + counts.get("shuffled", 0) > 0
    if special and off:
        return "special positions and off-distribution"
    return "special positions only" if special else "off-distribution only" if off else "nothing"


def training_of(history: dict[str, Tensor] | None, dead_after: int, tokens: int, latent: int) -> Fate:
    """Return what became of a latent in training; `tokens` is the number of tokens of the whole training."""
    if history is None:
        return Fate()
    own = {name: int(tensor[latent]) for name, tensor in history.items()}
    silent, times_revived = own["silent_tokens"], own["times_revived"]
    if silent >= tokens:
        state = "never fired"
    elif silent < dead_after:
        state = "alive at the end"
    else:
        state = "revived and lost" if times_revived else "died"
    first, last = (own[name] if own[name] >= 0 else None for name in ("first_death", "last_death"))
    return Fate(
        training=state,
        times_died=own["times_died"],
        times_revived=times_revived,
        first_death=first,
        last_death=last,
        last_fired=None if silent >= tokens else tokens - silent,
    )


def words(latent: Evidence, cause: str, also: list[str], living: Living, *, aux_k: bool) -> str:
    """Return a latent's evidence in a few sentences: the numbers behind its main `cause`, the causes that
    apply too (`also`), and what became of it in training.

    `aux_k` says whether the architecture has an AuxK loss."""
    sentences = [_SAY[cause](latent, living)]
    if latent.positive_share == 0:
        sentences.append(
            "It is negative on every row that was read"
            + (", so AuxK gives it no gradient." if aux_k else ".")
        )
    if also:
        sentences.append(f"Also: {', '.join(also)}.")
    sentences.append(_history(latent))
    return " ".join(sentence for sentence in sentences if sentence)


def _history(latent: Evidence) -> str:
    match latent.training:
        case "never fired":
            return "It never fired in training."
        case "died":
            return f"It died at step {latent.last_death:,} and was not revived."
        case "revived and lost":
            times = latent.times_revived or 0
            return f"It was revived {times} time{'s' * (times > 1)} and lost again at step {latent.last_death:,}."
        case "alive at the end":
            return "It fired in the last stretch of training."
    return ""


def _say_competition(latent: Evidence, living: Living) -> str:
    if latent.best_rank:
        return (
            f"Positive on {percent(latent.positive_share)} of the rows, best rank {latent.best_rank:,}, "
            f"{latent.missing_places:,} too low to be kept; nearest live encoder: {latent.near_encoder} "
            f"(cosine {latent.near_encoder_cosine or 0:.2f})."
        )
    return (
        f"Positive on {percent(latent.positive_share)} of the rows, at best {latent.best_drive:.3g} "
        f"where {latent.needed:.3g} was needed."
    )


def _say_firings(latent: Evidence) -> str:
    text = f"Fired on {latent.fired_train:,} rows of training text and {latent.fired_held_out:,} of held-out text"
    more = (
        ""
        if latent.fired_features is None
        else f", and {latent.fired_features:,} times where features were collected"
    )
    return f"{text}{more}."


_SAY = {
    "encoder collapsed": lambda latent, living: (
        f"Encoder norm {latent.encoder_norm:.3g}, the median of live latents is {living.encoder_norm:.3g}; "
        f"it was {-latent.margin:.3g} short at best."
    ),
    "bias too low": lambda latent, living: (
        f"Bias {latent.bias:.3g}, the median of live latents is {living.bias:.3g} and nearly all are above "
        f"{living.lowest_bias:.3g}; it was {-latent.margin:.3g} short at best."
    ),
    "threshold too high": lambda latent, living: (
        f"Threshold {latent.threshold:.3g}, the median of live latents is {living.threshold:.3g}; "
        f"it was {-latent.margin:.3g} short at best."
    ),
    "turned to special positions": lambda latent, living: (
        f"Encoder cosine {latent.special_cosine:.2f} with the activation at special positions; "
        f"{latent.mean_cosine:.2f} with the mean of text."
    ),
    "turned away from the mean": lambda latent, living: (
        f"The mean activation lowers its pre-activation by {-latent.mean_projection:.3g} (encoder cosine "
        f"{latent.mean_cosine:.2f}); it was {-latent.margin:.3g} short at best."
    ),
    "duplicate": lambda latent, living: (
        f"Latent {latent.near_decoder} fires in its place: decoder cosine {latent.near_decoder_cosine:.2f}, "
        f"encoder cosine {latent.near_decoder_encoder_cosine:.2f}; it was {-latent.margin:.3g} short at best."
    ),
    "encoder short": lambda latent, living: (
        f"Encoder norm {latent.encoder_norm:.3g}, those of nearly all live latents are above {living.shortest_encoder:.3g} "
        f"(median {living.encoder_norm:.3g}). {_say_competition(latent, living)}"
    ),
    "outcompeted": _say_competition,
    "below its threshold": _say_competition,
    "rare": lambda latent, living: _say_firings(latent),
    "only in training text": lambda latent, living: _say_firings(latent),
    "unexplained": lambda latent, living: (
        f"Norm and bias are usual; it was {-latent.margin:.3g} short at best, encoder cosine with the mean "
        f"{latent.mean_cosine:.2f}."
    ),
}  # fmt: skip


def living_of(
    norms: tuple[Tensor, Tensor], bias: Tensor | None, thresholds: Tensor, projection: Tensor, lives: Tensor
) -> Living:
    """Return medians and extremes over the live latents, or over all latents when none is alive.

    Tensors are [F]: encoder and decoder norms, biases, thresholds, and the contribution of the mean activation to each
    pre-activation."""
    lives = lives if lives.any() else torch.ones_like(lives)
    encoder, decoder = (float(norm[lives].median()) for norm in norms)
    return Living(
        encoder,
        _quantile(norms[0][lives], RULES.outlying),
        decoder,
        None if bias is None else float(bias[lives].median()),
        None if bias is None else _quantile(bias[lives], RULES.outlying),
        float(thresholds[lives].median()),
        _quantile(thresholds[lives], 1 - RULES.outlying),
        _quantile(projection[lives], RULES.outlying),
        int(lives.sum()),
    )


def _quantile(values: Tensor, q: float) -> float:
    rank = round(q * (len(values) - 1))
    return float(values.sort().values[rank])
