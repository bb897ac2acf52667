"""Where in a model an SAE sits: other tools' names of it, and TransformerLens'."""

import re

SITES = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "hook_attn_out"}
"""Names without a layer, as dictionary_learning's users write them -> TransformerLens' hook within a block."""
MODULES = {
    "": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "self_attn": "hook_attn_out",
    "attn": "hook_attn_out",
    "attention": "hook_attn_out",
    "self_attention": "hook_attn_out",
}
"""Modules of a transformers block -> the hook that sees their output; the block's own is the residual stream after it."""


def hook_of_module(module: str) -> str | None:
    """TransformerLens' name for the output of a module of a transformers model, such as `model.layers.3.mlp`; None
    for any that is not a block, its attention or its MLP."""
    found = re.fullmatch(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)(?:\.([a-z_]+))?", module)
    if not found or (found[2] or "") not in MODULES:
        return None
    return f"blocks.{found[1]}.{MODULES[found[2] or '']}"


def layer_of(hook: str | None) -> int | None:
    """The block of a hook point; None where it is in none."""
    found = re.match(r"blocks\.(\d+)\.", hook or "")
    return int(found[1]) if found else None


def site_of(hook: str | None) -> str | None:
    """The name of SITES for a hook point; None where it has none."""
    return next((site for site, name in SITES.items() if hook and hook.endswith("." + name)), None)
