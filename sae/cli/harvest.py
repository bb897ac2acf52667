"""`sae harvest`: text -> a store of activations."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from activations import language_model
from activations.harvest import HarvestConfig, begun_in
from activations.parallel import ranks
from activations.progress import show_progress
from activations.text import make_ready
from activations.token_labels import LabelSet, names
from sae.cli import arguments
from sae.cli.store import described
from sae.workflows.harvest import harvest_store


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
    config: HarvestConfig = field(default_factory=HarvestConfig)


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Harvest, "sae harvest", args, tyro.conf.OmitArgPrefixes)
    make_ready(command.config.text)  # before a model is loaded, perhaps fetched, for it
    with ranks.group():
        place = ranks.device()
        dtype = begun_in(command.out, command.model_dtype)
        model = language_model.load(command.model, command.revision, dtype, str(place))
        store = harvest_store(model, command.out, command.config, show_progress)
    if ranks.rank():
        return 0
    for name in names(store):
        print(f"{store.path}: labels {name!r}, {described(LabelSet(store, name))}")
    print(f"{store.path}: {store.tokens:,} tokens, {', '.join(store.spec.hooks)}")
    if store.text_ended:
        print(f"the text ended before --tokens {command.config.tokens:,}", file=sys.stderr)
    return 0
