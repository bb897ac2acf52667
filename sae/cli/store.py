"""`sae harvest` and `sae store show|verify|label|import|geometry`: make a store, of files too, describe, check, label, measure it."""

import sys
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from activations import engines, token_labels
from activations.engines import Engine
from activations.errors import ConfigError, StoreError, quoted
from activations.geometry.measure import FILE, measure
from activations.geometry.records import GeometryConfig
from activations.harvest import HarvestConfig, begun_in
from activations.parallel import ranks
from activations.progress import show_progress
from activations.store import Store, verify
from activations.text import make_ready
from activations.token_labels import LabelSet, names
from sae.cli import arguments
from sae.report import geometry as report
from sae.workflows import harvest


@dataclass(frozen=True)
class Show:
    """Show what a store holds and how it was made."""

    path: tyro.conf.Positional[Path]
    """Folder of the store."""


@dataclass(frozen=True)
class Verify:
    """Check the SHA-256 of every shard, and exit with code 2 if one is wrong."""

    path: tyro.conf.Positional[Path]
    """Folder of the store."""


@dataclass(frozen=True)
class Label:
    """Give every token of a store a label, for AdaptiveK to learn from. The store's own files stay as they are.

    Example: sae train batchtopk --store stores/demo --out runs/batchtopk; sae store label stores/demo --labels
    needed:runs/batchtopk; sae train adaptivek --store stores/demo --out runs/adaptive. After an interruption the
    same command continues."""

    path: tyro.conf.Positional[Path]
    """Folder of the store."""
    labels: str
    """`needed:RUN`, the number of latents that a trained run (of batchtopk, jumprelu, …) spends on the token, or
    `surprise`, the model's own loss on it in nats: -log p(token | what stands before it in its window)."""
    name: str | None = None
    """Name of the set of labels, for `sae train --labels`; `needed` or `surprise` when left out."""
    batch: int = 2048
    """Tokens encoded, or read by the model, at once."""


@dataclass(frozen=True)
class Import:
    """Make a store of activations that another program has written: rows in .safetensors files beside activations.json.

    Example: sae store import dumps/gpt2 --out stores/gpt2. The layout: docs/your-activations.md. After an interruption the
    same command continues."""

    path: tyro.conf.Positional[Path]
    """Folder with activations.json and the .safetensors files."""
    out: Path
    """Folder of the store."""
    dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    """How activations are stored; that of the files when left out."""
    context: int = 128
    """Rows per window."""
    shard_tokens: int = 32_768
    """Rows per shard: the most that a crash can cost, and the unit of shuffling."""


@dataclass(frozen=True)
class Geometry:
    """Measure the geometry of a store: norms, massive activations, anisotropy, intrinsic dimension and linearity of its hook
    points, and which of them to try first. The result is kept in the store's folder as geometry.json.

    Example: sae store geometry stores/demo. What each number means: docs/geometry.md."""

    path: tyro.conf.Positional[Path]
    """Folder of the store."""
    config: Annotated[GeometryConfig, tyro.conf.arg(name="")] = field(default_factory=GeometryConfig)


Command = (
    Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Label, tyro.conf.subcommand("label")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Geometry, tyro.conf.subcommand("geometry")]
)


def main(args: list[str]) -> int:
    """Parse the arguments of `sae store` and run it."""
    arguments.choose(("show", "verify", "label", "import", "geometry"), "command", "sae store", args)
    command = arguments.parse(Command, "sae store", args)  # type: ignore[arg-type]
    if isinstance(command, Import):
        return import_files(command)
    store = Store(command.path)
    if isinstance(command, Label):
        return label(store, command.labels, command.name, command.batch)
    if isinstance(command, Geometry):
        return geometry(store, command.config)
    return show(store) if isinstance(command, Show) else check(store)


def label(store: Store, source: str, name: str | None = None, batch: int = 2048) -> int:
    """Add labels with a progress bar, and print what they are."""
    if batch < 1:
        raise ConfigError(f"batch = {batch} must be at least 1")
    labels = harvest.label(store, source, name, batch, show_progress)
    print(
        f"{store.path}: labels {labels.name!r}, {described(labels)}; next: sae train adaptivek --store {quoted(store.path)} "
        f"--labels {labels.name} --out runs/adaptivek"
    )
    return 0


def import_files(command: Import) -> int:
    """Make a store of another program's files with a progress bar, and print what it holds."""
    settings = {"dtype": command.dtype, "context": command.context, "shard_tokens": command.shard_tokens}
    with ranks.group():
        store = harvest.store_of_files(command.path, command.out, progress=show_progress, **settings)
    if not ranks.rank():
        rows = sum(entry.rows for entry in store.shards)
        print(
            f"{store.path}: {rows:,} rows, {', '.join(store.spec.hooks)}; next: sae train topk --store {quoted(store.path)} "
            f"--out runs/topk"
        )
    return 0


def geometry(store: Store, config: GeometryConfig) -> int:
    """Measure the geometry with a progress bar, and print a table with a row for each hook point, and advice."""
    measured = measure(store, config, show_progress)
    lines = [dict(zip(report.COLUMNS, cells, strict=True)) for cells in report.rows(measured)]
    # Two tables, so that 80 columns hold them
    for title, columns in ((f"{store.path}: {report.basis(measured)}", report.SIZES), (None, report.SHAPES)):
        table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for name in columns:
            first = name == columns[0]
            table.add_column(name, justify="left" if first else "right", no_wrap=first)
        for line in lines:
            table.add_row(*(line[name] for name in columns))
        Console().print(table)
    for said in filter(None, (report.massive_note(measured), report.advice(measured))):
        print(said)
    print(f"{store.path / FILE}: written; what each column means: docs/geometry.md")
    return 0


def described(labels: LabelSet) -> str:
    """Return a line about a set of labels."""
    return (
        f"{labels.source}, one for each token, mean {labels.mean:.4g} {labels.unit}, spread {labels.std:.3g}"
    )


def show(store: Store) -> int:
    """Print the store's settings, size and moments."""
    spec, packing = store.spec, store.spec.packing
    rows = sum(entry.rows for entry in store.shards)
    of_files = spec.source == "files"
    table = Table(show_header=False, box=None)
    lines = {
        "model": f"{spec.model}{f' @ {spec.model_revision}' if spec.model_revision else ''}",
        "precision": None
        if of_files
        else f"the model ran in {spec.model_dtype}{'' if spec.source == 'bridge' else f', by the engine {spec.source}'}",
        "weights": f"sha256 {spec.weights_sha256[:16]}…" if spec.weights_sha256 else "not known",
        "tokenizer": (spec.dataset.get("tokenizer") or "none") if of_files else None,
        "text": f"{spec.dataset['dataset']}{f' @ {spec.dataset_revision}' if spec.dataset_revision else ''}",
        "windows": f"{store.windows:,} of {store.context} {'rows, cut anywhere' if of_files else f'tokens, {packing.packing}, separator {packing.separator}'}",
        "BOS": "none" if spec.bos_token is None else f"token {spec.bos_token} begins every window",
        "labels": f"{spec.labels}, one for each {spec.labels_per}"
        if spec.labels
        else "none from the harvest",
        **{f"labels {name!r}": described(LabelSet(store, name)) for name in names(store)},
        "roles": f"{roles}; the model reads the others too" if (roles := spec.dataset.get("roles")) else None,
        "tokens": f"{rows:,} rows, all of which count"
        if of_files
        else f"{store.tokens:,}, of which {rows:,} count (first position of each window left out)",
        "on disk": f"{sum(entry.bytes for entry in store.shards) / 1e6:,.1f} MB in {len(store.shards)} shards, {spec.dtype}",
        "text used": "all of it" if store.text_ended or of_files else "up to the number of tokens asked for",
    }
    for hook, width in spec.hooks.items():
        lines[hook] = f"width {width}, root mean square norm {store.mean_square_norm(hook) ** 0.5:.4g}"
    for name, value in lines.items():
        if value is not None:
            table.add_row(name, value)
    Console().print(table)
    return 0


def check(store: Store) -> int:
    """Verify every shard and print which are damaged. Raises StoreError when any is."""
    wrong = []
    sets = names(store)
    with show_progress("verify", len(store.shards) * (1 + len(sets)), "shards") as advance:
        for name, fault in chain(verify(store), token_labels.verify(store)):
            advance(1)
            if fault:
                wrong.append(f"{name}: {fault}")
    for line in wrong:
        print(line, file=sys.stderr)
    of_labels = sum(line.startswith(f"{token_labels.FOLDER}/") for line in wrong)
    if of_labels < len(wrong):
        raise StoreError(
            f"{len(wrong) - of_labels} of {len(store.shards)} shards of {store.path} are damaged: harvest again"
        )
    if wrong:
        raise StoreError(
            f"{of_labels} files of labels of {store.path} are damaged: delete their folder below "
            f"{store.path / token_labels.FOLDER} and run `sae store label` again"
        )
    labels = f", and so are its labels {', '.join(sets)}" if sets else ""
    print(f"{store.path}: all {len(store.shards)} shards are as they were written{labels}")
    return 0


@dataclass(frozen=True)
class Harvest:
    """Run a language model over text and store what passes its hook points.

    Example: sae harvest --model gpt2 --dataset notes.jsonl --hooks blocks.6.hook_resid_post --tokens 2000000
    --out stores/notes. After an interruption the same command continues; a finished store is left as it is. On several GPUs:
    torchrun --nproc-per-node 8 -m sae.cli.main harvest … makes the same store, each process its share."""

    out: Path
    """Folder of the store."""
    model: str = "embedded"
    """`embedded` (SmolLM2-135M-Instruct), a local model folder, or a model of the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    model_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision the model runs in. `auto`: bfloat16 where a short measurement finds it at least 1.3 times faster, as it is on
    many GPUs and some CPUs, else float32; a harvest that was begun keeps its own. The store records it."""
    engine: Engine = "bridge"
    """What runs the model. `bridge`: TransformerLens, with every hook point, on one device. For a model larger than that, with
    the inputs and outputs of blocks, attentions and MLPs: `transformers`, spread over all devices of this process;
    `tensor-parallel` and `fsdp`, shared among the processes of torchrun."""
    config: HarvestConfig = field(default_factory=HarvestConfig)


def harvest_main(args: list[str]) -> int:
    """Parse the arguments of `sae harvest` and run it."""
    command = arguments.parse(Harvest, "sae harvest", args, tyro.conf.OmitArgPrefixes)
    make_ready(command.config.text)  # before a model is loaded, perhaps fetched, for it
    with ranks.group():
        dtype = begun_in(command.out, command.model_dtype)
        model = engines.load(command.engine, command.model, command.revision, dtype)
        store = harvest.harvest_store(model, command.out, command.config, show_progress)
    if ranks.rank():
        return 0
    for name in names(store):
        print(f"{store.path}: labels {name!r}, {described(LabelSet(store, name))}")
    print(f"{store.path}: {store.tokens:,} tokens, {', '.join(store.spec.hooks)}")
    if store.text_ended:
        print(f"the text ended before --tokens {command.config.tokens:,}", file=sys.stderr)
    return 0
