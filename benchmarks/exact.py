"""Is the fast step the same step? Weights, choices and counters beside plain dense torch from the same start.

    python -m benchmarks.exact [--shapes 128x2048 576x8192] [--steps 6]
Both train on the same batches in float32: as it is, with the gradient clipped to a norm that every step's exceeds (1, the
default, is beyond what FVU's gradients have here), and with a tenth of all latents made to count as dead before every step.
Shown are the largest difference of any number in each parameter, how far training has moved a weight, entries chosen by one
side only out of all that were chosen (AuxK's too), and latents whose count of silent tokens differs after any step. Asked for
are differences of at most 5e-6, and none in choices and counters. Two pre-activations may be so close that rounding decides
between them: where it decides differently, the two part by what one entry teaches (some 1e-5), and the line says "but for ties".
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.naive import NaiveTopK
from benchmarks.timing import Shape, arguments, heading, mixture, table
from benchmarks.trained import silence, trainer
from sae.training.trainer import Trainer

LARGEST, OF_A_TIE = 5e-6, 1e-4
CASES = ((0.0, 1.0), (0.0, 0.01), (0.1, 1.0))  # share of latents dead, largest norm of the gradient
PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_dec")


class Outcome(NamedTuple):
    """What has become of two trainers."""

    apart: dict[str, float]
    """Largest difference, by parameter."""
    moved: float
    """Largest change of a weight of W_enc."""
    one_sided: int
    """Entries chosen by one of the two, all steps together."""
    chosen: int
    """Entries chosen by either."""
    miscounted: int
    """Latents whose silent tokens differ after some step."""
    most_dead: int

    @property
    def verdict(self) -> str:
        """Whether it is what is asked for."""
        apart = max(self.apart.values())
        if apart <= LARGEST and self.one_sided == self.miscounted == 0:
            return "yes"
        ties = 0 < self.one_sided < 1e-4 * self.chosen and apart < OF_A_TIE
        return "but for ties" if ties else "NO"


def side_by_side(shape: Shape, steps: int, dead: float, clip_norm: float) -> Outcome:
    """Train both."""
    batches = mixture(steps * shape.batch, shape.width).split(shape.batch)
    ours = trainer(shape, batches[0], clip_norm)
    naive, start = NaiveTopK(ours.sae, ours.cfg), _parameters(ours)["W_enc"].clone()
    one_sided = chosen = miscounted = most_dead = 0
    for x in batches:
        if dead:
            for counter in (ours.history.silent_tokens, naive.silent_tokens):
                silence(counter, dead, ours)
        most_dead = max(most_dead, int(ours.history.dead.sum()))
        for mine, theirs in _choices(ours, naive, x):
            one_sided, chosen = one_sided + int((mine != theirs).sum()), chosen + int((mine | theirs).sum())
        ours.train_step(x, x)
        naive.train_step(x)
        miscounted += int((ours.history.silent_tokens != naive.silent_tokens).sum())
    own = _parameters(ours)
    theirs = {name: getattr(naive, name).detach() for name in PARAMETERS}
    apart = {name: (own[name] - theirs[name]).abs().max().item() for name in PARAMETERS}
    return Outcome(apart, (own["W_enc"] - start).abs().max().item(), one_sided, chosen, miscounted, most_dead)


@torch.no_grad()
def _choices(ours: Trainer, naive: NaiveTopK, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What each of the two lets fire on a batch before it learns from it, [B, F], and AuxK's choice if it makes one."""
    yield ours.sae.training_code(x).dense() != 0, naive.latents(naive.pre_activations(x)) != 0
    dead = ours.history.dead
    if int(dead.sum()) > naive.aux_k:
        mine, theirs = (
            ours.sae.activations_of(x, dead.nonzero()[:, 0]),
            naive.pre_activations(x)[:, dead].relu(),
        )
        yield _largest(mine, naive.aux_k), _largest(theirs, naive.aux_k)


def _largest(u: Tensor, k: int) -> Tensor:
    """Which entries are positive and among the k largest of their row."""
    chosen = u.topk(k, dim=1, sorted=False).indices
    return torch.zeros_like(u, dtype=torch.bool).scatter(1, chosen, True) & (u > 0)


def _parameters(ours: Trainer) -> dict[str, Tensor]:
    """By name; W_enc as the naive one has it, [F, D]."""
    found = {name: tensor.detach() for name, tensor in ours.sae.named_parameters()}
    return {**found, "W_enc": found["W_enc"].T}


def main() -> None:
    parser = arguments(__doc__, default="128x2048 576x8192")
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for width, latents in args.shapes:
        for dead, clip_norm in CASES:
            found = side_by_side(Shape(width, latents), args.steps, dead, clip_norm)
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
