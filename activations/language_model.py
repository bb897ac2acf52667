"""A causal language model with named hook points: run it up to a hook point, or replace the activations there."""

import copy
import difflib
import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from activations import pretrained
from activations.errors import HookError, ModelError
from activations.readout import Readout, trace
from activations.views import (
    Captured,
    Edit,
    Reached,
    Site,
    difference,
    located,
    probe_tokens,
    require_causal,
    run_bridge,
    run_plain,
    state_kept,
    tolerance,
)
from activations.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def load(
    name: str, revision: str | None = None, dtype: torch.dtype | str = torch.float32, device: str = "cpu"
) -> "LanguageModel":
    """Load the embedded model (`embedded`), a model folder, or a model of the Hugging Face hub.

    Its weights get, and it runs in, the precision `dtype`; `auto` is bfloat16 where that is faster (`precision.resolve`).
    Raises ModelError when the model cannot be loaded or is not a causal language model. When the Hugging Face Hub does not answer and
    its cache does not hold the model, that is raised at once, without the library's retries."""
    hf_model, tokenizer = pretrained.fetch(name, revision, dtype, torch.device(device))
    model = LanguageModel(hf_model.to(device), tokenizer, name, revision)
    require_causal(model.plain, name)
    return model


class LanguageModel:
    """A causal language model with named hook points.

    Two views share one set of weights: TransformerLens' bridge, which has every hook point but computes attention eagerly,
    and the plain transformers model, which runs fused attention. The plain model is used for a hook point that is the input
    or output of a block, an attention or an MLP, once one short window has shown that both views agree there. The bridge
    is used for all others."""

    engine: Literal["bridge", "transformers", "tensor-parallel", "fsdp"] = "bridge"
    """What gives its rows, as a store records it (`activations.engines`)."""
    in_step = False
    """Whether all ranks have to run it together."""
    _stops_early = True

    def __init__(self, hf_model: Any, tokenizer: Any, name: str, revision: str | None = None):
        self.plain = hf_model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary(tokenizer, self.plain.get_input_embeddings().weight.shape[0], name)
        self.name = name
        self.revision = revision
        self._agreeing: dict[str, bool] = {}
        self._copied: set[str] = set()

    @property
    def bridge(self) -> Any:
        """TransformerLens' view: a copy of the module tree that shares the weight tensors."""
        return self._bridge

    @cached_property
    def _bridge(self) -> Any:
        from transformer_lens.model_bridge import TransformerBridge

        # The bridge changes the modules it wraps, so it gets its own; deepcopy keeps what its memo already holds
        tensors = itertools.chain(self.plain.parameters(), self.plain.buffers())
        twin = copy.deepcopy(self.plain, {id(tensor): tensor for tensor in tensors})
        try:
            return TransformerBridge.boot_transformers(
                self.plain.config.name_or_path or self.name,
                hf_model=twin,
                tokenizer=copy.deepcopy(
                    self.tokenizer
                ),  # booting adds a BOS, an EOS and padding if it has none
                device=self.device,
                dtype=self.plain.dtype,
            )
        except Exception as error:  # an adapter that does not fit the model can raise anything
            kind = type(self.plain).__name__
            if "determine supported architecture" in str(error):  # followed by a list of all architectures
                raise ModelError(
                    f"TransformerLens has no adapter for {self.name} ({kind}), so it has no named hook points: "
                    f"choose a model of another family"
                ) from error
            raise ModelError(f"TransformerLens cannot boot {self.name} ({kind}): {error}") from error

    @property
    def device(self) -> torch.device:
        """Device that the weights are on."""
        return self.plain.device

    @property
    def longest(self) -> int | None:
        """Number of tokens of the longest window the model can read; None if its configuration sets no limit."""
        return getattr(self.plain.config.get_text_config(), "max_position_embeddings", None)

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return self.bridge.cfg.n_layers

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.bridge.cfg.d_model

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
        """SHA-256 over the names and bytes of all parameters."""
        digest = hashlib.sha256()
        for name, tensor in self._weights():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters, sorted by name."""
        yield from ((name, tensor.detach()) for name, tensor in sorted(self.plain.named_parameters()))

    @torch.no_grad()
    def capture(self, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Return the activations [n, T, D] at each hook point for token ids [n, T], in the model's dtype.

        The pass stops at the deepest hook point. A head axis is flattened, so that D = heads * head width. Every row
        depends on its own window alone. Raises HookError for a hook point the model does not have or does not reach."""
        for hook in hooks:
            self.check_hook(hook)
        while True:
            captured = Captured(self._copied, stop_at=len(hooks) if self._stops_early else None)
            with suppress(Reached):
                self._run(tokens, {hook: captured.edit(hook) for hook in hooks}, logits=False)
            if len(captured.activations) < len(hooks):
                raise self._nothing_passes(hooks, captured.activations)
            if not captured.overwritten():  # a second pass copies where the first one was overwritten
                return captured.activations

    @torch.no_grad()
    def observe(self, tokens: Tensor, hooks: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return next-token logits [n, T, V] and the activations that `capture` returns, from a single pass."""
        captured = Captured(self._copied)
        logits = self.logits(tokens, {hook: captured.edit(hook) for hook in hooks})
        if len(captured.activations) < len({*hooks}):
            raise self._nothing_passes(hooks, captured.activations)
        return self.observe(tokens, hooks) if captured.overwritten() else (logits, captured.activations)

    def _nothing_passes(self, hooks: Sequence[str], captured: Mapping[str, Tensor]) -> HookError:
        missing = ", ".join(hook for hook in hooks if hook not in captured)
        return HookError(
            f"{self.name} computes nothing at {missing}: TransformerLens uses this hook point only with an option "
            f"that is off; choose another hook point"
        )

    @torch.no_grad()
    def logits(self, tokens: Tensor, edits: Mapping[str, Edit] | None = None) -> Tensor:
        """Return next-token logits [n, T, V] for token ids [n, T], with the activations at some hook points replaced.

        An edit takes and returns activations [n, T, D], head axes flattened."""
        for hook in edits or {}:
            self.check_hook(hook)
        return self._run(tokens, edits or {}, logits=True)

    def differentiable_logits(self, tokens: Tensor, edits: Mapping[str, Edit]) -> Tensor:
        """Return `logits` with gradients to what the edits return. The model's weights get none."""
        for hook in edits:
            self.check_hook(hook)
        return self._run(tokens, edits, logits=True)

    @torch.no_grad()
    def vocabulary_effect(self, directions: Tensor) -> Tensor:
        """Return the logits [n, V] that residual directions [n, D] write: final norm, then unembedding.

        Each direction goes alone through the model's own final norm, which brings it to unit scale, and the norm's value at
        zero (a LayerNorm's bias) is subtracted. The rest of the residual stream takes no part, so that only order and
        relative size are meaningful. A model without a final norm is read without one; a projection before the unembedding
        and a factor on the logits are applied, a soft cap is not. Raises ModelError when `readout` is None.
        nostalgebraist 2020, "the logit lens"."""
        if self.readout is None:
            raise ModelError(
                f"{self.name} has no logit lens: no norm and unembedding lead from its last block to its logits"
            )
        return self.readout.written(directions.to(self.device, self.plain.dtype)).float()

    @cached_property
    def readout(self) -> Readout | None:
        """The path from the residual stream after the last block to the logits; None when it is unknown."""
        site = self._sites.get(self.last_residual)
        readout = None if site is None else trace(self.plain, site)
        if readout is None:
            log.warning(
                "%s: no norm and unembedding were found that lead from its last block to its logits, so there "
                "are no logit lenses and no direct effects",
                self.name,
            )
        return readout

    @cached_property
    def state_kept(self) -> str | None:
        """Name of the argument that passes the model its state of earlier tokens; None when it keeps no state."""
        return state_kept(self.plain)

    @property
    def last_residual(self) -> str:
        """Hook point of the residual stream after the last block."""
        return f"blocks.{self.n_layers - 1}.hook_resid_post"

    def _run(self, tokens: Tensor, edits: Mapping[str, Edit], logits: bool) -> Tensor:
        tokens = tokens.to(self.device, torch.long)
        sites = self.plain_sites(list(edits))
        if sites is not None:
            return run_plain(self.plain, tokens, list(zip(sites, edits.values(), strict=True)), logits)
        if self.bridge_fault:
            only_in_bridge = [hook for hook in edits if not self._plain_agrees(hook)]
            raise HookError(
                f"{', '.join(only_in_bridge)} can only be reached in TransformerLens' view of {self.name}, and "
                f"{self.bridge_fault}: choose the input or output of a block, such as {self.last_residual}"
            )
        return run_bridge(self.bridge, tokens, edits)

    @cached_property
    def bridge_fault(self) -> str:
        """Why TransformerLens' view does not compute what the model computes, tested once; empty when it does."""
        tokens = probe_tokens(self.plain)
        try:
            logits = run_bridge(self.bridge, tokens, {})
        except Exception as error:  # an adapter that does not fit the model can raise anything
            return f"that view cannot run: {error}"
        distance = difference(logits, run_plain(self.plain, tokens, [], logits=True))
        if distance > 5 * tolerance(self.plain.dtype):  # rounding errors add up over the layers
            return f"its logits differ from the model's own by {distance:.1%}"
        return ""

    def plain_sites(self, hooks: Sequence[str]) -> list[Site] | None:
        """Return where hook points lie in the plain model; None unless both views agree at each of them."""
        if all(self._plain_agrees(hook) for hook in hooks):
            return [self._sites[hook] for hook in hooks]
        return None

    def _plain_agrees(self, hook: str) -> bool:
        """Return whether both views have the same activations at `hook`, tested once on a short window.

        A bridge that does not compute what the model computes is not asked: the plain model is the reference."""
        if hook not in self._agreeing:
            self._agreeing[hook] = hook in self._sites and self._compare(hook)
        return self._agreeing[hook]

    def _compare(self, hook: str) -> bool:
        tokens = probe_tokens(self.plain)
        seen = []  # the plain model's activation, then the bridge's

        def keep(activation: Tensor) -> Tensor:
            seen.append(activation)
            raise Reached

        for run in (
            lambda: run_plain(self.plain, tokens, [(self._sites[hook], keep)], logits=False),
            lambda: run_bridge(self.bridge, tokens, {hook: keep}),
        ):
            try:
                run()
            except Reached:
                if seen[0].ndim == 3 and seen[0].shape[:2] == tokens.shape and self.bridge_fault:
                    return True
                continue
            # The hook did not run. In the bridge that happens for a block that returns a list, whose output it misses
            return bool(seen) and self.located[hook][1] == "block"
        distance = difference(seen[0], seen[1])
        if distance > tolerance(self.plain.dtype):
            log.info("%s: the bridge is used (the plain model differs by %.1e)", hook, distance)
        return distance <= tolerance(self.plain.dtype)

    @cached_property
    def _sites(self) -> dict[str, Site]:
        """Sites of hook points that are the input or output of a block, or the output of an attention or MLP."""
        sides = {"block": ("in", "out"), "attention": ("out",), "mlp": ("out",)}
        return {hook: site for hook, (site, kind) in self.located.items() if site.side in sides.get(kind, ())}

    @cached_property
    def located(self) -> dict[str, tuple[Site, str]]:
        """Site of each hook point in the plain model, and its kind of module: block, attention, mlp or other."""
        return {hook: (site, kind) for hook, site, kind in located(self.bridge, self.plain)}
