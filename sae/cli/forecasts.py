"""What all `sae plan` commands share: their options, the rates of this machine, and a forecast as a table or as JSON."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from activations.disk.files import size_text
from activations.errors import ConfigError
from sae.plan import rates
from sae.plan.forecast import Forecast, duration, total
from sae.plan.measure import measure
from sae.plan.rates import Machine


@dataclass(frozen=True)
class Planned:
    """Options that all plans share."""

    ranks: int = 1
    """Processes of torchrun that share the job, each on a device like this one."""
    measure: bool = False
    """Measure this machine again, and the model."""
    json: bool = False
    """Print JSON instead of a table."""


def check(plan: Planned) -> None:
    """Raise ConfigError for a number of ranks below 1."""
    if plan.ranks < 1:
        raise ConfigError(f"ranks = {plan.ranks} must be at least 1")


def here(again: bool = False) -> Machine:
    """Return the rates of this machine, as measured earlier, or measured now and saved."""
    rates_here = None if again else rates.load(torch.get_num_threads())
    if rates_here is None:
        print("measuring this machine, once (some seconds)", file=sys.stderr)
        rates_here = measure()
        rates.save(rates_here)
    return rates_here


def machine_name() -> str:
    """Return the name under which rates of this machine are saved."""
    return rates.this_machine(torch.get_num_threads())


def show(forecast: Forecast, machine: Machine, plan: Planned) -> int:
    """Print a forecast. Raises ConfigError when the job cannot be done."""
    if plan.json:
        print(json.dumps(as_json(forecast, machine), indent=1))
    else:
        _print(forecast, machine)
    if forecast.refusals:
        raise ConfigError("; ".join(forecast.refusals))
    return 0


def as_json(forecast: Forecast, machine: Machine) -> dict[str, object]:
    """Return a forecast as JSON, in bytes and seconds."""
    parts = dataclasses.asdict(forecast)
    totals = {
        "disk": total(forecast.disk),
        "memory": total(forecast.memory),
        "seconds": total(forecast.seconds),
    }
    summary = {"limit": forecast.limit, "total": totals, "computed": machine.measured is None}
    return {**summary, **parts, "machine": dataclasses.asdict(machine)}


def _print(forecast: Forecast, machine: Machine) -> None:
    console = Console()
    table = Table(title=forecast.what, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for name, parts, text in (
        ("time", forecast.seconds, duration), ("memory", forecast.memory, size_text), ("disk", forecast.disk, size_text),
    ):  # fmt: skip
        whole = total(parts)
        table.add_row(f"[bold]{name}[/]", f"[bold]{text(whole)}[/]", "")
        for part, value in parts.items():
            if value:
                table.add_row(f"  {part}", text(value), f"{value / whole:4.0%}")
    console.print(table)
    for name, fact in forecast.facts.items():
        console.print(f"{name}: {fact}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"limited by: {forecast.limit}", highlight=False, markup=False, soft_wrap=True)
    for note in (*forecast.notes, *_origin_of_rates(machine)):
        console.print(f"- {note}", highlight=False, markup=False, soft_wrap=True)


def _origin_of_rates(machine: Machine) -> Sequence[str]:
    """Return notes on where the figures come from."""
    r = machine.rates
    figures = (
        f"{r.flops / 1e9:,.0f} GFLOP/s, {r.scan_row / 1e9:,.2g} G pre-activations/s chosen from, rows gathered at "
        f"{r.gather_far / 1e9:,.3g} to {r.gather_near / 1e9:,.3g} GB/s, {r.adam / 1e6:,.0f} M parameters/s in Adam, disk "
        f"{r.write / 1e6:,.0f} MB/s written and {r.read / 1e6:,.0f} read"
    )
    if machine.measured is None:
        return [f"computed for {machine.name} from its peak rates, NOT measured, kernels in bf16: {figures}"]
    notes = [f"{machine.name}, {machine.measured}: {figures}"]
    if machine.load > 0.5:
        notes.append(
            f"the machine was busy when it was measured ({machine.load:.1f} programs a core): times are as on a machine "
            f"as busy; --measure when it is idle"
        )
    return notes
