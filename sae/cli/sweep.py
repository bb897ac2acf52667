"""`sae sweep`: a grid of methods and settings, trained from one store and evaluated one after the other."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from rich.console import Console

from activations.disk import files
from activations.errors import DivergedError, RunError
from activations.language_model import LanguageModel
from activations.store import Store
from sae.cli import arguments, results
from sae.cli.evaluate import evaluate
from sae.cli.progress import progress
from sae.cli.results import Result
from sae.cli.train import refuse_other, say_problems, settled, train
from sae.config import RunConfig
from sae.runs.run import Run, device
from sae.workflows import sweep
from sae.workflows.sweep import Sweep

TABLE, PLOT = "results.csv", "pareto.html"


@dataclass(frozen=True)
class SweepCommand:
    """Train and evaluate every run of a grid, and set them side by side: a table, results.csv and a Pareto plot.

    Example: sae sweep sweep.toml, with this in the file:

        store = "stores/demo"
        out = "runs/sweep"
        windows = 16
        [train]
        steps = 500
        [[grid]]
        arch = "topk"
        d_sae = 4096
        k = [16, 32, 64]

    Each list is swept over; `train.lr = [1e-3, 3e-4]` in a [[grid]] does so with a setting of the training.
    The whole file is checked before anything is trained. Interrupted, the same command goes on."""

    file: tyro.conf.Positional[Path]
    """The grid, a TOML file."""


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(SweepCommand, "sae sweep", args)
    results.need_plotly()
    asked = sweep.load(command.file)
    out = Path(asked.file.out)
    found, diverged = run(asked, planned(asked))
    results.write_csv(out / TABLE, found)
    results.write_pareto(out / PLOT, found)
    Console().print(results.table(found, f"{out}: {len(found)} runs"))
    for name in asked.runs:
        say_problems(Run(out / name))
    if diverged:
        raise DivergedError(f"{len(diverged)} of {len(asked.runs)} runs diverged: {'; '.join(diverged)}")
    print(f"{out / PLOT} and {out / TABLE}: written; next: sae app {out}")
    return 0


def planned(asked: Sweep) -> dict[str, RunConfig]:
    """Every run's settings, complete. Raises what training them would raise, but before it starts.

    That is: a store that cannot be used, batches larger than it, a folder that is taken by something else."""
    store, plan = Store(asked.file.store), {}
    for name, cfg in asked.runs.items():
        plan[name], _ = settled(cfg, store)
        path = Path(asked.file.out) / name
        if (path / "run.json").exists():
            refuse_other(Run(path), plan[name])
        elif files.is_taken(path):
            raise RunError(f"{path} is not empty and holds no run: move it, or choose another out")
    return plan


def run(asked: Sweep, plan: dict[str, RunConfig]) -> tuple[list[Result], list[str]]:
    """Bring every run to its end; the results, and what was said of runs that diverged. Finished work is not done again."""
    out, found, diverged = Path(asked.file.out), [], []
    done = [name for name in plan if (out / name / "run.json").exists() and Run(out / name).finished]
    steps = {name: cfg.train.steps or 0 for name, cfg in plan.items()}
    model: LanguageModel | None = None
    with progress("sweep", sum(steps.values()), "steps", done=sum(steps[name] for name in done)) as advance:
        for number, (name, cfg) in enumerate(plan.items(), 1):
            on_steps = partial(advance, note=f"run {number} of {len(plan)}: {name}")
            on_steps(0)
            try:
                made = train(cfg, out / name, resume=True, on_steps=on_steps)
            except DivergedError as error:
                diverged.append(f"{name}: {error}")
                made = Run(out / name)
            if made.finished and not _measured(made, asked.file.windows):
                model = model or (made.language_model() if asked.file.windows else None)
                evaluate(made, made.sae().to(device()), model, asked.file.windows)
            found.append(results.result(made))
    return found, diverged


def _measured(run: Run, windows: int) -> bool:
    """Whether a run has the evaluation that is wanted, with the model in it or without."""
    found = run.evaluation
    return found is not None and ("splice" in found or not windows)
