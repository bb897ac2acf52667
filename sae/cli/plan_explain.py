"""`sae plan explain`: the calls, tokens and money that a language model's explanations cost, before anything is sent."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from activations.errors import ConfigError
from sae.cli import arguments
from sae.judging.config import JudgeConfig
from sae.judging.cost import Cost
from sae.runs.run import Run
from sae.workflows.judge import judge_cost


@dataclass(frozen=True)
class PlanExplain:
    """Say what `sae explain --judge` costs: calls, tokens and, at given prices, money. Nothing is sent anywhere.

    Questions are counted as they would be sent, without those that are answered already. A token is taken to have 4 bytes.

    Example: sae plan explain runs/demo --judge-model gpt-4o-mini --price-in 0.15 --price-out 0.60"""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must have features."""
    price_in: float | None = None
    """Price of a million tokens of questions, in any currency."""
    price_out: float | None = None
    """Price of a million tokens of answers."""
    json: bool = False
    """Print JSON instead of a table."""
    judging: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        for name in ("price_in", "price_out"):
            price = getattr(self, name)
            if price is not None and not 0 <= price < float("inf"):
                raise ConfigError(f"{name} = {price} must be at least 0")
        if (self.price_in is None) != (self.price_out is None):
            raise ConfigError("--price-in and --price-out: give both, or neither")


def main(args: list[str]) -> int:
    """Parse, count, print."""
    command = arguments.parse(PlanExplain, "sae plan explain", args, tyro.conf.OmitArgPrefixes)
    cost = judge_cost(Run(command.run), command.judging)
    money = None
    if command.price_in is not None and command.price_out is not None:
        money = cost.money(command.price_in, command.price_out)
    if command.json:
        sums = None if money is None else {"expected": money[0], "most": money[1]}
        print(json.dumps({**dataclasses.asdict(cost), "money": sums}, indent=1))
    else:
        _print(command, cost, money)
    return 0


def _print(command: PlanExplain, cost: Cost, money: tuple[float, float | None] | None) -> None:
    console = Console()
    title = f"{command.judging.model} explains {cost.latents:,} latents of {command.run}"
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    most = "no limit" if cost.most_tokens_out is None else f"at most {cost.most_tokens_out:,}"
    table.add_row(
        "[bold]calls[/]", f"[bold]{cost.calls - cost.kept:,}[/]", f"{cost.kept:,} more are answered already"
    )
    table.add_row("[bold]tokens in[/]", f"[bold]{cost.tokens_in:,}[/]", "")
    table.add_row(
        "[bold]tokens out[/]",
        f"[bold]{cost.tokens_out:,}[/]",
        f"{most}; a model that thinks first takes more",
    )
    if money is not None:
        limit = "" if money[1] is None else f"at most {money[1]:,.4g}"
        table.add_row("[bold]money[/]", f"[bold]{money[0]:,.4g}[/]", limit)
    console.print(table)
    print("- a token is taken to have 4 bytes; a question that is tried again costs again")
    if cost.too_few:
        others = "they are left out" if command.judging.judge_only else "others take their place"
        print(f"- {cost.too_few:,} latents have too few texts: {others}")
    print("- nothing has been sent; with --judge, sae explain sends texts of the store to that address")
