"""A two-sided histogram on a logarithmic axis: where its bars lie, for any plot, and the same as an inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sae.report.numbers import number
from sae.report.render import escaped, shade

WIDTH, HEIGHT, FOOT = 420, 120, 18  # of the SVG, in its own units
FLOOR = -0.3  # decades below one token where bars begin


@dataclass(frozen=True)
class Bar:
    """A bin with firings: its ends on the axis, its ends as values, and the number of tokens in it."""

    left: float
    right: float
    low: float
    high: float
    count: int

    @property
    def range(self) -> str:
        """Its ends as values, in words."""
        return f"{number(self.low)} to {number(self.high)}"


class Axis(NamedTuple):
    """Bars on a two-sided log axis.

    A place is counted in octaves from the innermost edge, which lies at ±1; negative values are mirrored."""

    bars: Sequence[Bar]
    inner: float
    """The |value| that lies at ±1."""
    scale: float
    """The largest |edge|."""

    def place(self, value: float) -> float:
        """Return where a value other than 0 lies on the axis."""
        return math.copysign(max(1 + math.log2(abs(value) / self.inner), 0.0), value)

    @property
    def ticks(self) -> list[float]:
        """Round values (1, 2, 5 times a power of ten) within the bars, at most eight."""
        ticks: list[float] = []
        for sign in (-1, 1):
            on_side = [bar for bar in self.bars if (bar.low + bar.high) * sign > 0]
            ends = [abs(edge) for bar in on_side for edge in (bar.low, bar.high) if edge]
            if ends:
                low, high = min(ends), max(ends)
                decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                ticks += [
                    sign * m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high
                ]
        return ticks[:: math.ceil(len(ticks) / 8)] if ticks else []

    def strength(self, bar: Bar) -> float:
        """Return how strongly to colour a bar, by the rule for tokens."""
        return 0.3 + 0.7 * shade(bar.low + bar.high, 2 * self.scale)


def axis(edges: Sequence[float], counts: Sequence[int]) -> Axis:
    """Return bars for the bins that have firings.

    `edges` rise and are one more than `counts`; the innermost bin on either side reaches down to 0."""
    bins = [(float(edges[i]), float(edges[i + 1]), int(count)) for i, count in enumerate(counts) if count]
    ends = [abs(edge) for low, high, _ in bins for edge in (low, high) if edge]
    empty = Axis([], min(ends), max(ends))
    innermost = (
        empty.inner / 2**0.25
    )  # 0 has no place on a log axis: such a bin is drawn a quarter octave wide
    bars = [
        Bar(empty.place(low or innermost), empty.place(high or -innermost), low, high, count)
        for low, high, count in bins
    ]
    return empty._replace(bars=bars)


def svg(edges: Sequence[float], counts: Sequence[int]) -> str:
    """Return the histogram as a self-contained SVG: heights are logarithmic, hovering tells the values."""
    shown = axis(edges, counts)
    left, right = min(bar.left for bar in shown.bars), max(bar.right for bar in shown.bars)
    top = max(math.log10(max(bar.count for bar in shown.bars)), 1) + 0.1

    def x(place: float) -> float:
        return WIDTH * (place - left) / (right - left)

    parts = []
    for bar in shown.bars:
        height = HEIGHT * (math.log10(bar.count) - FLOOR) / (top - FLOOR)
        hue = "up" if bar.low + bar.high > 0 else "down"
        parts.append(
            f'<rect class="{hue}" style="--a:{shown.strength(bar):.2f}" x="{x(bar.left):.1f}" '
            f'y="{HEIGHT - height:.1f}" width="{0.94 * (x(bar.right) - x(bar.left)):.1f}" height="{height:.1f}">'
            f"<title>{escaped(bar.range)}: {bar.count:,} tokens</title></rect>"
        )
    parts += [
        f'<text x="{min(max(x(shown.place(tick)), 10), WIDTH - 10):.1f}" y="{HEIGHT + 14}">{number(tick)}</text>'
        for tick in shown.ticks
    ]
    return (
        f'<svg class="sae histogram" viewBox="0 0 {WIDTH} {HEIGHT + FOOT}" role="img">{"".join(parts)}</svg>'
    )
