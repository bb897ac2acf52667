"""What the ranks that train one SAE tell each other within a step: each holds a part of the batch, or of the latents.

Losses and kernels ask `collective()` wherever a number is of the whole batch or of the whole dictionary. A process alone
has both whole, and everything here gives back what it was given. `sae.training.distributed` has the other answers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn


class SingleProcess:
    """No others. Each loss is such that the mean of the ranks' losses is the loss of the whole batch."""

    by_row: ClassVar[bool] = True
    """Whether large gradients may be kept as the rows that have one: `settle` does not need them whole."""

    def rows(self, own: int) -> int:
        """Rows of the whole batch, when `own` are here."""
        return own

    def mean_over_rows(self, mean: Tensor) -> Tensor:
        """Of a mean over the rows here that over all rows; outside the graph."""
        return mean

    def sum_over_rows(self, total: Tensor) -> Tensor:
        """Of a sum over the rows here that over all rows; outside the graph."""
        return total

    def max_over_rows(self, largest: Tensor) -> Tensor:
        """Of a maximum over the rows here that over all rows; outside the graph."""
        return largest

    def sum_over_latents(self, part: Tensor) -> Tensor:
        """Of what the latents here add up to what all do; each part's gradient is that of the sum."""
        return part

    def to_latents(self, common: Tensor) -> Tensor:
        """The same tensor, on its way to the latents: its gradient is the sum of what all of them ask."""
        return common

    def any(self, here: bool) -> bool:
        """Whether something is so on any rank."""
        return here

    def least(self, value: Tensor) -> Tensor:
        """The smallest of the ranks' values."""
        return value

    def largest_of_row(self, keys: Float[Tensor, "n m"], k: int) -> Bool[Tensor, "n m"] | None:
        """Which keys of a row are among the k largest of the row, latents elsewhere included. None: all of them, as
        no more than k were given. At most k in all; of equal ones those of the lower rank, then the earlier."""
        return None

    def largest_of_all(self, keys: Float[Tensor, "n"], k: int) -> Bool[Tensor, "n"] | None:
        """Which keys are among the k largest of the whole batch and dictionary; else as `largest_of_row`."""
        return None

    def settle(self, parameters: Iterable[nn.Parameter]) -> None:
        """After the backward pass: let each parameter's gradient be that of the whole loss."""

    def squares(self, found: dict[nn.Parameter, float]) -> float:
        """Of each parameter's squared gradient norm the sum, parts elsewhere included and nothing counted twice."""
        return sum(found.values())


SINGLE_PROCESS = SingleProcess()
_collective: ContextVar[SingleProcess] = ContextVar("collective", default=SINGLE_PROCESS)


def collective() -> SingleProcess:
    """Those to be asked now."""
    return _collective.get()


@contextmanager
def use_collective(asked: SingleProcess) -> Iterator[None]:
    """Within, `collective()` are these."""
    token = _collective.set(asked)
    try:
        yield
    finally:
        _collective.reset(token)
