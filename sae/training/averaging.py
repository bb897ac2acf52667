"""A running mean of an SAE's weights: what a run with `train.ema` saves.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, appendix A."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae.architectures import SAE

PREFIX = "average."


class Average:
    """An exponential moving average of the parameters over the steps taken; the initial weights do not count.

    After t steps the weights of step s count (1 - rate) rate^(t - s) / (1 - rate^t). The average is therefore not biased
    towards its start, as Adam's corrected moments are not, and for about 1 / (1 - rate) steps it is close to a plain mean."""

    def __init__(self, sae: SAE, rate: float):
        self.rate = rate
        self.values = {name: torch.zeros_like(p) for name, p in _parameters(sae).items()}

    @torch.no_grad()
    def add(self, sae: SAE, step: int) -> None:
        """Add the weights after a step; the first step is number 1."""
        share = (1 - self.rate) / (1 - self.rate**step)
        for name, parameter in _parameters(sae).items():
            self.values[name].lerp_(parameter, share)

    @torch.no_grad()
    def put_into(self, sae: SAE) -> None:
        """Copy the average into the SAE, with decoder rows normalised where training keeps them at norm 1."""
        for name, parameter in _parameters(sae).items():
            parameter.copy_(self.values[name])
        if sae.unit_norm_decoder:
            sae.W_dec.copy_(normalize(sae.W_dec, dim=1))
        sae.refresh()

    def tensors(self, sae: SAE) -> dict[str, Tensor]:
        """Return what a checkpoint needs beside the averaged SAE: the averages, and the weights as training has them."""
        units = {f"units.{name}": tensor for name, tensor in _parameters(sae).items()}
        return units | {PREFIX + name: value for name, value in self.values.items()}

    @torch.no_grad()
    def restore(self, sae: SAE, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned, including the SAE's weights."""
        for name, parameter in _parameters(sae).items():
            parameter.copy_(tensors[f"units.{name}"])
            self.values[name].copy_(tensors[PREFIX + name])
        sae.refresh()


def _parameters(sae: SAE) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in sae.named_parameters()}
