"""What a model applies between its last block and the logits, traced in the model itself and tried against it."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from activations.views import Site, attached, difference, probe_tokens, tolerance

log = logging.getLogger(__name__)

LENGTH = 8  # residuals on which a readout is tried


class Readout:
    """The path from the residual stream behind the last block to the logits.

    The logits are cap(factor * rest(norm(x))): a norm or none, then a head, which is the unembedding and
    whatever stands before it (such as OPT's projection to the embedding's width), a factor (Cohere, Granite)
    and a soft cap (Gemma 2). Norms and projections of every family are called as the model's own modules."""

    def __init__(self, norm: Any | None, head: Sequence[Any], factor: float, cap: float | None):
        self.norm = norm
        self.head = list(head)
        self.factor = factor
        self.cap = cap

    def normed(self, residual: Tensor) -> Tensor:
        """Return what the head reads, [n, D], for residuals [n, D]: the norm's output, or the residuals."""
        return residual if self.norm is None else self.norm(residual[:, None])[:, 0]

    def scores(self, normed: Tensor) -> Tensor:
        """Return logits [n, V] of what the head reads, [n, D], before the soft cap."""
        x = normed[:, None]
        for module in self.head:
            x = module(x)
        return x[:, 0] if self.factor == 1 else x[:, 0] * self.factor

    def logits(self, residual: Tensor) -> Tensor:
        """Return the model's logits [n, V] of residuals [n, D] behind its last block."""
        scores = self.scores(self.normed(residual))
        return scores if self.cap is None else _capped(scores, self.cap)

    def written(self, directions: Tensor) -> Tensor:
        """Return the scores [n, V] that directions [n, D] write, each alone, beyond what zero gives."""
        nothing = torch.zeros_like(directions[:1])
        read = self.normed(directions) - self.normed(nothing)
        return self.scores(read).sub_(self.scores(torch.zeros_like(read[:1])))

    def pulled_back(self, tokens: Tensor) -> Tensor | None:
        """Return the gradient [n, D], float32, of score(token) - mean score by what the head reads, for ids [n].

        None when the head is not linear, so that the gradient depends on what it reads."""
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
def trace(model: Any, last_block: Site) -> Readout | None:
    """Find the readout of a plain model whose residual stream ends at `last_block`.

    The modules that run after that block are noted while the model reads a few tokens, with random residuals
    of the size of its own in the place of the block's output. A readout made of them that does not give the
    model's logits for these residuals is discarded, and None returned."""
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
        if not residual or depth == 0:  # a module that was entered before the last block ended
            return
        depth -= 1
        if depth == 0 and args and output is args[0]:  # a dropout that is off
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
    except Exception as error:  # a module among them takes more than the stream
        log.debug("the readout of %s cannot be called: %s", type(model).__name__, error)
        return None


def _fitted(model: Any, modules: list[Any], residual: Tensor, logits: Tensor) -> Readout | None:
    """Put a norm, a head, a factor and a cap together so that they give the logits; None when nothing does."""
    if not modules:
        return None
    split = 1 if len(modules) > 1 and _is_norm(modules[0], residual) else 0
    norm, head = (modules[0] if split else None), modules[split:]
    raw = Readout(norm, head, 1.0, None)
    scores = raw.logits(residual).double()
    config = model.config.get_text_config()
    caps = [getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap")]
    for cap in (None, *(cap for cap in caps if cap)):
        wanted = logits.double() if cap is None else cap * (logits.double() / cap).clamp(-1, 1).atanh()
        if not wanted.isfinite().all():
            continue
        factor = float((wanted * scores).sum() / scores.square().sum())
        factor = 1.0 if abs(factor - 1) < tolerance(model.dtype) else factor
        made = Readout(norm, head, factor, cap)
        if difference(made.logits(residual), logits) <= tolerance(model.dtype):
            return made
    return None


def _is_norm(module: Any, residual: Tensor) -> bool:
    """Whether scaling what goes in leaves what comes out unchanged."""
    large = 1e3 * residual / residual.std()  # so large that a norm's epsilon vanishes
    once, twice = module(large[:, None]).float(), module(2 * large[:, None]).float()
    return difference(twice, once) < 1e-2


def _capped(scores: Tensor, cap: float) -> Tensor:
    return cap * (scores / cap).tanh()
