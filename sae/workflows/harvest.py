"""Harvest a store, with hook points chosen where none are given, and labels of a trained run where those are asked for."""

import dataclasses
from pathlib import Path

from activations.document_labels import NEEDED
from activations.harvest import HarvestConfig, harvest, with_hooks
from activations.language_model import LanguageModel
from activations.parallel import ranks
from activations.progress import Progress, no_progress
from activations.store import Store
from sae.runs.run import Run
from sae.workflows.label_tokens import label, refuse_other_hook


def harvest_store(
    model: LanguageModel, out: Path, config: HarvestConfig, progress: Progress = no_progress
) -> Store:
    """Run the model over text and fill the store at `out` (`activations.harvest.harvest`).

    Without hook points, those of `with_hooks` are harvested. Labels `needed:RUN` come from a trained run, so they are
    added when the store is complete; the run is checked before anything is harvested."""
    config = with_hooks(model, config)
    source = config.labels or ""
    if source.startswith(NEEDED):
        config = dataclasses.replace(config, labels=None)
        run = Run(source.removeprefix(NEEDED))
        refuse_other_hook(run, dict.fromkeys(config.hook_names), "this harvest")
    total = config.tokens // config.packing.context * config.packing.context
    with progress("harvest", total, "tokens") as advance:
        store = harvest(model, out, config, advance)
    if source.startswith(NEEDED) and not ranks.rank():
        label(store, source, progress=progress)
    return store
