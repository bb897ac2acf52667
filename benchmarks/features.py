"""Feature data for a whole dictionary: seconds a latent, here and in SAEDashboard, and where ours go.

Run it once per contestant, each in an environment that has that package; both read the tokens of the same store:
    python -m benchmarks.features ours --store stores/demo
    python benchmarks/features.py saedashboard --store stores/demo     # pip install sae-dashboard==0.8.0
`ours` is what `sae features` does for each latent of a TopK SAE (k = 32) with the weights of its start: the pass over the store,
examples, histograms, logit lens, neighbours, co-firing, files. SAEDashboard gets an SAE of the same width, of which it describes
--latents (its cost grows with their number), over a random model of one block, which is cheaper to run than a real one.
Seconds are of the clock and of the processor: on a busy machine compare the second. `features_pass.py` has the pass alone.
"""
# pyright: reportMissingImports=false

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from activations.store import Store

VOCABULARY = 49_152


# (module within `sae`, function or method, what the table calls it); a part's seconds leave out those of parts within it
PARTS = (
    ("workflows.features", "describe", "the rest"),
    ("features.collect", "encode_shard", "encode (disk too)"),
    ("features.firings", "by_latent", "sort by latent"),
    ("features.firings", "Statistics.add", "statistics"),
    ("features.examples", "Selection.add", "selection"),
    ("features.collect", "wanted_pairs", "gather, traces"),
    ("features.collect", "gather", "gather, traces"),
    ("features.collect", "traces", "gather, traces"),
    ("features.collect", "cofiring", "co-firing"),
    ("workflows.features", "logit_lens", "logit lens"),
    ("workflows.features", "nearest_and_live", "neighbours"),
    ("features.map", "layout", "map: layout"),
    ("features.map", "_clusters", "map: clusters"),
    ("features.write", "write", "write"),
)
Spent = tuple[float, float]  # seconds of the clock, and of the processor


class Parts:
    """Seconds spent in functions of `sae` while they are watched, within one another left out."""

    def __init__(self) -> None:
        self.own: dict[str, Spent] = {}
        self.peak: dict[str, float] = {}
        self._inner: list[Spent] = [(0.0, 0.0)]

    def watch(self, module: str, name: str, part: str) -> None:
        """Count a function's seconds from now on."""
        *owners, name = name.split(".")
        owner = import_module(f"sae.{module}")
        for each in owners:
            owner = getattr(owner, each)
        setattr(owner, name, self._watched(getattr(owner, name), part))

    def _watched(self, real: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append((0.0, 0.0))
            began = time.perf_counter(), time.process_time()
            try:
                return real(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began[0], time.process_time() - began[1]
                self.own[part] = _sum(self.own.get(part, (0.0, 0.0)), spent, self._inner.pop(), -1)
                self._inner[-1] = _sum(self._inner[-1], spent)
                self.peak[part] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

        return timed

    def show(self) -> None:
        """Print the table."""
        whole = self.total[1]
        for part, (wall, cpu) in sorted(self.own.items(), key=lambda item: -item[1][1]):
            print(
                f"{part:20} {wall:8.2f} s {cpu:8.2f} s of processor {cpu / whole:6.1%}, at most {self.peak[part]:.1f} GB until its end"
            )

    @property
    def total(self) -> Spent:
        """All parts'."""
        return self._inner[0]


def _sum(one: Spent, other: Spent, third: Spent = (0.0, 0.0), sign: int = 1) -> Spent:
    return one[0] + other[0] + sign * third[0], one[1] + other[1] + sign * third[1]


def ours(store: Store, args: argparse.Namespace) -> tuple[Spent, int]:
    from activations.language_model import load
    from sae.architectures import TopKConfig, build
    from sae.features.collect import FeaturesConfig, shards_to_read
    from sae.workflows import features as describing

    hook = store.only_hook()
    sae = build(TopKConfig(d_sae=args.width, k=32), store.width(hook), 0).requires_grad_(False)
    sae.initialise(torch.empty(0), store.mean(hook).float(), torch.Generator().manual_seed(0))
    model = load(store.spec.model)
    _ = model.bridge
    cfg = FeaturesConfig(tokens=args.tokens)
    parts = Parts()
    for part in PARTS:
        parts.watch(*part)
    with tempfile.TemporaryDirectory() as folder:
        describing.describe(sae, store, hook, model, Path(folder) / "features", cfg, "0" * 64)
    parts.show()
    print(f"{shards_to_read(store, args.tokens)[1]:,} tokens, {args.width:,} latents")
    return parts.total, args.width


def saedashboard(store: Store, args: argparse.Namespace) -> tuple[Spent, int]:
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
    began = time.perf_counter(), time.process_time()
    config = SaeVisConfig(hook_point=hook, features=list(range(args.latents)))
    SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
    spent = time.perf_counter() - began[0], time.process_time() - began[1]
    print(f"{tokens.numel():,} tokens, {args.latents} of {args.width:,} latents")
    return spent, args.latents


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
    spent, latents = {"ours": ours, "saedashboard": saedashboard}[args.contestant](Store(args.store), args)
    wall, cpu = (1000 * seconds / latents for seconds in spent)
    print(f"{args.contestant}: {wall:.2f} ms a latent, {cpu:.2f} ms of processor time")


if __name__ == "__main__":
    main()
