"""Runs beside their controls in one table: what `sae trust` found of each, as Markdown.

    python -m benchmarks.trusted RUN RUN …

Behind the error and the KL divergence of a run stands the control that comes closest, by how much the run is better, with its 95 %
interval, and the smallest reliable difference, which is what equal runs stay below."""

import argparse
from pathlib import Path

from sae.report.numbers import number, percent, signed
from sae.report.trust import TITLES, VERDICTS
from sae.runs.records import Estimate
from sae.runs.run import Run
from sae.runs.trust import ORDER, Beside, Trust, TrustRecord

MEASURES = {"fvu": "FVU", "kl": "KL", "recovered_zero": "CE recovered"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    found = {Run(path).config.arch.name: Trust(Run(path)).record for path in parser.parse_args().runs}
    heads = ["method", "L0", *MEASURES.values(), "worst verdict", "stable", "mean largest cosine (chance)"]
    print(f"| {' | '.join(heads)} |")
    print(f"| --- | ---: | {'--- | ' * (len(MEASURES) + 1)}---: | ---: |")
    for name, record in found.items():
        print(f"| {' | '.join([name, number(record.l0.value), *_cells(record)])} |")


def _cells(record: TrustRecord) -> list[str]:
    measures = [record.measures[name] for name in MEASURES if name in record.measures]
    worst = min((each.controls[each.closest].verdict for each in measures), key=ORDER.index)
    stability = record.stability
    return [
        *map(_measure, measures),
        VERDICTS[worst],
        percent(stability.stable),
        f"{number(stability.mean)} ({number(stability.chance)})",
    ]


def _measure(beside: Beside) -> str:
    against = beside.controls[beside.closest]
    return (
        f"{number(beside.value.value)}; {TITLES[beside.closest][0]} {_better(against.better_by)}, "
        f"reliable from {number(beside.smallest)}"
    )


def _better(by: Estimate) -> str:
    return f"{signed(by.value)} ({number(by.low)} to {number(by.high)})"


if __name__ == "__main__":
    main()
