"""The geometric median of activations: a centre that a few huge rows do not pull away."""

from torch import Tensor


def geometric_median(x: Tensor, tolerance: float = 1e-5, steps: int = 100) -> Tensor:
    """The point [D] with the least summed Euclidean distance to the rows of x [n, D]; float32.

    Weiszfeld's fixed point from the mean, until a step moves less than `tolerance` times the rows' spread.
    A row the estimate falls on has its distance taken as tiny, not zero, so the result stays finite."""
    guess = x.mean(0)
    spread = (x - guess).norm(dim=1).mean()
    if not spread:
        return guess
    for _ in range(steps):
        weights = 1 / (x - guess).norm(dim=1).clamp_min(1e-6 * spread)
        new = (weights / weights.sum()) @ x
        moved = (new - guess).norm()
        guess = new
        if moved <= tolerance * spread:
            break
    return guess
