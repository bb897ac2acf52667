"""The table and the Pareto plot of the runs that benchmarks/matched.py trained."""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from activations.disk import files
from sae.code import SparseCode
from sae.evaluation.similarity import codes
from sae.runs.records import Evaluation
from sae.runs.run import Run, device

COLUMNS = (
    "method", "L0", "FVU", "FVU over TopK's at this L0", "CE recovered", "silent", "encoder MFLOP", "peak rate",
    "alike > .7", "alike > .9", "top 5 % > .9", "top 20 % > .7", "steps/s",
)  # fmt: skip
TOKENS = 20_000
LEVELS = (0.7, 0.9)
CHOSEN = "chosen.json"


@dataclass(frozen=True)
class Chosen:
    """The learning rate and the settings that the searches of one method chose."""

    lr: float
    values: dict[float, float | None]
    """The knob's value for each L0 to compare at."""
    seeds: int


def run_folder(out: Path, name: str, value: float | None, lr: float, seed: int) -> Path:
    """Return the folder of one run."""
    setting = "" if value is None else f"{value:.6g}-"
    return method_folder(out, name) / f"{setting}lr{lr:.4g}-seed{seed}"


def method_folder(out: Path, name: str) -> Path:
    """Return the folder of a method's runs."""
    return out / name.replace(" ", "_").replace(",", "").replace("/", "-")


def write_chosen(out: Path, name: str, chosen: Chosen) -> None:
    """Write a method's name and what was chosen for it into the folder of its runs."""
    files.write_json(method_folder(out, name) / CHOSEN, {"name": name, **asdict(chosen)})


def final_runs(out: Path) -> dict[str, dict[float, list[Run]]]:
    """Return the runs of the table, all seeds, by method and by the L0 that was aimed at."""
    runs: dict[str, dict[float, list[Run]]] = {}
    for path in sorted(out.glob(f"*/{CHOSEN}")):
        chosen = json.loads(path.read_text())
        name, lr, seeds = chosen["name"], chosen["lr"], range(chosen["seeds"])
        runs[name] = {
            float(l0): [Run(run_folder(out, name, value, lr, seed)) for seed in seeds]
            for l0, value in chosen["values"].items()
        }
    return runs


def measured(run: Run) -> tuple[float, float]:
    """Return a run's L0 and FVU on the held-out rows."""
    estimates = evaluation_of(run).estimates
    l0, fvu = estimates["l0"].value, estimates["fvu"].value
    assert l0 is not None
    assert fvu is not None
    return l0, fvu


def frontier(runs: dict[float, list[Run]]) -> Callable[[float], float]:
    """Return one method's FVU as a function of L0: straight lines between its seeds' means, both in logarithms, with the
    outer lines continued."""
    points = sorted(tuple(np.mean([measured(run) for run in seeds], 0)) for seeds in runs.values())
    sizes, fvus = np.log(np.array(points)).T

    def fvu(l0: float) -> float:
        if len(sizes) == 1:
            return math.exp(fvus[0])
        size = math.log(max(l0, 0.1))
        right = int(np.clip(np.searchsorted(sizes, size), 1, len(sizes) - 1))
        slope = (fvus[right] - fvus[right - 1]) / (sizes[right] - sizes[right - 1])
        return math.exp(fvus[right] + slope * (size - sizes[right]))

    return fvu


@dataclass(frozen=True)
class Alike:
    """The overlap of two seeds' dictionaries: shares of one seed's latents whose decoder row has a cosine above a level
    with some decoder row of the other seed."""

    above: dict[float, float]
    """Share of all latents, by level."""
    top_5: float
    """Share above .9 among the 5 % of latents with the largest maximum activation, which GBA's paper selects."""
    top_20: float
    """Share above .7 among the 20 % of latents with the largest maximum activation."""


def alike(seeds: list[Run]) -> Alike | None:
    """Return the overlap averaged over all ordered pairs of seeds; None with one seed. Signed latents are compared by
    absolute cosines."""
    if len(seeds) < 2:
        return None
    saes = [run.sae().to(device()) for run in seeds]
    strongest = [
        largest(codes(sae, run.store, run.hook, TOKENS)) for sae, run in zip(saes, seeds, strict=True)
    ]
    rows: list[list[float]] = []
    for a, b in itertools.permutations(range(len(seeds)), 2):
        best = best_cosines(saes[a].W_dec, saes[b].W_dec)
        order = strongest[a].argsort(descending=True)
        top_5, top_20 = (best[order[: max(1, round(share * len(best)))]] for share in (0.05, 0.2))
        rows.append(
            [*((best > level).float().mean().item() for level in LEVELS),
             (top_5 > 0.9).float().mean().item(), (top_20 > 0.7).float().mean().item()]
        )  # fmt: skip
    low, high, five, twenty = map(statistics.mean, zip(*rows, strict=True))
    return Alike({LEVELS[0]: low, LEVELS[1]: high}, five, twenty)


@torch.no_grad()
def best_cosines(a: Float[Tensor, "F D"], b: Float[Tensor, "G D"]) -> Float[Tensor, "F"]:
    """Return for each row of `a` the largest absolute cosine with a row of `b`."""
    return (normalize(a, dim=1) @ normalize(b, dim=1).T).abs().amax(1)


def largest(code: SparseCode) -> Float[Tensor, "F"]:
    """Return the largest size of each latent's values; 0 for one that never fires."""
    return torch.zeros(code.n_latents, device=code.values.device).scatter_reduce(
        0, code.indices.long(), code.values.abs(), "amax"
    )


def lines(out: Path) -> Iterator[list[str]]:
    """Yield one line of the table for each method and L0, as soon as it is known."""
    runs = final_runs(out)
    expected = frontier(runs["topk"])
    for l0 in sorted({l0 for groups in runs.values() for l0 in groups}):
        for name, groups in runs.items():
            if l0 in groups:
                yield line(name, groups[l0], expected)


def line(name: str, seeds: list[Run], expected: Callable[[float], float]) -> list[str]:
    """Return the line of a method at one L0: means over seeds, half the range behind the FVU; CE recovered by the first seed."""
    sizes, fvus = zip(*map(measured, seeds), strict=True)
    shared = alike(seeds)
    evaluations = [evaluation_of(run) for run in seeds]
    ratio = statistics.mean(fvu / expected(size) for size, fvu in zip(sizes, fvus, strict=True))
    shares = [*shared.above.values(), shared.top_5, shared.top_20] if shared else []
    return [
        name,
        f"{statistics.mean(sizes):.1f}",
        f"{statistics.mean(fvus):.4f} ± {(max(fvus) - min(fvus)) / 2:.4f}",
        f"{ratio:.3f}",
        f"{evaluations[0].measures['recovered_zero'].value:.1%}",
        f"{statistics.mean(evaluation.dead for evaluation in evaluations):.1%}",
        f"{evaluations[0].encoder['flops'] / 1e6:.2f}",
        f"{seeds[0].config.train.lr:.2g}",
        *([f"{share:.1%}" for share in shares] or ["–"] * 4),
        f"{pace(seeds[0]):.1f}",
    ]


def pace(run: Run) -> float:
    """Return the median steps per second in the log."""
    rows = list(itertools.pairwise(run.log))
    return statistics.median(
        (after["step"] - before["step"]) / (after["seconds"] - before["seconds"])
        for before, after in rows
        if after["seconds"] > before["seconds"]
    )


def table(out: Path, picture: Path | None) -> None:
    """Print the table in Markdown and, when a file is named, draw FVU over L0."""
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for cells in lines(out):
        print(f"| {' | '.join(cells)} |", flush=True)
    if picture:
        draw(final_runs(out)).write_image(picture)


def draw(runs: dict[str, dict[float, list[Run]]]) -> go.Figure:
    """Draw the Pareto plot, with a line for each method."""
    figure = go.Figure()
    for name, groups in runs.items():
        points = sorted(tuple(np.mean([measured(run) for run in seeds], 0)) for seeds in groups.values())
        sizes, fvus = zip(*points, strict=True)
        figure.add_scatter(x=sizes, y=fvus, name=name, mode="lines+markers")
    figure.update_xaxes(title="L0", type="log")
    figure.update_yaxes(title="FVU on held-out text", type="log")
    return figure.update_layout(template="plotly_white", width=900, height=560)


def evaluation_of(run: Run) -> Evaluation:
    """Return the evaluation that `measured_run` made."""
    assert run.evaluation is not None
    return run.evaluation
