"""`sae plan` against what happens: predicted and measured speed and peak memory of trainings, a harvest and features.

    OMP_NUM_THREADS=1 python benchmarks/plan.py --store stores/demo [--run runs/demo] [--rounds 3] [--steps 30]
Everything by CPU time on one thread. That too depends on what else runs: the machine is measured before each job and after
it, all in processes of their own, and the mean of the two predictions counts. Printed are medians over the rounds; memory
is the process's peak."""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sae.plan.forecast import Forecast, total
from sae.plan.measure import measure
from sae.plan.rates import Machine

AHEAD = "predict "
CASES = {  # --arch and --train settings
    "topk, 8192 latents": ("topk", {"d_sae": 8192}, {}),
    "topk, 4096 latents, k 64": ("topk", {"d_sae": 4096, "k": 64}, {}),
    "topk, 16384 latents": ("topk", {"d_sae": 16384}, {}),
    "kron, 8192 latents": ("kron", {"d_sae": 8192}, {}),
    "batchtopk, 8192 latents": ("batchtopk", {"d_sae": 8192}, {}),
    "matryoshka, 8192 latents": ("matryoshka", {"d_sae": 8192}, {}),
    "topk, 8192 latents, batch 512": ("topk", {"d_sae": 8192}, {"batch": 512}),
}


def settings(case: str, steps: int) -> tuple[Any, Any]:
    from sae.architectures import ARCHITECTURES
    from sae.config import TrainConfig

    name, arch, train = CASES[case]
    alive = {"dead_after_tokens": 10**12, "log_every": 5}
    return ARCHITECTURES[name].config(**arch), TrainConfig(**{"steps": steps, **alive, **train})


def trained(case: str, store: str, steps: int) -> dict[str, float]:
    """Return the tokens per second of CPU time after the first steps. Run this in a process of its own."""
    from sae.config import RunConfig
    from sae.workflows import training
    from sae.workflows.train import train

    training.fitting = partial(training.fitting, clock=time.process_time)
    arch, cfg = settings(case, steps)
    with tempfile.TemporaryDirectory() as folder:
        log = train(RunConfig(store, arch=arch, train=cfg), Path(folder) / "run").log
    return {"speed": statistics.median(row["tokens_per_second"] for row in log[1:]), "memory": _peak()}


def harvested(tokens: int) -> dict[str, float]:
    from activations import language_model as models
    from activations.harvest import HarvestConfig
    from sae.workflows.harvest import harvest_store

    started = time.process_time()
    model = models.load("embedded")
    with tempfile.TemporaryDirectory() as folder:
        harvest_store(model, Path(folder) / "store", HarvestConfig(tokens=tokens, dtype="float16"))
    return {"speed": tokens / (time.process_time() - started), "memory": _peak()}


def described(folder: str, tokens: int) -> dict[str, float]:
    from sae.features.collect import FeaturesConfig
    from sae.runs.run import Run
    from sae.workflows.features import collect_features

    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch) / "run"
        shutil.copytree(folder, copied, ignore=shutil.ignore_patterns("features", "checkpoints"))
        run = Run(copied)
        collect_features(run, run.language_model(), FeaturesConfig(tokens=tokens))
    return {"speed": tokens / (time.process_time() - started), "memory": _peak()}


def predicted(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Return the forecast of one job, with rates measured now; it runs in a process of its own."""

    def now() -> Machine:
        return measure(time.process_time)

    if name == "harvest":
        forecast, tokens = harvest_forecast(args, now), args.tokens
        seconds = total(forecast.seconds) - forecast.seconds["waiting for the disk"]  # takes no processor
    elif name == "features":
        forecast = features_forecast(args, now)
        seconds, tokens = total(forecast.seconds) - forecast.seconds["reading"], args.tokens
    else:
        forecast = training_forecast(name, args, now)
        tokens = args.steps * settings(name, args.steps)[1].batch
        once = ("reading at the start", "checkpoints")
        seconds = total({part: value for part, value in forecast.seconds.items() if part not in once})
    return {"speed": tokens / seconds, "memory": total(forecast.memory)}


def training_forecast(case: str, args: argparse.Namespace, machine: Callable[[], Machine]) -> Forecast:
    from activations.store import Store
    from sae.plan import training

    store = Store(args.store)
    arch, cfg = settings(case, args.steps)
    data = training.Data.of(store, store.only_hook())
    return training.forecast(training.Job(arch, cfg, data), machine(), Path())


def harvest_forecast(args: argparse.Namespace, machine: Callable[[], Machine]) -> Forecast:
    from activations import language_model as models
    from activations.harvest import HarvestConfig, with_hooks
    from sae.plan import harvest

    config = HarvestConfig(tokens=args.tokens, dtype="float16")

    def load() -> tuple[Any, HarvestConfig]:
        model = models.load("embedded")
        return model, with_hooks(model, config)

    pace = harvest.pace("benchmark of a harvest", load, again=True, clock=time.process_time)
    return harvest.forecast(config, pace, machine(), Path())


def features_forecast(args: argparse.Namespace, machine: Callable[[], Machine]) -> Forecast:
    from sae.features.collect import FeaturesConfig
    from sae.plan import features
    from sae.runs.run import Run

    run = Run(args.run)
    key = "benchmark of features"
    reader = features.reader(key, run.language_model, again=True, clock=time.process_time)
    return features.forecast(run, FeaturesConfig(tokens=args.tokens), reader, machine())


def child(args: argparse.Namespace, job: str) -> dict[str, float]:
    """Do a job in a new process and return its cost."""
    own = [
        sys.executable,
        __file__,
        "--store",
        args.store,
        "--steps",
        str(args.steps),
        "--tokens",
        str(args.tokens),
    ]
    own += ["--run", args.run] * bool(args.run)
    done = subprocess.run([*own, "--job", job], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def job(args: argparse.Namespace) -> dict[str, float]:
    """Do the job that `--job` names in this process and return its cost: a forecast, or the measured job itself."""
    if args.job.startswith(AHEAD):
        return predicted(args.job.removeprefix(AHEAD), args)
    if args.job == "harvest":
        return harvested(args.tokens)
    return (
        described(args.run, args.tokens)
        if args.job == "features"
        else trained(args.job, args.store, args.steps)
    )


def compared(args: argparse.Namespace, name: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return predicted and measured cost. The prediction is the mean of one made before the job and one made after it."""
    before, seen, after = (child(args, which) for which in (AHEAD + name, name, AHEAD + name))
    return {key: (before[key] + after[key]) / 2 for key in before}, seen


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", default="stores/demo")
    parser.add_argument("--run", default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--job", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(job(args)))
        return
    names = [*CASES, "harvest", *["features"] * bool(args.run)]
    names = [name for name in names if args.only is None or any(part in name for part in args.only)]
    seen: dict[str, list[tuple[dict, dict]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            seen[name].append(compared(args, name))
            print(name, *seen[name][-1], file=sys.stderr, flush=True)
    print("| job | predicted tokens/s | measured | ratio | predicted peak MB | measured | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, pairs in seen.items():
        cells = []
        for what, unit in (("speed", 1), ("memory", 1e6)):
            ahead, after = (statistics.median(pair[i][what] for pair in pairs) / unit for i in (0, 1))
            ratio = statistics.median(a[what] / b[what] for a, b in pairs)
            cells += [f"{ahead:,.0f}", f"{after:,.0f}", f"{ratio:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
