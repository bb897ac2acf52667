"""Whether the compiled loops (`loops.py`, numba) do the work, and how latents are shared out over threads.

They give to the bit what the plain torch beside each call gives, and are left out where numba is missing or the
work too small to be worth loading it."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from sae.kernels.threads import blocks_wanted, share

WORTHWHILE = 2**18  # firings, or pairs


def loops(work: int) -> Any:
    """The module of compiled loops for `work` firings, or None where plain torch is to do it."""
    return import_module("sae.features.loops") if work >= WORTHWHILE and _has_numba() else None


def by_latents(loop: Callable[..., None], starts: Tensor, *args: Any) -> None:
    """loop(lo, hi, starts, *args) for all latents, each by one thread of as many as torch uses; tensors as arrays.

    Blocks hold about equally many firings."""
    arrays = [arg.numpy() if isinstance(arg, Tensor) else arg for arg in (starts, *args)]
    n = len(starts) - 1
    targets = torch.linspace(0, float(starts[-1]), blocks_wanted() + 1)[1:-1].long()
    share(loop, [0, *torch.searchsorted(starts, targets).clamp_max(n).tolist(), n], *arrays)


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None
