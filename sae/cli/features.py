"""`sae features`: what every latent of a run's SAE fires on."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from activations.errors import quoted
from activations.parallel import ranks
from activations.progress import show_progress
from sae.cli import arguments
from sae.features.collect import FeaturesConfig
from sae.features.effects import FOLDER
from sae.runs.run import Run
from sae.workflows.features import collect_features, measure_effects


@dataclass(frozen=True)
class Features:
    """Collect statistics, examples, logit lens and neighbours of all latents into the run's features/.

    Example: sae features runs/demo --tokens 200000. After an interruption the same command continues. By several processes:
    torchrun --nproc-per-node 2 -m sae.cli.main features runs/demo."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    effects: tuple[int, ...] = ()
    """Numbers of latents whose effect on the model is to be measured too, and kept."""
    config: FeaturesConfig = field(default_factory=FeaturesConfig)


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Features, "sae features", args, tyro.conf.OmitArgPrefixes)
    with ranks.group():
        run = Run(command.run)
        model = run.language_model()
        features = collect_features(run, model, command.config, show_progress)
        if ranks.rank() == 0:
            if command.effects:
                measure_effects(run, model, features, command.effects, show_progress)
                print(f"{features.path / FOLDER}: effects of {', '.join(map(str, command.effects))}")
            print(f"{features.path}: {len(features):,} features; next: sae app {quoted(run.path.parent)}")
    return 0
