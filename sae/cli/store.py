"""`sae store show|verify`: what a store holds; whether every byte is as it was written."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from activations.errors import StoreError
from activations.store import Store, verify
from sae.cli import arguments
from sae.cli.progress import progress


@dataclass(frozen=True)
class Show:
    """What a store holds and how it was made."""

    path: tyro.conf.Positional[Path]
    """Folder of the store."""


@dataclass(frozen=True)
class Verify:
    """Check the SHA-256 of every shard; exit code 2 if one is wrong."""

    path: tyro.conf.Positional[Path]
    """Folder of the store."""


Command = (
    Annotated[Show, tyro.conf.subcommand("show")] | Annotated[Verify, tyro.conf.subcommand("verify")]
)  # fmt: skip


def main(args: list[str]) -> int:
    """Parse and run."""
    arguments.choose(("show", "verify"), "command", "sae store", args)
    command = arguments.parse(Command, "sae store", args)  # type: ignore[arg-type]
    store = Store(command.path)
    return show(store) if isinstance(command, Show) else check(store)


def show(store: Store) -> int:
    """Print the store's settings, size and moments."""
    spec, packing = store.spec, store.spec.packing
    rows = sum(entry.rows for entry in store.shards)
    table = Table(show_header=False, box=None)
    lines = {
        "model": f"{spec.model}{f' @ {spec.model_revision}' if spec.model_revision else ''}",
        "weights": f"sha256 {spec.weights_sha256[:16]}…",
        "text": f"{spec.dataset['dataset']}{f' @ {spec.dataset_revision}' if spec.dataset_revision else ''}",
        "windows": f"{store.windows:,} of {store.context} tokens, {packing.packing}, separator {packing.separator}",
        "BOS": "none" if spec.bos_token is None else f"token {spec.bos_token} begins every window",
        "labels": spec.labels or "none (sae harvest --labels gives each document one)",
        **(
            {"roles": f"{roles}; the model reads the others too"}
            if (roles := spec.dataset.get("roles"))
            else {}
        ),
        "tokens": f"{store.tokens:,}, of which {rows:,} count (first position of each window left out)",
        "on disk": f"{sum(entry.bytes for entry in store.shards) / 1e6:,.1f} MB in {len(store.shards)} shards, {spec.dtype}",
        "text used": "all of it" if store.text_ended else "up to the number of tokens asked for",
    }
    for hook, width in spec.hooks.items():
        lines[hook] = f"width {width}, root mean square norm {store.mean_square_norm(hook) ** 0.5:.4g}"
    for name, value in lines.items():
        table.add_row(name, value)
    Console().print(table)
    return 0


def check(store: Store) -> int:
    """Verify every shard; say which are wrong."""
    wrong = []
    with progress("verify", len(store.shards), "shards") as advance:
        for name, fault in verify(store):
            advance(1)
            if fault:
                wrong.append(f"{name}: {fault}")
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        raise StoreError(
            f"{len(wrong)} of {len(store.shards)} shards of {store.path} are damaged: harvest again"
        )
    print(f"{store.path}: all {len(store.shards)} shards are as they were written")
    return 0
