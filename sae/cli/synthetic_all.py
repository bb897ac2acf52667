"""`sae synthetic all`: every method on the same planted features, in one table."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from activations.progress import show_progress
from sae.config import TrainConfig
from sae.evaluation.recovery import FOUND
from sae.evaluation.structured import Structured
from sae.evaluation.synthetic import Gaussian, Heads, Independent, Tree
from sae.report.numbers import DASH, duration
from sae.report.synthetic import Shown, cells, columns, conclusions
from sae.trust.planted import BESIDE, LEAST
from sae.workflows.synthetic_table import INDEX, Line, SyntheticRecord, TableConfig, synthetic_table

AnyWorld = (
    Annotated[Structured, tyro.conf.subcommand("structured")]
    | Annotated[Independent, tyro.conf.subcommand("independent")]
    | Annotated[Heads, tyro.conf.subcommand("heads")]
    | Annotated[Tree, tyro.conf.subcommand("tree")]
    | Annotated[Gaussian, tyro.conf.subcommand("gaussian")]
)
MEANING = (
    f"uniq: different features of latents, over latents. found: share of features with a decoder row at a cosine of {FOUND:g} or more. "
    f"recovered: more than {LEAST:.0%} of them and more than every control, beyond the bootstrap's 95 % interval"
)
OF_PARENTS = (
    f"parents: share found. beside: share of rows with parent and child on which the parent's latent fires. absorb: its recall on rows "
    f"without a child, minus that. A hierarchy is recovered with more than {LEAST:.0%} of parents found and beside at {BESIDE:.0%} or more"
)


@dataclass(frozen=True)
class AllMethods:
    """Train every method on the same planted features and print one table: what each recovers, and what becomes of parents where
    features have a hierarchy.

    Example: sae synthetic all --out runs/synthetic structured --roots 8. docs/synthetic.md."""

    table: Annotated[TableConfig, tyro.conf.arg(name="")] = field(default_factory=TableConfig)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=2000, batch=512, lr=3e-3, warmup_steps=0)
    )
    out: Path | None = None
    """Folder that keeps each finished method, in synthetic.json: after an interruption the same command goes on. Nothing is
    written when left out."""
    world: AnyWorld = field(default_factory=Structured)


def run(command: AllMethods) -> None:
    """Train what is missing and print the table and what it says."""
    record = synthetic_table(command.world, command.train, command.table, command.out, show_progress)
    show(record, f"{type(command.world).__name__.lower()}, {command.world.d_model} dimensions", command.table)
    if command.out:
        print(f"{command.out / INDEX}: written")


def show(record: SyntheticRecord, world: str, cfg: TableConfig) -> None:
    """Print the table of the methods asked for, beside the controls."""
    wanted = {name: line for name, line in record.lines.items() if name in (cfg.methods or record.lines)}
    lines = {name: _shown(line) for name, line in wanted.items()}
    controls = {name: _shown(line) for name, line in record.controls.items()}
    table = Table(
        title=f"{record.d_sae} latents on planted features ({world}); {record.features_active:.2f} active a row",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=0,  # so that it fits into 80 columns
    )
    for title in columns([*lines.values(), *controls.values()]):
        table.add_column(
            title,
            justify="left" if title in ("", "verdict") else "right",
            no_wrap=bool(title),
            min_width=None if title else 10,
        )
    for name, line in lines.items():
        table.add_row(*cells(name, line))
    table.add_section()
    for name, line in controls.items():
        table.add_row(*cells(name, line))
    Console().print(table)
    for sentence in conclusions(lines):
        print(sentence)
    for name, reason in record.left_out.items():
        print(f"{name}: left out, {reason}")
    print(MEANING)
    if any(line.hierarchy for line in lines.values()):
        print(OF_PARENTS)
    seconds = sum(line.seconds for line in wanted.values())
    print(f"training took {duration(seconds)}" if seconds >= 1 else f"training took {DASH}")


def _shown(line: Line) -> Shown:
    return Shown(line.measures, line.found.value, line.verdict, line.hierarchy)
