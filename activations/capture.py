"""Run a model on a shard's windows without their padding, into a buffer that is reused for the next shard."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from activations.language_model import LanguageModel
from activations.token_labels import surprisal
from activations.tokens import NOWHERE, Window

SURPRISAL = "labels"  # key beside the hook points; no hook point has this name


class ShardBuffer:
    """Memory for the activations of one shard's windows, filled again and again.

    It is reused because fresh memory would cost more than the copy into it: the system zeroes it page by page. When the
    model is on a GPU, the memory is pinned, `fill` only queues the copies, and `collect` waits for them. With `surprise`
    the model runs to its logits, and the buffer holds each token's surprisal beside its activations."""

    def __init__(self, windows: int, context: int, surprise: bool = False):
        self._shape, self._surprise = (windows, context), surprise
        self._memory: dict[str, Tensor] = {}
        self._order = self._padding = torch.empty(0)
        self._copied: list[torch.Event] = []

    def fill(
        self,
        model: LanguageModel,
        block: Sequence[Window],
        hooks: Sequence[str],
        batch_tokens: int,
        advance: Callable[[int], None],
    ) -> None:
        """Run the model on the windows of a shard, `batch_tokens` tokens at once.

        Which windows share a batch depends on these windows alone, so that a resumed harvest gives the same numbers.
        `advance` is called after every batch with its number of tokens."""
        # Windows are sorted by length and a batch is cut to its longest window. That changes nothing: in a causal model
        # no position depends on the padding behind it.
        documents = torch.from_numpy(np.stack([window.documents for window in block]))
        self._padding = (documents == NOWHERE) & (torch.arange(documents.shape[1]) > 0)
        # Tokens of excluded chat roles are marked like padding too, but only the run at a window's end may be cut off:
        # the model has to read the others, because tokens that count follow them
        padding_at_end = self._padding.flip(1).int().cumprod(1).sum(1)
        lengths, self._order = (documents.shape[1] - padding_at_end).sort(descending=True, stable=True)
        tokens = torch.from_numpy(np.stack([window.tokens for window in block]))[self._order]
        devices: set[torch.device] = set()
        for start, stop, longest in batches(lengths.tolist(), batch_tokens):
            for hook, activation in self._run(model, tokens[start:stop, :longest], hooks).items():
                target = self._memory_of(hook, activation)[start:stop, :longest]
                target.copy_(activation, non_blocking=target.is_contiguous())
                devices |= {activation.device} if activation.is_cuda else set()
            advance((stop - start) * documents.shape[1])
        self._copied = [torch.accelerator.current_stream(device).record_event() for device in devices]

    def _run(self, model: LanguageModel, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
        if not self._surprise:
            return model.capture(tokens, hooks)
        logits, activations = model.observe(tokens, hooks)
        return {**activations, SURPRISAL: surprisal(logits, tokens)[..., None]}

    def collect(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return what the last `fill` captured: activations [n, T, D] by hook point, and surprisals [n, T] or None.

        Windows are in the order they were given. Activations are zero at padding; surprisals are meaningless there. Both
        are valid until the next `fill`."""
        for copied in self._copied:  # a model may be spread over several GPUs
            copied.synchronize()
        count = len(self._order)
        inverse = self._order.argsort()
        reordered = bool((inverse != torch.arange(count)).any())
        captured = {
            hook: memory[:count][inverse] if reordered else memory[:count]
            for hook, memory in self._memory.items()
        }
        if self._padding.any():
            for activation in captured.values():
                activation[self._padding] = 0
        surprisals = captured.pop(SURPRISAL, None)
        return captured, None if surprisals is None else surprisals[..., 0]

    def _memory_of(self, hook: str, like: Tensor) -> Tensor:
        if hook not in self._memory:
            shape = (*self._shape, like.shape[-1])
            self._memory[hook] = torch.empty(shape, dtype=like.dtype, pin_memory=like.is_cuda)
        return self._memory[hook]


def batches(lengths: Sequence[int], tokens: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, longest) of batches of windows that together take up to `tokens` tokens, at least one window.

    `lengths` are the windows' numbers of tokens, in descending order."""
    start = 0
    while start < len(lengths):
        stop = min(start + max(1, tokens // lengths[start]), len(lengths))
        yield start, stop, lengths[start]
        start = stop
