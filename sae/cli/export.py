"""`sae export`: what a run found, or its SAE, in a form that travels."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from sae.errors import ConfigError
from sae.features.page import export_html
from sae.features.store import FeatureStore
from sae.foreign import WRITABLE
from sae.imported import origin_of
from sae.runs import Run


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


@dataclass(frozen=True)
class Files:
    """Write a run's SAE as another tool's files, for that tool to load: the same function of raw activations.

    Example: sae export saelens runs/demo --out exports/demo. What the tool cannot compute is refused, with the reason."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    out: Path
    """The folder to write."""


FORMS = {"html": "features as one HTML file that opens without a network"}
FORMS |= {name: f"the SAE, for {form.TITLE}" for name, form in WRITABLE.items()}


def main(args: list[str]) -> int:
    """Parse and run."""
    if not args or args[0] not in FORMS:
        asked = bool(args) and args[0] in ("-h", "--help")
        width = max(map(len, FORMS))
        lines = [f"  {name:<{width}}  {what}" for name, what in FORMS.items()]
        text = "\n".join(["usage: sae export FORM [OPTIONS]", "", *lines])
        print(text, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    if args[0] == "html":
        _export_html(tyro.cli(Html, prog="sae export html", args=args[1:]))
    else:
        _export_files(args[0], tyro.cli(Files, prog=f"sae export {args[0]}", args=args[1:]))
    return 0


def _export_html(command: Html) -> None:
    features = FeatureStore(command.run / "features")
    path = export_html(features, command.features, command.out, command.run.name)
    print(
        f"{path}: {len(command.features)} of {len(features):,} features, {path.stat().st_size / 1e3:,.0f} kB"
    )


def _export_files(name: str, command: Files) -> None:
    run = Run(command.run)
    _ = run.digest  # refuses a run that is not finished: its weights are about to change
    origin = origin_of(run)
    WRITABLE[name].write(run.sae(), origin, command.out)
    print(f"{command.out}: {run.path} as {name} reads it")
    if "context_size" not in origin.facts:
        print("  its store is not at hand: the files do not say on which text it was trained")
