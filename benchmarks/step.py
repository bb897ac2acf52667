"""One TopK training step against its floor, against plain torch and against the peers, on the CPU.

    python -m benchmarks.step --only ours                  # nothing else needed
    python -m benchmarks.step                              # all that is installed, one thread: read CPU times
    python -m benchmarks.step --threads 2 --repeats 9      # on a quiet machine: read wall times

The floor is the encoder's matrix product alone in float32, 2 B D F operations, into a buffer that is used again. Ours runs in
float32 and with products in bfloat16, which `--train.precision auto` chooses where they are faster. `naive torch` has the
same mathematics as ours (`naive.py`; exact.py and the tests hold the two together). Peers, in one environment of their own:
    pip install torch==2.13.0 numba safetensors jaxtyping sae-lens==6.54.12 eai-sparsify==1.3.3 \
        dictionary-learning==0.1.0 overcomplete==0.3.0 "matplotlib<3.9"
of which those that are missing are left out; run it there from the root of this project. overcomplete brings torchvision: beside
a CPU-only torch it must be the CPU build too, or none of the peers can be imported. All are given the same batches of
a sparse mixture, in one process: first the floor and ours by turns, then each of the others by turns with these two, whose
ratios are so of neighbouring rounds. Times and ratios are medians.

What a step is differs, and is each package's own default. Ours: clip, gradient tangent to decoder rows, Adam, unit norm,
AuxK when latents are dead, silent tokens and deaths of each latent. SAELens: clip, Adam, no decoder norm but all
pre-activations rescaled by it, AuxK (none dead in the first steps), firing statistics. sparsify: tangent gradient, unit
norm, no clip, no AuxK, schedule-free SignSGD. dictionary_learning: clip, tangent gradient, Adam, unit norm, AuxK (none
dead). overcomplete: clip, Adam, batch norm before the choice, decoder norm in the forward pass, no AuxK.
"""

import argparse
from functools import partial

import torch
from torch import Tensor

from benchmarks.naive import NaiveTopK
from benchmarks.peer_steps import PEERS, Make, Step
from benchmarks.timing import Shape, Times, arguments, by_turns, endless, heading, product, table, turning
from benchmarks.trained import silence, trainer
from sae.training.trainer import Trainer

FLOOR, OURS, LOW, NAIVE = "encoder's product", "ours", "ours, bfloat16", "naive torch"
DEAD = (0.01, 0.1, 0.5)


def ours(made: Trainer) -> dict[str, Step]:
    """Return our training steps by name: in each precision with no dead latents, and with each share in DEAD. They use one
    trainer, whose precision and counter of silent tokens are set before each step."""

    def step(x: Tensor, precision: torch.dtype | None, share: float) -> None:
        made.precision = precision
        silence(made.history.silent_tokens, share, made)
        made.train_step(x, x)

    return {
        name + (f", AuxK on {share:.0%} dead" if share else ""): partial(
            step, precision=precision, share=share
        )
        for name, precision in ((OURS, None), (LOW, torch.bfloat16))
        for share in (0.0, *DEAD)
    }


def others(made: Trainer, only: list[str] | None) -> dict[str, Make]:
    """Return makers of the other contestants' steps, by name. Each is made when its turn comes, because at the larger shape
    each takes gigabytes."""
    makers: dict[str, Make] = {NAIVE: lambda shape, x: NaiveTopK(made.sae, made.cfg).train_step, **PEERS}
    return {name: make for name, make in makers.items() if only is None or name in only}


def row(name: str, times: dict[str, Times]) -> list[str]:
    """Return a contestant's line of the table."""
    own = times[name]
    wall, cpu = own.milliseconds()
    beside = [*own.over(times[FLOOR]), *own.over(times[OURS])]
    return [name, f"{wall:.1f}", f"{cpu:.1f}", *(f"{ratio:.2f}" for ratio in beside)]


def measure(shape: Shape, args: argparse.Namespace) -> None:
    """Time one shape and print its table."""
    batches = endless(shape)
    made = trainer(shape, batches[0])
    base = {name: turning(step, batches) for name, step in {FLOOR: product(shape), **ours(made)}.items()}
    times = by_turns(base, args.repeats)
    rows, left_out = [row(name, times) for name in times], []
    for name, make in others(made, args.only).items():
        try:
            step = turning(make(shape, batches[0]), batches)
        except ImportError as error:
            left_out.append(f"left out: {name}, not installed ({error})")
            continue
        rows.append(row(name, by_turns({FLOOR: base[FLOOR], OURS: base[OURS], name: step}, args.repeats)))
    print(heading(shape, args.threads))
    header = ["step", "wall ms", "CPU ms", "x floor (wall)", "x floor (CPU)", "x ours (wall)", "x ours (CPU)"]
    print("\n".join([table(header, rows), *left_out]), flush=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    names = [OURS, NAIVE, *PEERS]
    parser.add_argument(
        "--only", nargs="+", choices=names, help="beside the floor and ours, which are always there"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for width, latents in args.shapes:
        measure(Shape(width, latents, args.k, args.batch), args)


if __name__ == "__main__":
    main()
