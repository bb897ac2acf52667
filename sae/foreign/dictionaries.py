"""Convert the state dicts of dictionary_learning's classes to SAEs of ours and back."""

from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path

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
from sae.foreign.exact_forms import assemble, fold_norms, fold_pre_bias, forms, refusal
from sae.foreign.weights import Settings, Weights

HOLDS = "ReLU, gated, TopK, BatchTopK, Matryoshka and JumpReLU SAEs"


class Content:
    """A state dict, with its integers apart from its weights, and the trainer's settings."""

    def __init__(self, file: Path, content: Mapping[str, object], trainer: Settings):
        numbers = {name: content[name] for name in ("k", "group_sizes") if name in content}
        self.file, self.trainer, self.numbers = file, trainer, numbers
        self.weights = Weights(file, {name: t for name, t in content.items() if name not in numbers})

    @property
    def k(self) -> int:
        """k, by the state dict or the settings. Raises ForeignError when they differ or neither gives it."""
        values = {
            _positive_integer(source["k"], "k", self.file)
            for source in (self.numbers, self.trainer)
            if "k" in source
        }
        if len(values) != 1:
            problem = f"gives k = {' and '.join(map(str, sorted(values)))}" if values else "does not give k"
            raise ForeignError(f"{self.file} with its config.json {problem}, expected one number")
        return values.pop()

    def linear(self, bias: str) -> dict[str, Tensor]:
        """Take W_enc, b_enc, W_dec and b_dec from a pair of nn.Linear and the decoder bias of this name."""
        encoder = self.weights.take("encoder.weight", None, None)
        n, d = encoder.shape
        return {
            "W_enc": encoder.T,
            "b_enc": self.weights.take("encoder.bias", n),
            "W_dec": self.weights.take("decoder.weight", d, n).T,
            "b_dec": self.weights.take(bias, d),
        }

    def parameters(self) -> dict[str, Tensor]:
        """Take W_enc, b_enc, W_dec and b_dec, which the file has under these names."""
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
    tensors = content.linear("b_dec" if "b_dec" in content.weights else "bias")  # "bias" in older files
    content.weights.drop("threshold")  # used there on request only; by default encoding takes the k largest
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
        raise ForeignError(f"{content.file}: group_sizes is not a list of the sizes of groups")
    if (sizes < 1).any() or int(sizes.sum()) != n:
        raise ForeignError(
            f"{content.file}: group_sizes add up to {int(sizes.sum())} or have one below 1, expected a sum of {n} latents"
        )
    prefixes = tuple(end / n for end in accumulate(sizes.tolist()))
    sae = assemble(MatryoshkaConfig(d_sae=n, k=content.k, prefixes=prefixes), tensors)
    return sae, notes + fold_norms(sae)


def _jumprelu(content: Content) -> tuple[SAE, list[str]]:
    tensors = content.parameters()
    n = len(tensors["b_enc"])
    # a ReLU follows the comparison, so a threshold below 0 acts as 0
    tensors["log_threshold"] = content.weights.take("threshold", n).clamp_min(0).log()
    content.weights.done()
    sae = assemble(JumpReLUConfig(d_sae=n), tensors)
    return sae, fold_pre_bias(sae, subtracted=False) + fold_norms(sae)


def _threshold(content: Content) -> tuple[Tensor, list[str]]:
    """Take the one threshold of all latents, and return it with notes for the user."""
    threshold = content.weights.take("threshold")
    content.weights.done()
    if threshold >= 0:
        return threshold, []
    return torch.zeros_like(threshold), [
        "its threshold was never set: every positive latent fires, as in dictionary_learning"
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


def number_of(value: object) -> object:
    """Return the number in a tensor of one element; any other value unchanged."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 and _has_data(value) else value


def _has_data(tensor: Tensor) -> bool:
    """Return whether `item` can read the tensor: a file may also hold meta or sparse tensors."""
    return tensor.device.type == "cpu" and tensor.layout is torch.strided


def _positive_integer(value: object, name: str, file: Path) -> int:
    number = number_of(value)
    if type(number) is not int or number < 1:
        shown = repr(number) if isinstance(number, int | float | str | None) else f"a {type(number).__name__}"
        raise ForeignError(f"{file}: {name} is {shown}, expected an integer of at least 1")
    return number


@torch.no_grad()
def to_theirs(sae: SAE) -> tuple[str, dict[str, Tensor]]:
    """Return the name of dictionary_learning's class for an SAE, and its state dict there.

    Raises ForeignError when no class computes the same."""
    for form in forms(sae, split_signs=True):
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
    raise refusal(sae, "dictionary_learning", HOLDS)


def _parameters(sae: SAE) -> dict[str, Tensor]:
    return {name: getattr(sae, name).float() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def _linear(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> dict[str, Tensor]:
    return {
        "encoder.weight": W_enc.T.float(),
        "encoder.bias": b_enc.float(),
        "decoder.weight": W_dec.T.float(),
    }


def _rule(k: float, threshold: Tensor) -> dict[str, Tensor]:
    """Return k and the threshold. k is an integer there, and only training uses it where there is a threshold.

    A threshold of -1 means that none is set."""
    return {"k": torch.tensor(max(1, round(k)), dtype=torch.int32), "threshold": threshold.float()}
