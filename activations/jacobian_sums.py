"""Sums over rows from which a mean Jacobian is solved: by least squares, shrunk towards a tuned lens."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-3  # of the tuned lens, as a share of the mean variance of a coordinate
LEAST_RESPONSE = 1e-6  # of a batch's median response: a smaller one is rounding


class Solution(NamedTuple):
    """What `Sums.solve` finds; `JacobianRecord` explains the two shares."""

    matrix: Float[Tensor, "N D"]
    explained: float
    measured_share: float


class Sums:
    """Sums over rows of changes with the responses to them, and of activations with what the head reads, both in float64."""

    def __init__(self, n_in: int, n_out: int):
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        self.changes, self.products, self.squares = zeros(n_in, n_in), zeros(n_out, n_in), zeros()
        self.x_sum, self.read_sum = zeros(n_in), zeros(n_out)
        self.xx, self.read_x = zeros(n_in, n_in), zeros(n_out, n_in)
        self.rows, self.batches = torch.zeros(2, dtype=torch.int64)

    def add(
        self,
        change: Float[Tensor, "B D"],
        response: Float[Tensor, "B N"],
        x: Float[Tensor, "B D"],
        read: Float[Tensor, "B N"],
    ) -> None:
        """Add the rows of one batch. A pair of change and response weighs less the larger the response: 1 / |response|.

        Rows that do not respond at all are left out, such as rows of zeros, or a query that sees one key alone."""
        change, response, x, read = (part.double().cpu() for part in (change, response, x, read))
        sizes = response.norm(dim=1)
        responds = sizes > LEAST_RESPONSE * sizes.median()
        change, response, x, read = (part[responds] for part in (change, response, x, read))
        # A few rows respond many times as strongly as others, and would decide what the mean is
        weights = sizes[responds, None].rsqrt()
        change, response = change * weights, response * weights
        self.changes += change.T @ change
        self.products += response.T @ change
        self.squares += response.square().sum()
        self.x_sum += x.sum(0)
        self.read_sum += read.sum(0)
        self.xx += x.T @ x
        self.read_x += read.T @ x
        self.rows += len(change)
        self.batches += 1

    def solve(self) -> Solution:
        """Return the least-squares map J from changes to responses, shrunk towards c times the tuned lens A.

        c is the factor with which A predicts the responses best, and the weight of J is t / (t + v): v is the sampling variance of J,
        summed over its entries, and t is |J - c A|² less v (James & Stein's estimator with its variance estimated). Needs more rows
        than coordinates."""
        n, free = int(self.rows), int(self.rows) - len(self.changes)
        measured = torch.linalg.solve(self.changes, self.products.T).T
        left = float((self.squares - (measured * self.products).sum()).clamp_min(0))
        variance = left / free * float(torch.linalg.inv(self.changes).trace())
        tuned = self._tuned()
        size = float(((tuned @ self.changes) * tuned).sum())
        towards = tuned * (float((tuned * self.products).sum()) / size if size else 0.0)
        apart = max(float((measured - towards).square().sum()) - variance, 0.0)
        share = apart / (apart + variance) if apart + variance else 1.0
        explained = 1 - left / float(self.squares) * n / free if self.squares > 0 else 0.0
        return Solution(towards + share * (measured - towards), explained, share)

    def _tuned(self) -> Float[Tensor, "N D"]:
        """Return the map from centred activations to the head's centred input, by least squares with a small ridge."""
        xx = self.xx - torch.outer(self.x_sum, self.x_sum) / self.rows
        read_x = self.read_x - torch.outer(self.read_sum, self.x_sum) / self.rows
        ridge = (RIDGE * xx.diagonal().mean()).clamp_min(1e-300)
        return torch.linalg.solve(xx + ridge * torch.eye(len(xx), dtype=xx.dtype), read_x.T).T
