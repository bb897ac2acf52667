"""`sae evaluate`: how well a run's SAE rebuilds held-out activations and the model's predictions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from activations.disk import files
from activations.errors import ConfigError
from activations.language_model import LanguageModel
from sae.architectures import SAE
from sae.cli import arguments
from sae.cli.progress import progress
from sae.evaluation.reconstruction import held_out_rows, reconstruction
from sae.evaluation.splice import splice
from sae.runs.run import Run, device
from sae.workflows.import_sae import unlike_training

FORMAT = 1
LABELS = {
    "fvu": "fraction of variance unexplained",
    "explained_variance": "explained variance",
    "cosine": "cosine(x, x_hat)",
    "l0": "L0 (latents firing per token)",
    "norm_ratio": "|x_hat| / |x|",
    "ce_clean": "cross-entropy, model as it is",
    "ce_spliced": "cross-entropy, SAE spliced in",
    "ce_mean": "cross-entropy, mean-ablated",
    "ce_zero": "cross-entropy, zero-ablated",
    "kl": "KL(as it is || spliced)",
    "recovered_zero": "loss recovered (zero ablation)",
    "recovered_mean": "loss recovered (mean ablation)",
}
COSTS = {"parameters": "encoder parameters", "flops": "encoder FLOPs per token"}


@dataclass(frozen=True)
class Evaluate:
    """Measure a run on its store's held-out documents and write eval.json into it.

    Example: sae evaluate runs/demo --windows 128. What each number means: docs/metrics.md."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    windows: int = 64
    """Held-out windows the language model reads, four times each; 0 leaves the model out."""
    batch: int = 2048
    """Rows encoded at once."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch = {self.batch} must be at least 1")
        if self.windows < 0:
            raise ConfigError(f"windows = {self.windows} must be at least 0, which leaves the model out")


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Evaluate, "sae evaluate", args)
    run = Run(command.run)
    sae = run.sae().to(device())
    model = run.language_model() if command.windows else None
    evaluate(run, sae, model, command.windows, command.batch)
    show(run)
    return 0


def evaluate(run: Run, sae: SAE, model: LanguageModel | None, windows: int, batch: int = 2048) -> None:
    """Measure, and write eval.json."""
    store, hook, positions, digest = run.store, run.hook, run.config.positions, run.weights
    if not run.finished:
        print(f"{run.path} has not finished training: this measures {run.newest_checkpoint}")
    with progress("evaluate", held_out_rows(store, positions), "tokens") as advance:
        found = reconstruction(sae, store, hook, positions=positions, batch=batch, on_rows=advance)
    if model is not None:
        with progress("splice", windows, "windows") as advance:
            found["splice"] = splice(model, sae, store, hook, windows, on_windows=advance)
    about = {"format": FORMAT, "sae_sha256": digest}
    files.write_sealed(run.path / "eval.json", {**about, **found})


def show(run: Run) -> None:
    """Print the table of results."""
    found: dict[str, Any] = run.evaluation or {}
    spliced = found.get("splice", {})
    table = Table(
        title=f"{run.path} on {found['tokens']:,} held-out tokens of {found['documents']} documents"
    )
    for column in ("", "value", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name, estimate in {**found["estimates"], **spliced.get("estimates", {})}.items():
        table.add_row(
            LABELS[name], f"{estimate['value']:.4g}", f"{estimate['low']:.4g} to {estimate['high']:.4g}"
        )
    table.add_row("latents silent on these tokens", f"{found['dead']:.1%}", "")
    table.add_row("latents on more than 10 % of them", f"{found['dense']:.1%}", "")
    for name, count in found.get("encoder", {}).items():  # an older eval.json has none
        table.add_row(COSTS[name], f"{count:,}", "")
    if spliced:
        table.caption = f"cross-entropy (nats a token) and KL on {spliced['tokens']:,} tokens in {spliced['windows']} windows"
    Console().print(table)
    for line in run.problems:
        print(f"{run.path}: {line}")
    if "imported" in run.about:
        for line in unlike_training(run.about["imported"].get("facts", {}), run.store):
            print(f"{run.path}: {line}")
