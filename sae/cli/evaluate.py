"""`sae evaluate`: how well a run's SAE reconstructs held-out activations and preserves the model's predictions.

`sae demo` ends with the same table, after it has done the whole job on the embedded model and text."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from activations.errors import ConfigError
from activations.progress import show_progress
from sae.cli import arguments
from sae.cli.train import show_problems
from sae.evaluation.measures import measure, shown
from sae.runs.records import Evaluation
from sae.runs.run import Run, device
from sae.workflows.demo import Demo, run_demo
from sae.workflows.evaluate import evaluate
from sae.workflows.import_sae import unlike_training

WITHOUT_MODEL = (
    "the store was made from another program's files, so that no language model was run, and left out is"
)
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
    """Parse the arguments of `sae evaluate` and run it."""
    command = arguments.parse(Evaluate, "sae evaluate", args)
    run = Run(command.run)
    sae = run.sae().to(device())
    model = run.language_model() if command.windows and not run.reads_files else None
    if not run.finished:
        print(f"{run.path} has not finished training: this measures {run.newest_checkpoint}")
    show_evaluation(run, evaluate(run, sae, model, command.windows, command.batch, show_progress))
    if run.reads_files:
        print(f"{run.path}: {WITHOUT_MODEL} what the SAE costs the model (cross-entropy, KL)")
    return 0


def show_evaluation(run: Run, evaluation: Evaluation) -> None:
    """Print the table of measures, and what makes them doubtful."""
    table = Table(
        title=f"{run.path} on {evaluation.tokens:,} held-out tokens of {evaluation.documents} documents"
    )
    for column in ("", "value", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name, estimate in evaluation.measures.items():
        value, low, high = (
            shown(number, measure(name).format) for number in (estimate.value, estimate.low, estimate.high)
        )
        table.add_row(measure(name).title, value, f"{low} to {high}")
    table.add_row("latents silent on these tokens", f"{evaluation.dead:.1%}", "")
    table.add_row("latents on more than 10 % of them", f"{evaluation.dense:.1%}", "")
    for name, count in evaluation.encoder.items():  # an eval.json of an older release has none
        table.add_row(COSTS.get(name, name), f"{count:,}", "")
    if proxies := evaluation.l0_proxies:
        table.add_row("c_dec, mean |cosine| of decoder rows", f"{proxies.decoder_cosine:.4g}", "")
        table.add_row("s_dec, projection on the middle decoder row", f"{proxies.decoder_projection:.4g}", "")
    if spliced := evaluation.splice:
        table.caption = (
            f"cross-entropy (nats per token) and KL on {spliced.tokens:,} tokens in {spliced.windows} windows"
        )
    Console().print(table)
    show_problems(run)
    if run.record.imported:
        for line in unlike_training(run.record.imported.facts, run.store):
            print(f"{run.path}: {line}")


def demo_main(args: list[str]) -> int:
    """Parse the arguments of `sae demo` and run it."""
    run = run_demo(arguments.parse(Demo, "sae demo", args), show_progress)
    if run.evaluation:
        show_evaluation(run, run.evaluation)
    # As it can be typed here, whether or not the environment is activated.
    command = "sae" if shutil.which("sae") else Path(sys.executable).with_name("sae")
    print(f"\nLook at what it learned:  {command} app {run.path.parent}")
    return 0
