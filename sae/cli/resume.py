"""`sae resume`: continue a training that stopped, with the settings that its folder holds."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from activations.errors import ConfigError, quoted
from activations.parallel import ranks
from activations.progress import show_progress
from sae.cli import arguments
from sae.cli.train import show_problems
from sae.runs.run import Run
from sae.training import distributed
from sae.workflows.rings import RingSettings, bytes_of
from sae.workflows.train import train


@dataclass(frozen=True)
class Resume:
    """Continue a run that stopped before its end, from its newest checkpoint and with the settings in its run.json.

    Example: sae resume runs/demo. It ends with the same bits as an uninterrupted run, whether `sae train`, `sae finetune` or `sae pool`
    began it; a finished run is left as it is. With several processes: torchrun --nproc-per-node 8 -m sae.cli.main resume runs/demo."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    parallel: distributed.Parallel = "auto"
    """What several processes share, as in `sae train`."""
    ring: str | None = None
    """For a run on a stream, and needed there: how much of its activations the disk may hold, such as 20GB."""
    ring_folder: Path | None = None
    """With --ring: the folder for the ring that `sae train` was given; when left out, the run's."""
    producers: int = 1
    """With --ring: processes that run the model."""


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Resume, "sae resume", args)
    run = Run(command.run)
    if (run.config.stream is None) != (command.ring is None):
        raise ConfigError(
            f"{run.path} trains on a stream: add --ring, the disk that its activations may take, as in --ring 20GB"
            if run.config.stream
            else f"{run.path} trains on a store: leave out --ring"
        )
    if command.ring is None and (command.ring_folder or command.producers != 1):
        raise ConfigError(f"{run.path} trains on a store: leave out --ring-folder and --producers")
    ring = command.ring and RingSettings(bytes_of(command.ring), command.ring_folder, command.producers)
    with ranks.group():
        run = train(run.config, run.path, True, command.parallel, show_progress, ring or None)
    if not ranks.rank():
        show_problems(run)
        print(f"{run.path}: trained; next: sae evaluate {quoted(run.path)}")
    return 0
