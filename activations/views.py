"""Run a model with edits at hook points, in the plain transformers model or in TransformerLens' view of it.

A model is also tested by running it on a few tokens: whether it is causal, and which state it can continue from."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from activations.errors import HookError, ModelError

log = logging.getLogger(__name__)

LENGTH = 12  # tokens of a test: enough for positions to influence each other, few enough to cost nothing
# The argument, and output field of the same name, for the state of earlier tokens in the families that keep one
STATES = ("past_key_values", "cache_params", "state")

Edit = Callable[[Tensor], Tensor]  # activations at a hook point, [n, T, D] -> what replaces them


class Site(NamedTuple):
    """The place of a hook point in the plain transformers model: the input or the output of a module."""

    module: str
    side: Literal["in", "out"]


class Reached(Exception):
    """Raised within a forward pass to end it as soon as every activation that was asked for is captured."""


class Captured:
    """The activations captured at hook points during a pass, which notices when the model overwrites them.

    Falcon adds the attention's output into the MLP's in place, OLMo clips queries in place: an activation kept by reference
    then holds something else when the pass ends. Torch counts the writes to a tensor, so that this is noticed; the hook
    point is added to `copied`, which outlives the pass, and the next pass keeps a copy there."""

    def __init__(self, copied: set[str], stop_at: int | None = None):
        self.activations: dict[str, Tensor] = {}
        self._copied, self._stop_at = copied, stop_at
        self._writes: dict[str, int] = {}

    def edit(self, hook: str) -> Edit:
        """Return an edit that captures the activation unchanged. It raises Reached after capture number `stop_at`."""

        def keep(activation: Tensor) -> Tensor:
            captured = activation.clone() if hook in self._copied else activation
            self.activations[hook], self._writes[hook] = captured, captured._version
            if len(self.activations) == self._stop_at:
                raise Reached
            return activation

        return keep

    def overwritten(self) -> bool:
        """Return whether a captured activation has been written to since, so that the pass has to be repeated."""
        late = {
            hook for hook, activation in self.activations.items() if activation._version != self._writes[hook]
        }
        self._copied |= late
        return bool(late)


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative difference that rounding alone may cause between two ways to compute an activation."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return |ours - theirs| / |theirs|; infinite when shapes differ or a number is not finite."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.double(), theirs.to(ours.device).double()
    size = theirs.norm().item()
    distance = (ours - theirs).norm().item()
    if math.isnan(distance):  # infinity minus infinity, too
        return float("inf")
    return distance / size if size else (0.0 if distance == 0 else float("inf"))


def probe_tokens(model: Any, length: int = 32) -> Tensor:
    """Return token ids [1, length], spread over the vocabulary, to test a model on."""
    vocabulary = model.config.get_text_config().vocab_size
    # The weights of a model that accelerate has spread may be on the disk; its hook knows where they are to be used
    spread = getattr(model.get_input_embeddings(), "_hf_hook", None)
    device = getattr(spread, "execution_device", None)
    device = model.device if device is None else torch.device(device)
    return torch.arange(length, device=device)[None] * 7919 % vocabulary


def located(bridge: Any, model: Any) -> Iterator[tuple[str, Site, str]]:
    """Yield (hook point, site, kind) for each of the bridge's hook points that is an input or output of a plain module.

    The kind of the module is block, attention, mlp or other. TransformerLens wraps every module it knows; hook points that
    it invented, or that belong to a module it split, are left out."""
    from transformer_lens.model_bridge import generalized_components as parts
    from transformer_lens.model_bridge.generalized_components.opaque_block import OpaqueBlockBridge

    kinds = {
        "block": parts.BlockBridge | OpaqueBlockBridge,
        "attention": parts.AttentionBridge,
        "mlp": parts.MLPBridge,
    }
    plain_names = {name for name, _ in model.named_modules()}
    names: dict[int, str] = {}
    for path, module in bridge.original_model.named_modules(remove_duplicate=False):
        name = path.replace("._original_component", "")  # a wrapped module sits inside its wrapper
        if name in plain_names:  # a module may have several paths, some of which the bridge made up
            names.setdefault(id(module), name)
            if (inner := getattr(module, "original_component", None)) is not None:
                names.setdefault(id(inner), name)
    by_point: dict[int, tuple[Site, str]] = {}
    for module in bridge.modules():
        inner = getattr(module, "original_component", None)
        name = names.get(id(module)) or names.get(id(inner))
        if name is None or getattr(module, "name", None) is None:  # a part that stands for no single module
            continue
        kind = next((kind for kind, types in kinds.items() if isinstance(module, types)), "other")
        for side in ("in", "out"):
            point = getattr(module, f"hook_{side}", None)
            if point is not None:
                by_point[id(point)] = Site(name, side), kind
    for hook, point in bridge.hook_dict.items():
        if id(point) in by_point:
            yield hook, *by_point[id(point)]


def run_plain(model: Any, tokens: Tensor, edits: Sequence[tuple[Site, Edit]], logits: bool) -> Tensor:
    """Run the plain model with edits at some modules and return its logits, or its last hidden states."""
    with attached(model, edits):
        output = (model if logits else model.base_model)(tokens, use_cache=False)
        return output.logits if logits else output[0]


@contextmanager
def attached(model: Any, edits: Sequence[tuple[Site, Edit]]) -> Iterator[None]:
    """Let a plain transformers model run with edits at some of its modules within the block."""
    handles = [_attach(model.get_submodule(site.module), site.side, edit) for site, edit in edits]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attach(module: torch.nn.Module, side: str, edit: Edit) -> Any:
    if side == "in":

        def before(_: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if args:
                return (edit(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": edit(kwargs["hidden_states"])}

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(_: torch.nn.Module, __: tuple, output: Any) -> Any:
        if isinstance(output, tuple | list):  # a block of the first GPT returns a list
            return type(output)([edit(output[0]), *output[1:]])
        return edit(output)

    return module.register_forward_hook(after)


def run_bridge(bridge: Any, tokens: Tensor, edits: Mapping[str, Edit]) -> Tensor:
    """Run TransformerLens' view with edits at some hook points and return its logits."""

    def shaped(name: str, edit: Edit) -> Callable[..., Tensor]:
        def hook_function(activation: Any, hook: Any) -> Tensor:
            shape = tuple(getattr(activation, "shape", ()))
            if len(shape) < 3 or shape[:2] != tokens.shape:
                raise HookError(
                    f"{name} has shape {shape} for {tokens.shape[0]} windows of {tokens.shape[1]} tokens, expected a "
                    f"hook point with one vector per token"
                )
            return edit(activation.flatten(2)).view_as(activation)

        return hook_function

    hooks = [(name, shaped(name, edit)) for name, edit in edits.items()]
    try:
        return cast(Tensor, bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits"))
    except torch.OutOfMemoryError:
        raise
    # Raised for a hook point of an option that is off, or one that the model's adapter gets wrong
    except (ValueError, IndexError, RuntimeError) as error:
        raise HookError(
            f"TransformerLens cannot hook {', '.join(edits) or 'any hook point'}: {type(error).__name__}: {error}"
        ) from error


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
