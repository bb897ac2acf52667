"""Measure how a training step grows with F, B and k, beside the encoder's matrix product, which grows with B F alone.

    python -m benchmarks.scaling [--repeats 5] [--threads 1] [--largest 65536]
The SAE is a TopK at D = 576, F = 8,192, k = 32, B = 2,048, with one of F, B and k changed at a time. Step and product take
turns; times are medians over rounds. The last columns show the cost of a token, and its ratio to the line before. The
product's share of a step should grow with F, and k should cost little as long as B k D is small beside B F D.
"""

import argparse

import torch

from benchmarks.timing import Shape, by_turns, endless, heading, product, table, turning
from benchmarks.trained import trainer

BASE = Shape(576, 8192)
STEP, FLOOR = "step", "product"
TABLES = {
    "F": [BASE._replace(latents=latents) for latents in (2048, 4096, 8192, 16384, 32768, 65536)],
    "B": [BASE._replace(batch=batch) for batch in (512, 1024, 2048, 4096, 8192)],
    "k": [BASE._replace(k=k) for k in (8, 16, 32, 64, 128)],
}


def measure(shape: Shape, repeats: int) -> list[float]:
    """Return wall and CPU time of one step and of the product in ms, their ratios, and the CPU time per token in us."""
    batches = endless(shape)
    made = trainer(shape, batches[0])
    steps = {FLOOR: product(shape), STEP: lambda x: made.train_step(x, x)}
    times = by_turns({name: turning(step, batches) for name, step in steps.items()}, repeats)
    cpu = times[STEP].milliseconds()[1]
    found = [*times[FLOOR].milliseconds(), *times[STEP].milliseconds(), *times[STEP].over(times[FLOOR])]
    return [*found, 1e3 * cpu / shape.batch]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument(
        "--threads", type=int, default=1, help="1: read CPU times; more: wall, on a quiet machine"
    )
    parser.add_argument("--largest", type=int, default=65536, help="F")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    header = [
        "",
        "product ms",
        "CPU ms",
        "step ms",
        "CPU ms",
        "x product",
        "by CPU",
        "CPU us a token",
        "x line before",
    ]
    for name, shapes in TABLES.items():
        rows, before = [], None
        for shape in shapes:
            if shape.latents > args.largest:
                continue
            *most, ratio, ratio_cpu, token = measure(shape, args.repeats)
            value = {"F": shape.latents, "B": shape.batch, "k": shape.k}[name]
            grown = f"{token / before:.2f}" if before else ""
            times = [f"{number:.1f}" for number in most]
            rows.append(
                [f"{name} = {value:,}", *times, f"{ratio:.2f}", f"{ratio_cpu:.2f}", f"{token:.1f}", grown]
            )
            before = token
        print(heading(f"growing {name} from {BASE}", args.threads))
        print(table(header, rows), flush=True)


if __name__ == "__main__":
    main()
