"""`sae export`: write a run's features, firings or SAE in a form that other people and tools can open."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from activations.errors import ConfigError
from activations.progress import show_progress
from sae import foreign
from sae.cli import arguments
from sae.features.collect import shards_to_read
from sae.features.feature import export_html, features_of
from sae.foreign.delphi import write_cache
from sae.foreign.neuronpedia import Listing, write_listing
from sae.runs.run import Run, device
from sae.workflows.import_sae import origin_of


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


@dataclass(frozen=True)
class Delphi:
    """Write what fires where in a run's store as the cache of latents that EleutherAI's delphi explains and scores.

    Example: sae export delphi runs/demo --out caches/demo --tokens 10000000. In delphi: LatentDataset(raw_dir="caches/demo",
    …), with the model's tokenizer; its example_ctx_len has to divide the store's window. It reads latents as positive: of
    a signed one it shows the positive side."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    out: Path
    """The folder to write."""
    tokens: int | None = None
    """Look at the store's first tokens only, rounded up to whole shards; at all of them when left out."""
    batch: int = 2048
    """Rows encoded at once."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} = {value} must be at least 1")


@dataclass(frozen=True)
class Neuronpedia:
    """Write a run's features in the layout that Neuronpedia imports (/api/admin/import of an instance of your own).

    Example: sae export neuronpedia runs/demo --out exports --model-id gpt2-small --source-set res-mine-8k --release mine
    --creator "A. Person". Of latents that fire with both signs the positive side is written."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must have features."""
    out: Path
    """Folder in which MODEL/LAYER-SET is made."""
    listing: Listing


FORMS = {
    "html": "features as one HTML file that opens without a network",
    "delphi": "what fires where, as the cache that EleutherAI's delphi explains latents from",
    "neuronpedia": "features in the layout that Neuronpedia imports",
}


def main(args: list[str]) -> int:
    """Parse and run."""
    forms = FORMS | {name: f"the SAE, for {form.TITLE}" for name, form in foreign.writable().items()}
    if not args or args[0] in arguments.HELP:
        width = max(map(len, forms))
        lines = [f"  {name:<{width}}  {what}" for name, what in forms.items()]
        text = "\n".join(["usage: sae export FORM [OPTIONS]", "", *lines])
        print(text, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    if args[0] not in forms and args[0] in foreign.FORMATS:
        foreign.FORMATS[args[0]]  # raises ConfigError for a plug-in that cannot be used
    arguments.choose(forms, "form", "sae export", args)
    if args[0] == "html":
        _export_html(arguments.parse(Html, "sae export html", args[1:]))
    elif args[0] == "delphi":
        _export_delphi(arguments.parse(Delphi, "sae export delphi", args[1:]))
    elif args[0] == "neuronpedia":
        _export_listing(
            arguments.parse(Neuronpedia, "sae export neuronpedia", args[1:], tyro.conf.OmitArgPrefixes)
        )
    else:
        _export_files(args[0], arguments.parse(Files, f"sae export {args[0]}", args[1:]))
    return 0


def _export_html(command: Html) -> None:
    features = features_of(Run(command.run))
    path = export_html(features, command.features, command.out, command.run.name)
    print(
        f"{path}: {len(command.features)} of {len(features):,} features, {path.stat().st_size / 1e3:,.0f} kB"
    )


def _export_delphi(command: Delphi) -> None:
    run = Run(command.run)
    _ = run.digest  # refuses a run that is not finished
    _, rows = shards_to_read(run.store, command.tokens)
    with show_progress("delphi", rows, "tokens") as advance:
        sae = run.sae().to(device())
        written = write_cache(sae, run.store, run.hook, command.out, command.tokens, command.batch, advance)
    print(f"{command.out}: latents of {run.path} on {rows:,} tokens, in {len(written)} files")
    if sae.signed:
        print(
            "  its latents are signed: what delphi shows of one are its largest values, so the positive side"
        )


def _export_listing(command: Neuronpedia) -> None:
    run = Run(command.run)
    features = features_of(Run(command.run))
    place = write_listing(features, run.hook, run.record.model, command.listing, command.out)
    print(f"{place}: {len(features):,} features of {run.path}")


def _export_files(name: str, command: Files) -> None:
    run = Run(command.run)
    _ = run.digest  # refuses a run that is not finished: its weights are about to change
    origin = origin_of(run)
    notes = foreign.writable()[name].write(run.sae(), origin, command.out)
    if "context_size" not in origin.facts:
        notes.append("its store is missing: the files do not say on which text it was trained")
    print(f"{command.out}: {run.path} as {name} reads it")
    for note in notes:
        print(f"  {note}")
