"""Find out by running a model on a few tokens whether it is causal, and which state it can continue from."""

import logging
from typing import Any

import torch
from torch import Tensor

from activations.errors import ModelError
from activations.views import difference, probe_tokens, tolerance

log = logging.getLogger(__name__)

LENGTH = 12  # tokens of a test: enough for positions to influence each other, few enough to cost nothing
# The argument, and output field of the same name, for the state of earlier tokens in the families that keep one
STATES = ("past_key_values", "cache_params", "state")


@torch.no_grad()
def require_causal(model: Any, name: str) -> None:
    """Raise ModelError unless what the model computes at a token is independent of later tokens.

    Otherwise the next-token loss would not be a loss of prediction, and padding or a window's next document would leak into
    a row. One forward pass over two windows that differ only in their second half decides, whatever the configuration says."""
    tokens, half = probe_tokens(model, LENGTH), LENGTH // 2
    vocabulary = model.config.get_text_config().vocab_size
    other = tokens.clone()
    other[:, half:] = (other[:, half:] + vocabulary // 2 + 1) % vocabulary
    try:
        output = model(torch.cat([tokens, other]), use_cache=False, output_hidden_states=True)
        seen = [output.logits, *(output.hidden_states or ())]
    except Exception as error:  # a model of another kind can raise anything
        raise ModelError(
            f"{name} ({type(model).__name__}) cannot be run on a window of tokens alone: "
            f"{type(error).__name__}: {error}. Expected a causal (decoder-only) language model"
        ) from error
    comparable = [x for x in seen if len(x) == 2 and x.ndim == 3 and bool(x.isfinite().all())]
    change = max((difference(x[1, :half], x[0, :half]) for x in comparable), default=0.0)
    if change > tolerance(model.dtype):
        raise ModelError(
            f"{name} ({type(model).__name__}) is not causal: changing later tokens changes what it computes at "
            f"earlier ones by {change:.1%}{_setting(model.config)}. Expected a causal (decoder-only) language model"
        )


def _setting(config: Any) -> str:
    """Return in words the entry of the configuration that makes a decoder bidirectional, or an empty string."""
    for key, value in (("is_decoder", False), ("is_causal", False), ("use_bidirectional_attention", True)):
        if getattr(config, key, None) is value:
            return f" (its config.json has {key} = {str(value).lower()})"
    return ""


@torch.no_grad()
def state_kept(model: Any) -> str | None:
    """Return the name of the argument that passes the model its state of earlier tokens.

    The state is a key-value cache or a recurrent state. Returns None when the model keeps none, or when, on a few tokens, it
    does not continue from there to the logits of one pass over the whole text."""
    # Two texts side by side: RWKV continues correctly from its state for a single text and mixes up several
    tokens = probe_tokens(model, 2 * LENGTH).view(2, LENGTH)
    whole = model(tokens, use_cache=False).logits
    for name in STATES:
        try:
            pieces = _in_steps(model, tokens, name)
        except Exception:  # a model without this state, or that cannot use it, can raise anything
            continue
        if pieces is not None and difference(pieces, whole[:, : pieces.shape[1]]) <= tolerance(model.dtype):
            return name
    log.warning(
        "%s keeps no state to continue from: each new token reads the whole text again, which is slower",
        type(model).__name__,
    )
    return None


def _in_steps(model: Any, tokens: Tensor, name: str) -> Tensor | None:
    """Return the logits of texts read in three pieces, each continuing from the state before; None without a state."""
    state, logits, half = None, [], LENGTH // 2
    for start, stop in ((0, half), (half, half + 1), (half + 1, half + 2)):
        argument = {} if state is None else {name: state}
        output = model(tokens[:, start:stop], use_cache=True, **argument)
        state = getattr(output, name, None)
        if state is None:
            return None
        logits.append(output.logits)
    return torch.cat(logits, 1)
