"""dictionary_learning's classes: the state dict of each as an SAE of ours, and ours as theirs."""

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from activations.errors import ForeignError
from sae.architectures import (
    SAE,
    BatchTopK,
    BatchTopKConfig,
    Gated,
    GatedConfig,
    JumpReLU,
    JumpReLUConfig,
    Matryoshka,
    MatryoshkaConfig,
    ReLU,
    ReLUConfig,
    TopK,
    TopKConfig,
)
from sae.foreign import exact_forms
from sae.foreign.weights import Weights, assemble, fold_norms, fold_pre_bias

HOLDS = "ReLU, gated, TopK, BatchTopK, Matryoshka and JumpReLU SAEs"


class Content:
    """A state dict, its whole numbers apart, and the trainer's settings."""

    def __init__(self, file: Path, content: dict[str, Any], trainer: dict[str, Any]):
        numbers = {name: content[name] for name in ("k", "group_sizes") if name in content}
        self.file, self.trainer, self.numbers = file, trainer, numbers
        self.weights = Weights(file, {name: t for name, t in content.items() if name not in numbers})

    @property
    def k(self) -> int:
        """Of the state dict or the settings. Raises ForeignError when they differ or neither has one."""
        said = {
            _whole(source["k"], "k", self.file) for source in (self.numbers, self.trainer) if "k" in source
        }
        if len(said) != 1:
            found = f"says k = {' and '.join(map(str, sorted(said)))}" if said else "does not say k"
            raise ForeignError(f"{self.file} with its config.json {found}: one number is needed")
        return said.pop()

    def linear(self, bias: str) -> dict[str, Tensor]:
        """W_enc, b_enc, W_dec and b_dec out of a pair of nn.Linear and the vector of this name."""
        encoder = self.weights.take("encoder.weight", None, None)
        n, d = encoder.shape
        return {
            "W_enc": encoder.T,
            "b_enc": self.weights.take("encoder.bias", n),
            "W_dec": self.weights.take("decoder.weight", d, n).T,
            "b_dec": self.weights.take(bias, d),
        }

    def parameters(self) -> dict[str, Tensor]:
        """W_enc, b_enc, W_dec and b_dec under their own names."""
        encoder = self.weights.take("W_enc", None, None)
        d, n = encoder.shape
        shapes = {"b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
        return {"W_enc": encoder} | {name: self.weights.take(name, *shape) for name, shape in shapes.items()}


def _relu(content: Content, bias: str, subtracted: bool) -> tuple[SAE, list[str]]:
    tensors = content.linear(bias)
    content.weights.done()
    sae = assemble(ReLUConfig(d_sae=len(tensors["b_enc"])), tensors)
    return sae, fold_pre_bias(sae, subtracted) + fold_norms(sae)


def _gated(content: Content) -> tuple[SAE, list[str]]:
    take = content.weights.take
    encoder = take("encoder.weight", None, None)
    n, d = encoder.shape
    tensors = {
        "W_enc": encoder.T,
        "b_enc": take("gate_bias", n),
        "W_dec": take("decoder.weight", d, n).T,
        "b_dec": take("decoder_bias", d),
        "r_mag": take("r_mag", n),
        "b_mag": take("mag_bias", n),
    }
    content.weights.done()
    sae = assemble(GatedConfig(d_sae=n), tensors)
    return sae, fold_norms(sae)


def _topk(content: Content) -> tuple[SAE, list[str]]:
    tensors = content.linear("b_dec" if "b_dec" in content.weights else "bias")  # its name in older files
    content.weights.drop("threshold")  # an option of theirs; encoding takes the k largest
    content.weights.done()
    sae = assemble(TopKConfig(d_sae=len(tensors["b_enc"]), k=content.k), tensors)
    return sae, fold_norms(sae)


def _batchtopk(content: Content) -> tuple[SAE, list[str]]:
    tensors = content.linear("b_dec")
    tensors["threshold"], notes = _threshold(content)
    sae = assemble(BatchTopKConfig(d_sae=len(tensors["b_enc"]), k=content.k), tensors)
    return sae, notes + fold_norms(sae)


def _matryoshka(content: Content) -> tuple[SAE, list[str]]:
    tensors = content.parameters()
    tensors["threshold"], notes = _threshold(content)
    n, sizes = len(tensors["b_enc"]), content.numbers.get("group_sizes")
    if not isinstance(sizes, Tensor) or sizes.ndim != 1 or sizes.is_floating_point() or len(sizes) > n:
        raise ForeignError(f"{content.file}: group_sizes is no list of the sizes of groups")
    if (sizes < 1).any() or int(sizes.sum()) != n:
        raise ForeignError(
            f"{content.file}: group_sizes add up to {int(sizes.sum())} or have one below 1, needed are the {n} latents"
        )
    prefixes = tuple(end / n for end in accumulate(sizes.tolist()))
    sae = assemble(MatryoshkaConfig(d_sae=n, k=content.k, prefixes=prefixes), tensors)
    return sae, notes + fold_norms(sae)


def _jumprelu(content: Content) -> tuple[SAE, list[str]]:
    tensors = content.parameters()
    n = len(tensors["b_enc"])
    # a ReLU follows the comparison, so that a threshold below 0 is one of 0
    tensors["log_threshold"] = content.weights.take("threshold", n).clamp_min(0).log()
    content.weights.done()
    sae = assemble(JumpReLUConfig(d_sae=n), tensors)
    return sae, fold_pre_bias(sae, subtracted=False) + fold_norms(sae)


def _threshold(content: Content) -> tuple[Tensor, list[str]]:
    """Of a file whose latents fire above one number."""
    threshold = content.weights.take("threshold")
    content.weights.done()
    if threshold >= 0:
        return threshold, []
    return torch.zeros_like(threshold), [
        "its threshold was never set: every positive latent fires, as it does there"
    ]


READERS: dict[str, Callable[[Content], tuple[SAE, list[str]]]] = {
    "AutoEncoder": lambda content: _relu(content, "bias", subtracted=True),
    "AutoEncoderNew": lambda content: _relu(content, "decoder.bias", subtracted=False),
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batchtopk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}


def number_of(value: Any) -> Any:
    """Of a tensor of one number that number; else the value."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 and _is_real(value) else value


def _is_real(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout is torch.strided


def _whole(value: Any, name: str, file: Path) -> int:
    number = number_of(value)
    if type(number) is not int or number < 1:
        found = repr(number) if isinstance(number, int | float | str | None) else f"a {type(number).__name__}"
        raise ForeignError(f"{file}: {name} is {found}, needed is a whole number of at least 1")
    return number


@torch.no_grad()
def held(sae: SAE) -> tuple[str, dict[str, Tensor]]:
    """The class that holds an SAE, and its state dict."""
    for form in exact_forms.forms(sae, split_signs=True):
        b_dec = form.b_dec.float()
        match form:
            case ReLU():
                shifted = form.b_enc.double() + form.b_dec.double() @ form.W_enc.double()
                return "AutoEncoder", {**_linear(form.W_enc, shifted, form.W_dec), "bias": b_dec}
            case Gated():
                linear = _linear(form.W_enc, form.b_enc, form.W_dec)
                biases = {"gate_bias": linear.pop("encoder.bias"), "mag_bias": form.b_mag.float()}
                return "GatedAutoEncoder", {
                    **linear,
                    **biases,
                    "decoder_bias": b_dec,
                    "r_mag": form.r_mag.float(),
                }
            case JumpReLU():
                return "JumpReluAutoEncoder", {**_parameters(form), "threshold": form.thresholds().float()}
            case Matryoshka():
                sizes = torch.tensor(form.cfg.ends).diff(prepend=torch.zeros(1, dtype=torch.int64))
                rule = _rule(form.cfg.k, form.threshold)
                return "MatryoshkaBatchTopKSAE", {**_parameters(form), **rule, "group_sizes": sizes}
            case TopK():
                linear = _linear(form.W_enc, form.b_enc, form.W_dec)
                return "AutoEncoderTopK", {**linear, "b_dec": b_dec, **_rule(form.cfg.k, torch.tensor(-1.0))}
            case BatchTopK():
                linear = _linear(form.W_enc, form.b_enc, form.W_dec)
                return "BatchTopKSAE", {**linear, "b_dec": b_dec, **_rule(form.cfg.k, form.threshold)}
    raise exact_forms.refusal(sae, "dictionary_learning", HOLDS)


def _parameters(sae: SAE) -> dict[str, Tensor]:
    return {name: getattr(sae, name).float() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def _linear(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> dict[str, Tensor]:
    return {
        "encoder.weight": W_enc.T.float(),
        "encoder.bias": b_enc.float(),
        "decoder.weight": W_dec.T.float(),
    }


def _rule(k: float, threshold: Tensor) -> dict[str, Tensor]:
    """k, a whole number there, which of a threshold's SAE only training uses; and the threshold, -1 for none."""
    return {"k": torch.tensor(max(1, round(k)), dtype=torch.int32), "threshold": threshold.float()}
