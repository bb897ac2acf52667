"""A shard's windows through the model without their padding, into memory that is used again for the next shard."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from activations.language_model import LanguageModel
from activations.token_labels import surprisal
from activations.tokens import NOWHERE, Window

LABELS = "labels"  # no hook point has this name


class Room:
    """Memory for the activations of one shard's windows, filled again and again.

    Fresh memory would cost more than the copy into it: the system zeroes it page by page. Where the model is
    on a GPU the memory is pinned, `fill` only queues the copies, and `taken` waits for them. With `surprise` the
    model runs to its logits and the memory holds each token's surprisal beside its activations."""

    def __init__(self, windows: int, context: int, surprise: bool = False):
        self._shape, self._surprise = (windows, context), surprise
        self._memory: dict[str, Tensor] = {}
        self._order = self._padding = torch.empty(0)
        self._copied: torch.cuda.Event | None = None

    def fill(
        self,
        model: LanguageModel,
        block: Sequence[Window],
        hooks: Sequence[str],
        batch_tokens: int,
        on_tokens: Callable[[int], None],
    ) -> None:
        """Run the model on windows, `batch_tokens` at once; which with which depends on these windows alone.

        The longest go first and a batch ends with its longest window: what a causal model gives at a place does
        not depend on the padding behind it."""
        documents = torch.from_numpy(np.stack([window.documents for window in block]))
        self._padding = (documents == NOWHERE) & (torch.arange(documents.shape[1]) > 0)
        # Tokens of a role that is not asked for are left out like padding, and the model reads them where others follow
        behind = self._padding.flip(1).int().cumprod(1).sum(1)
        lengths, self._order = (documents.shape[1] - behind).sort(descending=True, stable=True)
        tokens = torch.from_numpy(np.stack([window.tokens for window in block]))[self._order]
        for start, stop, longest in batches(lengths.tolist(), batch_tokens):
            for hook, activation in self._run(model, tokens[start:stop, :longest], hooks).items():
                place = self._of(hook, activation)[start:stop, :longest]
                place.copy_(activation, non_blocking=place.is_contiguous())
            on_tokens((stop - start) * documents.shape[1])
        if model.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _run(self, model: LanguageModel, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
        if not self._surprise:
            return model.capture(tokens, hooks)
        logits, activations = model.observe(tokens, hooks)
        return {**activations, LABELS: surprisal(logits, tokens)[..., None]}

    def taken(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """Activations [n, T, D] of the windows last filled in, zero where there is padding; valid till the next `fill`.

        Beside them, the surprisal [n, T] of their tokens, without meaning where there is padding; None unless asked for."""
        if self._copied is not None:
            self._copied.synchronize()
        count = len(self._order)
        back = self._order.argsort()
        moved = bool((back != torch.arange(count)).any())
        found = {
            hook: memory[:count][back] if moved else memory[:count] for hook, memory in self._memory.items()
        }
        if self._padding.any():
            for activation in found.values():
                activation[self._padding] = 0
        labels = found.pop(LABELS, None)
        return found, None if labels is None else labels[..., 0]

    def _of(self, hook: str, like: Tensor) -> Tensor:
        if hook not in self._memory:
            shape = (*self._shape, like.shape[-1])
            self._memory[hook] = torch.empty(shape, dtype=like.dtype, pin_memory=like.is_cuda)
        return self._memory[hook]


def batches(lengths: Sequence[int], tokens: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, longest) of runs of windows, longest first, that take up to `tokens` tokens; one window at least."""
    start = 0
    while start < len(lengths):
        stop = min(start + max(1, tokens // lengths[start]), len(lengths))
        yield start, stop, lengths[start]
        start = stop
