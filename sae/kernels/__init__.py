"""The operations whose speed decides training speed: one interface, a definition in plain torch, faster backends."""

from sae.kernels.autograd import (
    Pattern,
    Projection,
    decode,
    largest_ands,
    largest_of_batch,
    products_in,
    project,
    rows_of,
    strongest,
    top,
    where,
)
from sae.kernels.choice import BACKENDS, VARIABLE, WORTHWHILE, backend
from sae.kernels.collective import SINGLE_PROCESS, SingleProcess, collective, use_collective
from sae.kernels.gradients import RowGradient, gradients_by_row
from sae.kernels.reference import Moments, Pace

__all__ = [
    "BACKENDS",
    "SINGLE_PROCESS",
    "VARIABLE",
    "WORTHWHILE",
    "Moments",
    "Pace",
    "Pattern",
    "Projection",
    "RowGradient",
    "SingleProcess",
    "backend",
    "collective",
    "decode",
    "gradients_by_row",
    "largest_ands",
    "largest_of_batch",
    "products_in",
    "project",
    "rows_of",
    "strongest",
    "top",
    "use_collective",
    "where",
]
