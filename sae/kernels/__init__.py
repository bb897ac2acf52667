"""The operations whose speed decides training speed: one interface, a definition in plain torch, faster backends."""

from sae.kernels.autograd import Pattern, Projection, decode, project, rows_of, where
from sae.kernels.choice import BACKENDS, VARIABLE, backend
from sae.kernels.gradients import RowGradient, gradients_by_row
from sae.kernels.reference import Moments, Pace

__all__ = [
    "BACKENDS",
    "VARIABLE",
    "Moments",
    "Pace",
    "Pattern",
    "Projection",
    "RowGradient",
    "backend",
    "decode",
    "gradients_by_row",
    "project",
    "rows_of",
    "where",
]
