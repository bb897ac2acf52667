"""Is the fast step the same step? Weights, choices and counters beside plain dense torch from the same start.

    python -m benchmarks.exact [--shapes 128x2048 576x8192] [--steps 6]
Both train on the same batches in float32: as it is, with the gradient clipped to a norm that every step's exceeds (1, the
default, is beyond what FVU's gradients have here), and with a tenth of all latents made to count as dead before every step.
Shown are the largest difference of any number in each parameter, how far training has moved a weight, entries chosen by one
side only out of all that were chosen (AuxK's too), and latents whose count of silent tokens differs after any step. Asked for
are differences of at most 5e-6, and none in choices and counters. Two pre-activations may be so close that rounding decides
between them, a few in a million rows; where it decides differently the comparison ends, since from then on the two learn from
different entries. The last column then says after how many steps, and how close the two were; --seed makes other batches. A single weight whose gradient is of the size of Adam's eps moves by what
rounding leaves of it: with seed 2 one of W_dec at 128 x 2,048 is 1.4e-5 apart, as far as plain float32 is from plain float64.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.naive import NaiveTopK
from benchmarks.timing import Shape, arguments, heading, mixture, table
from benchmarks.trained import silence, trainer
from sae.training.trainer import Trainer

LARGEST = 5e-6
TIE = 2e-6  # of pre-activations, relative: no more than weights 5e-6 apart make of them
CASES = ((0.0, 1.0), (0.0, 0.01), (0.1, 1.0))  # share of latents dead, largest norm of the gradient
PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_dec")


class Outcome(NamedTuple):
    """How far two trainers differ after they trained on the same batches."""

    apart: dict[str, float]
    """Largest difference, by parameter."""
    moved: float
    """Largest change of a weight of W_enc."""
    one_sided: int
    """Entries chosen by one of the two in the step at which the comparison ended."""
    chosen: int
    """Entries chosen by either, all steps together."""
    miscounted: int
    """Latents whose silent tokens differ after some step."""
    most_dead: int
    steps: int
    """Steps in which both chose the same entries."""
    gap: float
    """Largest relative distance between pre-activations that only one of the two chose; 0 if there are none."""

    @property
    def verdict(self) -> str:
        """Return "NO" if the trainers differ by more than rounding and ties explain, else "yes" with the number of steps."""
        if max(self.apart.values()) > LARGEST or self.miscounted or self.gap > TIE:
            return "NO"
        return f"yes, {self.steps} steps" + f", then a tie of {self.gap:.0e}" * (self.one_sided > 0)


def side_by_side(shape: Shape, steps: int, dead: float, clip_norm: float, seed: int = 0) -> Outcome:
    """Train both until the steps are done or they choose differently."""
    batches = mixture(steps * shape.batch, shape.width, seed).split(shape.batch)
    ours = trainer(shape, batches[0], clip_norm)
    naive, start = NaiveTopK(ours.sae, ours.cfg), _parameters(ours)["W_enc"].clone()
    one_sided = chosen = miscounted = most_dead = done = 0
    gap = 0.0
    for x in batches:
        if dead:
            for counter in (ours.history.silent_tokens, naive.silent_tokens):
                silence(counter, dead, ours)
        most_dead = max(most_dead, int(ours.history.dead.sum()))
        for mine, theirs, u in _choices(ours, naive, x):
            one_sided, chosen = one_sided + int((mine != theirs).sum()), chosen + int((mine | theirs).sum())
            gap = max(gap, _gap(mine != theirs, u))
        if one_sided:
            break
        ours.train_step(x, x)
        naive.train_step(x)
        done += 1
        miscounted += int((ours.history.silent_tokens != naive.silent_tokens).sum())
    own = _parameters(ours)
    apart = {name: (own[name] - getattr(naive, name).detach()).abs().max().item() for name in PARAMETERS}
    moved = (own["W_enc"] - start).abs().max().item()
    return Outcome(apart, moved, one_sided, chosen, miscounted, most_dead, done, gap)


@torch.no_grad()
def _choices(ours: Trainer, naive: NaiveTopK, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield which entries each trainer selects on a batch before it learns from it, [B, F] for ours and for the naive one,
    with the naive one's pre-activations; then the same for AuxK's selection, if there is one."""
    u = naive.pre_activations(x)
    yield ours.sae.training_code(x).dense() != 0, naive.latents(u) != 0, u
    dead = ours.history.dead
    if int(dead.sum()) > naive.aux_k:
        mine, theirs = ours.sae.activations_of(x, dead.nonzero()[:, 0]), u[:, dead].relu()
        yield _largest(mine, naive.aux_k), _largest(theirs, naive.aux_k), theirs


def _gap(one_sided: Tensor, u: Tensor) -> float:
    """Return the largest distance, over rows, between entries that one side alone chose, relative to the larger one;
    0 if there are none."""
    rows = one_sided.any(1)
    if not rows.any():
        return 0.0
    highest = u[rows].masked_fill(~one_sided[rows], -torch.inf).amax(1)
    lowest = u[rows].masked_fill(~one_sided[rows], torch.inf).amin(1)
    return ((highest - lowest) / highest.abs()).max().item()


def _largest(u: Tensor, k: int) -> Tensor:
    """Return which entries are positive and among the k largest of their row."""
    chosen = u.topk(k, dim=1, sorted=False).indices
    return torch.zeros_like(u, dtype=torch.bool).scatter(1, chosen, True) & (u > 0)


def _parameters(ours: Trainer) -> dict[str, Tensor]:
    """Return our SAE's parameters by name, with W_enc transposed to [F, D] as the naive trainer has it."""
    parameters = {name: tensor.detach() for name, tensor in ours.sae.named_parameters()}
    return {**parameters, "W_enc": parameters["W_enc"].T}


def main() -> None:
    parser = arguments(__doc__, default="128x2048 576x8192")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the batches")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for width, latents in args.shapes:
        for dead, clip_norm in CASES:
            found = side_by_side(Shape(width, latents), args.steps, dead, clip_norm, args.seed)
            rows.append([
                f"{width} x {latents:,}", f"{found.most_dead:,}", f"{clip_norm:g}", *(f"{found.apart[name]:.1e}" for name in PARAMETERS),
                f"{found.moved:.1e}", f"{found.one_sided} of {found.chosen:,}", f"{found.miscounted}",
                found.verdict,
            ])  # fmt: skip
    print(heading(f"{args.steps} steps of 2,048, k = 32", args.threads))
    header = [
        "shape",
        "dead",
        "clip",
        *PARAMETERS,
        "W_enc moved",
        "chosen by one side",
        "counters apart",
        "exact",
    ]
    print(table(header, rows))


if __name__ == "__main__":
    main()
