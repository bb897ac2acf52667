"""A plot of gain against cost without scripts: one line for each rival, with intervals both ways, as SVG."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sae.evaluation.measures import Estimate
from sae.report.numbers import number
from sae.report.render import escaped

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, FOOT = 46, 12, 10, 40
LEAST_COST = 1e-4  # smaller ones are drawn here: a logarithmic axis has no 0


class Mark(NamedTuple):
    """A rival at one strength."""

    cost: Estimate
    gain: Estimate
    tip: str


class Line(NamedTuple):
    """A rival at all its strengths, in rising order."""

    name: str
    color: str
    marks: Sequence[Mark]


def svg(lines: Sequence[Line], cost: str, gain: str) -> str:
    """Return gain (up) against cost (to the right, logarithmic), titled so, with a legend. Hovering over a mark tells its tip."""
    marks = [mark for line in lines for mark in line.marks]
    ends = [end for mark in marks for end in _ends(mark.gain)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    span = (high - low) or 1.0
    costs = [max(end, LEAST_COST) for mark in marks for end in _ends(mark.cost)]
    left, right = math.log10(min(costs)) - 0.05, math.log10(max(costs)) + 0.05

    def x(value: float) -> float:
        share = (math.log10(max(value, LEAST_COST)) - left) / (right - left)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / span * (HEIGHT - TOP - FOOT)

    parts = [f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>']
    for tick in _steps(low, high):
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y(tick) + 4:.1f}">{number(tick)}</text>')
    for tick in _decades(10**left, 10**right):
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - FOOT + 16}">{number(tick)}</text>')
    parts.append(f'<text class="start" x="{LEFT}" y="{HEIGHT - 6}">{escaped(cost)} →</text>')
    for line in lines:
        points = " ".join(
            f"{x(mark.cost.value or 0):.1f},{y(mark.gain.value or 0):.1f}" for mark in line.marks
        )
        inside = [f'<polyline points="{points}"/>']
        for mark in line.marks:
            at, up = x(mark.cost.value or 0), y(mark.gain.value or 0)
            (cheap, dear), (least, most) = _ends(mark.cost), _ends(mark.gain)
            inside.append(f'<line x1="{x(cheap):.1f}" x2="{x(dear):.1f}" y1="{up:.1f}" y2="{up:.1f}"/>')
            inside.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(least):.1f}" y2="{y(most):.1f}"/>')
            inside.append(
                f'<circle cx="{at:.1f}" cy="{up:.1f}" r="4"><title>{escaped(mark.tip)}</title></circle>'
            )
        parts.append(f'<g style="--c:{line.color}">{"".join(inside)}</g>')
    names = "".join(f'<span style="--c:{line.color}">{escaped(line.name)}</span>' for line in lines)
    return (
        f'<figure class="sae pareto"><figcaption>{escaped(gain)} ↑<span class="names">{names}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(f"{gain} against {cost}")}">{"".join(parts)}</svg></figure>'
    )


def _ends(estimate: Estimate) -> tuple[float, float]:
    value = estimate.value or 0.0
    low, high = estimate.low, estimate.high
    return (value if low is None else low, value if high is None else high)


def _steps(low: float, high: float) -> list[float]:
    """Return up to some six round numbers within a range."""
    raw = (high - low) / 5 or 1.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    return [round(n * step, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten within a range; powers alone where the range is wide."""
    factors = (1, 2, 5) if high / low < 1000 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]
