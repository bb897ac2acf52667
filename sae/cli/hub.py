"""`sae import`, `sae open` and `sae push`: an SAE from elsewhere to a run, or to the app, and a run's SAE to the hub."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from activations.errors import ConfigError, quoted
from activations.progress import show_progress
from sae.architectures import name_of
from sae.cli import app, arguments
from sae.cli.evaluate import show_evaluation
from sae.foreign import FORMATS
from sae.hub import is_hub_name, parse_name
from sae.hub.fetch import size_shown
from sae.hub.push import refuse_without_token, send, stage
from sae.runs.records import Imported
from sae.runs.run import Run
from sae.workflows.import_sae import import_sae
from sae.workflows.open_sae import Open, prepare

USAGE = "sae import [FORMAT] PATH --out RUN, with FORMAT one of " + ", ".join(FORMATS)


@dataclass(frozen=True)
class Import:
    """Make a run of another tool's SAE: the same function of raw activations, to be evaluated, read and steered with
    like one trained here. What has no exact form here is refused, with the reason. Nothing in the files is run.

    Example: sae import saelens downloads/gpt2-sae --out runs/gpt2-sae --store stores/gpt2 (SAELens' folder of cfg.json and
    sae_weights.safetensors; sae harvest makes the store). Then: sae evaluate runs/gpt2-sae.

    From the hub: sae import hf:google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71 --out runs/gemma. The size of
    the download is printed before it begins; after an interruption the same command continues. `sae catalogue` finds well-known SAEs."""

    what: tyro.conf.Positional[tuple[str, ...]]
    """The format, which may be left out where the files show it, and the folder, the file or the name on the hub,
    hf:OWNER/REPOSITORY[/PATH][@REVISION]."""
    out: Path
    """Folder of the run."""
    store: Path | None = None
    """Store of the activations it reads, for evaluation, features and dead latents."""
    hook: str | None = None
    """Hook point it reads, where the files do not say it or the store has it under another name."""
    model: str | None = None
    """Language model that the SAE reads, as `sae harvest --model` takes it. Needed without a store if the files do not name it."""

    def __post_init__(self) -> None:
        if len(self.what) not in (1, 2):
            raise ConfigError(
                f"{len(self.what)} files or formats are given ({' '.join(self.what)}), expected {USAGE}"
            )
        if len(self.what) == 2 and self.what[0] not in FORMATS:
            raise ConfigError(f"there is no format {self.what[0]!r}: {USAGE}")


def import_main(args: list[str]) -> int:
    """Parse the arguments of `sae import` and run it."""
    command = arguments.parse(Import, "sae import", args)
    *form, path = command.what
    run = import_sae(
        path,
        command.out,
        form[0] if form else None,
        store=command.store,
        hook=command.hook,
        model=command.model,
        progress=show_progress,
        tell=tell,
    )
    assert run.record.imported
    show_import(run, run.record.imported)
    return 0


def tell(line: str) -> None:
    """Say what is about to be fetched, before it is."""
    print(line, flush=True)


def show_import(run: Run, imported: Imported) -> None:
    """Print what was made of the files, and what can be done with it."""
    print(
        f"{run.path}: {name_of(run.config.arch)} of {run.config.arch.d_sae:,} latents, read as {imported.format}, "
        f"at {run.hook} of {run.record.model}"
    )
    for note in imported.notes:
        print(f"  {note}")
    if run.config.store:
        print(f"next: sae evaluate {quoted(run.path)}")
    else:
        print("evaluate, features and dead need activations: import with --store to use them")


def open_main(args: list[str]) -> int:
    """Parse the arguments of `sae open` and run it."""
    command = arguments.parse(Open, "sae open", args)
    run = prepare(command, show_progress, tell)
    if run.record.imported:
        show_import(run, run.record.imported)
    if run.evaluation:
        show_evaluation(run, run.evaluation)
    print(f"{run.path} is ready: sae app {quoted(run.path)}")
    if command.app:
        return app.main([str(run.path)])
    return 0


@dataclass(frozen=True)
class Push:
    """Send a finished run's SAE to the Hugging Face hub, with its evaluation, its labels and lists of latents, and a model card.

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


def push_main(args: list[str]) -> int:
    """Parse the arguments of `sae push` and run it."""
    command = arguments.parse(Push, "sae push", args)
    run, name = Run(command.run), parse_name(command.name)
    with tempfile.TemporaryDirectory(prefix="sae-push-") as place:
        folder = Path(place)
        sent = stage(run, name, folder, command.features)
        refuse_without_token()
        print(f"to {name}{' (private)' * command.private}, from {run.path}:")
        for path in sent:
            print(f"  {path.relative_to(folder).as_posix()}  {size_shown(path.stat().st_size)}")
        print(
            f"  {len(sent)} files, {size_shown(sum(path.stat().st_size for path in sent))}; paths of this machine are left out"
        )
        if not (command.yes or _agreed()):
            print("nothing was sent")
            return 0
        address = send(folder, name, command.private)
    print(f"{address}\nto read it: sae import {quoted(name)} --out RUN")
    return 0


def _agreed() -> bool:
    """Ask whether to send. Raises ConfigError when there is no terminal to ask on."""
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here whether to send this: give --yes")
    return input("send this? [y/N] ").strip().lower() in ("y", "yes")
