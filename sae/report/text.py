"""Pure: a reading of a text -> what its page shows: colours, numbers, and the features that fire, ranked."""

from collections.abc import Sequence
from math import exp, isnan
from typing import Any, NamedTuple

from sae.report.feature import About
from sae.report.reading import Line, level_legend, level_shades, signed_shades
from sae.report.render import legend, number, percent

MEASURES = {
    "total": ("activation", "Sum of the sizes of all features' values on the token."),
    "l0": ("L0", "How many features fire on the token."),
    "error": ("error", "Share of the activation's variance that the SAE does not rebuild: 0 is perfect."),
    "surprise": ("surprise", "-log of the probability that the model gave this token, in nats."),
}
RANKINGS = {
    "value": "Largest value first, of either sign.",
    "rarity": "Value against the feature's observed maximum, times -ln of its density: dense features fall.",
    "effect": "Largest effect first on the logit of the token that comes next: what the decoder writes, straight "
    "through the final norm (its scale frozen) and the unembedding, against the mean logit.",
}
DENSEST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # stops of the control that hides dense features
EXAMPLES = {
    "Capitals": "The capital of France is Paris, and the river Seine flows through it. The capital of Japan is Tokyo.",
    "A recipe": "Whisk two eggs with a pinch of salt, melt the butter in a hot pan, and cook for three minutes.",
    "Code": "def area(radius):\n    return 3.14159 * radius ** 2\n\nprint(area(2.0))",
}
MOST = 40  # lines of a table


class Coloured(NamedTuple):
    """How the tokens are shown."""

    shades: Sequence[float]
    tips: Sequence[str]
    legend: str


def coloured(reading: Any, by: str | int) -> Coloured:
    """Shades, hover texts and colour scale of all tokens, by one of MEASURES or by a feature."""
    counted = reading.counted.tolist()
    if isinstance(by, int):
        values = reading.values_of(by).tolist()
        inside = [value if counts else 0.0 for value, counts in zip(values, counted, strict=True)]
        scale = legend(min(*inside, 0.0), max(*inside, 0.0)) if any(inside) else ""
        return Coloured(signed_shades(inside), [number(value) if value else "0" for value in values], scale)
    values = _measure(reading, by)
    known = reading.is_text.tolist() if by == "surprise" else counted
    shades, low, high = level_shades(values, known)
    unit = " nats" if by == "surprise" else ""
    tips = [f"{MEASURES[by][0]} {'–' if isnan(value) else number(value)}{unit}" for value in values]
    return Coloured(shades, tips, level_legend(low, high))


def about(reading: Any) -> list[tuple[str, str, str]]:
    """The whole text in numbers, as (name, value, explanation)."""
    counted = reading.counted
    surprise = reading.surprise[reading.is_text].double()
    mean = surprise[~surprise.isnan()].mean().item()
    found = [
        ("tokens", f"{int(reading.is_text.sum()):,}", "Tokens of the text."),
        ("features", f"{len(reading.latents()):,}", "Different features that fire on it."),
        (
            "L0",
            _shown(reading.l0[counted].double().mean().item()),
            "Features that fire on a token, on average.",
        ),
        (
            "FVU",
            _shown(reading.text_fvu),
            "Share of the activations' variance that the SAE does not rebuild.",
        ),
        (
            "perplexity",
            "–" if isnan(mean) else number(exp(mean)),
            "Of the language model on this text: e to the mean surprise.",
        ),
    ]
    windows = int(reading.windows[-1]) + 1
    if windows > 1:
        found.insert(
            1, ("windows", f"{windows:,}", "Stretches the model reads on their own, as the store was made.")
        )
    return found


def token_numbers(reading: Any, place: int) -> list[tuple[str, str, str]]:
    """One token in numbers, and how likely the one that follows was to the model."""
    surprise, following = float(reading.surprise[place]), float(reading.log_probs[place])
    return [
        ("L0", f"{int(reading.l0[place])}", MEASURES["l0"][1]),
        ("activation", number(float(reading.total[place])), MEASURES["total"][1]),
        ("error", _shown(float(reading.fvu[place])), MEASURES["error"][1]),
        ("surprise", _shown(surprise), MEASURES["surprise"][1]),
        (
            "next token",
            "–" if isnan(following) else percent(exp(following)),
            "Probability the model gave what follows.",
        ),
    ]


def followed_by(reading: Any, place: int) -> str:
    """What to say of the token that comes next in the text."""
    later = reading.is_text[place + 1 :].nonzero()
    if not len(later):
        return "the last of the text: nothing follows that an effect could be on"
    return f"followed by “{reading.names[place + 1 + int(later[0])]}”"


def at(reading: Any, place: int, by: str, densest: float, about: About | None) -> tuple[list[Line], int]:
    """Features on a token, ranked, those on more than a share `densest` of tokens left out; and how many those are."""
    found = reading.at(place, by)
    kept = [firing for firing in found if not _dense(reading, firing.latent, densest)]
    lines = [
        Line(f.latent, f.value, f.effect, f.rarity, _density(reading, f.latent), *_named(about, f.latent))
        for f in kept[:MOST]
    ]
    return lines, len(found) - len(kept)


def over(reading: Any, by: str, densest: float, about: About | None) -> tuple[list[Line], int, int]:
    """The same over the whole text: the first MOST lines, how many features are hidden, how many there are."""
    found = reading.latents(by)
    kept = [one for one in found if not _dense(reading, one.latent, densest)]
    lines = [
        Line(
            p.latent,
            p.peak,
            p.effect,
            p.rarity,
            _density(reading, p.latent),
            *_named(about, p.latent),
            p.tokens,
            p.position,
        )
        for p in kept[:MOST]
    ]
    return lines, len(found) - len(kept), len(found)


def rankings(reading: Any) -> list[str]:
    """Those of RANKINGS that can be had."""
    there = {"value": True, "rarity": reading.rarity is not None, "effect": reading.effects is not None}
    return [name for name in RANKINGS if there[name]]


def hidden(count: int, densest: float) -> str:
    """What to say of features left out as dense."""
    return f"{count:,} hidden: denser than {percent(densest)}" if count else ""


def listed(lines: Sequence[Line], count: int, of: int, densest: float) -> str:
    """What to say of a table over the whole text."""
    parts = [
        f"{len(lines):,} of {of:,} features",
        hidden(count, densest),
        "press a disc to colour by its feature",
    ]
    return " · ".join(part for part in parts if part)


def _measure(reading: Any, by: str) -> list[float]:
    found = {"total": reading.total, "l0": reading.l0, "error": reading.fvu, "surprise": reading.surprise}[by]
    return [float(value) for value in found.tolist()]


def _density(reading: Any, latent: int) -> float | None:
    return None if reading.density is None else float(reading.density[latent])


def _dense(reading: Any, latent: int, densest: float) -> bool:
    return reading.density is not None and float(reading.density[latent]) > densest


def _named(about: About | None, latent: int) -> tuple[str, list[str]]:
    """A feature's label, and the tokens it fires most on; both empty without features."""
    label, tokens = about(latent) if about else ("", [])
    return label, list(dict.fromkeys(tokens))[:4]


def _shown(value: float) -> str:
    return "–" if isnan(value) else number(value)
