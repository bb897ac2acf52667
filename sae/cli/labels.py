"""`sae labels`: write the labels that people gave a run's features to a file, or read them back."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from activations.errors import ConfigError
from sae.cli import arguments
from sae.features.feature import FeatureStore


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


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(LabelsCommand, "sae labels", args)
    labels = FeatureStore(command.run / "features").labels
    if command.save:
        print(f"{command.save}: {_count(labels.export(command.save))}")
    if command.load:
        print(f"{labels.path}: {_count(labels.load(command.load))} taken from {command.load}")
    return 0


def _count(n: int) -> str:
    return f"{n:,} label{'s' * (n != 1)}"
