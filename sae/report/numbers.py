"""Format numbers wherever results are shown: digits, signs, percentages, durations, a dash for what is unknown."""

from math import isnan
from typing import Any

DASH = "–"  # stands for a value that is unknown or undefined
MINUS = "−"


def number(value: float | None) -> str:
    """Return three significant digits; from 1000 on, all digits before the point, in groups. A dash for None and NaN."""
    if value is None or isnan(value):
        return DASH
    return _with_minus(f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}")


def signed(value: float | None) -> str:
    """Return `number` with a plus before what is above 0."""
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def fixed(value: float | None, places: int, sign: bool = False) -> str:
    """Return a value with so many decimal places, with a plus too if `sign`. A dash for None."""
    return DASH if value is None else _with_minus(f"{value:{'+' if sign else ''}.{places}f}")


def count(value: int | None) -> str:
    """Return a whole number with its digits in groups. A dash for None."""
    return DASH if value is None else f"{value:,}"


def percent(share: float | None) -> str:
    """Return a share of 1 as a percentage, a tiny one as one in so many. A dash for None."""
    if share is None:
        return DASH
    if 0 < share < 1e-5:
        return f"1 in {1 / share:,.0f}"
    return f"{_with_minus(f'{100 * share:.3g}')} %"


def hundredfold(share: float | None) -> float | None:
    """Return a share of 1 as a percentage for a column of numbers, which has its own format. None stays None."""
    return None if share is None else 100 * share


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which there are two or more: 90 s, 5 min, 36 h, 3 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def setting(value: Any) -> str:
    """Return a setting as text: yes or no, a whole number in groups, four digits of a fraction, else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    )


def _with_minus(text: str) -> str:
    """Replace a hyphen at the start by a minus sign."""
    return MINUS + text[1:] if text.startswith("-") else text
