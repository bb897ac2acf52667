"""Measure what it costs the language model that an SAE's reconstruction takes the place of an activation, on held-out text."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from activations.errors import ConfigError, RunError
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from activations.rows import is_held_out
from activations.store import Store
from activations.views import Edit
from sae.architectures import SAE
from sae.evaluation.bootstrap import ratio

ABLATIONS = ("zero", "mean")  # what replaces the activation to tell what it is worth


class Spliced(TypedDict):
    """What `splice` measures, as eval.json has it (FORMAT.md)."""

    windows: int
    documents: int
    tokens: int
    estimates: dict[str, dict[str, float]]


@torch.no_grad()
def splice(
    model: LanguageModel,
    sae: SAE,
    store: Store,
    hook: str,
    windows: int = 64,
    batch: int = 8,
    progress: Progress = no_progress,
) -> Spliced:
    """Measure the model's cross-entropy, in nats per token, on held-out text, unedited and with `hook` edited.

    ce_clean: unedited. ce_spliced: x_hat replaces x. ce_zero and ce_mean: 0, or the store's mean, replaces x. Edits leave the
    excluded first position (BOS) alone. A prediction counts when it is made at an edited position and its target is the next
    token of the same held-out document. kl: mean KL(clean || spliced). recovered_zero = (ce_zero - ce_spliced) / (ce_zero -
    ce_clean), and recovered_mean is the same with ce_mean: 1 is as good as the model itself, 0 as bad as the ablation. Each
    estimate has a 95 % bootstrap interval over documents.

    Reads at most `windows` windows, `batch` at once. Raises what `held_out_windows` raises."""
    sums = splice_sums(model, {"spliced": sae}, store, hook, windows, batch, progress)
    estimates = {f"ce_{name}": ratio(total, sums.tokens) for name, total in sums.ce.items()}
    estimates["kl"] = ratio(sums.kl["spliced"], sums.tokens)
    for name in ABLATIONS:
        estimates[f"recovered_{name}"] = ratio(*sums.recovered("spliced", name))
    return {
        "windows": sums.windows,
        "documents": len(sums.tokens),
        "tokens": int(sums.tokens.sum()),
        "estimates": {name: estimate._asdict() for name, estimate in estimates.items()},
    }


class SplicedSums(NamedTuple):
    """Sums over each document's predictions that count, float64, one entry a document."""

    windows: int
    """Windows that were read."""
    tokens: Tensor
    """Number of predictions."""
    ce: dict[str, Tensor]
    """Cross-entropy: `clean`, under each SAE by its name, and under each of ABLATIONS."""
    kl: dict[str, Tensor]
    """KL(clean || spliced) by SAE."""

    def recovered(self, sae: str, ablation: str) -> tuple[Tensor, Tensor]:
        """Return numerators and denominators of the cross-entropy that an SAE recovers of what an ablation costs."""
        return self.ce[ablation] - self.ce[sae], self.ce[ablation] - self.ce["clean"]


@torch.no_grad()
def splice_sums(
    model: LanguageModel,
    saes: Mapping[str, SAE],
    store: Store,
    hook: str,
    windows: int = 64,
    batch: int = 8,
    progress: Progress = no_progress,
) -> SplicedSums:
    """Measure several SAEs as `splice` does one, on the same windows: the model runs once for each SAE, once as it is and once
    for each ablation. Raises what `held_out_windows` raises."""
    tokens, documents = held_out_windows(store, windows)
    edits = _edits(saes, store, hook)
    totals: dict[int, Tensor] = {}
    with progress("splice", len(tokens), "windows") as advance:
        for piece, owner in zip(tokens.split(batch), documents.split(batch), strict=True):
            counted = counted_predictions(owner, store.spec.excluded)
            rows = _rows(model, piece, counted, hook, edits, saes)
            for document, row in zip(owner[:, :-1][counted].tolist(), rows, strict=True):
                totals[document] = totals.get(document, 0) + row
            advance(len(piece))
    *sums, count = torch.stack(list(totals.values())).T
    names = ("clean", *edits)
    ce, kl = (
        dict(zip(keys, part, strict=True))
        for keys, part in ((names, sums[: len(names)]), (saes, sums[len(names) :]))
    )
    return SplicedSums(len(tokens), count, ce, kl)


def _edits(saes: Mapping[str, SAE], store: Store, hook: str) -> dict[str, Edit]:
    """Return the edits by name. All of them leave the excluded first position as it is."""
    mean, excluded = store.mean(hook), store.spec.excluded

    def edit(replace: Callable[[Tensor], Tensor]) -> Edit:
        def apply(x: Tensor) -> Tensor:
            out = x.clone()
            out[:, excluded:] = replace(x[:, excluded:]).to(x)
            return out

        return apply

    def reconstructed(sae: SAE) -> Edit:
        return edit(lambda x: sae(x.float().to(sae.device)))

    return {
        **{name: reconstructed(sae) for name, sae in saes.items()},
        "zero": edit(torch.zeros_like),
        "mean": edit(lambda x: mean.to(x).expand_as(x)),
    }


def _rows(
    model: LanguageModel,
    tokens: Tensor,
    counted: Tensor,
    hook: str,
    edits: dict[str, Edit],
    saes: Collection[str],
) -> Tensor:
    """Return, for each prediction that counts, float64: cross-entropy unedited and under each edit, KL of each SAE, 1."""
    targets = tokens[:, 1:][counted].long()
    clean = _log_probabilities(model, tokens, counted)
    columns, divergences = [F.nll_loss(clean, targets, reduction="none")], []
    for name, change in edits.items():
        changed = _log_probabilities(model, tokens, counted, {hook: change})
        columns.append(F.nll_loss(changed, targets, reduction="none"))
        if name in saes:
            divergences.append(F.kl_div(changed, clean, reduction="none", log_target=True).sum(-1))
    return torch.stack([*columns, *divergences, torch.ones_like(columns[0])], 1).double()


def _log_probabilities(
    model: LanguageModel, tokens: Tensor, counted: Tensor, edits: dict[str, Edit] | None = None
) -> Tensor:
    """Return the log probabilities [count, V] of the next token at the predictions that count, on the CPU."""
    logits = model.logits(tokens, edits)[:, :-1]
    return logits[counted.to(logits.device)].float().log_softmax(-1).cpu()


def counted_predictions(documents: Tensor, excluded: int) -> Tensor:
    """Return which predictions [n, T - 1] count: made at an edited position, target in the same held-out document."""
    current, following = documents[:, :-1], documents[:, 1:]
    counted = (current == following) & is_held_out(current.contiguous())
    counted[:, :excluded] = False
    return counted


def held_out_windows(store: Store, limit: int) -> tuple[Tensor, Tensor]:
    """Return tokens and documents [n, T] of windows at equal distances among those with predictions that count, in the store's order.

    Each such window is as likely as any other, so that sums over their predictions stand for the whole held-out text. All are
    returned where there are no more than `limit`. Raises ConfigError for a limit below 1, RunError when the store has no held-out
    text."""
    if limit < 1:
        raise ConfigError(
            f"windows = {limit} must be at least 1: without one the language model reads nothing"
        )
    numbers = [
        counted_predictions(store.read(shard).documents, store.spec.excluded).sum(1)
        for shard in range(len(store.shards))
    ]
    chosen = _spread((torch.cat(numbers) > 0).nonzero()[:, 0], limit, store)
    tokens, documents = zip(*_read_windows(store, chosen), strict=True)
    return torch.cat(tokens), torch.cat(documents)


def held_out_passages(store: Store, limit: int, length: int) -> Int[Tensor, "n L"]:
    """Return the tokens of passages of held-out text, each of one document and one window, from windows at equal distances.

    They have `length` tokens, or where fewer than `limit` windows hold so long a passage, as many as the `limit`-th longest has.
    All windows with held-out text give one where there are fewer than `limit`. Raises RunError where none has two tokens."""
    runs = [
        _longest_runs(store.read(shard).documents, store.spec.excluded) for shard in range(len(store.shards))
    ]
    starts, lengths = (torch.cat(column) for column in zip(*runs, strict=True))
    longest = lengths.topk(min(limit, len(lengths))).values
    length = min(length, int(longest[longest >= 2].min())) if (longest >= 2).any() else 2
    chosen = _spread((lengths >= length).nonzero()[:, 0], limit, store)
    tokens = torch.cat([tokens for tokens, _ in _read_windows(store, chosen)])
    return tokens.gather(1, starts[chosen, None] + torch.arange(length))


def _longest_runs(documents: Tensor, excluded: int) -> tuple[Tensor, Tensor]:
    """Return where the longest run of tokens of one held-out document begins in each window [n], the first of equal ones, and its length."""
    held_out = is_held_out(documents)
    run = best = ends = torch.zeros(len(documents), dtype=torch.long)
    for position in range(excluded, documents.shape[1]):
        goes_on = documents[:, position] == documents[:, position - 1] if position > excluded else run > 0
        run = torch.where(held_out[:, position], run * goes_on + 1, 0)
        ends = torch.where(run > best, position + 1, ends)
        best = torch.maximum(run, best)
    return ends - best, best


def _spread(among: Int[Tensor, "N"], limit: int, store: Store) -> Int[Tensor, "n"]:
    """Return at most `limit` of these windows' numbers, at equal distances."""
    if not len(among):
        raise RunError(f"{store.path} has no held-out text: harvest more documents (one in ten is held out)")
    n = min(limit, len(among))
    return among[(2 * torch.arange(n) + 1) * len(among) // (2 * n)]


def _read_windows(store: Store, numbers: Int[Tensor, "n"]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens and documents [m, T] of windows of each shard that holds some, in the store's order."""
    first = 0
    for shard, entry in enumerate(store.shards):
        own = numbers[(numbers >= first) & (numbers < first + entry.windows)] - first
        first += entry.windows
        if len(own):
            read = store.read(shard)
            yield read.tokens[own], read.documents[own]
