"""`sae evaluate`: how well a run's SAE reconstructs held-out activations and preserves the model's predictions.

`sae demo` ends with the same table, after it has done the whole job on the embedded model and text."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import tyro
from rich.console import Console
from rich.table import Table

from activations.errors import ConfigError
from activations.progress import show_progress
from sae.cli import arguments
from sae.cli.app import App
from sae.cli.train import show_problems
from sae.evaluation.ablation import AblationConfig
from sae.evaluation.measures import AblationEffects, measure, shown
from sae.report import effects as effects_report
from sae.report import runs as runs_report
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
    effects: int = 0
    """Latents to ablate, one at a time, where they fire: how sparse the changes of the logits are, beside those of random
    directions and of a random dictionary. 0 leaves it out; 64 take some 400 passes of the language model."""
    effect_positions: int = 16
    """Positions compared after each ablation, the ablated one included."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"batch = {self.batch} must be at least 1")
        if self.windows < 0:
            raise ConfigError(f"windows = {self.windows} must be at least 0, which leaves the model out")
        if self.effects < 0 or self.effect_positions < 1:
            raise ConfigError(
                f"effects = {self.effects} must be at least 0, and effect_positions = {self.effect_positions} at least 1"
            )
        if self.effects and not self.windows:
            raise ConfigError(
                "--effects needs the language model: give --windows above 0, in which firings are looked for"
            )

    @property
    def ablation(self) -> AblationConfig | None:
        """Settings of the effects; None where they are left out."""
        if not self.effects:
            return None
        return AblationConfig(latents=self.effects, positions=self.effect_positions, windows=self.windows)


def main(args: list[str]) -> int:
    """Parse the arguments of `sae evaluate` and run it."""
    command = arguments.parse(Evaluate, "sae evaluate", args)
    run = Run(command.run)
    sae = run.sae().to(device())
    model = run.language_model() if command.windows and not run.reads_files else None
    if not run.finished:
        print(f"{run.path} has not finished training: this measures {run.newest_checkpoint}")
    evaluation = evaluate(run, sae, model, command.windows, command.batch, show_progress, command.ablation)
    show_evaluation(run, evaluation)
    if run.reads_files:
        print(
            f"{run.path}: {WITHOUT_MODEL} what the SAE costs the model (cross-entropy, KL), and effects of latents"
        )
    return 0


def show_evaluation(run: Run, evaluation: Evaluation) -> None:
    """Print the table of measures, and what makes them doubtful."""
    table = Table(
        title=f"{run.path} on {evaluation.tokens:,} held-out tokens of {evaluation.documents} documents"
    )
    for column in ("", "value", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name, estimate in evaluation.measures.items():
        value = shown(estimate.value, measure(name).format)
        table.add_row(measure(name).title, value, runs_report.interval(evaluation, name))
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
        if (
            evaluation.positions == "last"
        ):  # what follows a token is predicted, and nothing follows the last one
            table.caption += (
                ", none of them the last of its document in a window, which the SAE was trained on"
            )
    Console().print(table)
    if evaluation.effects:
        print(f"\nsparsity of effects on the logits: {effects_report.basis(evaluation.effects)}")
        Console().print(_effects_table(evaluation.effects))
        for text in effects_report.conclusions(evaluation.effects):
            print(text)
    show_problems(run)
    if run.record.imported:
        for line in unlike_training(run.record.imported.facts, run.store):
            print(f"{run.path}: {line}")


def _effects_table(effects: AblationEffects) -> Table:
    table = Table()
    for column in ("ablated", "(L1/L2)²", "95 % interval", "median", "change"):
        table.add_column(column, justify="left" if column == "ablated" else "right", no_wrap=True)
    for line in effects_report.lines(effects):
        table.add_row(line.title, line.mean, line.interval, line.median, line.size)
    return table


def demo_main(args: list[str]) -> int:
    """Parse the arguments of `sae demo` and run it."""
    cfg = arguments.parse(Demo, "sae demo", args)
    second = (
        "; then evaluation, features and dead latents of the second SAE, and a comparison"
        if cfg.second
        else ""
    )
    print(f"stages: harvest, training, evaluation, features, rules, dead latents{second}", flush=True)
    runs = run_demo(cfg, show_progress)
    for run in runs:
        if run.evaluation:
            show_evaluation(run, run.evaluation)
    folder = runs[0].path.parent
    # As it can be typed here, whether or not the environment is activated.
    command = "sae" if shutil.which("sae") else Path(sys.executable).with_name("sae")
    if len(runs) > 1:
        names = urlencode({"run": runs[0].name, "other": runs[1].name})
        print(
            f"\n{runs[1].path} is a second SAE, smaller and with signed latents. Both side by side, once the app runs:"
        )
        print(f"  http://localhost:{App.port}/compare?{names}")
    print(f"\nLook at what it learned:  {command} app {folder}")
    return 0
