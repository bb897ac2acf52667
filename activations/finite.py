"""Where numbers are NaN or infinite: the document and token to look at, for whoever must refuse them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.tokens import NOWHERE


def place_of_none(
    x: Float[Tensor, "n T D"], documents: Int[Tensor, "n T"], positions: Int[Tensor, "n T"]
) -> str | None:
    """In words, the first row of some windows with a number that is NaN or infinite; None where there is none.

    All documents of the window are named: through attention one of them spoils the others."""
    # the extremes pass NaN on; asking them is far faster than asking each number
    if not x.numel() or torch.stack(x.aminmax()).isfinite().all():
        return None
    window, column = (~x.isfinite().all(-1)).nonzero()[0].tolist()
    there = [document for document in documents[window].unique().tolist() if document != NOWHERE]
    if not there:
        return f"place {column} of a window of no document"
    among = "" if len(there) == 1 else f", in a window of documents {there[0]} to {there[-1]}"
    document, position = int(documents[window, column]), int(positions[window, column])
    if document == NOWHERE:  # a BOS, or padding
        return f"place {column} of a window of document {there[0]}" if not among else f"place {column}{among}"
    return f"token {position} of document {document}{among}"
