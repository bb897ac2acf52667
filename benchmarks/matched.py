"""All methods compared like with like: each at its own best rate, at the same measured L0, on the same rows.

    sae harvest --dataset embedded:mixed --hooks blocks.10.hook_resid_post --tokens 2300000 --out stores/mixed
    python -m benchmarks.matched train --store stores/mixed --out runs/matched
    python -m benchmarks.matched table --out runs/matched
    python -m benchmarks.matched precision --out runs/matched

`train` first trains TopK at every L0, which draws the frontier FVU(L0) that the others are judged by. Then every method
  1. seeks its best peak rate at the middle L0: rates a factor of 2 apart, until the best has a worse neighbour on both
     sides; what is compared is the FVU over TopK's at the L0 measured, because a rate moves the L0 of a priced method;
  2. seeks at that rate the setting that gives each L0, within 3 %, where it is not the number of latents itself;
  3. is trained with the other seeds at the settings sought with seed 0.
Every run is a folder that `sae evaluate` has measured; a stopped `train` goes on where it was when called again. Processes of one
thread each share the runs, on the GPU where there is one. `precision` trains the table's runs once more with products in
float32 and prints what the lower precision changed, beside what another seed changes."""

import dataclasses
import math
import statistics
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from activations.errors import DivergedError
from activations.language_model import LanguageModel
from activations.progress import show_progress
from activations.store import Store
from activations.token_labels import names
from benchmarks.matched_table import Chosen, final_runs, frontier, measured, run_folder, table, write_chosen
from benchmarks.trained import measured_run
from sae.architectures import ARCHITECTURES
from sae.config import Precision, RunConfig, TrainConfig, peak_rate
from sae.runs.run import Run, device
from sae.training.rates import next_rate
from sae.workflows.evaluate import evaluate
from sae.workflows.harvest import label

TOLERANCE, TRIALS = 0.03, 6
BASE, TEACHER = "topk", "batchtopk"
MODELS: dict[Path, LanguageModel] = {}
"""The language model of each store, loaded once in each process."""
FLOAT32 = "float32"  # beside the runs of the table, those of the same settings with products in float32


@dataclass(frozen=True)
class Method:
    """A row of the table: an architecture, its settings, and the one that its L0 follows."""

    arch: str
    knob: str | None = "k"
    """The setting that L0 follows; None when there is none: the L0 is then what it comes to."""
    settings: dict[str, Any] = field(default_factory=dict)
    power: float | None = None
    """Exponent in L0 ~ knob^power, roughly; None when the knob is L0 itself."""
    start: float = 1.0
    """The knob's value at which the search for the middle L0 begins, when the knob is not L0."""
    width: float = 1.0
    """Number of latents as a share of the table's: a rival of equal FLOPs has fewer."""


METHODS = {
    "topk": Method("topk"),
    "topk, 3/4 of the latents": Method("topk", width=0.75),
    "topk, half the latents": Method("topk", width=0.5),
    "batchtopk": Method("batchtopk"),
    "abstopk": Method("abstopk"),
    "abstopk per batch": Method("abstopk", settings={"per": "batch"}),
    "adaptivek": Method("adaptivek", "l0"),
    "kron 2x4": Method("kron", settings={"m": 2, "n": 4}),
    "kron 4x4": Method("kron", settings={"m": 4, "n": 4}),
    "matryoshka": Method("matryoshka"),
    "mfr": Method("mfr"),
    "relu": Method("relu", "l1_weight", power=-1.5, start=1.1),
    "gated": Method("gated", "l1_weight", power=-1.0, start=1.9),
    "jumprelu": Method("jumprelu", "sparsity_weight", power=-0.8, start=0.4),
    "jumprelu tanh": Method("jumprelu", "sparsity_weight", {"loss_form": "tanh"}, power=-0.8, start=0.24),
    "gba": Method("gba", "l0", power=1.0, start=32.0),
    "gba untied": Method("gba", "l0", {"tied": False}, power=1.0, start=32.0),
    "topafa": Method("topafa", None),
}  # fmt: skip


@dataclass(frozen=True)
class Train:
    """Train and measure what the table needs and the folder lacks."""

    store: Path
    out: Path
    methods: tuple[str, ...] = tuple(METHODS)
    latents: int = 2048
    l0s: tuple[float, ...] = (12, 32, 69)
    """Numbers of latents a token to compare at, rising: .02, .055 and .12 of a width of 576."""
    steps: int = 2000
    batch: int = 1024
    seeds: int = 3
    windows: int = 32
    """Held-out windows the language model reads to evaluate a run."""
    processes: int = 2
    precision: Precision = "auto"
    """Precision of the products that select latents: auto takes the faster one."""


@dataclass(frozen=True)
class Table:
    """Print the table of a folder that `train` made, and draw it."""

    out: Path
    picture: Path | None = None
    """File for the Pareto plot (.svg, .png)."""


@dataclass(frozen=True)
class Precisions:
    """Train the runs of a table once more with products in float32 and compare."""

    out: Path
    methods: tuple[str, ...] = ()
    """Methods to compare; all of the table when left out."""
    l0s: tuple[float, ...] = ()
    """Those of the table's L0s to compare at; all when left out."""
    processes: int = 2


class Bench:
    """Trains single runs of one `Train` command, or finds them trained."""

    def __init__(self, command: Train):
        self.command = command

    def final(self, name: str, value: float | None, lr: float, seed: int) -> None:
        """Train a run of the table; each method's first seed at an L0 is measured with the language model too."""
        run = self.run(name, value, lr, seed)
        if seed == 0 and self.command.windows and not (run.evaluation and run.evaluation.splice):
            store = self.command.store
            MODELS[store] = MODELS.get(store) or run.language_model()
            evaluate(run, run.sae().to(device()), MODELS[store], self.command.windows)

    def run(self, name: str, value: float | None, lr: float, seed: int = 0) -> Run:
        """Train a run with its knob at `value` and measure it on its held-out rows."""
        command, method = self.command, METHODS[name]
        knob: dict[str, Any] = {}
        labels = None
        if method.arch == "adaptivek" and value is not None:
            # as far to either side as a BatchTopK of this L0 goes on nearly all tokens
            knob = {"k_min": max(1, round(value / 8)), "k_max": round(3 * value)}
            labels = self.labels(value)
        elif method.knob is not None and value is not None:
            knob = {method.knob: value if method.power else round(value)}
        latents = round(command.latents * method.width)
        cfg = RunConfig(
            store=str(command.store),
            arch=ARCHITECTURES[method.arch].config(d_sae=latents, **method.settings, **knob),
            train=TrainConfig(
                steps=command.steps, batch=command.batch, lr=lr, seed=seed, log_every=50,
                held_out_every=0, precision=command.precision,
            ),
            labels=labels,
        )  # fmt: skip
        return measured_run(cfg, run_folder(command.out, name, value, lr, seed))

    def labels(self, l0: float) -> str:
        """Return the name of the store's labels that say how many latents the BatchTopK of this L0 spends on each token."""
        store, name = Store(self.command.store), f"needed-{self.command.latents}-{l0:g}"
        if name not in names(store):  # else several processes would check the same run at once
            teacher = final_runs(self.command.out)[TEACHER][l0][0]
            label(store, f"needed:{teacher.path}", name)
        return name


def search(name: str, command: Train) -> Chosen:
    """Find a method's best rate and the settings that give it each L0."""
    bench, method = Bench(command), METHODS[name]
    middle = command.l0s[len(command.l0s) // 2]
    value = None if method.knob is None else method.start if method.power else middle
    lr = best_rate(bench, name, value)
    values: dict[float, float | None] = {}
    for l0 in command.l0s if method.knob else (middle,):
        if method.power and value is not None:
            values[l0] = matched(bench, name, value * (l0 / middle) ** (1 / method.power), l0, lr)
        else:
            values[l0] = None if method.knob is None else l0
        if method.arch == "adaptivek":
            bench.labels(l0)
    return Chosen(lr, values, command.seeds)


def final(name: str, value: float | None, lr: float, seed: int, command: Train) -> None:
    """Train and measure one run of the table."""
    Bench(command).final(name, value, lr, seed)


def best_rate(bench: Bench, name: str, value: float | None) -> float:
    """Return the learning rate, among powers of 2, whose run is best for its L0."""
    scores: dict[float, float] = {}
    command = bench.command
    first = 2.0 ** round(math.log2(peak_rate(command.latents, command.steps)))
    while (lr := next_rate(scores, first)) is not None:
        try:
            scores[lr] = score(bench.run(name, value, lr), command.out, name)
        except DivergedError:
            scores[lr] = math.inf
    return min(scores, key=lambda rate: scores[rate])


def matched(bench: Bench, name: str, start: float, l0: float, lr: float) -> float:
    """Return the knob's value whose run has this L0 within TOLERANCE, or the nearest of TRIALS.

    Each trial corrects the last by the power law through the last two, or by the method's own power at first."""
    power = METHODS[name].power
    assert power is not None
    tried: list[tuple[float, float]] = []
    value = start
    for _ in range(TRIALS):
        measured_l0 = max(measured(bench.run(name, value, lr))[0], 0.1)
        tried.append((value, measured_l0))
        if abs(measured_l0 / l0 - 1) <= TOLERANCE:
            break
        if len(tried) > 1:
            (value_a, l0_a), (value_b, l0_b) = tried[-2:]
            slope = math.log(l0_b / l0_a) / math.log(value_b / value_a)
            # of the guess's sign and not far from it: two runs near each other say little of the slope
            power = slope if 0.3 < slope / power < 3 else power
        value *= min(max((l0 / measured_l0) ** (1 / power), 0.2), 5.0)
    return min(tried, key=lambda trial: abs(math.log(trial[1] / l0)))[0]


def score(run: Run, out: Path, name: str) -> float:
    """Return a run's FVU over TopK's at the measured L0, or the FVU itself for TopK, which is trained at given L0."""
    l0, fvu = measured(run)
    return fvu if name == "topk" else fvu / frontier(final_runs(out)["topk"])(l0)


def train(command: Train) -> None:
    """Train TopK, which the others are judged by, then all others; AdaptiveK waits for BatchTopK, which labels its tokens.

    What a method waits for is trained too where `methods` does not name it."""
    needed = {other for name in command.methods for other in needs(name)}
    waiting = dict.fromkeys([*sorted(needed, key=[BASE, TEACHER].index), *command.methods])
    tasks: dict[Future[Any], str] = {}
    chosen: dict[str, Chosen] = {}
    done: set[str] = set()
    failed: set[str] = set()
    with (
        show_progress("compare", len(waiting), "methods") as advance,
        ProcessPoolExecutor(command.processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool,
    ):
        while True:
            for name in [name for name in waiting if needs(name) <= done]:
                del waiting[name]
                tasks[pool.submit(search, name, command)] = name
            if not tasks:
                break
            for task in wait(tasks, return_when=FIRST_COMPLETED).done:
                name = tasks.pop(task)
                if error := task.exception():
                    print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    failed.add(name)
                elif found := task.result():
                    chosen[name] = found
                    for value in found.values.values():
                        for seed in range(command.seeds):
                            tasks[pool.submit(final, name, value, found.lr, seed, command)] = name
                if name not in tasks.values():
                    advance(1, note=name)
                    if name not in failed:
                        write_chosen(command.out, name, chosen[name])
                        done.add(name)
    if failed or waiting:
        sys.exit(f"not in the table: {', '.join([*failed, *waiting])}")


def needs(name: str) -> set[str]:
    """Return the methods whose runs a method's search reads."""
    if name == BASE:
        return set()
    return {BASE, TEACHER} if METHODS[name].arch == "adaptivek" else {BASE}


def twin(path: Path) -> tuple[float, float]:
    """Train a run's settings with products in float32; return its FVU on held-out rows and the run's."""
    run = Run(path)
    cfg = dataclasses.replace(run.config, train=dataclasses.replace(run.config.train, precision="float32"))
    other = measured_run(cfg, path.parent / FLOAT32 / path.name)
    return measured(other)[1], measured(run)[1]


def precisions(command: Precisions) -> None:
    """Print the FVU in the table's precision over that in float32 of each method and L0, and how much seeds differ."""
    runs = final_runs(command.out)
    groups = [
        (name, l0, seeds)
        for name, by_l0 in runs.items()
        if not command.methods or name in command.methods
        for l0, seeds in by_l0.items()
        if not command.l0s or l0 in command.l0s
    ]
    print("| method | L0 | FVU in float32 | FVU over float32's, by seed | half the range over seeds |")
    print("| --- | ---: | ---: | --- | ---: |", flush=True)
    with ProcessPoolExecutor(command.processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        pairs = [[pool.submit(twin, run.path) for run in seeds] for _, _, seeds in groups]
        for (name, l0, _), tasks in zip(groups, pairs, strict=True):
            full, low = zip(*(task.result() for task in tasks), strict=True)
            ratios = ", ".join(f"{b / a:.4f}" for a, b in zip(full, low, strict=True))
            spread = (max(full) - min(full)) / 2 / statistics.mean(full)
            print(f"| {name} | {l0:g} | {statistics.mean(full):.4f} | {ratios} | {spread:.4f} |", flush=True)


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Table, tyro.conf.subcommand("table")]
    | Annotated[Precisions, tyro.conf.subcommand("precision")]
)

if __name__ == "__main__":
    command = tyro.cli(Command)  # pyright: ignore[reportArgumentType]
    if isinstance(command, Train):
        train(command)
    elif isinstance(command, Table):
        table(command.out, command.picture)
    else:
        precisions(command)
