"""Time the pass of `sae features` over firings, without the encoding, against plain torch, and measure how its cost grows.

    python -m benchmarks.features_pass
The codes are random, with k firings a token and some latents far commoner than others, in shards of 256 windows. Compiled
loops and plain torch take turns; each figure is a median over rounds, in processor time of one thread. The last table,
"growth", gives the seconds of the compiled loops for more tokens and more examples.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

from sae.features import numba_pass
from sae.features.examples import Selection, gather, traces, wanted_pairs
from sae.features.firings import Firings, Statistics, by_latent

CONTEXT, WINDOWS = 128, 256
Code = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def code(n_latents: int, k: int, seed: int) -> Code:
    """Return a shard's firings by row: in each row one latent from each of k equal ranges."""
    g = torch.Generator().manual_seed(seed)
    rows = CONTEXT * WINDOWS
    places = torch.arange(k) + torch.rand(rows, k, generator=g) ** 3 * 0.999
    latents = (places * (n_latents // k)).long().flatten()
    values = torch.randn(rows * k, generator=g).abs() + 0.1
    return torch.arange(rows).repeat_interleave(k).int(), latents, values


def one_pass(codes: list[Code], n_latents: int, kept: int) -> dict[str, float]:
    """Return the processor seconds of one pass, by part."""
    spent: dict[str, float] = {}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        spent[name] = spent.get(name, 0.0) + time.process_time() - began

    statistics, selection = Statistics(n_latents, 1.0), Selection(range(n_latents), kept, 2 * kept)
    shards: list[Firings] = []
    for number, entries in enumerate(codes):
        with part("sort"):
            shards.append(by_latent(*entries, n_latents, number * CONTEXT * WINDOWS))
        with part("statistics"):
            statistics.add(shards[-1])
        with part("selection"):
            selection.add(shards[-1], CONTEXT)
    with part("examples cut out"):
        wanted = wanted_pairs(selection.windows())
        traces(wanted, [gather(wanted, shard, CONTEXT) for shard in shards])
    return spent


def plainly(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Do the work in plain torch instead of numba, and return its times."""
    kept, numba_pass.WORTHWHILE = numba_pass.WORTHWHILE, 2**62
    try:
        return work()
    finally:
        numba_pass.WORTHWHILE = kept


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    found = {name: median(run[name] for run in runs) for name in runs[0]}
    return {
        **found,
        "statistics and selection": found["statistics"] + found["selection"],
        "all": sum(found.values()),
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    codes = [code(args.width, args.k, seed) for seed in range(4 * args.shards)]

    def run(times: int, kept: int) -> dict[str, float]:
        return one_pass(codes[: times * args.shards], args.width, kept)

    run(1, 20)  # compiled or read from the cache
    fast, plain = [], []
    for _ in range(args.repeats):
        fast.append(run(1, 20))
        plain.append(plainly(lambda: run(1, 20)))
    tokens = args.shards * CONTEXT * WINDOWS
    print(f"{tokens:,} tokens, {args.width:,} latents, k = {args.k}, 20 strongest and 40 sampled")
    for (name, own), torchs in zip(medians(fast).items(), medians(plain).values(), strict=True):
        print(
            f"{name:26} {tokens / own / 1e6:6.2f} Mtok/s   torch {tokens / torchs / 1e6:6.2f}   {torchs / own:5.1f}x"
        )
    print("growth: seconds")
    for what, settings in (
        ("tokens", [(1, 20), (2, 20), (4, 20)]),
        ("examples kept", [(1, 20), (1, 40), (1, 80)]),
    ):
        for times, kept in settings:
            own = medians([run(times, kept) for _ in range(args.repeats)])
            listed = ", ".join(f"{name} {seconds:.2f}" for name, seconds in own.items())
            print(f"{what:14} {times * tokens:>9,} tokens, {kept:3} kept: {listed}")


if __name__ == "__main__":
    main()
