"""Translate between other tools' names for the place in a model that an SAE reads and TransformerLens' hook points."""

import re

SITES = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "hook_attn_out"}
"""Site names of dictionary_learning's users -> TransformerLens' hook within a block."""
MODULES = {
    "": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "self_attn": "hook_attn_out",
    "attn": "hook_attn_out",
    "attention": "hook_attn_out",
    "self_attention": "hook_attn_out",
}
"""Modules of a transformers block -> the hook that sees their output; a block's own output is the residual stream."""


def hook_of_module(module: str) -> str | None:
    """Return the hook point at the output of a module of a transformers model, such as `model.layers.3.mlp`.

    None for a module that is not a block, its attention or its MLP."""
    match = re.fullmatch(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)(?:\.([a-z_]+))?", module)
    if not match or (match[2] or "") not in MODULES:
        return None
    return f"blocks.{match[1]}.{MODULES[match[2] or '']}"


def layer_of(hook: str | None) -> int | None:
    """Return the number of the block that a hook point lies in; None where it is not in a block."""
    match = re.match(r"blocks\.(\d+)\.", hook or "")
    return int(match[1]) if match else None


def site_of(hook: str | None) -> str | None:
    """Return the site name in SITES of a hook point; None where it has none."""
    return next((site for site, name in SITES.items() if hook and hook.endswith("." + name)), None)
