"""Parts of an SAE that training keeps as they started: the controls of Korznikov et al. 2026, "Sanity Checks for Sparse
Autoencoders", arXiv:2602.14111."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from activations.errors import ConfigError
from sae.architectures import SAE, name_of
from sae.config import FrozenPart

LEAST_COSINE = 0.8  # of a soft-frozen decoder row with its start, as in the paper
SOFT = "frozen.W_dec"  # in a checkpoint: the start of a soft-frozen decoder


class Frozen:
    """A part of an SAE that stays at its start, or near it.

    It must be made when the SAE has its first weights, or before `restore`, which brings those back."""

    def __init__(self, sae: SAE, part: FrozenPart):
        """Stop the gradients of what stays as it is. Raises ConfigError when the method has no such part of its own."""
        refuse(sae, part)
        self.start = sae.W_dec.detach().clone() if part == "soft-decoder" else None
        for name in _held(sae, part):
            sae.get_parameter(name).requires_grad_(False)

    @torch.no_grad()
    def after_step(self, sae: SAE) -> None:
        """Move soft-frozen decoder rows back into their cones. What is frozen altogether has not moved."""
        if self.start is not None:
            sae.W_dec.copy_(within_cone(sae.W_dec, self.start))

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs; frozen weights themselves are among those of the SAE."""
        return {} if self.start is None else {SOFT: self.start}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        if self.start is not None:
            self.start = tensors[SOFT].to(self.start.device)


def refuse(sae: SAE, part: FrozenPart) -> None:
    """Raise ConfigError when this part of the SAE cannot be frozen while the rest learns."""
    names = dict(sae.named_parameters())
    if "W_dec" not in names or (part == "encoder" and not _held(sae, part)):
        raise ConfigError(
            f"train.frozen = {part}: encoder and decoder of {name_of(sae.cfg)} are tied with these settings, so that neither "
            f"can be frozen alone"
        )


def within_cone(
    rows: Float[Tensor, "F D"], start: Float[Tensor, "F D"], least: float = LEAST_COSINE
) -> Float[Tensor, "F D"]:
    """Return the rows, those whose cosine with their start is below `least` turned towards it until it is `least`.

    Norms stay. A row that points away from its start along the same line has no direction to turn in and becomes its start."""
    norms = rows.norm(dim=1, keepdim=True)
    unit, axis = normalize(rows, dim=1), normalize(start, dim=1)
    cosines = (unit * axis).sum(1, keepdim=True)
    across = normalize(unit - cosines * axis, dim=1)
    turned = normalize(least * axis + (1 - least**2) ** 0.5 * across, dim=1)
    return torch.where(cosines < least, norms * turned, rows)


def _held(sae: SAE, part: FrozenPart) -> list[str]:
    """Return the names of the parameters that do not move. Of an encoder these are its matrices: the biases and thresholds set how
    many latents fire, so that with them frozen too the control would not have the run's L0."""
    if part == "decoder":
        return ["W_dec"]
    if part == "soft-decoder":
        return []
    return [name for name, p in sae.named_parameters() if p.dim() > 1 and name != "W_dec"]
