"""`sae features`: what every latent of a run's SAE fires on."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from activations.language_model import LanguageModel
from activations.parallel import ranks
from sae.cli import arguments
from sae.cli.progress import progress
from sae.features.collect import FeaturesConfig
from sae.features.effects import FOLDER, load_effect, measure_effect, save_effect
from sae.features.store import FeatureStore
from sae.runs.run import Run, device
from sae.workflows.features import describe


@dataclass(frozen=True)
class Features:
    """Collect statistics, examples, logit lens and neighbours of all latents into the run's features/.

    Example: sae features runs/demo --tokens 200000. Interrupted, the same command goes on. By several processes:
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
        features = collect(run, model, command.config)
        if ranks.rank() == 0:
            if command.effects:
                measure(run, model, features, command.effects)
            print(f"{features.path}: {len(features):,} features; next: sae app {run.path.parent}")
    return 0


def collect(run: Run, model: LanguageModel, cfg: FeaturesConfig) -> FeatureStore:
    """Fill the run's features folder, or finish it."""
    sae, out = run.sae().to(device()), run.path / "features"
    return describe(sae, run.store, run.hook, model, out, cfg, run.digest, progress)


def measure(run: Run, model: LanguageModel, features: FeatureStore, latents: tuple[int, ...]) -> None:
    """Measure the effects of these latents that have not been measured yet."""
    missing = [latent for latent in latents if load_effect(features, latent) is None]
    sae = run.sae().to(device())
    with progress("effects", len(missing), "latents") as advance:
        for latent in missing:
            save_effect(features, measure_effect(model, sae, features, run.hook, latent))
            advance(1)
    print(f"{features.path / FOLDER}: effects of {', '.join(map(str, latents))}")
