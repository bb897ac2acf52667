"""Train and evaluate every run of a sweep, one after the other."""

from pathlib import Path

from activations.disk import files
from activations.errors import DivergedError, RunError
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress, part_of
from activations.store import Store
from sae.config import RunConfig
from sae.runs.run import Run, device
from sae.workflows.evaluate import evaluate
from sae.workflows.results import Result, result
from sae.workflows.sweep_file import Sweep
from sae.workflows.train import refuse_other, resolve, train


def plan_sweep(sweep: Sweep) -> dict[str, RunConfig]:
    """Return the resolved settings of every run.

    Raises before anything is trained what training would raise: for a store that cannot be used, batches larger than the
    store, or a folder in which something else lies."""
    store, plan = Store(sweep.file.store), {}
    for name, cfg in sweep.runs.items():
        plan[name], _ = resolve(cfg, store)
        path = Path(sweep.file.out) / name
        if (path / "run.json").exists():
            refuse_other(Run(path), plan[name])
        elif files.is_taken(path):
            raise RunError(f"{path} is not empty and does not hold a run: move it, or choose another out")
    return plan


def run_sweep(
    sweep: Sweep, plan: dict[str, RunConfig], progress: Progress = no_progress
) -> tuple[list[Result], list[str]]:
    """Train and evaluate every run of the plan; return their results, and what was said of runs that diverged.

    Interrupted and called again, it does nothing twice."""
    out, results, diverged = Path(sweep.file.out), [], []
    done = [name for name in plan if (out / name / "run.json").exists() and Run(out / name).finished]
    steps = {name: cfg.train.steps or 0 for name, cfg in plan.items()}
    model: LanguageModel | None = None
    with progress("sweep", sum(steps.values()), "steps", done=sum(steps[name] for name in done)) as advance:
        for number, (name, cfg) in enumerate(plan.items(), 1):
            note = f"run {number} of {len(plan)}: {name}"
            try:
                run = train(cfg, out / name, resume=True, progress=part_of(advance, "train", note))
            except DivergedError as error:
                diverged.append(f"{name}: {error}")
                run = Run(out / name)
            if run.finished and not _is_measured(run, sweep.file.windows):
                model = model or (run.language_model() if sweep.file.windows else None)
                evaluate(run, run.sae().to(device()), model, sweep.file.windows)
            results.append(result(run))
    return results, diverged


def _is_measured(run: Run, windows: int) -> bool:
    """Return whether a run already has the evaluation that is asked for, with the language model or without it."""
    evaluation = run.evaluation
    return evaluation is not None and (evaluation.splice is not None or not windows)
