"""Find the block after which a model has massive activations: norms of the residual stream after each block, without BOS.

    python benchmarks/layers.py [--model embedded] [--windows 16]
Where a few rows have hundreds of times the median norm, they hold most of the variance, and an SAE reconstructs little else."""

import argparse

import numpy as np
import torch

from activations import language_model
from activations.text import TextConfig, documents
from activations.tokens import PackingConfig, windows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--windows", type=int, default=16)
    args = parser.parse_args()
    model = language_model.load(args.model)
    stream = windows(documents(TextConfig()), model.tokenizer, PackingConfig())
    tokens = torch.from_numpy(np.stack([next(stream).tokens for _ in range(args.windows)]))
    hooks = [f"blocks.{block}.hook_resid_post" for block in range(model.n_layers)]
    found = model.capture(tokens, hooks)
    print("| after block | median norm | largest / median | rows over 20 medians |\n|---|---|---|---|")
    for block, hook in enumerate(hooks):
        norms = found[hook][:, 1:].flatten(0, 1).norm(dim=1)
        ratio = norms / norms.median()
        print(
            f"| {block} | {norms.median():.1f} | {ratio.max():.1f} | {(ratio > 20).sum()} of {len(ratio):,} |"
        )


if __name__ == "__main__":
    main()
