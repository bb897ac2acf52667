"""`sae harvest`: text -> a store of activations."""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from activations import embedded, models
from activations.harvest import HarvestConfig, harvest
from activations.models import LanguageModel
from activations.store import DTYPES, Store
from sae.cli.progress import progress
from sae.runs import device


@dataclass(frozen=True)
class Harvest:
    """Run a language model over text and store what passes its hook points.

    Example: sae harvest --model gpt2 --dataset notes.jsonl --hooks blocks.6.hook_resid_post --tokens 2000000
    --out stores/notes. Interrupted, the same command goes on; a finished store is left as it is."""

    out: Path
    """Folder of the store."""
    model: str = "embedded"
    """`embedded` (SmolLM2-135M-Instruct), a local model folder, or a model of the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    model_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision the model runs in."""
    config: HarvestConfig = field(default_factory=HarvestConfig)


def main(args: list[str]) -> int:
    """Parse and run."""
    command = tyro.cli(Harvest, prog="sae harvest", args=args, config=(tyro.conf.OmitArgPrefixes,))
    model = models.load(command.model, command.revision, DTYPES[command.model_dtype], str(device()))
    store = run(model, command.out, command.config)
    print(f"{store.path}: {store.tokens:,} tokens, {', '.join(store.spec.hooks)}")
    if store.text_ended:
        print(f"the text ended before --tokens {command.config.tokens:,}", file=sys.stderr)
    return 0


def run(model: LanguageModel, out: Path, config: HarvestConfig) -> Store:
    """Harvest with a progress bar; without hook points, from the residual stream after the middle block."""
    if not config.hook_names:
        middle = f"blocks.{(model.n_layers - 1) // 2}.hook_resid_post"
        config = dataclasses.replace(
            config, hooks=embedded.MODEL_HOOK if model.name == "embedded" else middle
        )
    total = config.tokens // config.packing.context * config.packing.context
    with progress("harvest", total, "tokens") as advance:
        return harvest(model, out, config, advance)
