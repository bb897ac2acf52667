"""`sae import`: another tool's SAE -> a finished run."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from activations.errors import ConfigError, quoted
from activations.progress import show_progress
from sae.architectures import name_of
from sae.cli import arguments
from sae.foreign import FORMATS
from sae.runs.records import Imported
from sae.runs.run import Run
from sae.workflows.import_sae import import_sae

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


def main(args: list[str]) -> int:
    """Parse and run."""
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
