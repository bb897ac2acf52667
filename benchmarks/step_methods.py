"""A training step of every method over TopK's, in float32 and with products in bfloat16, on the CPU.

    python -m benchmarks.step_methods                       # all methods at 576 x 8,192, one thread: read CPU times
    python -m benchmarks.step_methods --only batchtopk mfr --shapes 576x2048

Every method has its default settings but the number of latents, k = 32 where it has one, and no warm-up. Where a price
or a threshold decides how many latents fire, one number is first subtracted from all pre-activations so that 32 fire on a
row, as at the end of training: at its start half of all latents may fire. No latent is dead. All take the same batches of a
sparse mixture; each method's steps are taken by turns with TopK's, and times and ratios are medians of these rounds."""

import argparse
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import Shape, arguments, by_turns, endless, heading, table, turning
from sae.architectures import ARCHITECTURES, build
from sae.architectures.config import Selects
from sae.config import TrainConfig
from sae.training.trainer import Trainer


def trainer(name: str, shape: Shape, x: Tensor) -> Trainer:
    """Return a trainer of one method at its start, after what the module's docstring says of L0."""
    config = ARCHITECTURES[name].config
    k = {"k": shape.k} if "k" in config.__dataclass_fields__ else {}
    sae = build(config(d_sae=shape.latents, **k), shape.width)
    sae.initialise(x, x.mean(0), torch.Generator().manual_seed(0))
    if sae.cfg.selects() is Selects.ABOVE_OWN_THRESHOLDS:
        with torch.no_grad():
            over = sae.dense_pre_activations(x) - sae.thresholds()
        limit = over.flatten().topk(len(x) * shape.k).values[-1]
        sae.shift_pre_activations(-limit.expand(shape.latents))
    # weights stay where they are, and with them L0, on which the time of a step depends
    cfg = TrainConfig(steps=100_000, batch=shape.batch, lr=1e-12, warmup_steps=0)
    return Trainer(sae, cfg.resolved(0, sae.cfg))


def step(made: Trainer, precision: torch.dtype | None, x: Tensor) -> None:
    """Take one training step in a precision, with every latent counted as alive."""
    made.precision = precision
    made.history.silent_tokens.zero_()
    made.train_step(x, x)


def measure(shape: Shape, args: argparse.Namespace) -> None:
    """Time all methods at one shape and print their table."""
    batches = endless(shape)
    base = trainer("topk", shape, batches[0])
    rows = []
    for name in args.only:
        made = trainer(name, shape, batches[0])
        steps = {
            (who, precision): turning(partial(step, one, precision), batches)
            for who, one in (("topk", base), (name, made))
            for precision in (None, torch.bfloat16)
        }
        times = by_turns({str(key): run for key, run in steps.items()}, args.repeats)
        cells = [name]
        for precision in (None, torch.bfloat16):
            own, topk = (times[str((who, precision))] for who in (name, "topk"))
            wall, cpu = own.over(topk)
            cells += [f"{own.milliseconds()[1]:.0f}", f"{wall:.2f}", f"{cpu:.2f}"]
        rows.append(cells)
    header = ["method", "CPU ms", "x TopK (wall)", "x TopK (CPU)"]
    header += [f"{name}, bfloat16" for name in header[1:]]
    print(heading(shape, args.threads))
    print(table(header, rows), flush=True)


def main() -> None:
    parser = arguments(__doc__, default="576x8192")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--only", nargs="+", choices=[*ARCHITECTURES], default=[*ARCHITECTURES])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for width, latents in args.shapes:
        measure(Shape(width, latents, batch=args.batch), args)


if __name__ == "__main__":
    main()
