"""Measure a run's SAE: how well it reconstructs held-out activations, and what it costs the language model to use it."""

from activations.disk import files
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from sae.architectures import SAE
from sae.evaluation.held_out import held_out_rows, reconstruction
from sae.evaluation.splicing import splice
from sae.runs.records import Evaluation
from sae.runs.run import Run

FORMAT = 1


def evaluate(
    run: Run,
    sae: SAE,
    model: LanguageModel | None,
    windows: int,
    batch: int = 2048,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure `sae`, which is the run's, on the held-out documents of the run's store; write eval.json and return its content.

    The language model reads at most `windows` windows, four times each; None leaves out what needs it. `batch` rows are encoded at
    once. Of a run that is still in training, the newest checkpoint is measured. docs/metrics.md defines every measure."""
    store, hook, positions, digest = run.store, run.hook, run.config.positions, run.weights
    with progress("evaluate", held_out_rows(store, positions), "tokens") as advance:
        measured = reconstruction(sae, store, hook, positions=positions, batch=batch, advance=advance)
    content: dict[str, object] = {"format": FORMAT, "sae_sha256": digest, **measured}
    if model is not None:
        content["splice"] = splice(model, sae, store, hook, windows, progress=progress)
    files.write_sealed(run.path / "eval.json", content)
    evaluation = run.evaluation
    assert evaluation is not None
    return evaluation
