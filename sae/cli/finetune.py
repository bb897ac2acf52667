"""`sae finetune`: train a run's SAE a little further, end to end through the language model."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from activations.errors import quoted
from activations.progress import show_progress
from sae.cli import arguments
from sae.cli.train import show_problems
from sae.runs.run import Run
from sae.workflows.finetune import FinetuneConfig, finetune


@dataclass(frozen=True)
class Finetune:
    """Train a finished run's SAE further, so that its reconstruction changes the language model's predictions less.

    Example: sae finetune runs/demo --out runs/tuned --tokens 1000000. What is minimised: docs/end-to-end.md."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    out: Path
    """Folder of the new run."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint; begin it where there is none."""
    config: FinetuneConfig = field(default_factory=FinetuneConfig)


def main(args: list[str]) -> int:
    """Parse the arguments of `sae finetune` and run it."""
    command = arguments.parse(Finetune, "sae finetune", args, tyro.conf.OmitArgPrefixes)
    run = finetune(Run(command.run), command.out, command.config, command.resume, show_progress)
    show_problems(run)
    print(f"{run.path}: trained; next: sae evaluate {quoted(run.path)}")
    return 0
