"""Change an SAE's form but not what it computes: fold biases and norms on reading, find a simpler architecture for writing.

All computations are float64; readers and writers round once, at the end."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from activations.errors import ForeignError
from sae.architectures import ARCHITECTURES, SAE, ArchConfig, name_of
from sae.architectures.config import Selects
from sae.architectures.shared import move_norms

S = TypeVar("S", bound=SAE)


def assemble(cfg: ArchConfig, tensors: Mapping[str, Tensor]) -> SAE:
    """Build an SAE from tensors, in float64, ready for folding and `finished`. Missing buffers are those of a new SAE."""
    return ARCHITECTURES[name_of(cfg)].from_tensors(cfg, tensors)


@torch.no_grad()
def fold_pre_bias(sae: SAE, subtracted: bool) -> list[str]:
    """Adapt the encoder's biases exactly, in place, where the file's encoder and ours disagree on subtracting b_dec from x.

    `subtracted` says whether the file's encoder does. Returns notes for the user."""
    if subtracted == sae.pre_bias or not sae.b_dec.any():
        return []
    sae.shift_pre_activations((1 if sae.pre_bias else -1) * (sae.b_dec @ sae.W_enc))
    theirs, ours = ("x", "x - b_dec") if sae.pre_bias else ("x - b_dec", "x")
    return [f"b_dec W_enc moved into the encoder's biases: the file's encoder reads {theirs}, ours {ours}"]


@torch.no_grad()
def fold_norms(sae: SAE, ranked_by_norm: bool = False) -> list[str]:
    """Scale decoder rows to norm 1 and latents by the norms, in place; reconstructions and firing latents stay the same.

    Where latents are chosen by rank, this holds only if the file ranks them by value times norm (`ranked_by_norm`) or all
    norms are equal; otherwise the rows keep their norms. They also do where all latents share one threshold. Returns notes
    for the user."""
    norms = sae.W_dec.norm(dim=1)
    least, most = norms.min().item(), norms.max().item()
    # norms of 1 up to rounding are left alone, so that the file's numbers come through unchanged
    ones = max(abs(least - 1), abs(most - 1)) < 1e-5
    if ones and not ranked_by_norm:
        return []
    note = f"decoder rows had norms from {least:.4g} to {most:.4g}"
    selects = sae.cfg.selects()
    if selects is Selects.ABOVE_ONE_THRESHOLD:
        return [f"{note} and keep them: which latents are above the threshold depends on them"]
    if selects is Selects.BY_RANK and not ranked_by_norm and most - least > 1e-6 * most:
        return [f"{note} and keep them: which latents are among the k largest depends on them"]
    move_norms(sae)
    return [] if ones else [f"{note}, now 1: latents are multiplied by the old norms"]


def finished(sae: SAE) -> SAE:
    """Return the SAE in float32, ready for use. Raises ForeignError when a value does not fit float32."""
    sae = sae.float().eval().requires_grad_(False)
    for name, tensor in sae.state_dict().items():
        if tensor.isnan().any() or (tensor == torch.inf).any():
            raise ForeignError(f"{name} has values beyond float32's range, in which SAEs are kept here")
    return sae


def refusal(sae: SAE, title: str, holds: str) -> ForeignError:
    """Return the error for an SAE that a format cannot hold; `holds` says what it can hold."""
    return ForeignError(
        f"{title} cannot compute what {name_of(sae.cfg)} does in use: {sae.cfg.rule}; it holds {holds}: choose another "
        f"format",
        fix="sae export --help",
    )


def forms(sae: SAE, split_signs: bool = False) -> Iterator[SAE]:
    """Yield the SAE, then ever simpler ones that compute the same in use.

    Forms with two latents for each signed one of this SAE are only included with `split_signs`."""
    form: SAE | None = sae
    while form is not None and (split_signs or form.d_sae == sae.d_sae):
        yield form
        form = form.simpler()


def form_of(sae: SAE, kind: type[S], split_signs: bool = False) -> S | None:
    """Return the first of `forms` that is of this class; None if none is."""
    return next((form for form in forms(sae, split_signs) if isinstance(form, kind)), None)


def notes_on(sae: SAE, n_latents: int) -> list[str]:
    """Return notes for the user on a form with n_latents latents that is written in place of the SAE, one line each."""
    F = sae.d_sae
    split = f"its latents are signed, which the format does not allow: each becomes two, j where it is positive and {F} + j where negative"
    return [split] if n_latents != F else []
