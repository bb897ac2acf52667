"""Why a latent does not fire: rules, in order, each with its threshold here and its evidence in words.

What each is about: Bricken et al. 2023, "Towards Monosemanticity" (collapse, resampling); Gao et al. 2024,
arXiv:2406.04093, A.2 (AuxK); arXiv:2605.31518 (latents turned away from the mean activation never fire)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Causes, in the order in which they are tried: the first whose rule applies is the main one.
CAUSES = {
    "encoder collapsed": "its encoder is far shorter than those of living latents, so its drive is tiny",
    "turned to special positions": "its encoder points at what stands at special positions, and it fires there",
    "bias too low": "its bias is lower than nearly all living ones', and that is what keeps it from firing, or negative",
    "threshold too high": "its threshold is higher than nearly all living ones', and with their median it would fire",
    "turned away from the mean": "the mean activation pushes it down, and that is what keeps it from firing, or negative",
    "duplicate": "a living latent reads and writes the same direction, and is chosen in its stead",
    "encoder short": "its encoder is shorter than nearly all living ones', and with their median norm it would fire",
    "outcompeted": "it is positive on some rows, but others are always stronger",
    "below its threshold": "it is positive on some rows, but never above its threshold",
    "unexplained": "no rule applies",
    "rare": "it fires, but on so few tokens that training takes it for dead by chance",
    "only in training text": "it fires in training text, and what it reads is in no held-out text looked at",
}
OF_KIND = {"rare": "rare", "training only": "only in training text"}  # what is said of those that do fire
FIRES_ON = ("text", "training text only", "special positions only", "off-distribution only", "special positions and off-distribution", "nothing")  # fmt: skip
TRAINING = ("not recorded", "never fired", "died", "revived and lost", "alive at the end")


@dataclass(frozen=True)
class Rules:
    """Thresholds of the rules."""

    collapsed: float = 0.1
    """Encoder norm, against the living median, below which an encoder is collapsed."""
    outlying: float = 0.01
    """Share of the living latents that may lie as far out as a bias, threshold or mean projection called extreme."""
    special: float = 0.5
    """Cosine with the special positions' activation from which an encoder points at them."""
    duplicate: float = 0.95
    """Decoder cosine from which two latents write the same."""
    duplicate_encoder: float = 0.9
    """Encoder cosine from which they read the same."""
    expected: float = 10.0
    """Held-out firings that the density in training text would give, from which none at all means training text
    only. Firings come in clusters, a document each, so that this is more often chance than exp(-10) says."""
    rare: float = 3.0
    """Firings expected in `dead_after_tokens` below which a living latent is rare: it passes for dead by chance
    with p > 5 %."""


RULES = Rules()


@dataclass(frozen=True)
class Living:
    """What is usual among living latents: medians, and the extremes that all but `outlying` stay within."""

    encoder_norm: float
    shortest_encoder: float
    decoder_norm: float
    bias: float | None
    lowest_bias: float | None
    threshold: float
    highest_threshold: float
    lowest_projection: float
    """Of the mean activation's share of a latent's drive."""
    latents: int


def cause_of(row: dict[str, Any], living: Living, rules: Rules = RULES) -> tuple[str, list[str]]:
    """The main cause of a row of evidence, and the others that apply too."""
    applies = {
        "encoder collapsed": row["encoder_norm"] < rules.collapsed * living.encoder_norm,
        "bias too low": _bias_too_low(row, living),
        "threshold too high": _threshold_too_high(row, living),
        "turned to special positions": row["fired_special"] > 0
        and (row["special_cosine"] or 0.0) >= rules.special,
        "turned away from the mean": _turned_away(row, living),
        "duplicate": (row["near_decoder_cosine"] or 0.0) >= rules.duplicate
        and row["near_decoder_encoder_cosine"] >= rules.duplicate_encoder,
        "encoder short": _encoder_short(row, living),
        "outcompeted": row["positive_share"] > 0 and row["by_competition"],
        "below its threshold": row["positive_share"] > 0 and not row["by_competition"],
    }
    found = [cause for cause in CAUSES if applies.get(cause)]
    if row["kind"] in OF_KIND:  # what else applies is why it fires no more often, if it did not on these rows
        return OF_KIND[row["kind"]], [] if row["margin"] > 0 else found
    return (found or ["unexplained"])[0], found[1:]


def _bias_too_low(row: dict[str, Any], living: Living) -> bool:
    if row["bias"] is None or living.bias is None or living.lowest_bias is None:
        return False
    return row["bias"] < living.lowest_bias and _enough(row, living.bias - row["bias"])


def _threshold_too_high(row: dict[str, Any], living: Living) -> bool:
    if row["threshold"] is None:
        return False
    higher = row["threshold"] > living.highest_threshold
    return higher and row["margin"] + row["threshold"] - living.threshold > 0


def _turned_away(row: dict[str, Any], living: Living) -> bool:
    share = row["mean_projection"]
    return share is not None and share < min(living.lowest_projection, 0) and _enough(row, -share)


def _encoder_short(row: dict[str, Any], living: Living) -> bool:
    """Judged on the row where it came nearest to firing; a tie with what was needed, to a hundredth, is no firing."""
    if row["encoder_norm"] >= living.shortest_encoder or row["bias"] is None:
        return False
    bias = 0.0 if row["signed"] else row["bias"]
    longer = (row["best_drive"] - bias) * living.encoder_norm / max(row["encoder_norm"], 1e-30) + bias
    return longer > 1.01 * row["needed"] and longer > 0


def _enough(row: dict[str, Any], more: float) -> bool:
    """Whether so much more drive would make it fire, or one that is negative on every row positive on some."""
    return row["margin"] + more > 0 or (row["positive_share"] == 0 and row["best_drive"] + more > 0)


def fires_on(counts: dict[str, int], rows: dict[str, int], rules: Rules = RULES) -> str:
    """On which data a latent fires, from its firings and the numbers of rows by group."""
    train, held_out = counts["train"], counts["held_out"]
    if train + held_out:
        expected = train / max(rows["train"], 1) * rows["held_out"]
        return "training text only" if not held_out and expected >= rules.expected else "text"
    special = counts.get("special", 0) > 0
    off = counts.get("random", 0) + counts.get("shuffled", 0) > 0
    if special and off:
        return "special positions and off-distribution"
    return "special positions only" if special else "off-distribution only" if off else "nothing"


def training_of(
    history: dict[str, Tensor] | None, dead_after: int, tokens: int, latent: int
) -> dict[str, Any]:
    """What became of a latent in training: `training`, one of TRAINING, and the numbers behind it.

    `tokens` is how many the training had in all. last_fired is counted in tokens from the start; None: never."""
    if history is None:
        empty = ("times_died", "times_revived", "first_death", "last_death", "last_fired")
        return {"training": "not recorded", **dict.fromkeys(empty)}
    one = {name: int(tensor[latent]) for name, tensor in history.items()}
    silent, steps = one["silent_tokens"], {name: one[name] for name in ("first_death", "last_death")}
    found = {name: None if step < 0 else step for name, step in steps.items()}
    found |= {name: one[name] for name in ("times_died", "times_revived")}
    found["last_fired"] = None if silent >= tokens else tokens - silent
    if silent >= tokens:
        state = "never fired"
    elif silent < dead_after:
        state = "alive at the end"
    else:
        state = "revived and lost" if one["times_revived"] else "died"
    return {"training": state, **found}


def words(row: dict[str, Any], living: Living, *, aux_k: bool) -> str:
    """A row's evidence as a sentence or two: what each number of its main cause is, and what became of it."""
    said = [_SAY[row["cause"]](row, living)]
    if row["positive_share"] == 0:
        said.append(
            "It is negative on every row looked at" + (", so AuxK gives it no gradient." if aux_k else ".")
        )
    if row["also"]:
        said.append(f"Also: {', '.join(row['also'])}.")
    said.append(_history(row))
    return " ".join(part for part in said if part)


def _history(row: dict[str, Any]) -> str:
    match row["training"]:
        case "never fired":
            return "It never fired in training."
        case "died":
            return f"It died at step {row['last_death']:,} and was not revived."
        case "revived and lost":
            times = row["times_revived"]
            return f"It was revived {times} time{'s' * (times > 1)} and lost again at step {row['last_death']:,}."
        case "alive at the end":
            return "It fired in the last stretch of training."
    return ""


def _say_competition(row: dict[str, Any], living: Living) -> str:
    if row["best_rank"]:
        return (
            f"Positive on {row['positive_share']:.1%} of rows, best place {row['best_rank']:,}, "
            f"{row['missing_places']:,} too low to be kept; nearest living encoder: {row['near_encoder']} "
            f"(cosine {row['near_encoder_cosine'] or 0:.2f})."
        )
    return (
        f"Positive on {row['positive_share']:.1%} of rows, at best {row['best_drive']:.3g} "
        f"where {row['needed']:.3g} was needed."
    )


def _say_firings(row: dict[str, Any]) -> str:
    text = f"Fired on {row['fired_train']:,} rows of training text and {row['fired_held_out']:,} of held-out text"
    more = (
        ""
        if row["fired_features"] is None
        else f", and {row['fired_features']:,} times where features were collected"
    )
    return f"{text}{more}."


_SAY = {
    "encoder collapsed": lambda row, living: (
        f"Encoder norm {row['encoder_norm']:.3g}, the living median is {living.encoder_norm:.3g}; "
        f"it was {-row['margin']:.3g} short at best."
    ),
    "bias too low": lambda row, living: (
        f"Bias {row['bias']:.3g}, the living median is {living.bias:.3g} and nearly all are above "
        f"{living.lowest_bias:.3g}; it was {-row['margin']:.3g} short at best."
    ),
    "threshold too high": lambda row, living: (
        f"Threshold {row['threshold']:.3g}, the living median is {living.threshold:.3g}; "
        f"it was {-row['margin']:.3g} short at best."
    ),
    "turned to special positions": lambda row, living: (
        f"Encoder cosine {row['special_cosine']:.2f} with the activation at special positions; "
        f"{row['mean_cosine']:.2f} with the mean of text."
    ),
    "turned away from the mean": lambda row, living: (
        f"The mean activation takes {-row['mean_projection']:.3g} off its drive (encoder cosine "
        f"{row['mean_cosine']:.2f}); it was {-row['margin']:.3g} short at best."
    ),
    "duplicate": lambda row, living: (
        f"Latent {row['near_decoder']} lives in its place: decoder cosine {row['near_decoder_cosine']:.2f}, "
        f"encoder cosine {row['near_decoder_encoder_cosine']:.2f}; it was {-row['margin']:.3g} short at best."
    ),
    "encoder short": lambda row, living: (
        f"Encoder norm {row['encoder_norm']:.3g}, nearly all living ones are above {living.shortest_encoder:.3g} "
        f"(median {living.encoder_norm:.3g}). {_say_competition(row, living)}"
    ),
    "outcompeted": _say_competition,
    "below its threshold": _say_competition,
    "rare": lambda row, living: _say_firings(row),
    "only in training text": lambda row, living: _say_firings(row),
    "unexplained": lambda row, living: (
        f"Norm and bias are usual; it was {-row['margin']:.3g} short at best, encoder cosine with the mean "
        f"{row['mean_cosine']:.2f}."
    ),
}  # fmt: skip


def living_of(
    norms: tuple[Tensor, Tensor], bias: Tensor | None, thresholds: Tensor, projection: Tensor, lives: Tensor
) -> Living:
    """Medians and extremes over the living latents: of encoder and decoder norms, biases, thresholds, and the
    mean activation's share of drives. Raises nothing: when none lives all latents stand in for them."""
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
    place = round(q * (len(values) - 1))
    return float(values.sort().values[place])
