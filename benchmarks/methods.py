"""A finished sweep as a table: every method's quality, sparsity, cost and how alike its seeds are.

    python benchmarks/methods.py runs/methods [more folders]
Runs that differ in nothing but their seed are one row: means, and half the range over the seeds behind the FVU. `alike`
is the share of latents that have a partner in another seed, one to one, from similarity 0.7 on: by the cosine of
decoder rows, and by the correlation of what they do on 20,000 held-out tokens; the mean over all pairs of seeds.
Latents that fire with both signs are compared by absolute values. `steps/s` is the median of the log."""

import argparse
import dataclasses
import itertools
import statistics
from pathlib import Path
from typing import Any

from sae.architectures import ArchConfig, name_of
from sae.cli.progress import progress
from sae.evaluation.matching import LEVELS, compare
from sae.evaluation.similarity import codes
from sae.runs import Run, find_runs

COLUMNS = (
    "method", "FVU", "CE recovered", "L0", "silent", "norm ratio", "alike: cosine", "alike: activation", "encoder MFLOP", "steps/s",
)  # fmt: skip
TOKENS = 20_000


def groups(runs: list[Run]) -> dict[ArchConfig, list[Run]]:
    """Evaluated runs by the settings of their architecture; each group's seeds in order."""
    found: dict[ArchConfig, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.config.train.seed):
        if run.evaluation:
            found.setdefault(run.config.arch, []).append(run)
    return found


def alike(seeds: list[Run]) -> tuple[float, float] | None:
    """Share of latents with a partner from 0.7 on, by cosine and by activation; None with one seed."""
    if len(seeds) < 2:
        return None
    saes = [run.sae() for run in seeds]
    seen = [codes(sae, run.store, run.hook, TOKENS) for sae, run in zip(saes, seeds, strict=True)]
    shares = []
    for a, b in itertools.combinations(range(len(seeds)), 2):
        result = compare((saes[a].W_dec, saes[b].W_dec), (seen[a], seen[b]))
        pairs = [result[name]["summary"]["one_to_one"] for name in ("cosine", "activation")]
        shares.append([pair[f"above_{LEVELS[0]}"] for pair in pairs])
    cosine, activation = map(statistics.mean, zip(*shares, strict=True))
    return cosine, activation


def label(arch: ArchConfig) -> str:
    """The method with the settings that are not its defaults."""
    defaults = type(arch)()
    changed = {
        field.name: getattr(arch, field.name)
        for field in dataclasses.fields(arch)
        if field.name != "d_sae" and getattr(arch, field.name) != getattr(defaults, field.name)
    }
    settings = ", ".join(f"{name} {value}" for name, value in changed.items())
    return f"{name_of(arch)}, {arch.d_sae:,}" + (f", {settings}" if settings else "")


def row(arch: ArchConfig, seeds: list[Run]) -> list[str]:
    """One line of the table."""
    evaluations: list[dict[str, Any]] = [run.evaluation or {} for run in seeds]
    estimates = [
        {**found["estimates"], **found.get("splice", {}).get("estimates", {})} for found in evaluations
    ]

    def values(name: str) -> list[float]:
        return [found[name]["value"] for found in estimates if name in found]

    def mean(name: str, how: str) -> str:
        return format(statistics.mean(values(name)), how) if values(name) else "–"

    fvus, shared = values("fvu"), alike(seeds)
    paces = [after["step"] - before["step"] for before, after in itertools.pairwise(seeds[0].log)]
    times = [after["seconds"] - before["seconds"] for before, after in itertools.pairwise(seeds[0].log)]
    speed = statistics.median(steps / time for steps, time in zip(paces, times, strict=True) if time > 0)
    return [
        label(arch),
        f"{statistics.mean(fvus):.3f} ± {(max(fvus) - min(fvus)) / 2:.3f}",
        mean("recovered_zero", ".1%"),
        mean("l0", ".1f"),
        f"{statistics.mean(found['dead'] for found in evaluations):.1%}",
        mean("norm_ratio", ".3f"),
        *([f"{share:.1%}" for share in shared] if shared else ["–", "–"]),
        f"{evaluations[0]['encoder']['flops'] / 1e6:.2f}",
        f"{speed:.1f}",
    ]


def main() -> None:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    args = parser.parse_args()
    found = groups([run for folder in args.folders for run in find_runs(folder)])
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    with progress("match", len(found), "methods") as advance:
        for arch, seeds in found.items():
            print(f"| {' | '.join(row(arch, seeds))} |", flush=True)
            advance(1)


if __name__ == "__main__":
    main()
