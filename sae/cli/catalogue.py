"""`sae catalogue`: well-known SAEs of the hub by words. It imports no torch, so that it answers at once."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from activations.errors import ConfigError, quoted
from sae.cli import arguments
from sae.hub import catalogue
from sae.hub.catalogue import Entry


@dataclass(frozen=True)
class Catalogue:
    """Find well-known SAEs of the Hugging Face hub by model, layer, site, width, L0 and method, without a network.

    Example: sae catalogue "gemma 2 2b layer 20 16k". A name is what sae import and sae open take. L0 is the mean
    number of latents that fire, as the release says it."""

    query: tyro.conf.Positional[tuple[str, ...]]
    """Words: `gemma 2 2b`, `layer 20` or `l20`, `16k` or `16384`, `l0 71`, `residual`, `mlp`, `attention`, `jumprelu`."""
    limit: int = 20
    """SAEs to show at most."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print all that fit, as JSON."""

    def __post_init__(self) -> None:
        if not self.query:
            raise ConfigError(
                'no words to look for are given, as in `sae catalogue "gemma 2 2b layer 20 16k"`'
            )
        if self.limit < 1:
            raise ConfigError(f"limit = {self.limit} must be at least 1")


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Catalogue, "sae catalogue", args)
    entries = catalogue.search(" ".join(command.query))
    if command.as_json:
        print(json.dumps([entry._asdict() for entry in entries], indent=1))
        return 0
    show(entries[: command.limit])
    if len(entries) > command.limit:
        print(f"{command.limit} of {len(entries):,}: more words narrow it down, --limit shows more")
    first = next((entry for entry in entries if entry.unsupported is None), None)
    if first:
        print(f"next: sae open {quoted(first.name)}")
    return 0


def show(entries: list[Entry]) -> None:
    """Print each SAE's name on a line of its own, to be copied whole, and a description below it."""
    for entry in entries:
        width = f"{entry.width:,} latents" if entry.width else "width not said"
        l0 = "L0 not said" if entry.l0 is None else f"L0 {entry.l0}"
        form = entry.format if entry.unsupported is None else "cannot be read"
        print(f"{entry.name}\n    {entry.model} · {entry.hook or 'hook not said'} · {width} · {l0} · {form}")
    for reason in dict.fromkeys(entry.unsupported for entry in entries if entry.unsupported):
        print(f"cannot be read: {reason}")
