"""`sae push`: a run's SAE on the Hugging Face hub, with a card."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from activations.errors import ConfigError, quoted
from sae.cli import arguments
from sae.hub import is_hub_name, parse_name, push
from sae.hub.fetch import size_shown
from sae.runs.run import Run


@dataclass(frozen=True)
class Push:
    """Send a finished run's SAE to the Hugging Face hub, with its evaluation, its labels and a model card.

    Example: sae push runs/demo hf:me/my-sae --features. It lists the files with their sizes and asks before it sends them;
    --yes skips the question. Stores, checkpoints and paths of this machine are not sent. After an interruption the same
    command continues. Others import the run with sae import hf:me/my-sae. A token that may write is needed: hf auth login,
    or HF_TOKEN."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    name: tyro.conf.Positional[str]
    """Destination: hf:OWNER/REPOSITORY[/PATH]. A repository that does not exist is created."""
    features: bool = False
    """Send the features folder too. It holds pieces of the text that the features were collected on."""
    private: bool = False
    """Make a new repository private."""
    yes: bool = False
    """Send without asking."""

    def __post_init__(self) -> None:
        if not is_hub_name(self.name) or parse_name(self.name).revision:
            raise ConfigError(f"{self.name!r} is not a place to send to: expected hf:OWNER/REPOSITORY[/PATH]")


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Push, "sae push", args)
    run, name = Run(command.run), parse_name(command.name)
    with tempfile.TemporaryDirectory(prefix="sae-push-") as place:
        folder = Path(place)
        sent = push.stage(run, name, folder, command.features)
        push.refuse_without_token()
        print(f"to {name}{' (private)' * command.private}, from {run.path}:")
        for path in sent:
            print(f"  {path.relative_to(folder).as_posix()}  {size_shown(path.stat().st_size)}")
        print(
            f"  {len(sent)} files, {size_shown(sum(path.stat().st_size for path in sent))}; paths of this machine are left out"
        )
        if not (command.yes or _agreed()):
            print("nothing was sent")
            return 0
        address = push.send(folder, name, command.private)
    print(f"{address}\nto read it: sae import {quoted(name)} --out RUN")
    return 0


def _agreed() -> bool:
    """Ask whether to send. Raises ConfigError when there is no terminal to ask on."""
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here whether to send this: give --yes")
    return input("send this? [y/N] ").strip().lower() in ("y", "yes")
