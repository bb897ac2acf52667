"""`sae harvest`: text -> a store of activations."""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from activations import demo_assets, language_model
from activations.document_labels import NEEDED
from activations.harvest import HarvestConfig, harvest
from activations.language_model import LanguageModel
from activations.parallel import ranks
from activations.store import Store
from activations.text import make_ready
from sae.cli import arguments
from sae.cli.progress import progress
from sae.cli.store import label
from sae.runs.run import Run
from sae.workflows.label_tokens import refuse_other_hook


@dataclass(frozen=True)
class Harvest:
    """Run a language model over text and store what passes its hook points.

    Example: sae harvest --model gpt2 --dataset notes.jsonl --hooks blocks.6.hook_resid_post --tokens 2000000
    --out stores/notes. Interrupted, the same command goes on; a finished store is left as it is. On several GPUs:
    torchrun --nproc-per-node 8 -m sae.cli.main harvest … makes the same store, each process its share."""

    out: Path
    """Folder of the store."""
    model: str = "embedded"
    """`embedded` (SmolLM2-135M-Instruct), a local model folder, or a model of the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    model_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision the model runs in. `auto`: bfloat16 where that is faster (a GPU, a CPU with AMX), else float32."""
    config: HarvestConfig = field(default_factory=HarvestConfig)


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Harvest, "sae harvest", args, tyro.conf.OmitArgPrefixes)
    make_ready(command.config.text)  # before a model is loaded, perhaps fetched, for it
    with ranks.group():
        place = ranks.device()
        dtype = language_model.precision(command.model_dtype, place)
        model = language_model.load(command.model, command.revision, dtype, str(place))
        source = command.config.labels or ""
        if source.startswith(NEEDED):  # of a store that is there
            config = with_hooks(model, dataclasses.replace(command.config, labels=None))
            refuse_other_hook(
                Run(source.removeprefix(NEEDED)), dict.fromkeys(config.hook_names), "this harvest"
            )
            store = run(model, command.out, config)
        else:
            store = run(model, command.out, command.config)
    if ranks.rank():
        return 0
    if source.startswith(NEEDED):
        label(store, source)
    print(f"{store.path}: {store.tokens:,} tokens, {', '.join(store.spec.hooks)}")
    if store.text_ended:
        print(f"the text ended before --tokens {command.config.tokens:,}", file=sys.stderr)
    return 0


def run(model: LanguageModel, out: Path, config: HarvestConfig) -> Store:
    """Harvest with a progress bar; `with_hooks` says from where when there is no hook point."""
    config = with_hooks(model, config)
    total = config.tokens // config.packing.context * config.packing.context
    with progress("harvest", total, "tokens") as advance:
        return harvest(model, out, config, advance)


def with_hooks(model: LanguageModel, config: HarvestConfig) -> HarvestConfig:
    """The same; without hook points, with the residual stream after the middle block, or the embedded model's own."""
    if config.hook_names:
        return config
    middle = f"blocks.{(model.n_layers - 1) // 2}.hook_resid_post"
    return dataclasses.replace(config, hooks=demo_assets.MODEL_HOOK if model.name == "embedded" else middle)
