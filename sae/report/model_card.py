"""The model card of a shared SAE (Markdown with YAML front matter) and its histogram of densities (SVG)."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sae.report.render import escaped

WIDTH, HEIGHT, FOOT = 520, 160, 34  # of the SVG, in its own units
PER_DECADE = 5  # bins of a factor of ten


class Card(NamedTuple):
    """The facts that a model card states."""

    name: str
    """hf:OWNER/REPOSITORY[/PATH]."""
    architecture: str
    model: str
    base: str | None
    """The language model's name on the hub; None for a model from elsewhere."""
    hook: str
    width: int
    settings: Mapping[str, Any]
    """The architecture's settings."""
    rows: Sequence[tuple[str, str, str]]
    """Measures as (name, value, interval)."""
    measured_on: str
    """The amount of text that the numbers were measured on; empty where nothing was measured."""
    picture: str | None
    """The histogram's file beside the card; None where there is none."""
    features: bool
    """Whether the features folder is shared too."""


def markdown(card: Card) -> str:
    """Return the card as README.md. Every text is quoted, so that no name becomes markup or YAML."""
    tags = ["sparse-autoencoder", "sae", "mechanistic-interpretability", card.architecture]
    front = ["library_name: sae-workbench", "tags:", *(f"- {json.dumps(tag)}" for tag in tags)]
    front += [f"base_model: {json.dumps(card.base)}"] if card.base else []
    settings = ", ".join(f"{name} = {value}" for name, value in card.settings.items() if value is not None)
    lines = [
        "---", *front, "---", "",
        f"# {_cell(card.name.rpartition('/')[2])}", "",
        f"A sparse autoencoder ({card.architecture}) with {card.width:,} latents that reads `{_code(card.hook)}` of "
        f"`{_code(card.model)}`. Settings: {_cell(settings)}.", "",
    ]  # fmt: skip
    if card.rows:
        lines += [
            f"## Measured {_cell(card.measured_on)}",
            "",
            "| | value | 95 % interval |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {_cell(name)} | {_cell(value)} | {_cell(interval)} |" for name, value, interval in card.rows
        ]
        lines.append("")
    if card.picture:
        lines += ["How often latents fire:", "", f"![Histogram of densities]({card.picture})", ""]
    lines += [
        "## Use", "", "```sh", f"sae import {card.name} --out runs/shared", f"sae open {card.name}", "```", "",
        "```python", "from pathlib import Path", "", "import sae", "",
        f"run = sae.import_sae({json.dumps(card.name)}, Path('runs/shared'))", "autoencoder = run.sae()  # reads raw activations",
        "code = autoencoder.encode(x)     # x: activations [rows, width]", "```", "",
        "The weights are `sae.safetensors`; `sae.json` says what they are, `run.json` how they came to be.",
        *(["`features/` has what each latent fires on, with pieces of the text."] if card.features else []), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return the text without line breaks, its markup and table borders escaped."""
    plain = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "|`*_[]<>#\\" else c for c in plain)


def _code(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")


def densities(shares: Sequence[float], rows: int) -> str:
    """Return a histogram of the shares of `rows` tokens that latents fire on, with a log axis, as a self-contained SVG.

    The caption counts the latents that never fire; hovering over a bar shows its count and range."""
    live = [share for share in shares if share > 0]
    lowest = math.floor(math.log10(1 / max(rows, 1)))
    counts = [0] * (-lowest * PER_DECADE + 1)
    for share in live:
        counts[min(int((math.log10(share) - lowest) * PER_DECADE), len(counts) - 1)] += 1
    most, step = max(counts, default=0) or 1, WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{HEIGHT * (1 - n / most):.1f}" width="{0.9 * step:.1f}" height="{HEIGHT * n / most:.1f}" '
        f'fill="#4477aa"><title>{escaped(f"{n:,} latents from {_power(lowest + i / PER_DECADE)} of tokens")}</title></rect>'
        for i, n in enumerate(counts)
        if n
    )
    ticks = "".join(
        f'<text x="{min(d * PER_DECADE * step, WIDTH - 12):.1f}" y="{HEIGHT + 14}">{_power(lowest + d)}</text>'
        for d in range(-lowest + 1)
    )
    caption = f"share of tokens a latent fires on; {len(shares) - len(live):,} of {len(shares):,} latents never fired"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-14 -6 {WIDTH + 28} {HEIGHT + FOOT + 8}" role="img" '
        f'font-family="sans-serif" font-size="11" text-anchor="middle" fill="#555">{bars}{ticks}'
        f'<text x="{WIDTH / 2}" y="{HEIGHT + 30}">{escaped(caption)}</text></svg>\n'
    )


def _power(exponent: float) -> str:
    return f"{10**exponent:.2g}"
