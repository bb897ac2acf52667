"""Search the best peak learning rate by method, width, steps and batch; the default of `--train.lr` is fitted to the result.

    python -m benchmarks.rates run --store stores/demo --results rates.jsonl [--methods topk] [--widths 1024 2048] …
    python -m benchmarks.rates fit --results rates.jsonl

`run` trains every method, width, number of steps and batch at rates a factor of 2 apart and appends the held-out FVU
and the share of silent latents of each run to the results; what the file has already is not trained again. It begins near
the default and goes on to either side until the best of them has a worse neighbour on both, so that no point's best lies at
the edge of what was tried. `fit` takes the minimum of the parabola through the best three (log rate against FVU) of
each point, fits log rate = a + b log width + c log steps + d log batch by least squares, and tells how far each point lies from
the fit and what FVU the fit's rate costs there."""

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from activations.progress import show_progress
from activations.rows import Split
from activations.store import Store
from sae.architectures import ARCHITECTURES, SAE, build
from sae.architectures.shared import geometric_median
from sae.config import TrainConfig, peak_rate
from sae.runs.run import device
from sae.training.rates import FACTOR, minimum, next_rate
from sae.training.trainer import INIT_ROWS, Trainer


@dataclass(frozen=True)
class Point:
    """A method and the settings of a training for which the best learning rate is searched."""

    method: str
    width: int
    steps: int
    batch: int
    settings: str = ""
    """Fields of the method that are not its defaults, as `k=64 m=4`."""
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """Train at every rate that a point's minimum needs."""

    store: Path
    results: Path
    methods: tuple[str, ...] = ("topk",)
    widths: tuple[int, ...] = (1024, 2048)
    steps: tuple[int, ...] = (600, 2000)
    batches: tuple[int, ...] = (1024,)
    settings: tuple[str, ...] = ("",)
    hook: str | None = None
    threads: int = 1


@dataclass(frozen=True)
class Fit:
    """Fit the best rates of a file of results."""

    results: Path


class Rows:
    """A store's training and held-out rows in the memory of the device, with the factor that scales them to unit mean square."""

    def __init__(self, store: Store, hook: str):
        self.scale = (store.width(hook) / store.mean_square_norm(hook)) ** 0.5
        # training rows as the store has them: in float32 ten million would take twice the memory
        self.training = _rows(store, hook, "train", getattr(torch, store.spec.dtype))
        self.held_out = _rows(store, hook, "held-out", torch.float32) * self.scale

    def batch(self, generator: torch.Generator, size: int) -> Float[Tensor, "B D"]:
        """Return scaled rows drawn with equal chances."""
        places = torch.randint(len(self.training), (size,), generator=generator)
        return self.training[places.to(device())].float() * self.scale


def measure(point: Point, lr: float, rows: Rows) -> dict[str, float]:
    """Return held-out FVU, L0 and share of latents silent on the held-out rows of one SAE trained at this peak rate."""
    values = dict(pair.split("=") for pair in point.settings.split())
    arch = ARCHITECTURES[point.method].config(
        d_sae=point.width, **{name: json.loads(value) for name, value in values.items()}
    )
    sae = build(arch, rows.training.shape[1], point.seed)
    generator = torch.Generator().manual_seed(point.seed)
    first = rows.batch(generator, INIT_ROWS).cpu()
    sae.initialise(first, geometric_median(first), torch.Generator().manual_seed(point.seed))
    cfg = TrainConfig(steps=point.steps, batch=point.batch, lr=lr, seed=point.seed)
    trainer = Trainer(sae.to(device()), cfg.resolved(len(rows.training), arch))
    while not trainer.finished:
        x = rows.batch(generator, point.batch)
        trainer.train_step(x, x)
    return held_out(trainer.sae.eval(), rows.held_out)


@torch.no_grad()
def held_out(sae: SAE, rows: Float[Tensor, "N D"]) -> dict[str, float]:
    """Return FVU, L0 and the share of latents that never fire."""
    error, l0, fired = 0.0, 0, torch.zeros(sae.d_sae, dtype=torch.bool)
    for x in rows.split(4096):
        code = sae.encode(x)
        error += (x - sae.decode(code)).square().sum().item()
        l0 += int(code.l0().sum())
        fired[code.indices[code.values != 0].cpu()] = True
    variance = (rows - rows.mean(0)).square().sum().item()
    return {"fvu": error / variance, "l0": l0 / len(rows), "silent": 1 - fired.float().mean().item()}


def run(command: Run) -> None:
    """Train what the results lack, point by point."""
    torch.set_num_threads(command.threads)
    store = Store(command.store)
    rows = Rows(store, command.hook or store.only_hook())
    points = [
        Point(method, width, steps, batch, settings)
        for method in command.methods
        for settings in command.settings
        for steps in command.steps
        for batch in command.batches
        for width in command.widths
    ]
    measured = read(command.results)
    with show_progress("rates", len(points), "points") as advance:
        for point in points:
            while (lr := next_rate(measured[point], first_rate(point))) is not None:
                row = {**asdict(point), "lr": lr, **measure(point, lr, rows)}
                measured[point][lr] = row["fvu"]
                with command.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
            advance(1)


def first_rate(point: Point) -> float:
    """Return the power of 2 nearest to the default, so that all points are measured at the same rates."""
    return 2.0 ** round(math.log2(peak_rate(point.width, point.steps)))


def read(path: Path) -> defaultdict[Point, dict[float, float]]:
    """Return the FVU by rate of each point in a file of results; empty if the file does not exist."""
    measured: defaultdict[Point, dict[float, float]] = defaultdict(dict)
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        measured[Point(**{name: row[name] for name in Point.__dataclass_fields__})][row["lr"]] = row["fvu"]
    return measured


def parabola(fvus: dict[float, float]) -> np.ndarray:
    """Fit a parabola of FVU over log2 of the rate through the best three points."""
    best = min(fvus, key=lambda lr: fvus[lr])
    x = np.log2([best / FACTOR, best, best * FACTOR])
    return np.polyfit(x, [fvus[best / FACTOR], fvus[best], fvus[best * FACTOR]], 2)


def fit(command: Fit) -> None:
    """Print the fit, and each point beside it."""
    measured = read(command.results)
    done = {point: fvus for point, fvus in measured.items() if next_rate(fvus, first_rate(point)) is None}
    by_method: defaultdict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in done:
        by_method[point.method, point.settings].append(point)
    for (method, settings), points in by_method.items():
        best = {point: minimum(done[point]) for point in points}
        names = [n for n in ("width", "steps", "batch") if len({getattr(p, n) for p in points}) > 1]
        factors = np.array([[1.0, *(math.log2(getattr(p, n)) for n in names)] for p in points])
        target = np.array([math.log2(best[p]) for p in points])
        solution = np.linalg.lstsq(factors, target, rcond=None)[0]
        exponents = " ".join(f"{name}^{power:.3f}" for name, power in zip(names, solution[1:], strict=True))
        print(f"\n{method} {settings}: {2.0 ** solution[0]:.3g} {exponents}")
        for point, row, wanted in zip(points, factors, target, strict=True):
            curve = parabola(done[point])
            cost = np.polyval(curve, row @ solution) / np.polyval(curve, wanted) - 1
            rates = ", ".join(f"{lr:.2g}: {fvu:.4f}" for lr, fvu in sorted(done[point].items()))
            print(
                f"  width {point.width:6d} steps {point.steps:6d} batch {point.batch:5d}: best {2.0**wanted:.2e}, "
                f"fit {2.0 ** (row @ solution):.2e}, costs {cost:.2%}  ({rates})"
            )


def _rows(store: Store, hook: str, split: Split, dtype: torch.dtype) -> Float[Tensor, "N D"]:
    return torch.cat([x.to(device(), dtype, copy=True) for x, *_ in store.batches(hook, 4096, split)])


Command = Annotated[Run, tyro.conf.subcommand("run")] | Annotated[Fit, tyro.conf.subcommand("fit")]

if __name__ == "__main__":
    command = tyro.cli(Command)  # pyright: ignore[reportArgumentType]
    run(command) if isinstance(command, Run) else fit(command)
