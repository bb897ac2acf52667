"""All methods compared like with like: each at its own best rate, at the same measured L0, on the same rows.

    sae harvest --dataset embedded:mixed --hooks blocks.10.hook_resid_post --tokens 2300000 --out stores/mixed
    python -m benchmarks.matched train --store stores/mixed --out runs/matched
    python -m benchmarks.matched table --out runs/matched

`train` first trains TopK at every L0, which draws the frontier FVU(L0) that the others are judged by. Then every method
  1. seeks its best peak rate at the middle L0: rates a factor of 2 apart, until the best has a worse neighbour on both
     sides; what is compared is the FVU over TopK's at the L0 measured, because a rate moves the L0 of a priced method;
  2. seeks at that rate the setting that gives each L0, within 3 %, where it is not the number of latents itself;
  3. is trained with the other seeds at the settings sought with seed 0.
Every run is a folder that `sae evaluate` has measured; a stopped `train` goes on where it was when called again. Two processes of
one thread each share the methods."""

import math
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from activations.language_model import LanguageModel
from activations.progress import show_progress
from activations.store import Store
from benchmarks.matched_table import Chosen, final_runs, frontier, measured, run_folder, table, write_chosen
from benchmarks.trained import measured_run
from sae.architectures import ARCHITECTURES
from sae.config import RunConfig, TrainConfig, peak_rate
from sae.runs.run import Run
from sae.training.rates import next_rate
from sae.workflows.evaluate import evaluate
from sae.workflows.harvest import label

TOLERANCE, TRIALS = 0.03, 6
FIRST = ("topk", "batchtopk")


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


@dataclass(frozen=True)
class Table:
    """Print the table of a folder that `train` made, and draw it."""

    out: Path
    picture: Path | None = None
    """File for the Pareto plot (.svg, .png)."""


class Bench:
    """Trains single runs of one `Train` command, or finds them trained."""

    def __init__(self, command: Train):
        self.command = command
        self.model: LanguageModel | None = None

    def final(self, name: str, value: float | None, lr: float, seed: int) -> None:
        """Train a run of the table; each method's first seed at an L0 is measured with the language model too."""
        run = self.run(name, value, lr, seed)
        if seed == 0 and not (run.evaluation and run.evaluation.splice):
            self.model = self.model or run.language_model()
            evaluate(run, run.sae(), self.model, self.command.windows)

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
            train=TrainConfig(steps=command.steps, batch=command.batch, lr=lr, seed=seed, log_every=50),
            labels=labels,
        )
        return measured_run(cfg, run_folder(command.out, name, value, lr, seed))

    def labels(self, l0: float) -> str:
        """Return the name of the store's labels that say how many latents the BatchTopK of this L0 spends on each token."""
        store, name = Store(self.command.store), f"needed-{l0:g}"
        teacher = final_runs(self.command.out)["batchtopk"][l0][0]
        label(store, f"needed:{teacher.path}", name)
        return name


def chain(name: str, command: Train) -> str:
    """Train every run of one method and write what was chosen; returns the method's name."""
    torch.set_num_threads(1)
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
        for seed in range(command.seeds):
            bench.final(name, values[l0], lr, seed)
    write_chosen(command.out, name, Chosen(lr, values, command.seeds))
    return name


def best_rate(bench: Bench, name: str, value: float | None) -> float:
    """Return the learning rate, among powers of 2, whose run is best for its L0."""
    scores: dict[float, float] = {}
    command = bench.command
    first = 2.0 ** round(math.log2(peak_rate(command.latents, command.steps)))
    while (lr := next_rate(scores, first)) is not None:
        scores[lr] = score(bench.run(name, value, lr), command.out, name)
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
    """Train TopK and BatchTopK, which others are judged or labelled by, then all others, two at a time."""
    rest = [name for name in command.methods if name not in FIRST]
    with show_progress("compare", len(FIRST) + len(rest), "methods") as advance:
        for name in FIRST:
            chain(name, command)
            advance(1, note=name)
        with ProcessPoolExecutor(command.processes, mp_context=get_context("spawn")) as pool:
            for done in as_completed([pool.submit(chain, name, command) for name in rest]):
                advance(1, note=done.result())


Command = Annotated[Train, tyro.conf.subcommand("train")] | Annotated[Table, tyro.conf.subcommand("table")]

if __name__ == "__main__":
    command = tyro.cli(Command)  # pyright: ignore[reportArgumentType]
    train(command) if isinstance(command, Train) else table(command.out, command.picture)
