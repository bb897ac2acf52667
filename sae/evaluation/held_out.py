"""Measure an SAE on a store's held-out text: what it reconstructs, and what its reconstruction costs the language model.

Every measure (docs/metrics.md) is a ratio of sums over tokens, with a bootstrap interval over documents, because tokens of
one document are not independent."""

from collections.abc import Callable
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from activations.errors import RunError
from activations.language_model import LanguageModel
from activations.progress import Advance, Progress, ignore, no_progress
from activations.rows import Positions, Split, is_held_out
from activations.store import Store
from activations.views import Edit
from sae.architectures import SAE
from sae.evaluation import l0_proxies
from sae.evaluation.l0_proxies import Proxies
from sae.evaluation.measures import DENSE
from sae.evaluation.quasi_orthogonality import Quasi, code_norm, summary

DENSITY_EDGES = np.arange(-7, 0.25, 0.25)  # log10 of the share of tokens a latent fires on
RESAMPLES = 1000


class Estimate(NamedTuple):
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Reconstruction(TypedDict):
    """What `reconstruction` measures, as eval.json has it (FORMAT.md)."""

    split: str
    positions: str
    documents: int
    tokens: int
    estimates: dict[str, dict[str, float]]
    dead: float
    dense: float
    encoder: dict[str, int]
    density_histogram: dict[str, list[float]]
    quasi_orthogonality: NotRequired[Quasi]
    l0_proxies: NotRequired[Proxies]


class Spliced(TypedDict):
    """What `splice` measures, as eval.json has it (FORMAT.md)."""

    windows: int
    documents: int
    tokens: int
    estimates: dict[str, dict[str, float]]


def ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> Estimate:
    """Return the sum of numerators over the sum of denominators, both given per document, with a bootstrap interval.

    Documents are resampled with replacement 1000 times; the interval lies between the 2.5th and the 97.5th percentile of
    the resampled ratios, leaving out those whose denominator is 0. With a single document low = high = value, because
    nothing is known about the spread. Efron 1979, "Bootstrap Methods"."""
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    value = above.sum() / below.sum()
    # A resample is fully described by how often each document was drawn, so that all of them are two matrix products:
    # about a hundred times faster than scipy's general bootstrap
    counts = np.random.default_rng(seed).multinomial(
        len(above), np.full(len(above), 1 / len(above)), RESAMPLES
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (counts @ above) / (counts @ below)
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


@torch.no_grad()
def reconstruction(
    sae: SAE,
    store: Store,
    hook: str,
    split: Split = "held-out",
    positions: Positions = "all",
    batch: int = 2048,
    advance: Advance = ignore,
) -> Reconstruction:
    """Measure an SAE on one split of a store. `estimates` have 95 % bootstrap intervals over documents.

    `positions="last"` takes only the last row of each document in each window. `advance` is called after every batch with its
    number of rows. The measures, by their names in the result:

    fvu: sum over tokens of |x - x_hat|^2 divided by the sum of |x - mean|^2, where the mean [D] is the split's own; both
    sums are in float64. explained_variance: 1 - fvu. cosine: mean over tokens of the cosine of x and x_hat. l0: mean over
    tokens of the number of latents != 0. norm_ratio: mean over tokens of |x_hat| / |x|. dead: share of latents that are zero
    on every token of the split; dense: share of latents that fire on more than a tenth of them. encoder: the cost of
    encoding, `SAE.encoder_cost`. quasi_orthogonality: norms of inputs and codes and their eps_LBO; l0_proxies: c_dec
    and s_n^dec, the latter over at most 4096 rows drawn from the split. Both are left out for a single latent. Raises RunError when the split is empty."""
    # A pass of its own: the index has the mean of all rows, and FVU is relative to the mean of the split
    mean, rows = _mean(store, hook, split, positions, batch)
    if not rows:
        raise RunError(f"{store.path} has no {split} tokens: harvest more documents (one in ten is held out)")
    totals: dict[int, Tensor] = {}  # document -> sums of the columns below
    fired = torch.zeros(sae.d_sae, dtype=torch.int64)
    input_norms, code_norms = [], []
    sampled, sample = l0_proxies.drawn(rows, l0_proxies.ROWS), []
    seen = 0
    for x, chosen, shard, _ in store.batches(hook, batch, split, positions):
        code = sae.encode(x.to(sae.device))
        columns = _per_row(x.double(), sae.decode(code).cpu().double(), code.l0().cpu().double(), mean)
        for document, sums in _by_document(shard.documents.flatten()[chosen], columns):
            totals[document] = totals.get(document, 0) + sums
        fired += torch.bincount(code.indices[code.values != 0], minlength=sae.d_sae).cpu()
        input_norms.append(x.double().norm(dim=1))
        code_norms.append(code_norm(sae, code).cpu())
        here = sampled[(sampled >= seen) & (sampled < seen + len(x))] - seen
        sample.append(x[here])
        seen += len(x)
        advance(len(x))
    density = fired.double() / rows
    counts, _ = np.histogram(density[fired > 0].log10().numpy(), DENSITY_EDGES)
    measured: Reconstruction = {
        "split": split,
        "positions": positions,
        "documents": len(totals),
        "tokens": rows,
        "estimates": _estimates(torch.stack(list(totals.values()))),
        "dead": (fired == 0).double().mean().item(),
        "dense": (density > DENSE).double().mean().item(),
        "encoder": sae.encoder_cost()._asdict(),
        "density_histogram": {"log10_edges": DENSITY_EDGES.tolist(), "latents": counts.tolist()},
    }
    if sae.d_sae > 1:
        norms = torch.cat(input_norms), torch.cat(code_norms)
        measured["quasi_orthogonality"] = summary(*norms, sae.d_sae)
        measured["l0_proxies"] = l0_proxies.proxies(sae, torch.cat(sample))
    return measured


def _estimates(documents: Float[Tensor, "documents 6"]) -> dict[str, dict[str, float]]:
    """Return the measures by name, from the sums of the columns of `_per_row` over each document."""
    error, spread, cosine, l0, norm_ratio, tokens = documents.T.numpy()
    fvu = ratio(error, spread)
    estimates = {
        "fvu": fvu,
        "explained_variance": type(fvu)(1 - fvu.value, 1 - fvu.high, 1 - fvu.low),
        "cosine": ratio(cosine, tokens),
        "l0": ratio(l0, tokens),
        "norm_ratio": ratio(norm_ratio, tokens),
    }
    return {name: estimate._asdict() for name, estimate in estimates.items()}


def held_out_rows(store: Store, positions: Positions = "all") -> int:
    """Return the number of held-out rows of a store."""
    shards = map(store.read, range(len(store.shards)))
    return int(sum(store.rows(shard, "held-out", positions=positions).sum() for shard in shards))


def _mean(
    store: Store, hook: str, split: Split, positions: Positions, batch: int
) -> tuple[Float[Tensor, "D"], int]:
    """Return the mean [D] in float64, and the number of rows, of a split."""
    total, rows = torch.zeros(store.width(hook), dtype=torch.float64), 0
    for x, *_ in store.batches(hook, batch, split, positions):
        total += x.double().sum(0)
        rows += len(x)
    return total / max(rows, 1), rows


def _per_row(x: Tensor, x_hat: Tensor, l0: Tensor, mean: Tensor) -> Float[Tensor, "B 6"]:
    """Return squared error, squared distance from the mean, cosine, L0, norm ratio and 1 for each row."""
    norm, norm_hat = x.norm(dim=1), x_hat.norm(dim=1)
    tiny = torch.finfo(x.dtype).tiny
    return torch.stack(
        [
            (x - x_hat).square().sum(1),
            (x - mean).square().sum(1),
            (x * x_hat).sum(1) / (norm * norm_hat).clamp_min(tiny),
            l0,
            norm_hat / norm.clamp_min(tiny),
            torch.ones_like(norm),
        ],
        dim=1,
    )


def _by_document(documents: Tensor, columns: Float[Tensor, "B C"]) -> list[tuple[int, Tensor]]:
    """Return (document, sums [C] of the columns over its rows) for each document."""
    numbers, index = documents.unique(return_inverse=True)
    sums = torch.zeros(len(numbers), columns.shape[1], dtype=columns.dtype).index_add_(0, index, columns)
    return list(zip(numbers.tolist(), sums, strict=True))


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

    Reads at most `windows` windows, those with the most predictions that count, `batch` at once. Raises RunError when the
    store has no held-out text."""
    tokens, documents = _held_out_windows(store, windows)
    edits = _edits(sae, store, hook)
    totals: dict[int, Tensor] = {}
    with progress("splice", len(tokens), "windows") as advance:
        for piece, owner in zip(tokens.split(batch), documents.split(batch), strict=True):
            counted = _counted(owner, store.spec.excluded)
            rows = _rows(model, piece, counted, hook, edits)
            for document, row in zip(owner[:, :-1][counted].tolist(), rows, strict=True):
                totals[document] = totals.get(document, 0) + row
            advance(len(piece))
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
