"""Exchange numbers among ranks that train one SAE; each rank holds a part of the batch, or a part of the latents.

Losses and kernels ask `collective()` wherever a number concerns the whole batch or the whole dictionary. A single process
holds both, so that everything here returns its argument. `sae.training.distributed` implements it for several ranks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn


class SingleProcess:
    """One process, which communicates with nobody.

    Each rank computes its loss so that the mean over the ranks is the loss of the whole batch."""

    by_row: ClassVar[bool] = True
    """Whether large gradients may be kept as the rows that have one, because `combine_gradients` needs no dense ones."""
    shares_latents: ClassVar[bool] = False
    """Whether each rank holds a part of the latents."""

    def rows(self, own: int) -> int:
        """Return the number of rows of the whole batch, of which `own` are on this rank."""
        return own

    def mean_over_rows(self, mean: Tensor) -> Tensor:
        """Average this rank's mean over all ranks. No gradient flows through it."""
        return mean

    def sum_over_rows(self, total: Tensor) -> Tensor:
        """Sum this rank's sum over all ranks. No gradient flows through it."""
        return total

    def max_over_rows(self, largest: Tensor) -> Tensor:
        """Return the maximum of this rank's maximum and all others'. No gradient flows through it."""
        return largest

    def sum_over_latents(self, part: Tensor) -> Tensor:
        """Sum what each rank's latents contribute. The gradient of every part is that of the sum."""
        return part

    def to_latents(self, common: Tensor) -> Tensor:
        """Return a tensor that all latents read. Its gradient is summed over the ranks' latents."""
        return common

    def any(self, here: bool) -> bool:
        """Return whether `here` is true on any rank."""
        return here

    def least(self, value: Tensor) -> Tensor:
        """Return the elementwise smallest of the ranks' values."""
        return value

    def largest_of_row(self, keys: Float[Tensor, "n m"], k: int) -> Bool[Tensor, "n m"] | None:
        """Return which keys are among the k largest of their row, counting the latents of all ranks. None means all of them.

        `keys` has at most k columns: this rank's own k largest. Of equal keys, those of the lower rank and then the
        earlier are kept, so that all ranks together keep at most k."""
        return None

    def largest_of_all(self, keys: Float[Tensor, "n"], k: int) -> Bool[Tensor, "n"] | None:
        """Return which keys are among the k largest of the whole batch and dictionary; see `largest_of_row`."""
        return None

    def combine_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Turn each parameter's gradient into that of the whole batch's loss, after the backward pass."""

    def squares(self, by_parameter: dict[nn.Parameter, float]) -> float:
        """Sum the parameters' squared gradient norms over all ranks, counting nothing twice."""
        return sum(by_parameter.values())


SINGLE_PROCESS = SingleProcess()
_collective: ContextVar[SingleProcess] = ContextVar("collective", default=SINGLE_PROCESS)


def collective() -> SingleProcess:
    """Return the process group that the current training step communicates with."""
    return _collective.get()


@contextmanager
def use_collective(ranks: SingleProcess) -> Iterator[None]:
    """Let `collective()` return these ranks inside the `with` block."""
    token = _collective.set(ranks)
    try:
        yield
    finally:
        _collective.reset(token)
