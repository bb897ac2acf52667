"""Measure a run's SAE: how well it reconstructs held-out activations, and what it costs the language model to use it."""

from dataclasses import asdict

from activations.disk import files
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from activations.store import Store
from sae.architectures import SAE
from sae.evaluation.ablation import AblationConfig, ablation_effects
from sae.evaluation.held_out import held_out_rows, reconstruction
from sae.evaluation.splicing import splice
from sae.runs.records import Evaluation
from sae.runs.run import EVALUATION_FORMAT, Run
from sae.trust.controls import random_dictionary

SCALED_ON = 2048  # rows on which a random dictionary's scale is fitted


def evaluate(
    run: Run,
    sae: SAE,
    model: LanguageModel | None,
    windows: int,
    batch: int = 2048,
    progress: Progress = no_progress,
    effects: AblationConfig | None = None,
) -> Evaluation:
    """Measure `sae`, which is the run's, on the held-out documents of the run's store; write eval.json and return its content.

    The language model reads at most `windows` windows, four times each; None leaves out what needs it. `batch` rows are encoded at
    once. Of a run that is still in training, the newest checkpoint is measured. With `effects`, which needs the language model,
    sampled latents are ablated too, beside latents of a random dictionary of the same L0 and random directions of the same norm
    (`ablation_effects`). docs/metrics.md defines every measure."""
    store, hook, digest = run.store, run.hook, run.weights
    with progress("evaluate", held_out_rows(store), "tokens") as advance:
        measured = reconstruction(sae, store, hook, batch=batch, advance=advance)
    content: dict[str, object] = {"format": EVALUATION_FORMAT, "sae_sha256": digest, **measured}
    if model is not None:
        content["splice"] = splice(model, sae, store, hook, windows, progress=progress)
        if effects is not None:
            l0 = max(1, round(measured["estimates"]["l0"]["value"]))
            control = _random_dictionary(sae, store, hook, l0, effects.seed)
            found = ablation_effects(model, sae, control, store, hook, effects, progress)
            content["effects"] = asdict(found)
    files.write_sealed(run.path / "eval.json", content)
    evaluation = run.evaluation
    assert evaluation is not None
    return evaluation


def _random_dictionary(sae: SAE, store: Store, hook: str, k: int, seed: int) -> SAE:
    """Return random directions, as many as the SAE has latents, of which each row keeps k; their scale fits held-out rows best."""
    x, *_ = next(iter(store.batches(hook, SCALED_ON, "held-out")))
    return random_dictionary(x.float(), store.mean(hook).float(), sae.d_sae, k, seed).to(sae.device)
