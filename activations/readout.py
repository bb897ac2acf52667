"""The path from a model's last block to its logits, traced in the running model and tested against its logits.

Along this path a direction in the residual stream changes a token's logit directly (direct logit attribution)."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from activations.views import Site, attached, difference, probe_tokens, tolerance

log = logging.getLogger(__name__)

LENGTH = 8  # residuals that a readout is tested on


class Readout:
    """The path from the residual stream after the last block to the logits.

    The logits are cap(factor * head(norm(x))): a norm or none; a head, which is the unembedding and anything before it, such
    as OPT's projection to the embedding's width; a factor (Cohere, Granite); and a soft cap (Gemma 2). Norm and head are the
    model's own modules, so that no family needs code of its own."""

    def __init__(self, norm: Any | None, head: Sequence[Any], factor: float, cap: float | None):
        self.norm = norm
        self.head = list(head)
        self.factor = factor
        self.cap = cap
        self._at_zero: Tensor | None = None

    def normed(self, residual: Tensor) -> Tensor:
        """Return the input of the head [n, D] for residuals [n, D]: the norm's output, or the residuals without a norm."""
        return residual if self.norm is None else self.norm(residual[:, None])[:, 0]

    def scores(self, normed: Tensor) -> Tensor:
        """Return the logits [n, V] before the soft cap, given the input of the head [n, D]."""
        x = normed[:, None]
        for module in self.head:
            x = module(x)
        return x[:, 0] if self.factor == 1 else x[:, 0] * self.factor

    def logits(self, residual: Tensor) -> Tensor:
        """Return the model's logits [n, V] for residuals [n, D] after its last block."""
        scores = self.scores(self.normed(residual))
        return scores if self.cap is None else _capped(scores, self.cap)

    def written(self, directions: Tensor) -> Tensor:
        """Return the scores [n, V] that directions [n, D] write, each alone, minus those of a zero residual."""
        return self.read(self.normed(directions) - self.normed(torch.zeros_like(directions[:1])))

    def read(self, normed: Tensor) -> Tensor:
        """Return the logits [n, V] before the soft cap that inputs of the head [n, D] add to those of an input of zeros."""
        scores = self.scores(normed)
        # Computed once: beside a product of few rows, that of one row of zeros takes long
        if self._at_zero is None:
            self._at_zero = self.scores(torch.zeros_like(normed[:1])).detach()
        return scores.sub_(self._at_zero) if self._at_zero.any() else scores

    def pulled_back(self, tokens: Tensor) -> Tensor | None:
        """Return the gradient [n, D], float32, of score(token) - mean score with respect to the head's input, for ids [n].

        None when the head is not linear, because the gradient then depends on the input."""
        *before, unembed = self.head
        if not isinstance(unembed, torch.nn.Linear):
            return None
        contrast = unembed.weight[tokens].float() - unembed.weight.mean(0, dtype=torch.float32)
        for module in reversed(before):
            if not isinstance(module, torch.nn.Linear):
                return None
            contrast = contrast @ module.weight.float()
        return contrast * self.factor

    @torch.no_grad()
    def next_token_directions(self, residual: Tensor, tokens: Tensor) -> Tensor | None:
        """Return directions g [n, D], float32, in the residual stream that raise the logits of token ids [n].

        Adding d to row i of `residual` [n, D], taken at the model's `last_residual`, on its device and in its precision,
        changes the logit of token i minus the vocabulary's mean logit by g_i . d, provided the final norm still divides by
        that row's old scale (frozen scale). This is exact up to rounding for a linear head after no norm, or an RMSNorm or
        LayerNorm with any gain; a soft cap on the logits is left out. If d is written into an earlier block, this is its
        effect on the direct path alone, without what later blocks compute from it. None for a head that is not linear.
        Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; TransformerLens, `logit_attrs`."""
        contrast = self.pulled_back(tokens.to(residual.device, torch.long))
        if contrast is None or self.norm is None:
            return contrast
        gain, centred = norm_gain(self.normed, residual)
        normed = (self.normed(residual) - self.normed(torch.zeros_like(residual[:1]))).float()
        shape = _shape(residual.float(), centred)
        scale = normed.norm(dim=1, keepdim=True) / (gain * shape).norm(dim=1, keepdim=True)
        return _shape(gain * contrast, centred) * scale


@torch.no_grad()
def trace(model: Any, last_block: Site) -> Readout | None:
    """Find the readout of a plain model whose residual stream ends at `last_block`.

    The model reads a few tokens, with random residuals of its own mean and scale in place of the block's output, and the
    modules that run after that block are recorded. Returns None when no readout made of these modules gives the model's
    logits for these residuals."""
    tokens = probe_tokens(model, LENGTH)
    residual: list[Tensor] = []
    modules: list[Any] = []
    depth = 0

    def replace(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        residual.append(noise * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True))
        return residual[0]

    def enter(module: Any, _: Any) -> None:
        nonlocal depth
        if residual:
            if depth == 0:
                modules.append(module)
            depth += 1

    def leave(module: Any, args: tuple, output: Any) -> None:
        nonlocal depth
        if not residual or depth == 0:  # this module was entered before the last block ended
            return
        depth -= 1
        if depth == 0 and args and output is args[0]:  # an identity, such as a dropout that is off
            modules.pop()

    handles = [part.register_forward_pre_hook(enter) for part in model.modules()]
    handles += [part.register_forward_hook(leave) for part in model.modules()]
    try:
        with attached(model, [(last_block, replace)]):
            logits = model(tokens, use_cache=False).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()
    try:
        return _fitted(model, modules, residual[0][0], logits)
    except Exception as error:  # one of the modules takes more arguments than the residual stream
        log.debug("the readout of %s cannot be called: %s", type(model).__name__, error)
        return None


def _fitted(model: Any, modules: list[Any], residual: Tensor, logits: Tensor) -> Readout | None:
    """Return the readout, made of a norm, a head, a factor and a cap, that gives the logits; None when none does."""
    if not modules:
        return None
    split = 1 if len(modules) > 1 and _is_norm(modules[0], residual) else 0
    norm, head = (modules[0] if split else None), modules[split:]
    raw = Readout(norm, head, 1.0, None)
    scores = raw.logits(residual).double()
    config = model.config.get_text_config()
    caps = [getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap")]
    for cap in (None, *(cap for cap in caps if cap)):
        # The configuration says what a cap could be, not whether it is applied; a factor is named differently in each
        # family. So the cap is undone and the factor fitted by least squares
        uncapped = logits.double() if cap is None else cap * (logits.double() / cap).clamp(-1, 1).atanh()
        if not uncapped.isfinite().all():
            continue
        factor = float((uncapped * scores).sum() / scores.square().sum())
        factor = 1.0 if abs(factor - 1) < tolerance(model.dtype) else factor
        readout = Readout(norm, head, factor, cap)
        if difference(readout.logits(residual), logits) <= tolerance(model.dtype):
            return readout
    return None


def _is_norm(module: Any, residual: Tensor) -> bool:
    """Return whether the module's output stays the same when its input is scaled."""
    large = 1e3 * residual / residual.std()  # so large that a norm's epsilon vanishes
    once, twice = module(large[:, None]).float(), module(2 * large[:, None]).float()
    return difference(twice, once) < 1e-2


def _capped(scores: Tensor, cap: float) -> Tensor:
    return cap * (scores / cap).tanh()


@torch.no_grad()
def norm_gain(norm: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, bool]:
    """Return a norm's gain [D], float32, and whether the norm subtracts a row's mean.

    `norm` maps rows [n, D] of the width, type and device of `like`."""
    # Measured on two rows instead of read from weights, so that a gain stored as 1 + w, or no gain, needs no special case.
    # A constant row comes out as zero only if the mean is subtracted. The rows are large, so that epsilon vanishes.
    alternating = torch.ones(like.shape[1], device=like.device)
    alternating[1::2] = -1
    rows = 1e3 * torch.stack([torch.zeros_like(alternating), torch.ones_like(alternating), alternating])
    zero, level, turned = norm(rows.to(like.dtype)).float()
    centred = bool((level - zero).norm() < 1e-2 * (turned - zero).norm())
    shape = _shape(alternating, centred)
    return (turned - zero) * shape.square().mean().sqrt() / shape, centred


def _shape(rows: Tensor, centred: bool) -> Tensor:
    return rows - rows.mean(-1, keepdim=True) if centred else rows
