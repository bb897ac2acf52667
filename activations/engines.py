"""Models larger than one device: plain transformers with hooks on its modules, spread over devices or over ranks.

The engine `transformers` lets accelerate spread the model over this process's devices; under torchrun each rank has a whole
model on its own. `tensor-parallel` and `fsdp` need torchrun, and transformers' own loading shards the weights as they are
read, so that no process ever holds all of them."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from activations import language_model, pretrained
from activations.errors import HookError, ModelError, quoted
from activations.language_model import LanguageModel
from activations.parallel import ranks
from activations.views import (
    Edit,
    Site,
    attached,
    difference,
    probe_tokens,
    require_causal,
    run_plain,
    tolerance,
)

Engine = Literal["bridge", "transformers", "tensor-parallel", "fsdp"]
# Names of a block's attention and MLP in the families of transformers
ATTENTION = ("self_attn", "attn", "attention", "self_attention")
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
ADDED = re.compile(r"blocks\.(\d+)\.(?:hook_(?:attn|mlp)_out|(?:attn|mlp)\.hook_out)")


def load(
    engine: Engine, name: str, revision: str | None = None, dtype: torch.dtype | str = torch.float32
) -> LanguageModel:
    """Load a model for an engine: on this rank's device for `bridge` (`language_model.load`), else as a HookedModel.

    Within `ranks.group()` every rank calls this. Raises ModelError, also for an engine that needs more than one process."""
    device, world = ranks.device(), ranks.world()
    if engine == "bridge":
        return language_model.load(name, revision, dtype, str(device))
    modules = pretrained.skeleton(name, revision)
    if engine == "transformers":
        # A single process may use every device; of several each has its own
        placement: dict[str, Any] = {"device_map": "auto" if world == 1 else {"": str(device)}}
    else:
        if world == 1:
            raise ModelError(
                f"--engine {engine} shares the model among processes and this is the only one: start several",
                fix=f"torchrun --nproc-per-node 8 -m sae.cli.main harvest --engine {quoted(engine)} …",
            )
        try:
            from transformers.distributed import DistributedConfig
        except ImportError as error:
            raise ModelError(
                f"--engine {engine} needs a newer release of transformers", fix="pip install -U transformers"
            ) from error
        if engine == "tensor-parallel" and not modules.supports_tp_plan:
            kind = type(modules).__name__
            raise ModelError(
                f"transformers has no tensor-parallel plan for {name} ({kind}): use --engine fsdp"
            )
        blocks = decoder_blocks(modules)
        sharding: dict[str, Any] = (
            {"fsdp_size": world, "fsdp_plan": {f"{blocks}.*": "free_full_weight"}}
            if engine == "fsdp"
            else {"tp_size": world}
        )
        placement = {"distributed_config": DistributedConfig(**sharding)}
    hf_model, tokenizer = pretrained.fetch(name, revision, dtype, device, **placement)
    names = [parameter for parameter, _ in modules.named_parameters()]
    model = HookedModel(hf_model, tokenizer, name, revision, engine, names)
    require_causal(model.plain, name)
    return model


def decoder_blocks(model: Any) -> str:
    """Return the path of the list of a model's blocks. Raises ModelError when it has none of the length it states."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return path
    raise ModelError(
        f"{type(model).__name__} has no list of {count} blocks: harvest with --engine bridge on one device"
    )


class HookedModel(LanguageModel):
    """A plain transformers model whose hook points are the inputs and outputs of its blocks, attentions and MLPs.

    It may be spread over several devices. `names` are those of its parameters, each of a tied pair once. With the engines
    `tensor-parallel` and `fsdp` all ranks have to make the same calls in the same order, and all get the same rows."""

    def __init__(
        self, hf_model: Any, tokenizer: Any, name: str, revision: str | None, engine: Engine, names: list[str]
    ):
        super().__init__(hf_model, tokenizer, name, revision)
        self.engine, self._names = engine, sorted(names)
        self.in_step = engine in ("tensor-parallel", "fsdp")
        # FSDP gathers a block's weights before it runs and lets them go after it: a pass that is left midway would keep them
        self._stops_early = engine != "fsdp"
        few = "logits_to_keep" in inspect.signature(hf_model.forward).parameters
        self._few_logits: dict[str, Any] = {"logits_to_keep": 1} if few else {}

    @property
    def bridge(self) -> Any:
        """Raise ModelError: there is no TransformerLens view."""
        raise ModelError(f"the engine {self.engine} has no TransformerLens view of {self.name}")

    @property
    def device(self) -> torch.device:
        """Device that token ids go to."""
        return probe_tokens(self.plain, 1).device

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return len(self.plain.get_submodule(self._blocks))

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.plain.config.get_text_config().hidden_size

    @cached_property
    def hooks(self) -> list[str]:
        """Names of all hook points."""
        return list(self._sites)

    def check_hook(self, hook: str) -> None:
        """Raise HookError unless the engine can give this hook point."""
        parts = {name.rsplit(".", 1)[1]: None for name in self.hooks if name.count(".") == 2}
        gives = f"it gives {', '.join(parts)} of its {self.n_layers} blocks, numbered from 0"
        if hook not in self.located:
            raise HookError(f"the engine {self.engine} has no hook point {hook!r} in {self.name}: {gives}")
        if (added := ADDED.fullmatch(hook)) and not self._adds_up(int(added[1])):
            raise HookError(
                f"in {self.name} a block adds something else to the residual stream than its attention and MLP give, so that "
                f"the engine {self.engine} cannot tell what {hook} is: take blocks.{added[1]}.hook_resid_post"
            )

    @torch.no_grad()
    def capture(self, tokens: Tensor, hooks: Sequence[str]) -> dict[str, Tensor]:
        """Return the activations [n, T, D] at each hook point for token ids [n, T], as `LanguageModel.capture` does.

        With `fsdp` each rank runs its share of the windows, and all get the rows of all."""
        parts = tokens.tensor_split(ranks.world())
        if self.engine != "fsdp" or not len(parts[-1]):
            return super().capture(tokens, hooks)
        rows = super().capture(parts[ranks.rank()], hooks)
        return {hook: ranks.joined(rows[hook], [len(part) for part in parts]) for hook in hooks}

    def plain_sites(self, hooks: Sequence[str]) -> list[Site] | None:
        """Return where hook points lie in the model."""
        return [self.located[hook][0] for hook in hooks]

    @cached_property
    def located(self) -> dict[str, tuple[Site, str]]:
        """Site of each hook point, and its kind of module: block, attention or mlp."""
        sites: dict[str, tuple[Site, str]] = {}
        for number, block in enumerate(self.plain.get_submodule(self._blocks)):
            path, here = f"{self._blocks}.{number}", f"blocks.{number}"
            for hook in (f"{here}.hook_in", f"{here}.hook_resid_pre"):
                sites[hook] = Site(path, "in"), "block"
            for hook in (f"{here}.hook_out", f"{here}.hook_resid_post"):
                sites[hook] = Site(path, "out"), "block"
            for part, kind, names in (("attn", "attention", ATTENTION), ("mlp", "mlp", MLP)):
                if child := next((name for name in names if hasattr(block, name)), None):
                    for hook in (f"{here}.{part}.hook_out", f"{here}.hook_{part}_out"):
                        sites[hook] = Site(f"{path}.{child}", "out"), kind
        return sites

    @cached_property
    def _blocks(self) -> str:
        return decoder_blocks(self.plain)

    def _run(self, tokens: Tensor, edits: Mapping[str, Edit], logits: bool) -> Tensor:
        tokens = tokens.to(self.device, torch.long)
        placed = [(self.located[hook][0], edit) for hook, edit in edits.items()]
        if logits or self._stops_early:
            return run_plain(self.plain, tokens, placed, logits)
        with attached(self.plain, placed):  # FSDP's root is the whole model, which has to be called as such
            return self.plain(tokens, use_cache=False, **self._few_logits).logits

    @torch.no_grad()
    def _adds_up(self, block: int) -> bool:
        """Return whether a block adds to the residual stream just what its attention and its MLP give."""
        names = [
            f"blocks.{block}.{part}" for part in ("hook_in", "attn.hook_out", "mlp.hook_out", "hook_out")
        ]
        if not all(name in self.located for name in names):
            return False
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Edit:
            def edit(x: Tensor) -> Tensor:
                seen[name] = x.clone()
                return x

            return edit

        self._run(probe_tokens(self.plain), {name: keep(name) for name in names}, logits=True)
        before, attention, mlp, after = (seen[name].to(self.device, torch.float64) for name in names)
        return difference(after - before, attention + mlp) <= tolerance(self.plain.dtype)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter whole, wherever its parts are."""
        from accelerate.utils import align_module_device

        for name in self._names:
            path, _, leaf = name.rpartition(".")
            module = self.plain.get_submodule(path)
            with align_module_device(module):  # fetches what accelerate has put elsewhere
                value = getattr(module, leaf).detach()
                yield name, value.full_tensor() if hasattr(value, "full_tensor") else value
