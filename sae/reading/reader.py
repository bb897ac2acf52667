"""Turn a text into a `Reading`: cut it into windows, run the model once, encode the activations, attribute logits."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.errors import RunError, TextError
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from activations.rows import included
from activations.tokens import NOWHERE, PackingConfig, Window, windows
from sae.architectures import SAE
from sae.code import SparseCode, offsets_of
from sae.features.feature import FeatureStore
from sae.features.logit_lens import sees
from sae.reading.reading import Reading

MOST_TOKENS = 8192  # tokens a text may have
LOGITS_AT_ONCE = 2**24  # logits held in memory at a time, 64 MB
ENTRIES_AT_ONCE = 2**13  # entries of a code whose decoder rows are gathered at a time


class _Part(NamedTuple):
    """The reading of one batch of windows, flattened to n positions."""

    x: Float[Tensor, "n D"]
    x_hat: Float[Tensor, "n D"]
    code: SparseCode
    log_probs: Float[Tensor, "n"]
    effects: Float[Tensor, "nnz"] | None


@torch.no_grad()
def read(
    model: LanguageModel,
    sae: SAE,
    hook: str,
    text: str,
    features: FeatureStore | None = None,
    packing: PackingConfig | None = None,
    centre: Float[Tensor, "D"] | None = None,
    limit: int = MOST_TOKENS,
    progress: Progress = no_progress,
    first: Sequence[int] | None = None,
) -> Reading:
    """Read a text through an SAE, token by token, with one pass of the model.

    The text is cut into windows as a store's documents are. `packing` is that of the store (`run.store.spec.packing`);
    only its context and BOS matter, and no separator is added. The last window may be short. Each window begins with
    `first` (`Run.first_tokens`), or with the tokenizer's BOS when that is left out, and sees nothing of other windows.
    Per-token variance is measured around `centre`, such as `run.store.mean(hook)`, or around the text's own mean. Special
    tokens spelled out in the text are read as ordinary characters.

    Memory: 64 MB of logits, or one window's if that is more, and 24 bytes per firing. Raises TextError when the text is
    empty or has more than `limit` tokens, HookError for an unknown hook point, ShapeError when the SAE reads another width,
    and RunError when the features belong to an SAE of another size."""
    if features is not None and len(features) != sae.d_sae:
        raise RunError(
            f"{features.path} has {len(features)} latents, this SAE has {sae.d_sae}: they are not of one run"
        )
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate has no UTF-8 form and becomes "?"
    cut = _cut(model, text, packing or PackingConfig(), limit, first)
    ids, column, is_text = (torch.cat(parts) for parts in zip(*cut, strict=True))
    following = _following(ids, is_text)
    parts: list[_Part] = []
    with progress("read", len(ids), "tokens") as advance:
        for tokens in _batches([window[0] for window in cut], model):
            start = sum(len(part.log_probs) for part in parts)
            parts.append(_part(model, sae, hook, tokens, following[start : start + tokens.numel()]))
            advance(tokens.numel())
    effects = [part.effects for part in parts if part.effects is not None]  # of all windows, or of none
    excluded = column < 1
    x, x_hat = torch.cat([part.x for part in parts]), torch.cat([part.x_hat for part in parts])
    around = x[~excluded].mean(0) if centre is None else centre.to(x)
    observed_max, density = _observed(features)
    return Reading(
        ids=ids,
        tokens=_pieces(model, text, ids, is_text),
        names=[model.vocabulary.text.name(token) for token in ids.tolist()],
        windows=torch.arange(len(cut)).repeat_interleave(torch.tensor([len(window[0]) for window in cut])),
        is_text=is_text,
        excluded=excluded,
        following=following,
        log_probs=torch.cat([part.log_probs for part in parts]),
        code=_joined([part.code for part in parts]),
        error=(x - x_hat).square().sum(1),
        variance=(x - around).square().sum(1),
        effects=torch.cat(effects) if effects else None,
        observed_max=observed_max,
        density=density,
    )


def _cut(
    model: LanguageModel, text: str, packing: PackingConfig, limit: int, first: Sequence[int] | None
) -> list[tuple[Tensor, ...]]:
    """Return token ids, columns and an is-text mask for each window, without padding."""
    context = min(packing.context, model.longest or packing.context)
    alone = replace(packing, context=context, packing="document", separator="none")
    cut = [*windows([text], model.tokenizer, alone, first=None if first is None else [*first])]
    if not cut:
        raise TextError("the text is empty: it must have at least one token")
    total = sum(int((window.documents != NOWHERE).sum()) for window in cut)
    if total > limit:
        raise TextError(f"the text has {total:,} tokens, at most {limit:,} can be read at once: shorten it")
    return [_without_padding(window) for window in cut]


def _without_padding(window: Window) -> tuple[Tensor, ...]:
    documents, tokens = torch.from_numpy(window.documents), torch.from_numpy(window.tokens).long()
    real = included(documents[None], 0)[0]
    return tokens[real], torch.arange(len(tokens))[real], documents[real] != NOWHERE


def _pieces(model: LanguageModel, text: str, ids: Tensor, is_text: Tensor) -> list[str]:
    """Return the display text of each token: its part of the text, or its name where it is not part of it (BOS)."""
    own, parts = model.vocabulary.encode_pieces(text)
    assert own == ids[is_text].tolist(), "windows hold the token ids of the whole text, in order"
    remaining = iter(parts)
    return [
        next(remaining) if belongs else model.vocabulary.text.name(token)
        for token, belongs in zip(ids.tolist(), is_text.tolist(), strict=True)
    ]


def _following(ids: Tensor, is_text: Tensor) -> Tensor:
    """Return the id of the next token of the text after each position, skipping BOS; -1 after the last."""
    text_positions = is_text.nonzero()[:, 0]
    after = torch.searchsorted(text_positions, torch.arange(len(ids)), right=True)
    is_last = after == len(text_positions)
    return ids[text_positions[after.clamp_max(len(text_positions) - 1)]].where(~is_last, -1)


def _batches(rows: list[Tensor], model: LanguageModel) -> Iterator[Tensor]:
    """Yield batches [n, T] of windows of equal length, few enough that their logits fit."""
    vocabulary = model.plain.config.get_text_config().vocab_size
    most = max(LOGITS_AT_ONCE // (vocabulary * len(rows[0])), 1)
    full = [row for row in rows if len(row) == len(rows[0])]
    yield from (torch.stack(full[start : start + most]) for start in range(0, len(full), most))
    if len(full) < len(rows):  # only the last window can be shorter
        yield rows[-1][None]


def _part(model: LanguageModel, sae: SAE, hook: str, tokens: Tensor, following: Tensor) -> _Part:
    """Return the parts of the reading for a batch of windows [n, T], on the CPU."""
    last = {model.last_residual} if model.readout is not None else set()
    logits, activations = model.observe(tokens, list({hook} | last))
    flat = logits.flatten(0, 1).float()
    target = following.clamp_min(0).to(flat.device)
    log_probs = flat.gather(1, target[:, None])[:, 0] - flat.logsumexp(1)
    x = activations[hook].flatten(0, 1).float()
    code = sae.encode(x.to(sae.device)).without_zeros()
    effects = None
    if last and sees(model, x.shape[1]):
        effects = _effects(model, sae, code, activations[model.last_residual].flatten(0, 1), target)
    is_last = following < 0
    if effects is not None:
        effects[is_last[code.rows().cpu()]] = torch.nan
    return _Part(
        x=x.cpu(),
        x_hat=sae.decode(code).cpu(),
        code=SparseCode(code.values.cpu(), code.indices.cpu(), code.offsets.cpu(), code.n_latents),
        log_probs=log_probs.cpu().masked_fill(is_last, torch.nan),
        effects=effects,
    )


def _effects(
    model: LanguageModel, sae: SAE, code: SparseCode, residual: Tensor, target: Tensor
) -> Tensor | None:
    """Return the direct effect of each entry of the code, on the CPU; None for a model without direct effects."""
    if model.readout is None:
        return None
    residual = residual.to(model.device, model.plain.dtype)
    directions = model.readout.next_token_directions(residual, target)
    if directions is None:
        return None
    directions = directions.to(sae.device)
    pieces = [
        (sae.W_dec[code.indices[part]] * directions[rows]).sum(1) * code.values[part]
        for part, rows in zip(
            torch.arange(len(code.values)).split(ENTRIES_AT_ONCE),
            code.rows().split(ENTRIES_AT_ONCE),
            strict=True,
        )
    ]
    return torch.cat(pieces).cpu()


def _joined(codes: list[SparseCode]) -> SparseCode:
    """Concatenate the rows of several codes."""
    counts = torch.cat([code.offsets.diff() for code in codes])
    values, indices = (torch.cat([getattr(code, name) for code in codes]) for name in ("values", "indices"))
    return SparseCode(values, indices, offsets_of(counts), codes[0].n_latents)


def _observed(features: FeatureStore | None) -> tuple[Tensor | None, Tensor | None]:
    """Return each latent's largest |value| and its density on the features' corpus; None without features."""
    if features is None:
        return None, None
    columns = (features.table[name].to_numpy() for name in ("min", "max", "fired"))
    low, high, fired = (torch.from_numpy(np.array(column, np.float64)) for column in columns)
    size = torch.maximum(low.abs(), high.abs())
    # a latent that never fired gets the density of one firing: its logarithm, the rarity, stays finite
    return size.float(), (fired.clamp_min(1) / features.record.tokens).float()
