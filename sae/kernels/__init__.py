"""The few operations whose speed decides training speed, each behind one name; `reference.py` defines them."""

from sae.kernels.reference import (
    Pattern,
    Projection,
    decode,
    largest_per_batch,
    largest_per_row,
    largest_varying,
    project,
    where,
)

__all__ = [
    "Pattern",
    "Projection",
    "decode",
    "largest_per_batch",
    "largest_per_row",
    "largest_varying",
    "project",
    "where",
]
