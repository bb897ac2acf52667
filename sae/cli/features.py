"""`sae features`, `sae labels` and `sae bidirectional`: what a run's latents fire on, and what people called them."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from activations.errors import ConfigError, quoted
from activations.parallel import ranks
from activations.progress import show_progress
from sae.cli import arguments
from sae.cli.evaluate import WITHOUT_MODEL
from sae.features.collect import FeaturesConfig
from sae.features.effects import FOLDER
from sae.features.feature import FeatureStore, features_of
from sae.features.folder import Bidirectional, bidirectional
from sae.features.meaning import collect_where_possible
from sae.runs.run import Run
from sae.runs.trust import trust_of
from sae.workflows.features import collect_features, measure_effects


@dataclass(frozen=True)
class Features:
    """Collect statistics, examples, logit lens and neighbours of all latents into the run's features/.

    Example: sae features runs/demo --tokens 200000. Where word embeddings have been fetched before, the words that latents fire on are
    collected too, for search by meaning. After an interruption the same command continues. By several processes:
    torchrun --nproc-per-node 2 -m sae.cli.main features runs/demo."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    effects: tuple[int, ...] = ()
    """Numbers of latents whose effect on the model is to be measured too, and kept."""
    config: FeaturesConfig = field(default_factory=FeaturesConfig)


def main(args: list[str]) -> int:
    """Parse the arguments of `sae features` and run it."""
    command = arguments.parse(Features, "sae features", args, tyro.conf.OmitArgPrefixes)
    with ranks.group():
        run = Run(command.run)
        model = None if run.reads_files and not command.effects else run.language_model()
        features = collect_features(run, model, command.config, show_progress)
        if ranks.rank() == 0:
            if model is None:
                print(f"{features.path}: {WITHOUT_MODEL} the logit lens")
            elif command.effects:
                measure_effects(run, model, features, command.effects, show_progress)
                print(f"{features.path / FOLDER}: effects of {', '.join(map(str, command.effects))}")
            searchable = collect_where_possible(features, show_progress)
            search = (
                "" if searchable else f", or sae search {quoted(run.path)} WORDS, which fetches 29 MB once"
            )
            print(
                f"{features.path}: {len(features):,} features; next: sae app {quoted(run.path.parent)}{search}"
            )
    return 0


@dataclass(frozen=True)
class LabelsCommand:
    """Write a run's labels and notes to a CSV or JSON file, or load such a file over the existing ones.

    Example: sae labels runs/demo --save labels.csv. The same file is read by --load; columns feature, label, note."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must have features."""
    save: Path | None = None
    """File to write, .csv or .json."""
    load: Path | None = None
    """File to read, .csv or .json."""

    def __post_init__(self) -> None:
        if (self.save is None) == (self.load is None):
            raise ConfigError("name one file: --save labels.csv to write it, or --load labels.csv to read it")


def labels_main(args: list[str]) -> int:
    """Parse the arguments of `sae labels` and run it."""
    command = arguments.parse(LabelsCommand, "sae labels", args)
    labels = features_of(Run(command.run)).labels
    if command.save:
        trust = trust_of(Run(command.run))
        stability = None if trust is None else [round(float(value), 4) for value in trust.stability]
        print(f"{command.save}: {_count(labels.export(command.save, stability))}")
    if command.load:
        print(f"{labels.path}: {_count(labels.load(command.load))} taken from {command.load}")
    return 0


def _count(n: int) -> str:
    return f"{n:,} label{'s' * (n != 1)}"


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


def bidirectional_main(args: list[str]) -> int:
    """Parse the arguments of `sae bidirectional` and run it."""
    command = arguments.parse(BidirectionalLatents, "sae bidirectional", args)
    features = features_of(Run(command.run))
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
