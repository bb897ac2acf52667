"""A causal language model through TransformerLens: run it up to a hook point and stop, or change what passes there."""

import copy
import difflib
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from activations import embedded, hub
from activations.errors import HookError, ModelError
from activations.typed import fits

log = logging.getLogger(__name__)

Edit = Callable[[Tensor], Tensor]  # what passes a hook point, [n, T, D] -> what goes on instead


class Site(NamedTuple):
    """Where a hook point lies in the plain transformers model: a module's input or its output."""

    module: str
    side: Literal["in", "out"]


class _Reached(Exception):
    """Raised inside a forward pass once everything asked for is captured: the rest would be wasted."""


def load(
    name: str, revision: str | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> "LanguageModel":
    """Load `embedded`, a local folder, or a model of the hub. Raises ModelError when it is not to be had, at once where
    the hub does not answer and its cache does not hold the model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(embedded.model_folder()) if name == "embedded" else name
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ModelError(f"no model folder at {name}: needed is a folder with config.json, or a hub name")
    # code that comes along is never run, and not asked about
    safely: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    silence = None
    try:
        with hub.cache_alone_if_silent(source) as silence:
            safely_all = {**safely, "dtype": dtype, "output_loading_info": True}
            hf_model, found = cast(Any, AutoModelForCausalLM.from_pretrained(source, **safely_all))
            tokenizer = AutoTokenizer.from_pretrained(source, **safely)
        ids = tokenizer(
            "a text", add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids
        if not fits([*ids, tokenizer.bos_token_id or 0, tokenizer.eos_token_id or 0], list[int]):
            raise ValueError(f"its tokenizer gives {ids} for a text.")
    except Exception as error:  # the libraries below raise of everything, plain Exception too
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:500]
        reason = f"{silence}, and the hub's cache on this machine does not hold it." if silence else reason
        raise ModelError(
            f"cannot load the model {name!r}: {reason} Needed is 'embedded', a model folder, or a hub name "
            f"(fetched over the network, so check the spelling and the connection)"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"the model {name!r} lacks {len(missing):,} of its weights, {missing[0]} among them: they would be random"
        )
    return LanguageModel(cast(Any, hf_model).to(device), tokenizer, name, revision)


def precision(name: str, device: torch.device) -> torch.dtype:
    """The torch type of a name; `auto` is bfloat16 where the device multiplies it faster than float32, else float32.

    That is a GPU that has it, or a CPU with AMX tiles: without them bfloat16 is two to three times slower."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu.get_capabilities().get("amx_bf16", False)
    return torch.bfloat16 if fast else torch.float32


class LanguageModel:
    """A causal LM with named hook points.

    Two views share one set of weights: TransformerLens' bridge, which knows every hook point but computes
    attention eagerly, and the plain transformers model, which runs fused attention. Where a hook point is
    the input or output of a block, an attention or an MLP, the plain model is used, after one short window
    has shown that both views agree there; elsewhere the bridge is."""

    def __init__(self, hf_model: Any, tokenizer: Any, name: str, revision: str | None = None):
        self.plain = hf_model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self._agreeing: dict[str, bool] = {}

    @cached_property
    def bridge(self) -> Any:
        """TransformerLens' view: a copy of the module tree over the same weight tensors."""
        from transformer_lens.model_bridge import TransformerBridge

        tensors = itertools.chain(self.plain.parameters(), self.plain.buffers())
        twin = copy.deepcopy(self.plain, {id(tensor): tensor for tensor in tensors})
        try:
            return TransformerBridge.boot_transformers(
                self.plain.config.name_or_path or self.name,
                hf_model=twin,
                tokenizer=self.tokenizer,
                device=self.device,
                dtype=self.plain.dtype,
            )
        except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
            raise ModelError(f"TransformerLens cannot boot {self.name}: {error}") from error

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.plain.device

    @property
    def longest(self) -> int | None:
        """Tokens of the longest window the model reads, or None when its configuration sets no limit."""
        return getattr(self.plain.config.get_text_config(), "max_position_embeddings", None)

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return self.bridge.cfg.n_layers

    @cached_property
    def hooks(self) -> list[str]:
        """Names of all hook points, such as `blocks.3.hook_resid_post`."""
        return list(self.bridge.hook_dict)

    def check_hook(self, hook: str) -> None:
        """Raise HookError, naming the nearest hook points, unless the model has `hook`."""
        if hook not in self.bridge.hook_dict:
            near = difflib.get_close_matches(hook, self.hooks, n=3, cutoff=0.3)
            raise HookError(
                f"{self.name} has no hook point {hook!r}; nearest: {', '.join(near) or 'none'} "
                f"(its {self.n_layers} blocks are numbered from 0)"
            )

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over every parameter's name and bytes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.plain.named_parameters()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def capture(self, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Activations [n, T, D] at each hook point for token ids [n, T], in the model's dtype.

        The pass stops at the deepest hook point. A hook point with a head axis comes flattened, so
        D = heads x head width. Every row depends on its own window alone."""
        for hook in hooks:
            self.check_hook(hook)
        found: dict[str, Tensor] = {}

        def keep(hook: str) -> Edit:
            def edit(activation: Tensor) -> Tensor:
                found[hook] = activation
                if len(found) == len(hooks):
                    raise _Reached
                return activation

            return edit

        try:
            self._run(tokens, {hook: keep(hook) for hook in hooks}, logits=False)
        except _Reached:
            return found
        raise self._nothing_passes(hooks, found)

    @torch.no_grad()
    def observe(self, tokens: Tensor, hooks: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Next-token logits [n, T, V] and, as `capture` gives them, the activations at some hook points: one pass."""
        found: dict[str, Tensor] = {}

        def keep(hook: str) -> Edit:
            def edit(activation: Tensor) -> Tensor:
                found[hook] = activation
                return activation

            return edit

        logits = self.logits(tokens, {hook: keep(hook) for hook in hooks})
        if len(found) < len({*hooks}):
            raise self._nothing_passes(hooks, found)
        return logits, found

    def _nothing_passes(self, hooks: Sequence[str], found: Mapping[str, Tensor]) -> HookError:
        missing = ", ".join(hook for hook in hooks if hook not in found)
        return HookError(
            f"nothing passes {missing} when {self.name} runs: TransformerLens keeps it for an option "
            f"that is off; choose another hook point"
        )

    @torch.no_grad()
    def logits(self, tokens: Tensor, edits: Mapping[str, Edit] | None = None) -> Tensor:
        """Next-token logits [n, T, V] for token ids [n, T], with what passes some hook points replaced.

        An edit sees and returns [n, T, D], head axes flattened."""
        for hook in edits or {}:
            self.check_hook(hook)
        return self._run(tokens, edits or {}, logits=True)

    @torch.no_grad()
    def vocabulary_effect(self, directions: Tensor) -> Tensor:
        """Logits [n, V] that residual directions [n, D] write: final norm, then unembedding.

        Each direction goes alone through the model's own final norm, which brings it to unit scale, and what
        the norm makes of zero (a LayerNorm's bias) is taken off; no other part of the residual stream takes
        part, so only order and relative size mean something. nostalgebraist 2020, "the logit lens"."""
        norm, unembed = self.bridge.ln_final, self.bridge.unembed
        base = directions.to(self.device, self.plain.dtype)[:, None]
        written = norm(base) - norm(torch.zeros_like(base[:1]))
        return unembed(written).sub_(unembed(torch.zeros_like(written[:1])))[:, 0].float()

    @property
    def last_residual(self) -> str:
        """Hook point of what the final norm reads: the residual stream behind the last block."""
        return f"blocks.{self.n_layers - 1}.hook_resid_post"

    def _run(self, tokens: Tensor, edits: Mapping[str, Edit], logits: bool) -> Tensor:
        tokens = tokens.to(self.device, torch.long)
        sites = self.plain_sites(list(edits))
        if sites is not None:
            return _run_plain(self.plain, tokens, list(zip(sites, edits.values(), strict=True)), logits)
        return _run_bridge(self.bridge, tokens, edits)

    def plain_sites(self, hooks: Sequence[str]) -> list[Site] | None:
        """Where hook points lie in the plain model; None unless it sees at each of them what the bridge sees."""
        if all(self._plain_agrees(hook) for hook in hooks):
            return [self._sites[hook] for hook in hooks]
        return None

    def _plain_agrees(self, hook: str) -> bool:
        """Whether the plain model sees at `hook` what the bridge sees there, tried once on a short window."""
        if hook not in self._agreeing:
            self._agreeing[hook] = hook in self._sites and self._compare(hook)
        return self._agreeing[hook]

    def _compare(self, hook: str) -> bool:
        vocabulary = self.plain.config.get_text_config().vocab_size
        tokens = torch.arange(32, device=self.device)[None] * 7919 % vocabulary
        seen = []

        def keep(activation: Tensor) -> Tensor:
            seen.append(activation.double())
            raise _Reached

        for run in (
            lambda: _run_plain(self.plain, tokens, [(self._sites[hook], keep)], logits=False),
            lambda: _run_bridge(self.bridge, tokens, {hook: keep}),
        ):
            try:
                run()
            except _Reached:
                continue
            return False  # nothing passed there
        if seen[0].shape != seen[1].shape:
            return False
        worst = ((seen[0] - seen[1]).norm() / seen[1].norm()).item()
        tolerance = 1e-4 if self.plain.dtype == torch.float32 else 2e-2
        if worst > tolerance:
            log.info("%s: the bridge is used (the plain model differs by %.1e)", hook, worst)
        return worst <= tolerance

    @cached_property
    def _sites(self) -> dict[str, Site]:
        """Hook points that are the whole input or output of a block, or the output of an attention or MLP."""
        from transformer_lens.model_bridge import generalized_components as parts

        wrapped = self.bridge.original_model.named_modules()  # a wrapped module sits inside its wrapper
        modules = {id(module): name.replace("._original_component", "") for name, module in wrapped}
        by_point: dict[int, Site] = {}
        for module in self.bridge.modules():
            name = modules.get(id(module))
            if name is None:
                continue
            if isinstance(module, parts.BlockBridge):
                by_point[id(module.hook_in)] = Site(name, "in")
            if isinstance(module, parts.BlockBridge | parts.AttentionBridge | parts.MLPBridge):
                by_point[id(module.hook_out)] = Site(name, "out")
        points = self.bridge.hook_dict.items()
        return {hook: by_point[id(point)] for hook, point in points if id(point) in by_point}


def _run_plain(model: Any, tokens: Tensor, edits: Sequence[tuple[Site, Edit]], logits: bool) -> Tensor:
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
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    return module.register_forward_hook(after)


def _run_bridge(bridge: Any, tokens: Tensor, edits: Mapping[str, Edit]) -> Tensor:
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
    except ValueError as error:  # a hook point of an option that is off
        raise HookError(f"nothing can be hooked at {', '.join(edits)}: {error}") from error
