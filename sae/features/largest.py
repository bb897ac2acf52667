"""The few largest entries of wide rows, without torch.topk's look at everything."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

MEMBERS = 32  # entries a group
WORTHWHILE = 16  # groups for each entry sought, below which a plain top-k is as fast


class Largest(NamedTuple):
    """The n largest entries of each row, falling."""

    values: Float[Tensor, "B n"]
    indices: Int[Tensor, "B n"]


def largest(x: Float[Tensor, "B C"], n: int) -> Largest:
    """Exactly what torch.topk(x, n, dim=1) finds; n at most C.

    A row is cut into groups {j, j + S, j + 2 S, …}. The n groups whose largest entries are largest hold a top n, since
    an entry of it outside them would have n larger ones above it, one in each. The rest of a row that makes no
    whole group is looked at too."""
    B, C = x.shape
    S = C // MEMBERS
    if WORTHWHILE * n > S:
        return Largest(*x.topk(n, dim=1))
    whole = S * MEMBERS
    groups = x[:, :whole].view(B, MEMBERS, S).amax(1).topk(n, dim=1, sorted=False).indices
    members = (groups[:, :, None] + S * torch.arange(MEMBERS, device=x.device)).flatten(1)
    rest = torch.arange(whole, C, device=x.device).expand(B, -1)
    places = torch.cat([members, rest], 1)
    values, chosen = x.gather(1, places).topk(n, dim=1)
    return Largest(values, places.gather(1, chosen))
