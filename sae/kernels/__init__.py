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
from sae.kernels.gradients import RowGradient, gradients_by_row
from sae.kernels.others import ALONE, Alone, among, others
from sae.kernels.reference import Moments, Pace

__all__ = [
    "ALONE",
    "BACKENDS",
    "VARIABLE",
    "WORTHWHILE",
    "Alone",
    "Moments",
    "Pace",
    "Pattern",
    "Projection",
    "RowGradient",
    "among",
    "backend",
    "decode",
    "gradients_by_row",
    "largest_ands",
    "largest_of_batch",
    "others",
    "products_in",
    "project",
    "rows_of",
    "strongest",
    "top",
    "where",
]
