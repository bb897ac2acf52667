"""`sae compare` and `sae sweep`: runs side by side. Of two runs, the latents are matched one with another too."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from activations.errors import ConfigError, DivergedError, quoted
from activations.progress import show_progress
from activations.store import Store
from activations.text import make_ready
from sae.cli import arguments
from sae.cli.train import show_problems
from sae.evaluation.matching import LEVELS
from sae.evaluation.measures import shown
from sae.report import scaling as scaling_report
from sae.runs.records import Comparison, Matched
from sae.runs.run import Run
from sae.runs.scaling import INDEX as SCALING
from sae.runs.scaling import PLOT as SCALING_PLOT
from sae.runs.scaling import Law, ScalingRecord
from sae.workflows.compare import (
    LABELS,
    SIMILARITIES,
    TOKENS,
    Result,
    keep,
    match_runs,
    need_plotly,
    refuse_other_widths,
    result,
    which_l0,
    write_csv,
    write_pareto,
)
from sae.workflows.scaling import fit_scaling, refuse_too_small
from sae.workflows.sweep import is_begun, load, plan_sweep, run_sweep

TABLE, PLOT = "results.csv", "pareto.html"  # files of `sae sweep`


@dataclass(frozen=True)
class Compare:
    """Set the evaluations of runs side by side. The latents of two runs are also matched, by the cosine of their
    decoder rows and by the correlation of what they do on the same held-out tokens: each with its nearest,
    and one to one; the result goes into the first run's folder as compare-NAME.json.

    Example: sae compare runs/seed0 runs/seed1"""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of two runs or more."""
    store: Path | None = None
    """Store whose held-out tokens both SAEs are shown; the first run's when left out."""
    tokens: int = TOKENS
    """Held-out tokens looked at, at most."""
    near: float = LEVELS[0]
    """Similarity from which two latents count as the same thing: what is shared, split, merged, new, lost."""
    absolute: bool | None = None
    """Match by |similarity|, as a latent with signed values may point either way. When left out: yes if a
    latent of either SAE is negative on any of the tokens."""
    block: int = 1024
    """Latents of the first SAE compared at once; memory grows with it."""
    plot: Path | None = None
    """Also draw the runs' Pareto plot, L0 against FVU and CE recovered, into this HTML file."""

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise ConfigError(f"runs given: {len(self.runs)}, must be at least 2")
        if len(self.runs) > 2:
            given = [
                f"--{field.name}"
                for field in fields(self)
                if field.name in ("store", "tokens", "near", "absolute", "block")
                and getattr(self, field.name) != field.default
            ]
            if given:
                raise ConfigError(
                    f"{', '.join(given)} match the latents of two runs, and {len(self.runs)} are given: leave it out"
                )
        for name in ("tokens", "block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        if not 0 < self.near <= 1:
            raise ConfigError(f"near = {self.near} must lie in (0, 1]")


def main(args: list[str]) -> int:
    """Parse the arguments of `sae compare` and run it."""
    command = arguments.parse(Compare, "sae compare", args)
    runs = [Run(path) for path in command.runs]
    lines = [result(run) for run in runs]
    Console().print(runs_table(lines))
    if command.plot:
        write_pareto(command.plot, lines)
        print(f"{command.plot}: written")
    if len(runs) == 2:
        first, second = runs
        refuse_other_widths(first, second)
        store = Store(command.store, first.config.positions) if command.store else first.store
        settings = command.tokens, command.near, command.absolute, command.block
        comparison = match_runs(first, second, store, *settings, show_progress)
        path = keep(first, second, comparison)
        show_comparison(comparison)
        print(f"{path}: the partner of every latent")
    for run in runs:
        show_problems(run)
    return 0


def show_comparison(comparison: Comparison) -> None:
    """Print how alike two SAEs are."""
    names = [f"first: {comparison.first.run}", f"second: {comparison.second.run}"]
    table = Table(title="\n".join([*names, f"{comparison.tokens:,} held-out tokens"]))
    for column in ("", *SIMILARITIES.values()):
        table.add_column(column, justify="right" if column else "left")
    lines = [_lines(comparison.by(name)) for name in SIMILARITIES]
    for label in lines[0]:
        table.add_row(label, *(column[label] for column in lines))
    firing = comparison.firing
    table.caption = (
        f"{firing['first']:.1%} of the first's latents and {firing['second']:.1%} of the second's fire on these tokens. "
        f"{'Absolute values' if comparison.absolute else 'Signed values'} are compared. Shared: mutually nearest, "
        f"from {comparison.near:g} on; split, merged: near to one that is nearer to another; new, lost: near to none."
    )
    Console().print(table)


def _lines(matched: Matched) -> dict[str, str]:
    """Return the lines of one measure: label -> value."""
    summary, pairs = matched.summary, matched.summary.one_to_one
    mean, bound = pairs["mean"], pairs["at_most"]
    lines = {"one to one: mean similarity": shown(mean, ".4f")}
    if mean is not None and bound is not None and bound > mean:
        lines["one to one: mean similarity"] += f" (best: at most {bound:.4f})"
    lines |= {f"one to one: share from {level}": shown(pairs[f"above_{level}"], ".1%") for level in LEVELS}
    for place in ("first", "second"):
        own = summary.nearest[place]
        lines[f"nearest of the {place}'s: mean similarity"] = shown(own["mean"], ".4f")
        for level in LEVELS:
            lines[f"nearest of the {place}'s: share from {level}"] = shown(own[f"above_{level}"], ".1%")
    lines["mutually nearest"] = f"{summary.mutual['count']:,}"
    for place, kinds in (("first", ("shared", "merged", "lost")), ("second", ("shared", "split", "new"))):
        counts: Counter[str] = Counter(matched.latents[place].kind)
        lines[f"the {place}'s {', '.join(kinds)}"] = ", ".join(f"{counts[kind]:,}" for kind in kinds)
    return lines


def runs_table(results: Sequence[Result], title: str | None = None) -> Table:
    """Return the lines as a table, with a dash for what has not been measured."""
    rows = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))  # 80 columns hold it
    rows.add_column(LABELS["run"], overflow="fold")
    rows.add_column(LABELS["architecture"], no_wrap=True)
    # Of the proxies of the right L0 there is room for one, where it was measured
    measured = next((line for line in results if line.decoder_cosine is not None), None)
    for name in Result._fields[2 : 8 if measured is None else 9]:
        rows.add_column(LABELS[name], justify="right", min_width=max(map(len, LABELS[name].split())))
    for line in results:
        shares = (shown(share, ".1%") for share in line[5:8])
        cosine = [] if measured is None else [shown(line.decoder_cosine, ".4f")]
        rows.add_row(
            *line[:2], f"{line.width:,}", shown(line.l0, ".1f"), shown(line.fvu, ".4f"), *shares, *cosine
        )
    return rows


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
    The whole file is checked before anything is trained. After an interruption the same command continues.

    In place of store, a table [stream] with model, dataset, tokens and other options of sae train --ring makes the
    activations while all runs train on them at once: one pass of the model feeds them all."""

    file: tyro.conf.Positional[Path]
    """The grid, a TOML file."""
    together: bool = False
    """Train all runs at once on one reading of the store, in place of one after the other. Each ends with the same bits; all
    of them must fit into memory. A sweep on a stream always does so."""
    fit: bool = False
    """Also fit scaling laws to the runs: held-out FVU by width and L0, and by compute where train.steps is swept over too.
    Needs 9 runs of one architecture, of 3 widths and 3 L0s, at least. docs/scaling.md."""


def sweep_main(args: list[str]) -> int:
    """Parse the arguments of `sae sweep` and run it."""
    command = arguments.parse(SweepCommand, "sae sweep", args)
    need_plotly()
    sweep = load(command.file)
    out = Path(sweep.file.out)
    if sweep.stream:
        make_ready(sweep.stream.text)
    plan = plan_sweep(sweep)
    if command.fit:
        refuse_too_small(plan)
    results, diverged = run_sweep(sweep, plan, show_progress, command.together)
    write_csv(out / TABLE, results)
    write_pareto(out / PLOT, results)
    Console().print(runs_table(results, f"{out}: {len(results)} runs"))
    for said in which_l0(results):
        print(said)
    runs = [Run(out / name) for name in sweep.runs if is_begun(out / name)]
    for run in runs:
        show_problems(run)
    if command.fit:
        show_laws(fit_scaling(runs, out))
        print(
            f"{out / SCALING_PLOT} and {out / SCALING}: written; next: sae plan scaling {quoted(out)} --hours 1"
        )
    if diverged:
        raise DivergedError(f"{len(diverged)} of {len(sweep.runs)} runs diverged: {'; '.join(diverged)}")
    print(f"{out / PLOT} and {out / TABLE}: written; next: sae app {quoted(out)}")
    return 0


def show_laws(record: ScalingRecord) -> None:
    """Print the constants of each law with their intervals, and what the fits cannot say."""
    for scaling in record.fits:
        print(f"scaling laws of {scaling_report.title(scaling)}: {scaling_report.basis(scaling)}")
        for formula, law in scaling_report.laws(scaling):
            print(f"\n{formula}, {law.runs} runs")
            Console().print(_constants(law))
        for text in scaling_report.remarks(scaling):
            print(text)


def _constants(law: Law) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for column in ("", "value", "95 % interval"):
        table.add_column(column, justify="right" if column else "left")
    for symbol, _, value, between in scaling_report.constants(law):
        table.add_row(symbol, value, between)
    return table
