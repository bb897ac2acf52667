"""Measure how much the language model loses when the SAE's reconstruction replaces the activations (docs/metrics.md)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from activations.errors import RunError
from activations.language_model import LanguageModel
from activations.rows import is_held_out
from activations.store import Store
from activations.views import Edit
from sae.architectures import SAE
from sae.evaluation.bootstrap import ratio


@torch.no_grad()
def splice(
    model: LanguageModel,
    sae: SAE,
    store: Store,
    hook: str,
    windows: int = 64,
    batch: int = 8,
    on_windows: Callable[[int], None] = lambda n: None,
) -> dict[str, Any]:
    """Measure the model's cross-entropy, in nats per token, on held-out text, unedited and with `hook` edited.

    ce_clean: unedited. ce_spliced: x_hat replaces x. ce_zero and ce_mean: 0, or the store's mean, replaces x. Edits leave the
    excluded first position (BOS) alone. A prediction counts when it is made at an edited position and its target is the next
    token of the same held-out document. kl: mean KL(clean || spliced). recovered_zero = (ce_zero - ce_spliced) / (ce_zero -
    ce_clean), and recovered_mean likewise: 1 is as good as the model itself, 0 as bad as the ablation. Each estimate has a
    95 % bootstrap interval over documents.

    Reads at most `windows` windows, those with the most predictions that count, `batch` at once; `on_windows` is called after
    every batch with its number of windows. Raises RunError when the store has no held-out text."""
    tokens, documents = _held_out_windows(store, windows)
    edits = _edits(sae, store, hook)
    totals: dict[int, Tensor] = {}
    for piece, owner in zip(tokens.split(batch), documents.split(batch), strict=True):
        counted = _counted(owner, store.spec.excluded)
        rows = _rows(model, piece, counted, hook, edits)
        for document, row in zip(owner[:, :-1][counted].tolist(), rows, strict=True):
            totals[document] = totals.get(document, 0) + row
        on_windows(len(piece))
    *sums, kl, count = torch.stack(list(totals.values())).T
    ce = dict(zip(("clean", *edits), sums, strict=True))
    estimates = {f"ce_{name}": ratio(total, count) for name, total in ce.items()}
    estimates["kl"] = ratio(kl, count)
    for name in ("zero", "mean"):
        estimates[f"recovered_{name}"] = ratio(ce[name] - ce["spliced"], ce[name] - ce["clean"])
    return {
        "windows": len(tokens),
        "documents": len(totals),
        "tokens": int(count.sum()),
        "estimates": {name: estimate._asdict() for name, estimate in estimates.items()},
    }


def _edits(sae: SAE, store: Store, hook: str) -> dict[str, Edit]:
    """Return the edits by name. All of them leave the excluded first position as it is."""
    mean, excluded = store.mean(hook), store.spec.excluded

    def edit(replace: Callable[[Tensor], Tensor]) -> Edit:
        def apply(x: Tensor) -> Tensor:
            out = x.clone()
            out[:, excluded:] = replace(x[:, excluded:]).to(x)
            return out

        return apply

    return {
        "spliced": edit(lambda x: sae(x.float().to(sae.device))),
        "zero": edit(torch.zeros_like),
        "mean": edit(lambda x: mean.to(x).expand_as(x)),
    }


def _rows(model: LanguageModel, tokens: Tensor, counted: Tensor, hook: str, edits: dict[str, Edit]) -> Tensor:
    """Return, for each prediction that counts, float64: cross-entropy unedited and under each edit, KL if spliced, 1."""
    targets = tokens[:, 1:][counted].long()
    clean = _log_probabilities(model, tokens, counted)
    columns = [F.nll_loss(clean, targets, reduction="none")]
    kl = torch.zeros_like(columns[0])
    for name, change in edits.items():
        changed = _log_probabilities(model, tokens, counted, {hook: change})
        columns.append(F.nll_loss(changed, targets, reduction="none"))
        if name == "spliced":
            kl = F.kl_div(changed, clean, reduction="none", log_target=True).sum(-1)
    return torch.stack([*columns, kl, torch.ones_like(kl)], 1).double()


def _log_probabilities(
    model: LanguageModel, tokens: Tensor, counted: Tensor, edits: dict[str, Edit] | None = None
) -> Tensor:
    """Return the log probabilities [count, V] of the next token at the predictions that count, on the CPU."""
    logits = model.logits(tokens, edits)[:, :-1]
    return logits[counted.to(logits.device)].float().log_softmax(-1).cpu()


def _counted(documents: Tensor, excluded: int) -> Tensor:
    """Return which predictions [n, T - 1] count: made at an edited position, target in the same held-out document."""
    current, following = documents[:, :-1], documents[:, 1:]
    counted = (current == following) & is_held_out(current.contiguous())
    counted[:, :excluded] = False
    return counted


def _held_out_windows(store: Store, limit: int) -> tuple[Tensor, Tensor]:
    """Return tokens and documents [n, T] of the windows with the most predictions that count, in the store's order."""
    tokens = documents = torch.empty(0, store.context, dtype=torch.int32)
    for number in range(len(store.shards)):
        shard = store.read(number)
        tokens, documents = torch.cat([tokens, shard.tokens]), torch.cat([documents, shard.documents])
        counts = _counted(documents, store.spec.excluded).sum(1)
        best = counts.argsort(descending=True, stable=True)[:limit]
        best = best[counts[best] > 0].sort().values
        tokens, documents = tokens[best], documents[best]
    if not len(tokens):
        raise RunError(f"{store.path} has no held-out text: harvest more documents (one in ten is held out)")
    return tokens, documents
