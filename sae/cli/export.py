"""`sae export`: what a run found, in a form that travels."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from sae.errors import ConfigError
from sae.features.page import export_html
from sae.features.store import FeatureStore


@dataclass(frozen=True)
class Html:
    """Write features as one HTML file that opens in any browser, without a network.

    Example: sae export html runs/demo --features 17 42 --out features.html. Measured effects are in it where
    there are any (sae features runs/demo --effects 17 42), and labels."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must have features."""
    features: tuple[int, ...]
    """Numbers of the features."""
    out: Path
    """The file to write."""

    def __post_init__(self) -> None:
        if not self.features:
            raise ConfigError("--features needs the number of at least one feature, as in --features 17 42")
        if self.out.is_dir():
            raise ConfigError(
                f"--out {self.out} is a folder: name a file, as in {self.out / 'features.html'}"
            )


FORMS = {"html": "features as one HTML file that opens without a network"}


def main(args: list[str]) -> int:
    """Parse and run."""
    if not args or args[0] not in FORMS:
        asked = bool(args) and args[0] in ("-h", "--help")
        lines = [f"  {name}  {what}" for name, what in FORMS.items()]
        text = "\n".join(["usage: sae export FORM [OPTIONS]", "", *lines])
        print(text, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    command = tyro.cli(Html, prog="sae export html", args=args[1:])
    features = FeatureStore(command.run / "features")
    path = export_html(features, command.features, command.out, command.run.name)
    print(
        f"{path}: {len(command.features)} of {len(features):,} features, {path.stat().st_size / 1e3:,.0f} kB"
    )
    return 0
