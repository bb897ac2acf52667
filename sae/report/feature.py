"""Pure: one feature's numbers, examples and effect, as page, notebook and file show them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sae.report import render, token_strips
from sae.report.render import escaped, number, percent

About = Callable[[int], tuple[str, Sequence[str]]]  # a feature's label and the tokens it fires most on
CARD_AROUND, CARD_EXAMPLES = 16, 4  # tokens of a window, and examples of a sign, in a card
SCALE = 1.0  # nats of loss change that get the full colour


class Group(NamedTuple):
    """Examples to show under one heading."""

    title: str
    about: str
    windows: Sequence[Any]


def numbers(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """A feature's key numbers as (name, value, explanation); `row` is a features folder's."""
    signed = row["positive_share"] not in (None, 1.0)
    found = [
        ("fires on", percent(row["density"]), "Share of the tokens read on which its value is not 0."),
        ("firings", f"{row['fired']:,}", "Number of tokens on which its value is not 0."),
        ("max", number(row["max"]), "Its largest value on any token."),
    ]
    if signed:
        found.append(("min", number(row["min"]), "Its most negative value on any token."))
        share = percent(row["positive_share"])
        found.append(("positive", share, "Share of its firings with a value above 0; the others are below."))
    return [
        *found,
        ("mean", number(row["mean"]), "Mean of its values over the tokens on which it fires."),
        (
            "enc·dec cosine",
            f"{row['enc_dec_cosine']:.2f}".replace("-", "−"),
            "Cosine between the direction it listens to (encoder) and the one it writes (decoder). 1: the same.",
        ),
        (
            "bias",
            number(row["b_enc"]),
            "Encoder bias: below 0, the input must be that much stronger to fire it.",
        ),
    ]


def has_lens(row: dict[str, Any]) -> bool:
    """Whether there is a logit lens: not for hook points beside the residual stream."""
    return bool(row.get("raised_tokens"))


def value_range(row: dict[str, Any]) -> tuple[float, float]:
    """From 0, or the most negative value, to the largest, or 0; of a feature that fires."""
    return min(row["min"], 0.0), max(row["max"], 0.0)


def scale(row: dict[str, Any]) -> float:
    """The largest |value|: what the colours of a feature's tokens are relative to."""
    return max(map(abs, value_range(row)))


def full_scale(row: dict[str, Any], values: Sequence[float]) -> float:
    """What colours on a text of one's own are relative to: the feature's scale, or the text's if that is larger."""
    return max(map(abs, [*values, *(value_range(row) if row["fired"] else ())]))


def groups(strongest: Sequence[Any], negative: Sequence[Any], bands: Sequence[Any]) -> list[Group]:
    """A feature's examples in the order to read them: the strongest of either sign, then bands of a sample."""
    found = [Group("Strongest", "", strongest), Group("Most negative", "", negative)]
    for band in bands:
        low, high = band.share
        about = f"of windows drawn at random, by their peaks: {number(band.low)} to {number(band.high)}"
        found.append(Group(f"{100 * low:.0f} to {100 * high:.0f} %", about, band.examples))
    return [group for group in found if group.windows]


def dead(tokens: int) -> tuple[str, str]:
    """What to say of a feature that never fired: title and text."""
    why = f"None of the {tokens:,} tokens read made it fire: it is dead, or rarer than this text can show."
    return "Never fired", f"{why} What its weights tell is at the right."


def neighbours(row: dict[str, Any], about: About, run: str | None) -> str:
    """A feature's nearest ones by decoder cosine; `about` gives a feature's label and peak tokens."""
    pairs = zip(row["neighbours"], row["neighbour_cosines"], strict=True)
    return render.neighbours([(latent, cosine, *about(latent)) for latent, cosine in pairs], run)


def partners(found: Iterable[Any], about: About, run: str | None) -> str:
    """Features that fire on the same tokens (`sae.features.store.Partner`s); without `run` no links."""
    lines = []
    for partner in found:
        label, tokens = about(partner.latent)
        lines.append(
            f"<tr><td>{render.feature_anchor(run, partner.latent)}</td>"
            f'<td class="n">{number(partner.pmi)}</td><td class="n">{partner.count:,}</td>'
            f'<td class="n">{percent(partner.given_latent)}</td><td class="n">{percent(partner.given_partner)}</td>'
            f'<td class="token">{render.named(label)}{render.chips(tokens)}</td></tr>'
        )
    head = (
        '<tr><th>feature</th><th class="n" title="Pointwise mutual information, in nats: ln of how many times '
        'more often than by chance both fire">PMI</th><th class="n" title="Tokens on which both fire">both</th>'
        '<th class="n" title="Share of this feature\'s firings on which the other fires too">given this</th>'
        '<th class="n" title="Share of the other\'s firings on which this one fires too">given it</th>'
        "<th>fires most on</th></tr>"
    )
    return f'<table class="sae neighbours partners">{head}{"".join(lines)}</table>'


def card(feature: Any, run: str | None) -> str:
    """A feature in short (a `sae.features` Feature): number, label, key numbers, its strongest examples of either sign."""
    row, label = feature.row, feature.label
    heading = f"{render.feature_anchor(run, feature.latent)} {render.named(label.label)}"
    parts = [f'<div class="sae card"><h3>{heading}</h3><p>{render.chips(row["peak_tokens"])}</p>']
    parts.append(render.facts([(name, value) for name, value, _ in numbers(row)]))
    if row["fired"]:
        for windows in (feature.strongest, feature.most_negative):
            parts.append(
                token_strips.examples(windows, scale(row), CARD_AROUND, CARD_EXAMPLES) if windows else ""
            )
    return f"{''.join(parts)}</div>"


def pairs(found: Iterable[Any], run: str | None) -> str:
    """Every two of the features compared, as (one, other, cosine, together, pmi), the last two None if not listed."""
    lines = [
        f"<tr><td>{render.feature_anchor(run, one)} · {render.feature_anchor(run, other)}</td>"
        f'<td class="n">{f"{cosine:.3f}".replace("-", "−")}</td><td class="n">{"–" if together is None else f"{together:,}"}</td>'
        f'<td class="n">{number(pmi)}</td></tr>'
        for one, other, cosine, together, pmi in found
    ]
    head = (
        '<tr><th>two of them</th><th class="n">decoder cosine</th><th class="n" title="Tokens on which both fire; '
        'known where one lists the other among those it fires together with">both fire</th><th class="n">PMI</th></tr>'
    )
    return f'<table class="sae neighbours pairs">{head}{"".join(lines)}</table>'


def effect_sides(effect: Any) -> list[tuple[str, Any]]:
    """The signs for which there is a measured effect, with what to call them; `effect` is a `sae.features`
    Effect or None."""
    if effect is None:
        return []
    sides = [("positive values", effect.positive), ("negative values", effect.negative)]
    there = [(title, side) for title, side in sides if side]
    return [("", side) for _, side in there] if len(there) == 1 and effect.positive else there


def effect(title: str, side: Any) -> str:
    """A measured effect of one sign: numbers, and the tokens it makes likelier and less likely."""
    lists = words("likelier with it", side.up), words("less likely", side.down)
    heading = f'<p class="dim">{escaped(title)}</p>' if title else ""
    return f'<div class="sae">{heading}{render.facts(effect_numbers(side))}{render.pair(*lists)}</div>'


def effect_numbers(side: Any) -> list[tuple[str, str]]:
    """A measured effect's key numbers as names and values."""
    found = [("examples", f"{len(side.examples)}")]
    if side.loss_change:
        found.append(("loss without it", f"{signed(side.loss_change[0])} nats on the next token"))
    if len(side.loss_change) > 1:
        found.append(("…and after that", ", ".join(map(signed, side.loss_change[1:]))))
    found.append(("KL of the next token", f"{number(side.kl[0])} nats"))
    if side.pearson is not None:
        both = f"Pearson {signed(side.pearson)}, Spearman {signed(side.spearman)}"
        found.append(("agrees with the lens", both))
    return found


def effect_examples(side: Any, most: int | None = None) -> str:
    """Each example's tokens, those after the peak coloured by how much better the feature made them predicted."""
    lines = []
    for example in side.examples[:most]:
        scale = max(SCALE, *map(abs, example.loss_change))
        shown = [
            token_strips.valued(text, change, scale, place == example.peak)
            for place, (text, change) in enumerate(zip(example.tokens, example.loss_change, strict=True))
        ]
        lines.append(
            f'<li><span class="value">{number(example.value)}</span><p class="strip" dir="auto">{token_strips.inline(shown, breaks=False)}</p>'
            f'<span class="where" title="KL of the next token, in nats">KL {number(example.kl[0])}</span></li>'
        )
    return f'<ul class="sae examples">{"".join(lines)}</ul>'


def words(title: str, listed: Sequence[Any]) -> str:
    """Tokens an effect moves, with how far, in nats."""
    return render.logits(title, [word.text for word in listed], [word.by for word in listed])


def labelled(label: str, note: str = "") -> str:
    """A feature's label and note as lines of text; nothing when it has none."""
    lines = [f'<b class="label">{escaped(label)}</b>'] if label else []
    lines += [f'<span class="note">{escaped(line)}</span>' for line in note.splitlines()]
    return f'<p class="sae labelled">{"<br>".join(lines)}</p>' if lines else ""


def signed(value: float) -> str:
    """Three digits, with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def trial(tokens: Sequence[str], values: Sequence[float], scale: float) -> str:
    """One's own text with a feature's values on it; `scale` is the value of full colour."""
    shown = [token_strips.valued(text, value, scale) for text, value in zip(tokens, values, strict=True)]
    return f'<p class="sae strip own" dir="auto">{token_strips.inline(shown, breaks=False)}</p>'


def strongest(tokens: Sequence[str], values: Sequence[float]) -> tuple[float, str]:
    """The value of the largest size on a text, and what to say of it."""
    place = max(range(len(values)), key=lambda place: abs(values[place]))
    fires = sum(value != 0 for value in values)
    if not fires:
        return 0.0, f"It fires on none of these {len(values):,} tokens."
    where = render.visible(tokens[place])
    return values[
        place
    ], f"It fires on {fires:,} of {len(values):,} tokens, strongest on “{where}”: {number(values[place])}."
