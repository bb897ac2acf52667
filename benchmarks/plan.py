"""`sae plan` against what happens: predicted and measured speed and peak memory of trainings, a harvest and features.

    OMP_NUM_THREADS=1 python benchmarks/plan.py --store stores/demo [--run runs/demo] [--rounds 3] [--steps 30]
Everything by CPU time on one thread, so that other programs on the machine count little. Each round measures the machine
anew and then runs each job in a process of its own; printed are medians over the rounds. Memory is the process's peak."""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
    from sae.training.trainer import TrainConfig

    name, arch, train = CASES[case]
    alive = {"dead_after_tokens": 10**12, "checkpoint_every": 10**6, "log_every": 5}
    return ARCHITECTURES[name][0](**arch), TrainConfig(**{"steps": steps, **alive, **train})


def trained(case: str, store: str, steps: int) -> dict[str, float]:
    """Tokens a second of CPU time after the first steps; run in a process of its own."""
    from sae.cli.train import train
    from sae.config import RunConfig
    from sae.training import trainer

    trainer.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    arch, cfg = settings(case, steps)
    with tempfile.TemporaryDirectory() as folder:
        log = train(RunConfig(store, arch=arch, train=cfg), Path(folder) / "run").log
    return {"speed": statistics.median(row["tokens_per_second"] for row in log[1:]), "memory": _peak()}


def harvested(tokens: int) -> dict[str, float]:
    from activations import models
    from activations.harvest import HarvestConfig
    from sae.cli.harvest import run

    started = time.process_time()
    model = models.load("embedded")
    with tempfile.TemporaryDirectory() as folder:
        run(model, Path(folder) / "store", HarvestConfig(tokens=tokens, dtype="float16"))
    return {"speed": tokens / (time.process_time() - started), "memory": _peak()}


def described(folder: str, tokens: int) -> dict[str, float]:
    from sae.cli.features import collect
    from sae.features.collect import FeaturesConfig
    from sae.runs import Run

    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch) / "run"
        shutil.copytree(folder, copied, ignore=shutil.ignore_patterns("features", "checkpoints"))
        run = Run(copied)
        collect(run, run.language_model(), FeaturesConfig(tokens=tokens))
    return {"speed": tokens / (time.process_time() - started), "memory": _peak()}


def predicted(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Of all jobs, with rates measured now; run in a process of its own."""
    from activations import models
    from activations.harvest import HarvestConfig
    from activations.store import Store
    from sae.cli.harvest import with_hooks
    from sae.features.collect import FeaturesConfig
    from sae.plan import describing, harvesting, training
    from sae.plan.forecast import total
    from sae.plan.measure import measure
    from sae.runs import Run

    machine, here = measure(time.process_time), Path()
    store, found = Store(args.store), {}
    data = training.Data.of(store, store.only_hook())
    for case in CASES:
        arch, cfg = settings(case, args.steps)
        forecast = training.forecast(training.Job(arch, cfg, data), machine, here)
        once = total(
            {n: s for n, s in forecast.seconds.items() if n not in ("reading", "checkpoints", "start")}
        )
        found[case] = {"speed": args.steps * cfg.batch / once, "memory": total(forecast.memory)}
    if args.run:
        run = Run(args.run)
        reader = describing.reader(
            "benchmark of features", run.language_model, again=True, clock=time.process_time
        )
        forecast = describing.forecast(run, FeaturesConfig(tokens=args.tokens), reader, machine)
        found["features"] = {"speed": args.tokens / total(forecast.seconds), "memory": total(forecast.memory)}
    config = HarvestConfig(tokens=args.tokens, dtype="float16")

    def load() -> tuple[Any, HarvestConfig]:
        model = models.load("embedded")
        return model, with_hooks(model, config)

    pace = harvesting.pace("benchmark", load, again=True, clock=time.process_time)
    forecast = harvesting.forecast(config, pace, machine, here)
    found["harvest"] = {"speed": args.tokens / total(forecast.seconds), "memory": total(forecast.memory)}
    return found


def child(args: argparse.Namespace, job: str) -> dict[str, Any]:
    """A job in a new process."""
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


def job(args: argparse.Namespace) -> dict[str, Any]:
    """What `--job` names, here."""
    match args.job:
        case "predict":
            return predicted(args)
        case "harvest":
            return harvested(args.tokens)
        case "features":
            return described(args.run, args.tokens)
    return trained(args.job, args.store, args.steps)


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
        ahead = child(args, "predict")
        for name in names:
            seen[name].append((ahead[name], child(args, name)))
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
