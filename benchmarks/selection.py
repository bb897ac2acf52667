"""Choosing who fires: our selections against torch.topk, and KronSAE's encoding against TopK's.

    python -m benchmarks.selection [--repeats 7] [--threads 1]
Per row and per batch: k = 32 of pre-activations that are there already, B = 2,048, against torch.topk of each row and of all
rows flattened; torch is asked for unsorted indices and gives no more. KronSAE: encode and selection together, D = 768,
h = 1,024 heads of m = 4 and n = 8 factors, so F = 32,768 and mn / (m + n) = 2.67, B = 1,024, against TopK of the same F; its two
products have 2.67 times fewer columns, so 0.375 is the best that could be had. Both encode as a user would, to a sparse code.
Pre-activations are those of a TopK SAE at its start on a sparse mixture.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import Shape, arguments, by_turns, heading, mixture, table
from sae.architectures import KronConfig, TopKConfig, build
from sae.kernels import backend

Runs = dict[str, Callable[[], object]]
KRON = Shape(768, 32768, 32, 1024)


@torch.no_grad()
def pre_activations(shape: Shape) -> Tensor:
    """Return the pre-activations of an untrained TopK SAE on a batch, [B, F]."""
    x = mixture(shape.batch, shape.width)
    return build(TopKConfig(d_sae=shape.latents, k=shape.k), shape.width).pre_activations(x - x.mean(0)).dense


def per_row(shape: Shape) -> Runs:
    """Return the contestants that select the k largest of each row."""
    u, none = pre_activations(shape), torch.zeros(shape.latents)
    return {
        "torch.topk": lambda: u.topk(shape.k, dim=1, sorted=False),
        "ours": lambda: backend(u).largest_per_row(u, none, shape.k, False),
    }


def per_batch(shape: Shape) -> Runs:
    """Return the contestants that select the B k largest of all."""
    u, none = pre_activations(shape), torch.zeros(shape.latents)
    return {
        "torch.topk, flat": lambda: u.flatten().topk(shape.batch * shape.k, sorted=False),
        "ours": lambda: backend(u).largest_of_batch(u, none, shape.batch * shape.k, False),
    }


def kron(shape: Shape) -> Runs:
    """Return the contestants that encode with a dense encoder and with KronSAE's."""
    x = mixture(shape.batch, shape.width)
    made = {
        "TopK": build(TopKConfig(d_sae=shape.latents, k=shape.k), shape.width),
        "KronSAE": build(KronConfig(d_sae=shape.latents, k=shape.k, m=4, n=8), shape.width),
    }
    for sae in made.values():
        sae.requires_grad_(False).b_dec.copy_(x.mean(0))
    return {name: lambda sae=sae: sae.encode(x) for name, sae in made.items()}


def rows(what: str, runs: Runs, repeats: int) -> list[list[str]]:
    """Return the lines of the table. A ratio says how many times faster a contestant is than the first one."""
    times = by_turns(runs, repeats)
    first = next(iter(times.values()))
    found = []
    for name, own in times.items():
        wall, cpu = own.milliseconds()
        faster = first.over(own)
        part = (1 / ratio for ratio in faster)
        found.append([
            what, name, f"{wall:.1f}", f"{cpu:.1f}", *(f"{n:.1f}x" for n in faster), *(f"{n:.3f}" for n in part),
        ])  # fmt: skip
    return found


def main() -> None:
    parser = arguments(__doc__, default="768x8192 768x32768")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = []
    for width, latents in args.shapes:
        shape = Shape(width, latents)
        found += rows(f"per row, {shape.batch:,} x {latents:,}", per_row(shape), args.repeats)
        found += rows(f"per batch, {shape.batch:,} x {latents:,}", per_batch(shape), args.repeats)
    found += rows(f"encode, {KRON}", kron(KRON), args.repeats)
    print(heading("selection of k = 32", args.threads))
    header = [
        "what",
        "who",
        "wall ms",
        "CPU ms",
        "faster (wall)",
        "(CPU)",
        "of the first's time (wall)",
        "(CPU)",
    ]
    print(table(header, found))


if __name__ == "__main__":
    main()
