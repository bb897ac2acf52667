"""Harvest to disk against the bare forward pass and against SAELens; capture against TransformerBridge's cached run.

    PYTHONPATH=. python benchmarks/harvest.py [--model embedded] [--tokens 16384] [--rounds 5] [--context 128]
    PYTHONPATH=. python benchmarks/harvest.py --bfloat16
    pip install sae-lens==6.54.12 && PYTHONPATH=. python benchmarks/harvest.py --saelens --tokens 65536
Rounds alternate in one process; the median of the rounds' ratios counts, in time and in processor time (of all
threads, so background writing is in it; what other programs do is not). The bare pass is the transformers model with
fused attention, the same batches, stopped after the same block by an exception; nothing is kept. 1 is no cost at all.
With `--bfloat16`, a harvest whose model runs in bfloat16 is timed beside one in float32 and beside the bare passes of
both, and the ratio that `--model-dtype auto` goes by is printed.
The bridge's cached run (`run_with_cache` with a names_filter and stop_at_layer) is timed on windows of `--long` tokens.

SAELens is its CacheActivationsRunner with HookedTransformer, on a random GPT-2 of six layers of width 512, windows of
256 tokens, the residual stream after block 2. Both tokenise the same text, run the model up to that block in the same
batches, and write float32, then float16.
"""
# pyright: reportMissingImports=false

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activations import demo_assets, language_model, precision
from activations.harvest import HarvestConfig, harvest
from activations.text import TextConfig, documents
from activations.tokens import PackingConfig, windows

HOOK, WIDTH, CONTEXT = "blocks.2.hook_resid_post", 512, 256  # of the model run beside SAELens


class Reached(Exception):
    """The block asked for has run."""


def bare(model: language_model.LanguageModel, tokens: Tensor, layer: int, batch: int) -> None:
    """Run a forward pass up to and including block `layer`, and keep nothing."""

    def stop(*_: object) -> None:
        raise Reached

    handle = model.plain.model.layers[layer].register_forward_hook(stop)
    with torch.no_grad():
        for piece in tokens.split(batch):
            try:
                model.plain.model(piece, use_cache=False)
            except Reached:
                continue
    handle.remove()


def bridged(model: language_model.LanguageModel, tokens: Tensor, hook: str) -> Tensor:
    """Capture as TransformerLens' bridge does: cache one hook point and stop behind its block."""
    stop = int(hook.split(".")[1]) + 1
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(tokens, names_filter=[hook], stop_at_layer=stop)
    return cache[hook]


def compare(contestants: dict[str, Callable[[], object]], rounds: int, tokens: int) -> None:
    """Run contestants in turn; print each one's speed, and the last one's speed as a multiple of each."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if number:  # the first round warms up
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    last = list(contestants)[-1]
    print(
        f"| | tokens/s | {last} is faster by | tokens/s of processor time | {last} is faster by |\n|---|---|---|---|---|"
    )
    for name, times in taken.items():
        ratios = [
            statistics.median(other[i] / own[i] for other, own in zip(times, taken[last], strict=True))
            for i in (0, 1)
        ]
        speed, alone = (tokens / statistics.median(one[i] for one in times) for i in (0, 1))
        print(f"| {name} | {speed:,.0f} | {ratios[0]:.2f}x | {alone:,.0f} | {ratios[1]:.2f}x |")


def text_tokens(model: language_model.LanguageModel, count: int, packing: PackingConfig) -> Tensor:
    """Return n windows of the embedded text, [n, T]."""
    stream = windows(documents(TextConfig()), model.tokenizer, packing)
    return torch.from_numpy(np.stack([next(stream).tokens for _ in range(count)])).long()


def make_model(folder: Path) -> Path:
    """Make a random GPT-2 that reads the embedded model's tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    end = "<|endoftext|>"  # the file alone: what else lies there is of one release of transformers
    file = str(demo_assets.model_folder() / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, bos_token=end, eos_token=end)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=WIDTH, n_layer=6, n_head=8, n_positions=1024,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def hooked(folder: Path) -> Any:
    """Return the saved weights as a HookedTransformer, which itself loads models only by their name on the hub."""
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    lens: Any = import_module("transformer_lens")  # of SAELens' environment, older than ours
    conversions: Any = import_module("transformer_lens.pretrained.weight_conversions")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    config = lens.HookedTransformerConfig(
        d_model=WIDTH, n_layers=6, n_heads=8, d_head=WIDTH // 8, d_mlp=4 * WIDTH, n_ctx=1024, act_fn="gelu_new",
        d_vocab=len(tokenizer), normalization_type="LN", device="cpu", tokenizer_prepends_bos=False,
        default_prepend_bos=True,
    )  # fmt: skip
    made = lens.HookedTransformer(config, tokenizer)
    weights = conversions.convert_gpt2_weights(GPT2LMHeadModel.from_pretrained(folder), config)
    made.load_state_dict(weights, strict=False)
    return made


def saelens(model: Path, texts: list[str], tokens: int, dtype: str) -> Callable[[], object]:
    """Return a call of SAELens' runner over the same texts, into a fresh folder each time."""
    import datasets
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, cache_activations_runner

    data, loaded = datasets.Dataset.from_dict({"text": texts}), hooked(model)
    cache_activations_runner.load_model = lambda *_, **__: loaded  # loading is not what is timed

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            config = CacheActivationsRunnerConfig(
                dataset_path="", model_name=str(model), model_batch_size=2048 // CONTEXT, hook_name=HOOK, d_in=WIDTH,
                training_tokens=tokens, context_size=CONTEXT, new_cached_activations_path=folder, shuffle=False,
                dtype=dtype, buffer_size_gb=8192 * WIDTH * getattr(torch, dtype).itemsize / 1e9, streaming=False,
            )  # fmt: skip
            CacheActivationsRunner(config, override_dataset=data).run()

    return run


def ours(model: Path, texts: Path, tokens: int, dtype: Any) -> Callable[[], object]:
    """Return a call of our harvest over the same texts."""
    loaded = language_model.load(str(model))
    config = HarvestConfig(
        hooks=HOOK, tokens=tokens, dtype=dtype, text=TextConfig(dataset=str(texts)),
        packing=PackingConfig(context=CONTEXT), shard_tokens=8192,
    )  # fmt: skip

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            harvest(loaded, Path(folder) / "store", config)

    run()  # loads the bridge and checks the hook point, which is not what is timed
    return run


def against_saelens(args: argparse.Namespace) -> None:
    """Time our harvest and SAELens' of one text, in either precision."""
    logging.disable(logging.WARNING)
    texts = [text for text in islice(documents(TextConfig()), args.tokens // 200) if isinstance(text, str)]
    with tempfile.TemporaryDirectory() as folder:
        model, file = make_model(Path(folder) / "model"), Path(folder) / "text.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        for dtype in ("float32", "float16"):
            print(f"\n{dtype}")
            contestants = {
                "SAELens": saelens(model, texts, args.tokens, dtype),
                "harvest": ours(model, file, args.tokens, dtype),
            }
            compare(contestants, args.rounds, args.tokens)


def prepared(args: argparse.Namespace, dtype: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return calls of the bare forward pass and of the harvest to disk, of a model that runs in this precision."""
    model = language_model.load(args.model, dtype=dtype)
    packing = PackingConfig(context=args.context)
    config = HarvestConfig(hooks=args.hook, tokens=args.tokens, packing=packing, shard_tokens=8192)
    tokens = text_tokens(model, args.tokens // args.context, packing)
    batch, layer = max(1, config.batch_tokens // args.context), int(args.hook.split(".")[1])
    # Loads the bridge and checks the hook point, which is not what is timed
    model.capture(tokens[:1], [args.hook])
    _ = model.weights_hash

    def to_disk() -> None:
        with tempfile.TemporaryDirectory() as folder:
            harvest(model, Path(folder) / "store", config)

    return lambda: bare(model, tokens, layer, batch), to_disk


def against_float32(args: argparse.Namespace) -> None:
    """Time a harvest in bfloat16 beside one in float32, and both beside their bare passes."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        demo_assets.model_folder() if args.model == "embedded" else args.model
    )
    ratio = precision.speedup(*precision.widths(config))
    print(f"products of the model's shapes: bfloat16 is {ratio:.2f} times as fast as float32")
    exact, low = prepared(args, "float32"), prepared(args, "bfloat16")
    compare(
        {
            "bare, float32": exact[0],
            "harvest, float32": exact[1],
            "bare, bfloat16": low[0],
            "harvest, bfloat16": low[1],
        },
        args.rounds,
        args.tokens // args.context * args.context,
    )


def against_bare(args: argparse.Namespace) -> None:
    """Time our harvest beside the bare forward pass, and our capture beside the bridge's."""
    model = language_model.load(args.model)
    bare_pass, to_disk = prepared(args, "float32")
    compare({"bare": bare_pass, "harvest": to_disk}, args.rounds, args.tokens // args.context * args.context)
    long = text_tokens(model, 2, PackingConfig(context=args.long))
    mine, theirs = model.capture(long, [args.hook])[args.hook], bridged(model, long, args.hook)
    print(
        f"\nlargest difference to the bridge: {((mine - theirs).abs().max() / theirs.abs().max()).item():.1e}"
    )
    compare(
        {
            "TransformerBridge": lambda: bridged(model, long, args.hook),
            "capture": lambda: model.capture(long, [args.hook]),
        },
        args.rounds,
        long.numel(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--hook", default=demo_assets.MODEL_HOOK)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--long", type=int, default=1024, help="window of the comparison with the bridge")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bfloat16", action="store_true", help="beside harvests of a model in float32")
    parser.add_argument("--saelens", action="store_true", help="beside SAELens, where it is installed")
    args = parser.parse_args()
    (against_saelens if args.saelens else against_float32 if args.bfloat16 else against_bare)(args)


if __name__ == "__main__":
    main()
