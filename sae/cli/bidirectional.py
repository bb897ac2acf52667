"""`sae bidirectional`: the latents of a run that fire with both signs, and what either sign fires on."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from activations.errors import ConfigError
from sae.cli import arguments
from sae.features.feature import FeatureStore
from sae.features.folder import Bidirectional, bidirectional

PEAKS = 5  # strongest windows whose peak token is shown, of either sign


@dataclass(frozen=True)
class BidirectionalLatents:
    """List the latents that fire with both signs, the most balanced first, with the peak tokens of either.

    Example: sae bidirectional runs/signed --least-share 0.2. The run needs features; only signed codes
    (sae train abstopk) have any such latents."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    least_share: float = 0.1
    """Share of its firings that a latent's rarer sign must have, up to 0.5."""
    least_firings: int = 10
    """Firings of either sign that a latent must have."""
    show: int = 30
    """Latents listed."""

    def __post_init__(self) -> None:
        if not 0 <= self.least_share <= 0.5:
            raise ConfigError(f"least_share = {self.least_share} must lie between 0 and 0.5")
        for name in ("least_firings", "show"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(BidirectionalLatents, "sae bidirectional", args)
    features = FeatureStore(command.run / "features")
    firing_both_ways = bidirectional(features, command.least_share, command.least_firings)
    table = Table(
        title=f"{command.run}: {len(firing_both_ways):,} of {len(features):,} latents fire with both signs, "
        f"at least {command.least_firings} times and {command.least_share:.0%} of the time with the rarer"
    )
    for column in ("latent", "above 0", "below 0"):
        table.add_column(column, justify="right")
    for column in ("strongest above 0 on", "strongest below 0 on"):
        table.add_column(column)
    for latent in firing_both_ways[: command.show]:
        table.add_row(*_row(features, latent))
    Console().print(table)
    return 0


def _row(features: FeatureStore, latent: Bidirectional) -> list[str | Text]:
    firings = latent.positive + latent.negative
    shares = [f"{latent.positive / firings:.1%}", f"{latent.negative / firings:.1%}"]
    return [str(latent.latent), *shares, *(_peak_tokens(features, latent.latent, sign) for sign in (1, -1))]


def _peak_tokens(features: FeatureStore, latent: int, sign: int) -> Text:
    examples = features.strongest(latent, sign)[:PEAKS]
    return Text(
        "  ".join(repr(example.tokens[example.peak])[1:-1] for example in examples)
    )  # \n stays in line
