"""One feature as its page, notebooks and HTML files show it: numbers, examples, neighbours, measured effect, own text."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sae.report import render, token_strips
from sae.report.numbers import count, fixed, number, percent
from sae.report.render import escaped
from sae.runs.records import FeatureRow

Describe = Callable[[int], tuple[str, Sequence[str]]]
"""Returns a feature's label and the tokens it fires most on."""
FIFTHS = {5: "Strongest fifth", 4: "Second fifth", 3: "Middle fifth", 2: "Fourth fifth", 1: "Weakest fifth"}
"""What a band of a fifth of the sampled windows is called, by the number of fifths up to its upper end."""
COMMONEST = 5  # tokens that random windows peak on most often, which the page shows
CARD_AROUND, CARD_EXAMPLES = 16, 4  # tokens of a window, and examples of a sign, in a card
SCALE = 1.0  # change of loss, in nats, that gets the full colour where no example has a larger one


class Group(NamedTuple):
    """Examples under one heading, which has a remark."""

    title: str
    remark: str
    windows: Sequence[Any]


def numbers(row: FeatureRow) -> list[tuple[str, str, str]]:
    """Return a feature's key numbers as (name, value, explanation). `row` is its row of the features folder's table."""
    has_negative = row["positive_share"] not in (None, 1.0)
    rows = [
        ("fires on", percent(row["density"]), "Share of the tokens read on which its value is not 0."),
        ("firings", f"{row['fired']:,}", "Number of tokens on which its value is not 0."),
        ("max", number(row["max"]), "Its largest value on any token."),
    ]
    if has_negative:
        rows.append(("min", number(row["min"]), "Its most negative value on any token."))
        share = percent(row["positive_share"])
        rows.append(("positive", share, "Share of its firings with a value above 0; the others are below."))
    return [*rows, ("mean", number(row["mean"]), "Mean of its values over the tokens on which it fires.")]


def weights(row: FeatureRow) -> list[tuple[str, str, str]]:
    """Return what a feature's weights alone say, as (name, value, explanation)."""
    return [
        (
            "enc·dec cosine",
            fixed(row["enc_dec_cosine"], 2),
            "Cosine between the direction it reads (encoder) and the one it writes (decoder). 1: the same.",
        ),
        (
            "bias",
            number(row["b_enc"]),
            "Encoder bias. A negative bias is what the input must overcome before it fires.",
        ),
    ]


def weights_line(row: FeatureRow) -> str:
    """Return what a feature's weights alone say, in one line whose names explain themselves when they are pointed at."""
    told = " · ".join(
        f'<span title="{escaped(why)}">{escaped(name)} {escaped(value)}</span>'
        for name, value, why in weights(row)
    )
    return f'<p class="sae dim">{told}</p>'


def value_range(row: FeatureRow) -> tuple[float, float]:
    """Return the ends of a feature's values with 0 among them. The feature must fire."""
    return min(row["min"] or 0.0, 0.0), max(row["max"] or 0.0, 0.0)


def scale(row: FeatureRow) -> float:
    """Return the largest |value|, to which the colours of the feature's tokens are relative."""
    return max(map(abs, value_range(row)))


def full_scale(row: FeatureRow, values: Sequence[float]) -> float:
    """Return the scale of colours on a text that a visitor typed: the feature's, or the text's largest |value| if larger."""
    return max(map(abs, [*values, *(value_range(row) if row["fired"] else ())]))


def groups(strongest: Sequence[Any], negative: Sequence[Any], bands: Sequence[Any]) -> list[Group]:
    """Return a feature's examples in reading order: the strongest of either sign, then bands of a random sample.

    A window stands in one group alone: bands leave out those that are among the strongest."""
    every = [Group("Strongest", "", strongest), Group("Most negative", "", negative)]
    above = {(window.document, window.position) for window in (*strongest, *negative)}
    for band in bands:
        low, high = band.share
        sampled = (
            f"of windows drawn at random from all in which it fires, ordered by their peak: "
            f"peaks from {number(band.low)} to {number(band.high)}"
        )
        windows = [window for window in band.examples if (window.document, window.position) not in above]
        if left_out := len(band.examples) - len(windows):
            sampled += f"; {left_out} of {len(band.examples)} are above"
        every.append(Group(FIFTHS.get(round(5 * high), f"Quantiles {low:g} to {high:g}"), sampled, windows))
    return [group for group in every if group.windows]


def commonest(windows: Sequence[Any]) -> list[tuple[str, float]]:
    """Return the tokens that windows drawn at random peak on most often, each with its share of the windows."""
    counts = Counter(_word(window.tokens[window.peak]) for window in windows)
    return [(token, times / len(windows)) for token, times in counts.most_common(COMMONEST)]


def _word(token: str) -> str:
    """Return a token's text as tokens are counted together: without the space before it and in small letters."""
    return token.strip().lower() or token


def typical(windows: Sequence[Any], peaks: Sequence[str]) -> str:
    """Return a line about what a feature fires on in windows drawn at random, beside its strongest examples' tokens `peaks`.

    It says so where the two have no token in common; empty without windows."""
    found = commonest(windows)
    if not found:
        return ""
    chips = " ".join(
        f"{render.chip(token)}<small>{percent(round(share, 2))}</small>" for token, share in found
    )
    apart = not {_word(peak) for peak in peaks} & {token for token, _ in found}
    warning = " <b>The strongest examples peak on none of these: they are not typical.</b>" if apart else ""
    return (
        f'<p class="sae typical"><span class="dim">at random windows\' peaks, most often</span> {chips}'
        f"{warning}</p>"
    )


def dead(tokens: int) -> tuple[str, str]:
    """Return title and text about a feature that never fired on so many tokens."""
    why = f"It fired on none of {tokens:,} tokens: it is dead, or too rare for this text to show."
    return "Never fired", f"{why} On the right is what its weights alone show."


def neighbours(row: FeatureRow, describe: Describe, run: str | None) -> str:
    """Return a table of the nearest features by decoder cosine."""
    pairs = zip(row["neighbours"], row["neighbour_cosines"], strict=True)
    return render.neighbours([(latent, cosine, *describe(latent)) for latent, cosine in pairs], run)


def alike(near: Iterable[tuple[int, float]], describe: Describe, run: str | None) -> str:
    """Return a table of the features whose words mean what is most alike, from their numbers and cosines."""
    return render.neighbours([(latent, cosine, *describe(latent)) for latent, cosine in near], run)


def partners(cofiring: Iterable[Any], describe: Describe, run: str | None) -> str:
    """Return a table of features that fire on the same tokens (`sae.features.folder.Partner`); no links if `run` is None."""
    lines = []
    for partner in cofiring:
        label, tokens = describe(partner.latent)
        lines.append(
            f"<tr><td>{render.feature_anchor(run, partner.latent)}</td>"
            f'<td class="n">{number(partner.pmi)}</td><td class="n">{count(partner.count)}</td>'
            f'<td class="n">{percent(partner.given_latent)}</td><td class="n">{percent(partner.given_partner)}</td>'
            f'<td class="token">{render.named(label)}{render.chips(tokens)}</td></tr>'
        )
    head = (
        '<tr><th scope="col">feature</th><th scope="col" class="n" title="Pointwise mutual information, in nats: ln of how many times '
        'as often as by chance both fire">PMI</th><th scope="col" class="n" title="Tokens on which both fire">both</th>'
        '<th scope="col" class="n" title="Share of this feature\'s firings on which the other fires too">other, given this</th>'
        '<th scope="col" class="n" title="Share of the other\'s firings on which this one fires too">this, given other</th>'
        '<th scope="col">fires most on</th></tr>'
    )
    return f'<table class="sae neighbours partners">{head}{"".join(lines)}</table>'


def card(feature: Any, run: str | None) -> str:
    """Return a `sae.features` Feature in short: number, label, key numbers, strongest examples of either sign."""
    row, label = feature.row, feature.label
    heading = f"{render.feature_anchor(run, feature.latent)} {render.named(label.label)}"
    parts = [f'<div class="sae card"><h3>{heading}</h3><p>{render.chips(row["peak_tokens"])}</p>']
    parts.append(render.facts([(name, value) for name, value, _ in [*numbers(row), *weights(row)]]))
    if row["fired"]:
        for windows in (feature.strongest, feature.most_negative):
            parts.append(
                token_strips.examples(windows, scale(row), CARD_AROUND, CARD_EXAMPLES) if windows else ""
            )
    return f"{''.join(parts)}</div>"


def pairs(compared: Iterable[Any], run: str | None) -> str:
    """Return a table of pairs (one, other, cosine, together, pmi) of compared features; the last two may be None."""
    lines = [
        f"<tr><td>{render.feature_anchor(run, latent)} · {render.feature_anchor(run, other)}</td>"
        f'<td class="n">{fixed(cosine, 3)}</td><td class="n">{count(together)}</td>'
        f'<td class="n">{number(pmi)}</td></tr>'
        for latent, other, cosine, together, pmi in compared
    ]
    head = (
        '<tr><th scope="col">pair</th><th scope="col" class="n">decoder cosine</th><th scope="col" class="n" title="Tokens on which both fire; '
        'known where one is among those that the other fires together with">both fire</th><th scope="col" class="n">PMI</th></tr>'
    )
    return f'<table class="sae neighbours pairs">{head}{"".join(lines)}</table>'


def effect_sides(effect: Any) -> list[tuple[str, Any]]:
    """Return (title, side) for each sign that has a measured effect. `effect` is a `sae.features` Effect or None.

    A feature without negative values needs no title."""
    if effect is None:
        return []
    sides = [("positive values", effect.positive), ("negative values", effect.negative)]
    measured = [(title, side) for title, side in sides if side]
    return [("", side) for _, side in measured] if len(measured) == 1 and effect.positive else measured


def effect(title: str, side: Any) -> str:
    """Return a measured effect of one sign: numbers, and the tokens it makes more and less likely."""
    lists = words("more likely with it", side.up), words("less likely with it", side.down)
    heading = f'<p class="dim">{escaped(title)}</p>' if title else ""
    return f'<div class="sae">{heading}{render.facts(effect_numbers(side))}{render.pair(*lists)}</div>'


def effect_numbers(side: Any) -> list[tuple[str, str]]:
    """Return a measured effect's key numbers as (name, value)."""
    rows = [("examples", f"{len(side.examples)}")]
    if side.loss_change:
        rows.append(("loss without it", f"{_change(side.loss_change[0])} nats on the next token"))
    if len(side.loss_change) > 1:
        rows.append(("on the tokens after", ", ".join(map(_change, side.loss_change[1:]))))
    rows.append(("KL of the next token", f"{number(side.kl[0])} nats"))
    if side.pearson is not None:
        both = f"Pearson {_change(side.pearson)}, Spearman {_change(side.spearman)}"
        rows.append(("correlation with the logit lens", both))
    if side.jacobian_spearman is not None:
        rows.append(("with the Jacobian lens", f"Spearman {_change(side.jacobian_spearman)}"))
    return rows


def effect_examples(side: Any, most: int | None = None) -> str:
    """Return each example's tokens, those after the peak coloured by how much the feature lowers the loss on them."""
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
    """Return the tokens whose logits an effect moves, with how far, in nats."""
    return render.logits(title, [word.text for word in listed], [word.by for word in listed])


def labelled(label: str, note: str = "", badge: str = "") -> str:
    """Return a feature's label, with a badge (HTML) beside it, and note as lines of text; empty when it has none of them."""
    lines = [f'<b class="label">{escaped(label)}</b>{badge}' if label else badge] if label or badge else []
    lines += [f'<span class="note">{escaped(line)}</span>' for line in note.splitlines()]
    return f'<p class="sae labelled">{"<br>".join(lines)}</p>' if lines else ""


def trial(tokens: Sequence[str], values: Sequence[float], scale: float) -> str:
    """Return a text that a visitor typed, coloured by a feature's values; `scale` is the value of full colour."""
    shown = [token_strips.valued(text, value, scale) for text, value in zip(tokens, values, strict=True)]
    return f'<p class="sae strip own" dir="auto">{token_strips.inline(shown, breaks=False)}</p>'


def strongest(tokens: Sequence[str], values: Sequence[float]) -> tuple[float, str]:
    """Return the value of largest size on a text (0 if the feature does not fire), and a sentence about it."""
    peak = max(range(len(values)), key=lambda position: abs(values[position]))
    n_fired = sum(value != 0 for value in values)
    if not n_fired:
        return 0.0, f"It fires on none of these {len(values):,} tokens."
    fires = f"It fires on {n_fired:,} of {len(values):,} tokens"
    return values[
        peak
    ], f"{fires}, most strongly on “{render.visible(tokens[peak])}”: {number(values[peak])}."


def _change(value: float) -> str:
    """Return three decimal places with a sign."""
    return fixed(value, 3, sign=True)
