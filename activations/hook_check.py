"""Whether what is harvested is what the model computes: hook points against the model's own hidden states and modules."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from activations.errors import HookError
from activations.language_model import LanguageModel
from activations.probes import require_causal
from activations.views import Site, attached, difference, tolerance

log = logging.getLogger(__name__)

LENGTH = 32  # tokens of the first window that are looked at
DEPTH = 5  # by how much more than one module's the rounding of a whole pass may differ
RESIDUAL = re.compile(r"blocks\.(\d+)\.(hook_in|hook_resid_pre|hook_out|hook_resid_post)")
ADDED = re.compile(r"blocks\.(\d+)\.hook_(attn|mlp)_out")


class Own(NamedTuple):
    """What the model itself has at a hook point, and where that was seen."""

    source: str
    activation: Tensor


@torch.no_grad()
def check(model: LanguageModel, tokens: Tensor, hooks: Sequence[str]) -> dict[str, str]:
    """Return for each hook point with what of the model's own it was compared: a module, or its hidden states.

    `tokens` [1, T] are real tokens, the first of a harvest; `LENGTH` of them are read. The plain transformers
    model reads them once, with its hidden states kept and hooks beside the modules in question, as a person
    would write them. Then these have to hold, up to rounding, or HookError is raised:

    - what `model.capture` gives at a hook point is what the model has there;
    - an edit that changes nothing leaves the model's logits as they are;
    - an edit that changes something changes the logits, and by what the same edit by hand changes them.

    A hook point with no counterpart in the model is accepted, with one line in the log, and is missing in
    the answer. Raises ModelError when the model is not causal."""
    require_causal(model.plain, model.name)
    tokens = tokens[:, :LENGTH].to(model.device, torch.long)
    sites = {hook: site for hook, (site, _) in model.located.items()}
    own = _OwnPass(model, tokens, {*_needed(sites, hooks)})
    for hook in hooks:
        if hook.endswith("hook_resid_mid") and own.is_late(hook, sites):
            raise HookError(
                f"{hook} of {model.name} lies behind the MLP, not between attention and MLP as its name says: its "
                f"blocks norm behind each sum; choose another hook point, such as {model.last_residual}"
            )
    logits, activations = model.observe(tokens, hooks)
    if not all(x.isfinite().all() for x in (logits, *activations.values())):
        return {}  # overflow, which has an error of its own when shards are written
    limit = DEPTH * tolerance(model.plain.dtype)
    apart = difference(logits, own.logits)
    if apart > limit:
        raise HookError(
            f"reading {', '.join(hooks)} changes what {model.name} computes: its logits differ by {apart:.1%} "
            f"from those of the model alone; choose other hook points"
        )
    compared: dict[str, str] = {}
    for hook in hooks:
        candidates = own.at(hook, sites)
        if not candidates:
            log.warning(
                "%s can be compared with nothing in %s itself: only that edits there change its logits was checked",
                hook,
                model.name,
            )
        else:
            apart, source = min(
                (difference(activations[hook], own.activation), own.source) for own in candidates
            )
            if apart > limit:
                raise HookError(
                    f"{hook} of {model.name} is not what the model computes: on the first window it differs by "
                    f"{apart:.1%} from {source}; choose another hook point, such as {model.last_residual}"
                )
            compared[hook] = source
        _check_edits(model, tokens, hook, sites.get(hook), logits, activations[hook])
    log.debug("hook points compared with the model's own activations: %s", compared)
    return compared


def _check_edits(
    model: LanguageModel, tokens: Tensor, hook: str, site: Site | None, logits: Tensor, activation: Tensor
) -> None:
    """Raise HookError unless an edit at the hook point does to the logits what it does by hand."""
    noise = torch.randn(activation.shape[1:], generator=torch.Generator().manual_seed(0)).to(activation)
    noise = 0.3 * activation.std() * noise

    def edit(x: Tensor) -> Tensor:
        return x + noise.reshape(x.shape)  # some models lay the tokens of all windows end to end

    edited = model.logits(tokens, {hook: edit})
    if difference(edited, logits) < tolerance(model.plain.dtype) / 100:
        raise HookError(
            f"what passes {hook} of {model.name} has no influence on its logits, so that an SAE can be neither "
            f"spliced in nor steered with there; choose another hook point"
        )
    if site is None or model.plain_sites([hook]) is not None:  # then the edit is already made by hand
        return
    with attached(model.plain, [(site, edit)]):
        by_hand = model.plain(tokens, use_cache=False).logits
    change = difference(edited - logits, by_hand - logits)
    if change > 20 * DEPTH * tolerance(model.plain.dtype):  # of a change, which is small beside the logits
        raise HookError(
            f"an edit at {hook} does not do in TransformerLens' view of {model.name} what it does in the model: "
            f"the change of its logits differs by {change:.0%}; choose another hook point, such as "
            f"{model.last_residual}"
        )


def _needed(sites: Mapping[str, Site], hooks: Sequence[str]) -> list[Site]:
    """Return where the model has to be looked into for these hook points."""
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
    """One pass of the plain model: its logits, its hidden states, and what goes into and comes out of some modules."""

    def __init__(self, model: LanguageModel, tokens: Tensor, sites: set[Site]):
        self._model = model
        self._seen: dict[Site, Tensor] = {}
        blocks = [model.located.get(f"blocks.{layer}.hook_in") for layer in range(model.n_layers)]
        first = blocks[0][0] if blocks[0] else None

        def keep(site: Site) -> Any:
            def edit(x: Tensor) -> Tensor:
                self._seen[site] = x.clone()  # some models write into what they passed on
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
        # Most families list what goes into each block and the last output; Mamba and RWKV what comes out of each
        begins = entry is None or (
            bool(states) and difference(states[0], entry) < tolerance(model.plain.dtype)
        )
        self._states = states[:-1] if begins or not states else [entry, *states[:-2]]
        self._last = states[-1] if states else None

    def at(self, hook: str, sites: Mapping[str, Site]) -> list[Own]:
        """Return what the model has at a hook point [1, T, D], under each reading of its name that there is."""
        site, candidates = sites.get(hook), []
        if site is not None and site in self._seen:
            side = {"in": "input", "out": "output"}[site.side]
            candidates.append((f"the {side} of {site.module}", self._seen[site]))
        if place := RESIDUAL.fullmatch(hook):
            number = int(place[1]) + (place[2] in ("hook_out", "hook_resid_post"))
            if number < len(self._states):
                candidates = [(f"hidden_states[{number}]", self._states[number])]
            elif candidates and self._leads_to_the_last(candidates[0][1]):
                candidates = [
                    (f"{candidates[0][0]}, which leads to the last hidden states", candidates[0][1])
                ]
        elif (added := ADDED.fullmatch(hook)) and not candidates:
            candidates = self._between(int(added[1]), added[2], sites)
        elif hook in ("hook_embed", "embed.hook_out") and self._states:  # TransformerLens includes a scale
            candidates.append(("hidden_states[0]", self._states[0]))
        shape = self.logits.shape[:2]
        return [
            Own(source, x.reshape(*shape, -1)) for source, x in candidates if x.numel() % shape.numel() == 0
        ]

    def _between(self, layer: int, part: str, sites: Mapping[str, Site]) -> list[tuple[str, Tensor]]:
        """What attention or MLP adds to the residual stream, as the difference of what is there after and before."""
        places = {"attn": ("hook_in", "ln2.hook_in"), "mlp": ("ln2.hook_in", "hook_out")}[part]
        before, after = (self._of(f"blocks.{layer}.{place}", sites) for place in places)
        if before is None or after is None:
            return []
        return [(f"what block {layer} adds between its {places[0]} and its {places[1]}", after - before)]

    def _of(self, hook: str, sites: Mapping[str, Site]) -> Tensor | None:
        site = sites.get(hook)
        return None if site is None else self._seen.get(site)

    def is_late(self, hook: str, sites: Mapping[str, Site]) -> bool:
        """Whether the hook point, said to lie between attention and MLP, comes after the MLP.

        TransformerLens names the input of a block's second norm so. In a block that norms behind each sum, as
        BERT's and OPT-350m's do, that is behind the MLP."""
        block = hook.rsplit(".", 1)[0]
        ends = [
            sites[name] for name in (f"{block}.mlp.out.hook_out", f"{block}.mlp.hook_out") if name in sites
        ]
        order = list(self._seen)
        return sites.get(hook) in order and any(
            end in order and order.index(end) < order.index(sites[hook]) for end in ends
        )

    def _leads_to_the_last(self, x: Tensor) -> bool:
        """Whether the model's last hidden states are x, or what its final norm or projection makes of it."""
        if self._last is None:
            return False
        steps = [x]
        if (readout := self._model.readout) is not None:
            steps.append(readout.normed(x[0])[None])
            for module in readout.head[:-1]:
                steps.append(module(steps[-1]))
        return min(difference(step, self._last) for step in steps) <= tolerance(x.dtype)
