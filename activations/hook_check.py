"""Check that hook points give what the model computes, by comparison with its own hidden states and modules."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from activations.errors import HookError
from activations.language_model import LanguageModel
from activations.views import Site, attached, difference, require_causal, tolerance

log = logging.getLogger(__name__)

LENGTH = 32  # tokens of the first window that are used
DEPTH = 5  # how many times one module's rounding error a whole pass may have
RESIDUAL = re.compile(r"blocks\.(\d+)\.(hook_in|hook_resid_pre|hook_out|hook_resid_post)")
ADDED = re.compile(r"blocks\.(\d+)\.hook_(attn|mlp)_out")


class Own(NamedTuple):
    """The model's own activation at a hook point, and where in the model it was taken."""

    source: str
    activation: Tensor


@torch.no_grad()
def check(model: LanguageModel, tokens: Tensor, hooks: Sequence[str]) -> dict[str, str]:
    """Return for each hook point what it was compared with: a module's input or output, or hidden states.

    `tokens` [1, T] are real tokens, such as the first of a harvest, of which `LENGTH` are read. The plain transformers model
    reads them once, returning its hidden states and with ordinary PyTorch hooks on the modules in question. Raises HookError
    unless the following hold, up to rounding:

    - `model.capture` returns the model's own activation at each hook point;
    - an edit that changes nothing leaves the model's logits unchanged;
    - an edit that changes something changes the logits, by as much as the same edit made with a PyTorch hook.

    A hook point with no counterpart in the model is accepted with a warning, and is missing in the result. Raises ModelError
    when the model is not causal."""
    require_causal(model.plain, model.name)
    tokens = tokens[:, :LENGTH].to(model.device, torch.long)
    sites = {hook: site for hook, (site, _) in model.located.items()}
    own = _OwnPass(model, tokens, {*_needed(sites, hooks)})
    for hook in hooks:
        if hook.endswith("hook_resid_mid") and own.is_late(hook, sites):
            raise HookError(
                f"{hook} of {model.name} lies after the MLP, not between attention and MLP as its name says, because "
                f"its blocks normalise after each sum; choose another hook point, such as {model.last_residual}"
            )
    logits, activations = model.observe(tokens, hooks)
    if not all(x.isfinite().all() for x in (logits, *activations.values())):
        return {}  # an overflow, for which the harvest raises an error that names the token
    limit = DEPTH * tolerance(model.plain.dtype)
    distance = difference(logits, own.logits)
    if distance > limit:
        raise HookError(
            f"reading {', '.join(hooks)} changes what {model.name} computes: its logits differ by {distance:.1%} "
            f"from those of the model alone; choose other hook points"
        )
    compared: dict[str, str] = {}
    for hook in hooks:
        candidates = own.at(hook, sites)
        if not candidates:
            log.warning(
                "%s has no counterpart in %s to compare it with: only that edits there change the logits was checked",
                hook,
                model.name,
            )
        else:
            distance, source = min(
                (difference(activations[hook], own.activation), own.source) for own in candidates
            )
            if distance > limit:
                raise HookError(
                    f"{hook} of {model.name} is not what the model computes: on the first window it differs by "
                    f"{distance:.1%} from {source}; choose another hook point, such as {model.last_residual}"
                )
            compared[hook] = source
        _check_edits(model, tokens, hook, sites.get(hook), logits, activations[hook])
    log.debug("hook points compared with the model's own activations: %s", compared)
    return compared


def _check_edits(
    model: LanguageModel, tokens: Tensor, hook: str, site: Site | None, logits: Tensor, activation: Tensor
) -> None:
    """Raise HookError unless an edit at the hook point changes the logits as the same edit with a PyTorch hook does."""
    noise = torch.randn(activation.shape[1:], generator=torch.Generator().manual_seed(0)).to(activation)
    noise = 0.3 * activation.std() * noise

    def edit(x: Tensor) -> Tensor:
        return x + noise.reshape(x.shape)  # some models concatenate the tokens of all windows

    edited = model.logits(tokens, {hook: edit})
    if difference(edited, logits) < tolerance(model.plain.dtype) / 100:
        raise HookError(
            f"{hook} of {model.name} has no influence on its logits, so that an SAE can be neither spliced in nor "
            f"steered with there; choose another hook point"
        )
    if site is None or model.plain_sites([hook]) is not None:
        return  # there is nothing to compare with, or the edit above was made with a PyTorch hook already
    with attached(model.plain, [(site, edit)]):
        expected = model.plain(tokens, use_cache=False).logits
    distance = difference(edited - logits, expected - logits)
    # The changes are small beside the logits, so that rounding errors are relatively larger in them
    if distance > 20 * DEPTH * tolerance(model.plain.dtype):
        raise HookError(
            f"an edit at {hook} has another effect in TransformerLens' view of {model.name} than in the model: "
            f"the changes of the logits differ by {distance:.0%}; choose another hook point, such as "
            f"{model.last_residual}"
        )


def _needed(sites: Mapping[str, Site], hooks: Sequence[str]) -> list[Site]:
    """Return the sites of the plain model whose activations are needed to check these hook points."""
    needed = []
    for hook in hooks:
        added = ADDED.fullmatch(hook)
        block = f"blocks.{added[1]}" if added else ""
        around = [f"{block}.hook_in", f"{block}.ln2.hook_in", f"{block}.hook_out"] if added else []
        if hook.endswith("hook_resid_mid"):
            around = [hook.replace("hook_resid_mid", f"{part}hook_out") for part in ("mlp.", "mlp.out.")]
        needed += [sites[name] for name in (hook, *around) if name in sites]
    return needed


class _OwnPass:
    """One pass of the plain model: its logits, its hidden states, and the inputs and outputs of some modules."""

    def __init__(self, model: LanguageModel, tokens: Tensor, sites: set[Site]):
        self._model = model
        self._seen: dict[Site, Tensor] = {}
        blocks = [model.located.get(f"blocks.{layer}.hook_in") for layer in range(model.n_layers)]
        first = blocks[0][0] if blocks[0] else None

        def keep(site: Site) -> Any:
            def edit(x: Tensor) -> Tensor:
                self._seen[site] = x.clone()  # some models later write into this tensor
                return x

            return edit

        wanted = sites | ({first} if first else set())
        with attached(model.plain, [(site, keep(site)) for site in wanted]):
            output = model.plain(tokens, use_cache=False, output_hidden_states=True)
        self.logits = output.logits
        states = list(getattr(output, "hidden_states", None) or ())
        entry = None if first is None else self._seen.get(first)
        if len(states) != model.n_layers + 1 or entry is None:
            states = []
        # Most families return the input of each block and the final output; Mamba and RWKV the output of each block
        are_inputs = entry is None or (
            bool(states) and difference(states[0], entry) < tolerance(model.plain.dtype)
        )
        self._states = states[:-1] if are_inputs or not states else [entry, *states[:-2]]
        self._last = states[-1] if states else None

    def at(self, hook: str, sites: Mapping[str, Site]) -> list[Own]:
        """Return the model's own activations [1, T, D] at a hook point, one for each meaning its name can have."""
        site, candidates = sites.get(hook), []
        if site is not None and site in self._seen:
            side = {"in": "input", "out": "output"}[site.side]
            candidates.append((f"the {side} of {site.module}", self._seen[site]))
        if residual := RESIDUAL.fullmatch(hook):
            number = int(residual[1]) + (residual[2] in ("hook_out", "hook_resid_post"))
            if number < len(self._states):
                candidates = [(f"hidden_states[{number}]", self._states[number])]
            elif candidates and self._gives_last_state(candidates[0][1]):
                candidates = [(f"{candidates[0][0]}, which gives the last hidden states", candidates[0][1])]
        elif (added := ADDED.fullmatch(hook)) and not candidates:
            candidates = self._between(int(added[1]), added[2], sites)
        elif (
            hook in ("hook_embed", "embed.hook_out") and self._states
        ):  # TransformerLens includes a scale factor
            candidates.append(("hidden_states[0]", self._states[0]))
        shape = self.logits.shape[:2]
        return [
            Own(source, x.reshape(*shape, -1)) for source, x in candidates if x.numel() % shape.numel() == 0
        ]

    def _between(self, layer: int, part: str, sites: Mapping[str, Site]) -> list[tuple[str, Tensor]]:
        """Return what attention or MLP adds to the residual stream: the difference of the stream after and before it."""
        ends = {"attn": ("hook_in", "ln2.hook_in"), "mlp": ("ln2.hook_in", "hook_out")}[part]
        before, after = (self._seen_at(f"blocks.{layer}.{end}", sites) for end in ends)
        if before is None or after is None:
            return []
        return [(f"what block {layer} adds between its {ends[0]} and its {ends[1]}", after - before)]

    def _seen_at(self, hook: str, sites: Mapping[str, Site]) -> Tensor | None:
        site = sites.get(hook)
        return None if site is None else self._seen.get(site)

    def is_late(self, hook: str, sites: Mapping[str, Site]) -> bool:
        """Return whether a hook point named as if it lay between attention and MLP comes after the MLP.

        TransformerLens gives this name to the input of a block's second norm. In a block that normalises after each sum, as
        in BERT and OPT-350m, that norm comes after the MLP."""
        block = hook.rsplit(".", 1)[0]
        ends = [
            sites[name] for name in (f"{block}.mlp.out.hook_out", f"{block}.mlp.hook_out") if name in sites
        ]
        order = list(self._seen)
        return sites.get(hook) in order and any(
            end in order and order.index(end) < order.index(sites[hook]) for end in ends
        )

    def _gives_last_state(self, x: Tensor) -> bool:
        """Return whether the model's last hidden states are x, or its final norm or projection of x."""
        if self._last is None:
            return False
        steps = [x]
        if (readout := self._model.readout) is not None:
            steps.append(readout.normed(x[0])[None])
            for module in readout.head[:-1]:
                steps.append(module(steps[-1]))
        return min(difference(step, self._last) for step in steps) <= tolerance(x.dtype)
