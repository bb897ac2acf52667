"""Undo, inside the SAE, how TransformerLens processed the language model before SAELens trained an SAE on it.

TransformerLens can rewrite a model's weights while it loads them. The predictions stay the same but some activations change.
An SAE trained on the changed activations computes something else on the unprocessed ones, which `sae harvest` stores. SAELens
records in `model_from_pretrained_kwargs` which rewritings it asked for:

center_writing_weights   subtracts the mean over the width from everything that a LayerNorm model writes to its residual
                         stream: x' = x - mean(x). Undone exactly in the encoder. RMSNorm models are left unchanged.
fold_ln                  moves a norm's weights into the layer behind it, which changes `hook_normalized`.
fold_value_biases        moves the value biases into the output bias: `hook_v`, `hook_z` and `hook_result` lose them.
refactor_factored_attn_matrices   rotates queries, keys, values and what is computed from them within each head.
center_unembed           shifts all logits alike, which changes no activation.

From release 3.20 on SAELens loads models with `from_pretrained_no_processing`, so only the recorded rewritings were done.
Older releases did the first three and center_unembed by default and kept no record."""

import json
import re
from pathlib import Path

import torch

from activations.errors import ForeignError
from sae.architectures import SAE
from sae.foreign.weights import Settings

PLAIN = dict.fromkeys(
    (
        "fold_ln",
        "center_writing_weights",
        "center_unembed",
        "refactor_factored_attn_matrices",
        "fold_value_biases",
    ),
    False,
)
"""The settings of an SAE that reads the activations of the unprocessed model."""
LN, RMS = "LayerNorm", "RMSNorm"
FAMILIES = {
    RMS: r"llama|gemma|mi[sx]tral|qwen|smollm|olmo-2|yi-|phi-?3|deepseek|granite|apertus|mamba",
    LN: r"gpt-?2|gpt-?neo|gpt-?j|pythia|opt-|opt$|gelu-|solu-|attn-only|tiny-?stories|stablelm|phi|bloom|santacoder|redwood|"
    r"falcon|cerebras|starcoder|codegen|stanford",
}
"""Kind of norm -> pattern of the names of model families whose residual streams it reads. The first match counts."""
CENTRED = re.compile(
    r"hook_(?:pos_)?embed|blocks\.\d+\.hook_(?:resid_(?:pre|mid|post)|attn_out|mlp_out|mlp_in)"
)
"""Hook points whose activations were written to the residual stream, so that centring changes them."""
RESIDUAL = re.compile(r"hook_embed|blocks\.\d+\.hook_(?:resid_(?:pre|mid|post)|mlp_in)")
WITHIN_BLOCKS = re.compile(
    r"blocks\.\d+\.(?:attn\.hook_(?:q|k|v|z|rot_q|rot_k|pattern|attn_scores)|mlp\.hook_(?:pre|pre_linear|post)|"
    r"ln\d\.hook_normalized)|ln_final\.hook_normalized"
)
"""Hook points behind a norm or a projection, which centring does not change."""
LOADING = frozenset(
    "n_devices device device_map move_to_device default_prepend_bos default_padding_side tokenizer cache_dir token "
    "use_auth_token local_files_only trust_remote_code low_cpu_mem_usage attn_implementation force_download "
    "first_n_layers use_safetensors".split()
)
"""Arguments that change how a model is loaded but none of its activations."""
OTHER_WEIGHTS = (
    "checkpoint_index",
    "checkpoint_value",
    "revision",
    "subfolder",
    "load_in_8bit",
    "load_in_4bit",
    "quantization_config",
)
PRECISIONS = ("dtype", "torch_dtype")


def norm_of(model: str) -> str | None:
    """Return the norm (LN or RMS) that reads the residual stream of a model; None where it is unknown.

    It follows from the config.json of a local folder, otherwise from the family in the model's name."""
    config = Path(model).expanduser() / "config.json"
    if config.is_file():
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        names = {*settings} if isinstance(settings, dict) else set()
        if "rms_norm_eps" in names:
            return RMS
        return (
            LN if names & {"layer_norm_eps", "layer_norm_epsilon", "layer_norm_elementwise_affine"} else None
        )
    name = model.rsplit("/", 1)[-1].lower()
    return next((norm for norm, pattern in FAMILIES.items() if re.search(pattern, name)), None)


def plain_activations(sae: SAE, metadata: Settings, path: Path) -> list[str]:
    """Change an SAE of SAELens in place so that it reads the activations of the unprocessed model.

    `metadata` is that of its file. Returns notes for the user. Raises ForeignError where the rewritings leave no exact
    form."""
    asked = metadata.get("model_from_pretrained_kwargs")
    if asked is not None and not isinstance(asked, dict):
        raise ForeignError(
            f"{path}: model_from_pretrained_kwargs is {asked!r}, expected an object of settings"
        )
    name = metadata.get("model_class_name") or "HookedTransformer"
    if name not in ("HookedTransformer", "HookedSAETransformer", "AutoModelForCausalLM"):
        raise ForeignError(
            f"{path}: the SAE was trained on a model loaded as {name}, whose activations may differ from those that sae "
            f"harvest stores; if they do not, delete model_class_name from {path.name}"
        )
    hook, model = str(metadata.get("hook_name")), metadata.get("model_name")
    if asked is None:
        return _not_recorded(hook, model, metadata, path) if name != "AutoModelForCausalLM" else []
    done = {key for key in PLAIN if _switch(asked, key, path)}
    notes = [] if not done or name == "AutoModelForCausalLM" else _undo(sae, done, hook, model, path)
    return notes + _loaded(asked)


def _switch(asked: Settings, key: str, path: Path) -> bool:
    value = asked.get(key)
    if not isinstance(value, bool | None):
        raise ForeignError(
            f"{path}: {key} in model_from_pretrained_kwargs is {value!r}, expected true or false"
        )
    return bool(value)


def _undo(sae: SAE, done: set[str], hook: str, model: object, path: Path) -> list[str]:
    """Undo the rewritings that change the hook point, and return notes for the user.

    Raises ForeignError for a change that depends on the model's weights, or whose effect is not known."""
    for key in ("fold_ln", "refactor_factored_attn_matrices", "fold_value_biases"):
        if key in done and (why := _changes(key, hook, str(model))):
            raise ForeignError(
                f"{path}: the SAE was trained on a model loaded with {key}, which {why}: the change depends on the "
                f"model's weights, which are not in the file"
            )
    if "center_writing_weights" not in done or WITHIN_BLOCKS.fullmatch(hook):
        return []
    norm = norm_of(model) if isinstance(model, str) else None
    if norm == RMS:
        return []
    if norm is None or not CENTRED.fullmatch(hook):
        unknown = (
            f"how that changes the activations at {hook}"
            if norm
            else f"whether {model} has LayerNorms, which that changes, or RMSNorms"
        )
        raise ForeignError(
            f"{path}: the SAE was trained on a model loaded with center_writing_weights, and it is not known here "
            f"{unknown}; if its activations are those of the unprocessed model, delete the setting from {path.name}"
        )
    if re.search(r"bloom|opt-350m", str(model).lower()) and RESIDUAL.fullmatch(hook):
        raise ForeignError(
            f"{path}: the SAE was trained on {model} loaded with center_writing_weights, and a norm behind its embedding "
            f"or its blocks gives the residual stream a mean again: how much of it remains depends on the model's weights"
        )
    centre_inputs(sae)
    return [
        "the model was loaded with center_writing_weights: the encoder now subtracts the mean of x over its width itself; "
        "the latents are the same on the unprocessed model, and the reconstruction lacks that mean, which LayerNorm discards "
        "and FVU counts"
    ]


def _changes(key: str, hook: str, model: str) -> str | None:
    """Return what a rewriting other than centring does to a hook point; None where it changes nothing."""
    last = hook.rsplit(".", 1)[-1]
    if key == "fold_ln" and (last == "hook_normalized" or (last == "hook_post" and "solu" in model.lower())):
        return f"leaves the norm's weight and bias out of {hook}"
    if key == "fold_value_biases" and last in ("hook_v", "hook_z", "hook_result"):
        return f"leaves the value biases out of {hook}"
    rotated = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_rot_q", "hook_rot_k", "hook_result")
    if key == "refactor_factored_attn_matrices" and last in rotated:
        return f"rotates {hook} within each head"
    return None


@torch.no_grad()
def centre_inputs(sae: SAE) -> None:
    """Change an SAE that reads x - mean(x) in place so that it reads x, exactly: with C = I - 1/D, x C W = x (C W)."""
    centred = sae.W_enc - sae.W_enc.mean(0)
    if sae.pre_bias:  # what it takes off, b_dec, was not centred on the way in
        sae.shift_pre_activations(sae.b_dec @ (centred - sae.W_enc))
    sae.W_enc.copy_(centred)


def _loaded(asked: Settings) -> list[str]:
    """Return notes on the other arguments with which the model was loaded."""
    notes = []
    for key, value in asked.items():
        if key in PLAIN or key in LOADING or value is None or value is False:
            continue
        if key in PRECISIONS:
            if str(value).removeprefix("torch.") != "float32":
                notes.append(
                    f"the model was loaded in {value!r}, so its activations were rounded to that precision"
                )
        elif key in OTHER_WEIGHTS:
            notes.append(f"the model was loaded with {key} = {value!r}: harvest from the same weights")
        else:
            notes.append(
                f"the model was loaded with {key} = {value!r}, which is not known here and may change what the SAE reads"
            )
    return notes


def _not_recorded(hook: str, model: object, metadata: Settings, path: Path) -> list[str]:
    """Return a warning for a file that does not record how its model was loaded, if that may have changed activations."""
    version = str(metadata.get("sae_lens_training_version") or metadata.get("sae_lens_version") or "")
    number = re.match(r"(\d+)\.(\d+)", version)
    if number and (int(number[1]), int(number[2])) >= (3, 20):
        return []
    changing = []
    if CENTRED.fullmatch(hook) and not (isinstance(model, str) and norm_of(model) == RMS):
        changing.append("center_writing_weights")
    changing += [key for key in ("fold_ln", "fold_value_biases") if _changes(key, hook, str(model))]
    if not changing:
        return []
    return [
        f"the file does not say how its model was loaded, and SAELens before 3.20 did {' and '.join(changing)} by default; "
        f'if it did so here, add "model_from_pretrained_kwargs": {{"{changing[0]}": true}} to {path.name} and import it again'
    ]
