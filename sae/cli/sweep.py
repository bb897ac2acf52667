"""`sae sweep`: train a grid of methods and settings on one store, and set the runs side by side."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from activations.errors import DivergedError, quoted
from activations.progress import show_progress
from sae.cli import arguments
from sae.cli.results import table
from sae.cli.train import show_problems
from sae.runs.run import Run
from sae.workflows.compare import need_plotly, write_csv, write_pareto
from sae.workflows.sweep import load, plan_sweep, run_sweep

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
    The whole file is checked before anything is trained. After an interruption the same command continues."""

    file: tyro.conf.Positional[Path]
    """The grid, a TOML file."""


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(SweepCommand, "sae sweep", args)
    need_plotly()
    sweep = load(command.file)
    out = Path(sweep.file.out)
    results, diverged = run_sweep(sweep, plan_sweep(sweep), show_progress)
    write_csv(out / TABLE, results)
    write_pareto(out / PLOT, results)
    Console().print(table(results, f"{out}: {len(results)} runs"))
    for name in sweep.runs:
        show_problems(Run(out / name))
    if diverged:
        raise DivergedError(f"{len(diverged)} of {len(sweep.runs)} runs diverged: {'; '.join(diverged)}")
    print(f"{out / PLOT} and {out / TABLE}: written; next: sae app {quoted(out)}")
    return 0
