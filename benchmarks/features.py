"""Feature data for a whole dictionary: seconds a latent, here and in SAEDashboard.

Run it once per contestant, each in an environment that has that package; both read the tokens of the same store:
    python benchmarks/features.py ours --store stores/demo
    python benchmarks/features.py saedashboard --store stores/demo     # pip install sae-dashboard==0.8.0
`ours` is what `sae features` does for each latent of a TopK SAE (k = 32) with the weights of its start: the pass over the store,
examples, histograms, logit lens, neighbours, co-firing, files. SAEDashboard gets an SAE of the same width, of which it describes
--latents (its cost grows with their number), over a random model of one block, which is cheaper to run than a real one.
"""
# pyright: reportMissingImports=false

import argparse
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from activations.store import Store

VOCABULARY = 49_152


def ours(store: Store, args: argparse.Namespace) -> tuple[float, int]:
    from activations.models import load
    from sae.architectures import TopKConfig, build
    from sae.features.collect import FeaturesConfig, shards_to_read
    from sae.features.describe import describe

    hook = store.only_hook()
    sae = build(TopKConfig(d_sae=args.width, k=32), store.width(hook), 0).requires_grad_(False)
    sae.initialise(torch.empty(0), torch.tensor(store.mean(hook)).float(), torch.Generator().manual_seed(0))
    model = load(store.spec.model)
    _ = model.bridge
    cfg = FeaturesConfig(tokens=args.tokens)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        describe(sae, store, hook, model, Path(folder) / "features", cfg, "0" * 64)
        seconds = time.perf_counter() - began
    print(f"{shards_to_read(store, args.tokens)[1]:,} tokens, {args.width:,} latents: {seconds:.1f} s")
    return seconds, args.width


def saedashboard(store: Store, args: argparse.Namespace) -> tuple[float, int]:
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import HookedSAETransformer
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    lens: Any = import_module("transformer_lens")  # version 2, whose types are not those of the one here

    d_model, hook = store.width(store.only_hook()), "blocks.0.hook_resid_post"
    settings = lens.HookedTransformerConfig(
        n_layers=1, d_model=d_model, n_ctx=store.context, d_head=64, d_vocab=VOCABULARY, act_fn="gelu"
    )
    model = HookedSAETransformer(settings)
    sae = StandardSAE(StandardSAEConfig(d_in=d_model, d_sae=args.width))
    sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True)
    sae.W_enc.data = sae.W_dec.data.T.contiguous()
    windows = -(-args.tokens // store.context)
    tokens = torch.cat([store.read(n).tokens for n in range(len(store.shards))])[:windows].long()
    with torch.no_grad():  # as many latents fire on a token as with k = 32
        _, cache = model.run_with_cache(tokens[:8], names_filter=hook)
        before = (cache[hook] @ sae.W_enc).flatten()
        sae.b_enc.data -= before[: 2**24].quantile(1 - 32 / args.width)
    began = time.perf_counter()
    config = SaeVisConfig(hook_point=hook, features=list(range(args.latents)))
    SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
    seconds = time.perf_counter() - began
    print(f"{tokens.numel():,} tokens, {args.latents} of {args.width:,} latents: {seconds:.1f} s")
    return seconds, args.latents


def main() -> None:
    """Time one contestant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contestant", choices=("ours", "saedashboard"))
    parser.add_argument("--store", type=Path, default=Path("stores/demo"))
    parser.add_argument("--width", type=int, default=16_384)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--latents", type=int, default=32)
    args = parser.parse_args()
    seconds, latents = {"ours": ours, "saedashboard": saedashboard}[args.contestant](Store(args.store), args)
    print(f"{args.contestant}: {1000 * seconds / latents:.2f} ms a latent")


if __name__ == "__main__":
    main()
