"""What kind a model is, found by running it on a few tokens: whether it is causal, and what it can go on from."""

import logging
from typing import Any

import torch
from torch import Tensor

from activations.errors import ModelError
from activations.views import difference, probe_tokens, tolerance

log = logging.getLogger(__name__)

LENGTH = 12  # tokens of a trial: long enough to mix, short enough to cost nothing
STATES = (
    "past_key_values",
    "cache_params",
    "state",
)  # keyword and output field, in the families that keep one


@torch.no_grad()
def require_causal(model: Any, name: str) -> None:
    """Raise ModelError unless what the model computes at a token is independent of the tokens after it.

    Only then is a next-token loss one of prediction, and only then can padding and the next document of a
    window not leak into a row. One forward pass over two windows that differ in their second half alone
    shows it, whatever the configuration says."""
    tokens, half = probe_tokens(model, LENGTH), LENGTH // 2
    vocabulary = model.config.get_text_config().vocab_size
    other = tokens.clone()
    other[:, half:] = (other[:, half:] + vocabulary // 2 + 1) % vocabulary
    try:
        output = model(torch.cat([tokens, other]), use_cache=False, output_hidden_states=True)
        seen = [output.logits, *(output.hidden_states or ())]
    except Exception as error:  # a model of another kind raises whatever its code happens to
        raise ModelError(
            f"{name} ({type(model).__name__}) cannot be run on a window of tokens alone: "
            f"{type(error).__name__}: {error}. A causal (decoder-only) language model is needed"
        ) from error
    comparable = [x for x in seen if len(x) == 2 and x.ndim == 3 and bool(x.isfinite().all())]
    change = max((difference(x[1, :half], x[0, :half]) for x in comparable), default=0.0)
    if change > tolerance(model.dtype):
        raise ModelError(
            f"{name} ({type(model).__name__}) is not causal: changing later tokens changes what it computes at "
            f"earlier ones by {change:.1%}{_setting(model.config)}. A causal (decoder-only) language model is needed"
        )


def _setting(config: Any) -> str:
    """Name the entry of the configuration that makes a decoder bidirectional, if there is one."""
    for key, value in (("is_decoder", False), ("is_causal", False), ("use_bidirectional_attention", True)):
        if getattr(config, key, None) is value:
            return f" (its config.json has {key} = {str(value).lower()})"
    return ""


@torch.no_grad()
def state_kept(model: Any) -> str | None:
    """Name of the argument under which the model takes back what it kept of earlier tokens.

    That is its key-value cache or its recurrent state. None when it keeps nothing, or cannot go on from there
    to the logits that it computes in one pass over the whole text, which a trial on a few tokens shows."""
    # Two texts side by side: RWKV goes on from its state for one text alone, and mixes several up
    tokens = probe_tokens(model, 2 * LENGTH).view(2, LENGTH)
    whole = model(tokens, use_cache=False).logits
    for name in STATES:
        try:
            pieces = _in_steps(model, tokens, name)
        except Exception:  # whatever a model raises that has no such state or cannot use it
            continue
        if pieces is not None and difference(pieces, whole[:, : pieces.shape[1]]) <= tolerance(model.dtype):
            return name
    log.warning(
        "%s keeps no state from which it could go on: each new token reads the whole text again, which is slower",
        type(model).__name__,
    )
    return None


def _in_steps(model: Any, tokens: Tensor, name: str) -> Tensor | None:
    """Logits of a text read in three pieces, each going on from what was kept; None when nothing is."""
    kept, logits, half = None, [], LENGTH // 2
    for start, stop in ((0, half), (half, half + 1), (half + 1, half + 2)):
        given = {} if kept is None else {name: kept}
        output = model(tokens[:, start:stop], use_cache=True, **given)
        kept = getattr(output, name, None)
        if kept is None:
            return None
        logits.append(output.logits)
    return torch.cat(logits, 1)
