"""End-to-end training: batches that carry what their reconstruction costs the language model's predictions."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import kl_div

from activations.errors import StoreError
from activations.language_model import LanguageModel
from activations.shuffle import Batch, ShuffledReader
from activations.store import Store


class SplicedReader(ShuffledReader):
    """Reads whole windows of a store's tokens in a seeded order and runs the language model on them.

    A batch has the training rows of `windows` windows, as the model computes them now, and `divergence`: a function of their
    reconstructions [B, D], in the same units, that returns the mean over the rows of KL(model || model with the
    reconstructions in the rows' places), in nats, and through which gradients reach its argument. Rows that no training uses
    (held-out documents, the excluded first position) keep their activations and are not counted. Batches with fewer than two
    rows are left out. Braun et al. 2024, "Identifying Functionally Important Features with End-to-End Sparse Dictionary
    Learning", arXiv:2405.12241.

    Raises HookError when the model lacks the hook point, StoreError when the store has fewer training rows than `windows`, or when no
    batch of a whole pass has two rows."""

    def __init__(self, store: Store, hook: str, model: LanguageModel, windows: int, **settings):
        # Without threads: two passes at once would find one another's edits in the model.
        super().__init__(store, hook, windows, prefetch=0, **settings)
        model.check_hook(hook)
        self.model = model
        # What is permuted and counted are windows instead of rows.
        self.rows_per_shard = [entry.windows for entry in store.shards]
        self.rows = store.windows

    def __iter__(self) -> Iterator[Batch]:
        left_out = 0
        for tokens, is_trained, *_ in super().__iter__():
            left_out += len(tokens)
            if left_out > self.rows:
                raise StoreError(
                    f"{self.store.path}: no {self.batch} windows together have 2 rows to train on: use larger batches"
                )
            if is_trained.sum() >= 2:
                left_out = 0
                x, divergence = spliced(self.model, self.hooks[0], tokens, is_trained)
                yield Batch(x, x, divergence=divergence)

    def _rows(self, group: list[int]) -> tuple[Tensor, ...]:
        shards = [self.store.read(number) for number in group]
        is_trained = [self.store.rows(shard, self._split, positions=self._positions) for shard in shards]
        return torch.cat([shard.tokens for shard in shards]), torch.cat(is_trained)

    def _batch(self, pieces: list[tuple[Tensor, ...]]) -> Batch:
        """Return the tokens and which of them are trained on, both [windows, T], in the places of x and y."""
        tokens, is_trained = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return Batch(tokens, is_trained)


def spliced(
    model: LanguageModel, hook: str, tokens: Int[Tensor, "n T"], chosen: Bool[Tensor, "n T"]
) -> tuple[Float[Tensor, "B D"], Callable[[Tensor], Tensor]]:
    """Return the activations of the chosen rows of some windows, float32, and their `divergence`, as SplicedReader explains."""
    logits, activations = model.observe(tokens, [hook])
    chosen = chosen.to(logits.device)
    clean = logits[chosen].float().log_softmax(-1)

    def divergence(x_hat: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        def edit(x: Tensor) -> Tensor:
            out = x.clone()
            out[chosen] = x_hat.to(x)
            return out

        changed = model.differentiable_logits(tokens, {hook: edit})[chosen].float().log_softmax(-1)
        return kl_div(changed, clean, reduction="batchmean", log_target=True)

    return activations[hook][chosen].float(), divergence
