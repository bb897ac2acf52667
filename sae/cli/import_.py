"""`sae import`: another tool's SAE -> a finished run."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from sae.cli import arguments
from sae.errors import ConfigError
from sae.foreign import FORMATS
from sae.imported import import_sae
from sae.runs import Run

USAGE = "sae import [FORMAT] PATH --out RUN, with FORMAT one of " + ", ".join(FORMATS)


@dataclass(frozen=True)
class Import:
    """Make a run of another tool's SAE: the same function of raw activations, to be evaluated, read and steered with
    like one trained here. What has no exact form here is refused, with the reason. Nothing in the files is run.

    Example: sae import saelens downloads/gpt2-sae --out runs/gpt2-sae --store stores/gpt2 (SAELens' folder of cfg.json and
    sae_weights.safetensors; sae harvest makes the store). Then: sae evaluate runs/gpt2-sae. A hub's files come with
    hf download REPOSITORY --local-dir FOLDER."""

    what: tyro.conf.Positional[tuple[str, ...]]
    """The format, which may be left out where the files show it, and the folder or file."""
    out: Path
    """Folder of the run."""
    store: Path | None = None
    """Store of the activations it reads, for evaluation, features and dead latents."""
    hook: str | None = None
    """Hook point it reads, where the files do not say it or the store has it under another name."""
    model: str | None = None
    """Language model it belongs to, as `sae harvest --model` takes it, where there is no store to say it."""

    def __post_init__(self) -> None:
        if len(self.what) not in (1, 2):
            raise ConfigError(f"given were {' '.join(self.what) or 'no files'}, needed is {USAGE}")
        if len(self.what) == 2 and self.what[0] not in FORMATS:
            raise ConfigError(f"there is no format {self.what[0]!r}: {USAGE}")


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Import, "sae import", args)
    *form, path = command.what
    run = import_sae(
        Path(path),
        command.out,
        form[0] if form else None,
        store=command.store,
        hook=command.hook,
        model=command.model,
    )
    show(run)
    return 0


def show(run: Run) -> None:
    """Tell what was made of the files, and what can be done with it."""
    about, arch = run.about["imported"], run.config.arch
    print(f"{run.path}: {run.about['config']['architecture']} of {arch.d_sae:,} latents, read as {about['format']}, "
          f"at {run.hook} of {run.about['model']}")  # fmt: skip
    for note in about["notes"]:
        print(f"  {note}")
    if run.config.store:
        print(f"next: sae evaluate {run.path}")
    else:
        print("what needs activations (evaluate, features, dead) asks for an import with --store")
