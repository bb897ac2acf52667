"""Harvest to disk against the bare forward pass: what tokenising, hooks, checks and writing cost.

    python benchmarks/harvest.py [--model embedded] [--tokens 16384] [--rounds 5]
The bare pass is the transformers model with fused attention, the same batches, stopped after the same block by
an exception; nothing is kept. Rounds alternate; the medians' ratio is what counts, 1 is no cost at all.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from activations import models
from activations.embedded import MODEL_HOOK
from activations.harvest import HarvestConfig, harvest
from activations.text import TextConfig, documents
from activations.tokens import windows


class Reached(Exception):
    """The block asked for has run."""


def bare(model: models.LanguageModel, tokens: torch.Tensor, layer: int, batch: int) -> float:
    """Seconds for a forward pass up to and with block `layer`, nothing kept."""

    def stop(*_: object) -> None:
        raise Reached

    handle = model.plain.model.layers[layer].register_forward_hook(stop)
    started = time.perf_counter()
    with torch.no_grad():
        for piece in tokens.split(batch):
            try:
                model.plain.model(piece, use_cache=False)
            except Reached:
                continue
    handle.remove()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--hook", default=MODEL_HOOK)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = models.load(args.model)
    config = HarvestConfig(hooks=args.hook, tokens=args.tokens, shard_tokens=8192)
    stream = windows(documents(TextConfig()), model.tokenizer, config.packing)
    count = args.tokens // config.packing.context
    tokens = torch.from_numpy(np.stack([next(stream).tokens for _ in range(count)])).long()
    batch, layer = config.batch_tokens // config.packing.context, int(args.hook.split(".")[1])
    model.capture(tokens[:1], [args.hook])  # boots the bridge, proves the plain path
    _ = model.weights_hash
    times: dict[str, list[float]] = {"bare": [], "harvest": []}
    for number in range(args.rounds + 1):
        times["bare"].append(bare(model, tokens, layer, batch))
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            harvest(model, Path(folder) / "store", config)
            times["harvest"].append(time.perf_counter() - started)
        if not number:  # the first round warms up
            times = {name: [] for name in times}
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"| {name} | {tokens.numel() / seconds:,.0f} tokens/s |")
    ratios = [b / h for b, h in zip(times["bare"], times["harvest"], strict=True)]
    print(
        f"| harvest runs at | {statistics.median(ratios):.0%} of the bare pass ({min(ratios):.0%} to {max(ratios):.0%}) |"
    )


if __name__ == "__main__":
    main()
