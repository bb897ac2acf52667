"""From a text to its `Reading`: cut as stores are, run through the model once, encoded, and attributed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.errors import RunError, TextError
from activations.language_model import LanguageModel
from activations.logit_attribution import next_token_directions
from activations.rows import included
from activations.tokens import NOWHERE, PackingConfig, Window, windows
from sae.architectures import SAE
from sae.code import SparseCode, offsets_of
from sae.features.logit_lens import sees
from sae.features.store import FeatureStore
from sae.reading.reading import Reading

MOST_TOKENS = 8192  # of a text
LOGITS_AT_ONCE = 2**24  # 64 MB
ENTRIES_AT_ONCE = 2**13  # of a code whose decoder rows are gathered


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
    on_tokens: Callable[[int, int], None] = lambda done, of: None,
    first: Sequence[int] | None = None,
) -> Reading:
    """What an SAE sees in a text, token by token; the model runs once over it.

    The text is cut into windows as stores are (`packing`: those of `run.store.spec.packing`; only context and
    BOS matter, no separator is added), the last one short, and each begins with `first`: `Run.first_tokens`, or the tokenizer's
    BOS when left out; windows know nothing of each other. `centre` is
    what per-token variance is measured around, such as `run.store.mean(hook)`; the text's own mean when left
    out. Special tokens spelled out in the text are read as the characters they are.

    Memory: logits of some windows (64 MB, or one window's), 24 bytes a firing. Raises TextError when the text
    is empty or has more than `limit` tokens, HookError, ShapeError when the SAE reads another width, RunError
    when the features are of another SAE's size."""
    if features is not None and len(features) != sae.d_sae:
        raise RunError(
            f"{features.path} has {len(features)} latents, this SAE has {sae.d_sae}: not of one run"
        )
    text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no character
    cut = _cut(model, text, packing or PackingConfig(), limit, first)
    ids, column, is_text = (torch.cat([window[place] for window in cut]) for place in range(3))
    following = _following(ids, is_text)
    parts: list[dict[str, Any]] = []
    for tokens in _batches([window[0] for window in cut], model):
        start = sum(len(part["log_probs"]) for part in parts)
        parts.append(_part(model, sae, hook, tokens, following[start : start + tokens.numel()]))
        on_tokens(start + tokens.numel(), len(ids))
    excluded = column < 1
    x, x_hat = (torch.cat([part[name] for part in parts]) for name in ("x", "x_hat"))
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
        log_probs=torch.cat([part["log_probs"] for part in parts]),
        code=_joined([part["code"] for part in parts]),
        error=(x - x_hat).square().sum(1),
        variance=(x - around).square().sum(1),
        effects=None if parts[0]["effects"] is None else torch.cat([part["effects"] for part in parts]),
        observed_max=observed_max,
        density=density,
    )


def _cut(
    model: LanguageModel, text: str, packing: PackingConfig, limit: int, first: Sequence[int] | None
) -> list[tuple[Tensor, ...]]:
    """For each window token ids, columns, and which are text; padding left off."""
    context = min(packing.context, model.longest or packing.context)
    alone = replace(packing, context=context, packing="document", separator="none")
    found = [*windows([text], model.tokenizer, alone, first=None if first is None else [*first])]
    if not found:
        raise TextError("the text is empty: needed is at least one token")
    total = sum(int((window.documents != NOWHERE).sum()) for window in found)
    if total > limit:
        raise TextError(f"the text has {total:,} tokens, at most {limit:,} are read at once: shorten it")
    return [_without_padding(window) for window in found]


def _without_padding(window: Window) -> tuple[Tensor, ...]:
    documents, tokens = torch.from_numpy(window.documents), torch.from_numpy(window.tokens).long()
    there = included(documents[None], 0)[0]
    return tokens[there], torch.arange(len(tokens))[there], documents[there] != NOWHERE


def _pieces(model: LanguageModel, text: str, ids: Tensor, is_text: Tensor) -> list[str]:
    """What each token reads as: its part of the text, or its name where it is no part of it (BOS)."""
    own, parts = model.vocabulary.encode_pieces(text)
    assert own == ids[is_text].tolist(), "windows cut a text into the ids that it has as a whole"
    rest = iter(parts)
    return [
        next(rest) if belongs else model.vocabulary.text.name(token)
        for token, belongs in zip(ids.tolist(), is_text.tolist(), strict=True)
    ]


def _following(ids: Tensor, is_text: Tensor) -> Tensor:
    places = is_text.nonzero()[:, 0]
    after = torch.searchsorted(places, torch.arange(len(ids)), right=True)
    nothing = after == len(places)
    return ids[places[after.clamp_max(len(places) - 1)]].where(~nothing, -1)


def _batches(rows: list[Tensor], model: LanguageModel) -> Iterator[Tensor]:
    """Windows of one length [n, T], few enough that their logits fit."""
    vocabulary = model.plain.config.get_text_config().vocab_size
    most = max(LOGITS_AT_ONCE // (vocabulary * len(rows[0])), 1)
    whole = [row for row in rows if len(row) == len(rows[0])]
    yield from (torch.stack(whole[start : start + most]) for start in range(0, len(whole), most))
    if len(whole) < len(rows):
        yield rows[-1][None]


def _part(model: LanguageModel, sae: SAE, hook: str, tokens: Tensor, following: Tensor) -> dict[str, Any]:
    """Everything about some windows [n, T], on the CPU."""
    last = {model.last_residual} if model.readout is not None else set()
    logits, found = model.observe(tokens, list({hook} | last))
    flat = logits.flatten(0, 1).float()
    target = following.clamp_min(0).to(flat.device)
    log_probs = flat.gather(1, target[:, None])[:, 0] - flat.logsumexp(1)
    x = found[hook].flatten(0, 1).float()
    code = sae.encode(x.to(sae.device)).without_zeros()
    effects = None
    if last and sees(model, x.shape[1]):
        effects = _effects(model, sae, code, found[model.last_residual].flatten(0, 1), target)
    lasts = following < 0
    if effects is not None:
        effects[lasts[code.rows().cpu()]] = torch.nan
    return {
        "x": x.cpu(),
        "x_hat": sae.decode(code).cpu(),
        "code": SparseCode(code.values.cpu(), code.indices.cpu(), code.offsets.cpu(), code.n_latents),
        "log_probs": log_probs.cpu().masked_fill(lasts, torch.nan),
        "effects": effects,
    }


def _effects(
    model: LanguageModel, sae: SAE, code: SparseCode, residual: Tensor, target: Tensor
) -> Tensor | None:
    """Return the direct effect of each entry of the code, on the CPU; None for a model without direct effects."""
    directions = next_token_directions(model, residual, target)
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
    """Rows of several codes, one after another."""
    counts = torch.cat([code.offsets.diff() for code in codes])
    values, indices = (torch.cat([getattr(code, name) for code in codes]) for name in ("values", "indices"))
    return SparseCode(values, indices, offsets_of(counts), codes[0].n_latents)


def _observed(features: FeatureStore | None) -> tuple[Tensor | None, Tensor | None]:
    if features is None:
        return None, None
    columns = (features.table[name].to_numpy() for name in ("min", "max", "fired"))
    low, high, fired = (torch.from_numpy(np.array(column, np.float64)) for column in columns)
    size = torch.maximum(low.abs(), high.abs())
    return size.float(), (fired.clamp_min(1) / features.about["tokens"]).float()
