"""Run a model with edits at hook points: in the plain transformers model, or in TransformerLens' view of it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from activations.errors import HookError

Edit = Callable[[Tensor], Tensor]  # what passes a hook point, [n, T, D] -> what goes on instead


class Site(NamedTuple):
    """Where a hook point lies in the plain transformers model: a module's input or its output."""

    module: str
    side: Literal["in", "out"]


class Reached(Exception):
    """Raised inside a forward pass once everything asked for is captured: the rest would be wasted."""


class Kept:
    """Activations kept as they pass hook points, with the hook points whose activations the model overwrites.

    Falcon adds the attention's output into the MLP's where that lies, OLMo clips queries in place: what was kept
    by reference then holds something else when the pass ends. Torch counts the writes to a tensor, so this is
    seen; `copied`, which outlives the pass, gets the hook point's name, and the next pass keeps a copy there."""

    def __init__(self, copied: set[str], stop_at: int | None = None):
        self.activations: dict[str, Tensor] = {}
        self._copied, self._stop_at = copied, stop_at
        self._writes: dict[str, int] = {}

    def edit(self, hook: str) -> Edit:
        """Return an edit that keeps what passes and changes nothing; raises Reached at the last to be kept."""

        def keep(activation: Tensor) -> Tensor:
            kept = activation.clone() if hook in self._copied else activation
            self.activations[hook], self._writes[hook] = kept, kept._version
            if len(self.activations) == self._stop_at:
                raise Reached
            return activation

        return keep

    def overwritten(self) -> bool:
        """Whether a kept activation was written to since it was kept, so that the pass has to be made again."""
        late = {hook for hook, kept in self.activations.items() if kept._version != self._writes[hook]}
        self._copied |= late
        return bool(late)


def tolerance(dtype: torch.dtype) -> float:
    """Relative difference that two ways to compute the same activations may have from rounding alone."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of `theirs`; infinite for another shape or where a number is not finite."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.double(), theirs.double()
    size = theirs.norm().item()
    distance = (ours - theirs).norm().item()
    if math.isnan(distance):
        return float("inf")
    return distance / size if size else (0.0 if distance == 0 else float("inf"))


def probe_tokens(model: Any, length: int = 32) -> Tensor:
    """Token ids [1, length], spread over the vocabulary, to try a model on."""
    vocabulary = model.config.get_text_config().vocab_size
    return torch.arange(length, device=model.device)[None] * 7919 % vocabulary


def located(bridge: Any, model: Any) -> Iterator[tuple[str, Site, str]]:
    """Yield the bridge's hook points that are the input or the output of a module of the plain model.

    With each comes its site and the kind of module: block, attention, mlp or other. TransformerLens wraps
    every module it knows; a hook point of its own invention, or of a module that it split, is left out."""
    from transformer_lens.model_bridge import generalized_components as parts
    from transformer_lens.model_bridge.generalized_components.opaque_block import OpaqueBlockBridge

    kinds = {
        "block": parts.BlockBridge | OpaqueBlockBridge,
        "attention": parts.AttentionBridge,
        "mlp": parts.MLPBridge,
    }
    there = {name for name, _ in model.named_modules()}
    names: dict[int, str] = {}
    for path, module in bridge.original_model.named_modules(remove_duplicate=False):
        name = path.replace("._original_component", "")  # a wrapped module sits inside its wrapper
        if name in there:  # one module may hang at several places, some of which the bridge made up
            names.setdefault(id(module), name)
            if (inner := getattr(module, "original_component", None)) is not None:
                names.setdefault(id(inner), name)
    by_point: dict[int, tuple[Site, str]] = {}
    for module in bridge.modules():
        inner = getattr(module, "original_component", None)
        name = names.get(id(module)) or names.get(id(inner))
        if (
            name is None or getattr(module, "name", None) is None
        ):  # a part that stands for no module of its own
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
    """Within the block, let a plain transformers model run with edits at some of its modules."""
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
                    f"what passes {name} has shape {shape} for {tokens.shape[0]} windows of {tokens.shape[1]} "
                    f"tokens: needed is a hook point with a vector for every token"
                )
            return edit(activation.flatten(2)).view_as(activation)

        return hook_function

    hooks = [(name, shaped(name, edit)) for name, edit in edits.items()]
    try:
        return cast(Tensor, bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits"))
    except torch.OutOfMemoryError:
        raise
    except (
        ValueError,
        IndexError,
        RuntimeError,
    ) as error:  # an option that is off, or a hook its adapter botches
        raise HookError(
            f"nothing can be hooked at {', '.join(edits) or 'any place'}: {type(error).__name__}: {error}"
        ) from error
