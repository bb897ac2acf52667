"""SAELens, version 6 and the files of older ones: a folder with cfg.json and sae_weights.safetensors, both directions.

Read from SAELens 6.54.12's own source. Its pre-activations are (x - b_dec if apply_b_dec_to_input) W_enc + b_enc; its
BatchTopK and Matryoshka are saved as JumpReLUs, as ours are used."""

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from activations.disk import files
from activations.errors import ConfigError, ForeignError
from sae.architectures import (
    SAE,
    AbsTopK,
    AbsTopKConfig,
    ArchConfig,
    BatchTopK,
    Gated,
    GatedConfig,
    JumpReLU,
    JumpReLUConfig,
    ReLU,
    ReLUConfig,
    TopK,
    TopKConfig,
    name_of,
)
from sae.foreign import exact_forms, hook_names, processing
from sae.foreign.weights import (
    Imported,
    Layout,
    Origin,
    Weights,
    assemble,
    finished,
    fold_norms,
    fold_pre_bias,
    read_json,
    read_safetensors,
    setting,
)

TITLE = "SAELens: cfg.json and sae_weights.safetensors"
CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LAYOUTS = (Layout(re.escape(WEIGHTS), (CFG,)),)
LAYOUT = "6.54.12"  # the version whose layout is written; below 6, SAELens would convert the file

OLD_NAMES = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
"""Settings before version 6, which lay flat in cfg.json, and what they became."""
BY_NORM = "rescale_acts_by_decoder_norm"
DEFAULTS: dict[str, Any] = {"apply_b_dec_to_input": True, BY_NORM: False}
PLACE = ("model_name", "hook_name")
OF_THE_SAE = frozenset(
    "architecture d_in d_sae dtype device k activation_fn activation_fn_kwargs metadata apply_b_dec_to_input "
    "normalize_activations reshape_activations finetuning_scaling_factor".split()
)
"""Settings of an older file that are not about where the SAE belongs."""

NOT_READ = {
    "matching_pursuit": "it picks latents one after the other from what is left of x",
    "temporal": "it reads the tokens before each one too; here every row is encoded alone",
    "transcoder": "it writes another place of the model than it reads; here an SAE reconstructs what it reads",
}
NOT_READ |= dict.fromkeys(
    ("skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"), NOT_READ["transcoder"]
)
"""Architectures without an exact form here, and why."""
HOLDS = "standard, topk, abstopk (per token), jumprelu and gated SAEs"
NORMALISED = {
    "expected_average_only_in": "by a number that is not in the file; SAELens' fold_activation_norm_scaling_factor puts "
    "it into the weights",
    "constant_norm_rescale": "each by its own norm, which no fixed weights can do",
    "layer_norm": "each by its own mean and spread, which no fixed weights can do",
    "covariance_whitening": "by matrices that are not in the file; SAELens' fold_activation_whitening puts them into the "
    "weights",
}
"""Scalings of activations that a file may ask for when it is used, and why ours cannot."""


def recognises(path: Path) -> bool:
    """A folder with both files."""
    return (path / CFG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Imported:
    """The SAE in a folder. Raises ForeignError when it is damaged, or has no exact form here."""
    cfg = DEFAULTS | _modern(read_json(path / CFG))
    name = setting(cfg, "architecture", str, path / CFG)
    _refuse(cfg, name, path)
    subtracted, ranked = (setting(cfg, key, bool, path / CFG) for key in DEFAULTS)
    arch = _arch(cfg, name, path / CFG)
    weights = Weights(path / WEIGHTS, read_safetensors(path / WEIGHTS))
    sae = assemble(arch, _tensors(cfg, name, weights, arch.d_sae, path / CFG))
    notes = fold_pre_bias(sae, subtracted) + fold_norms(sae, ranked)
    about = cfg["metadata"]
    notes += processing.plain_activations(sae, about, path / CFG) + _rows(about)
    trained = about.get("training_architecture")
    if name == "jumprelu" and trained not in (None, name):
        notes.append(f"trained as {trained!r}, saved by SAELens as the {name} it is in use")
    if cfg.get("dtype", "float32") != "float32":
        notes.append(f"SAELens computes this SAE in {cfg['dtype']!r}, here it is float32")
    facts = {key: value for key, value in about.items() if key not in PLACE}
    return Imported(finished(sae), Origin(about.get("model_name"), _hook(about), facts), notes)


def _hook(about: dict[str, Any]) -> Any:
    """TransformerLens' name of the hook point; what is said where there is none."""
    hook = about.get("hook_name")
    if about.get("model_class_name") == "AutoModelForCausalLM" and isinstance(hook, str):
        return hook_names.hook_of_module(hook) or hook
    return hook


def _rows(about: dict[str, Any]) -> list[str]:
    """Notes on tokens that training left out and a store holds."""
    notes, part, special = [], about.get("seqpos_slice"), about.get("exclude_special_tokens")
    if isinstance(part, list) and any(bound is not None for bound in part):
        notes.append(
            f"trained on positions [{':'.join('' if b is None else str(b) for b in part)}] of each window alone"
        )
    if special:
        which = "special tokens" if special is True else f"the special tokens {special!r}"
        notes.append(f"trained without {which}; a store leaves out BOS alone")
    return notes


def _modern(cfg: dict[str, Any]) -> dict[str, Any]:
    """Settings as version 6 has them, `metadata` of its own; older files have everything in one."""
    about = cfg.get("metadata")
    if isinstance(about, dict) and about.get("sae_lens_version"):
        return cfg
    flat = {OLD_NAMES.get(key, key): value for key, value in cfg.items()}
    if flat.get("activation_fn", "relu") == "topk":
        further = flat.get("activation_fn_kwargs")
        flat |= {"architecture": "topk", "k": further.get("k") if isinstance(further, dict) else None}
    if isinstance(scaled := flat.get("normalize_activations"), bool):
        flat["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    about = {key: value for key, value in flat.items() if key not in OF_THE_SAE}
    return {"architecture": "standard", **flat, "metadata": about}


def _refuse(cfg: dict[str, Any], name: str, path: Path) -> None:
    if name in NOT_READ:
        raise ForeignError(f"{path} is a {name} SAE, which has no exact form here: {NOT_READ[name]}")
    target = cfg["metadata"].get("hook_name_out")
    if "d_out" in cfg or target not in (None, cfg["metadata"].get("hook_name")):
        raise ForeignError(f"{path} is a transcoder (to {target}), no SAE: {NOT_READ['transcoder']}")
    scaled = cfg.get("normalize_activations") or "none"
    if scaled != "none":
        how = NORMALISED.get(str(scaled), "in a way that is not known here")
        raise ForeignError(f"{path} scales activations when it is used ({scaled!r}): {how}")
    if cfg.get("activation_fn", "relu") not in ("relu", "topk"):
        raise ForeignError(
            f"{path} has the activation function {cfg['activation_fn']!r}: here there is relu alone"
        )
    about = cfg["metadata"]
    if about.get("hook_name_out") not in (None, about.get("hook_name")):
        raise ForeignError(f"{path} writes {about['hook_name_out']!r}: {NOT_READ['transcoder']}")
    if (head := about.get("hook_head_index")) is not None:
        raise ForeignError(f"{path} reads attention head {head} alone: here an SAE reads a whole hook point")


def _arch(cfg: dict[str, Any], name: str, path: Path) -> ArchConfig:
    """Our architecture that does in use what theirs does."""
    F = setting(cfg, "d_sae", int, path)
    try:
        match name:
            case "standard":
                return ReLUConfig(d_sae=F)
            case "topk":
                return TopKConfig(d_sae=F, k=setting(cfg, "k", int, path))
            case "abstopk":
                return AbsTopKConfig(d_sae=F, k=setting(cfg, "k", int, path))
            case "gated":
                return GatedConfig(d_sae=F)
            case (
                "jumprelu" | "batchtopk" | "matryoshka_batchtopk"
            ):  # the latter two in a checkpoint of training
                return JumpReLUConfig(d_sae=F)
    except ConfigError as error:
        raise ForeignError(f"{path}: {error}") from error
    raise ForeignError(f"{path}: the architecture {name!r} is not known here")


def _tensors(cfg: dict[str, Any], name: str, weights: Weights, F: int, path: Path) -> dict[str, Tensor]:
    """Its tensors by our names, not folded yet."""
    D = setting(cfg, "d_in", int, path)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_dec": (D,)}
    shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag") if name == "gated" else ("b_enc",), (F,))
    tensors = {key: weights.take(key, *shape) for key, shape in shapes.items()}
    if "b_gate" in tensors:
        tensors["b_enc"] = tensors.pop("b_gate")
    if name == "jumprelu":
        # values pass a ReLU too, so that a threshold below 0 is one of 0
        tensors["log_threshold"] = weights.take("threshold", F).clamp_min(0).log()
    if name.endswith("batchtopk"):
        threshold = weights.take("topk_threshold").clamp_min(0).log().expand(F)
        norms = tensors["W_dec"].norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        # of latents times their norms, where those are ranked by
        tensors["log_threshold"] = threshold - norms.log() if cfg[BY_NORM] else threshold
    if "scaling_factor" in weights and bool((weights.take("scaling_factor", F) != 1).any()):
        raise ForeignError(
            f"{path}: scaling_factor is not 1 for every latent, and SAELens 6 does not apply it"
        )
    weights.done()
    return tensors


def write(sae: SAE, origin: Origin, path: Path) -> list[str]:
    """Write the folder, float32. Raises ForeignError when SAELens cannot compute this SAE, FileExistsError when
    the folder is taken."""
    architecture, form, tensors, settings = _theirs(sae)
    about = {
        "training_architecture": name_of(sae.cfg),
        "training_architecture_details": dict(vars(sae.cfg)),
        **origin.facts,  # of an SAE trained elsewhere these say it better
        "sae_lens_version": LAYOUT,
        "model_name": origin.model,
        "hook_name": origin.hook,
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": processing.PLAIN,  # whatever an imported SAE was trained on, this one reads x as it is
        "sae_workbench_version": metadata.version("sae-workbench"),
    }
    cfg = {
        "architecture": architecture,
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": form.pre_bias,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if (origin.hook or "").endswith("hook_z") else "none",
        **settings,
        "metadata": about,
    }
    with files.new_folder(path) as folder:
        files.write_tensors(
            folder / WEIGHTS, {name: tensor.float() for name, tensor in tensors.items()}, "pt"
        )
        files.write_json(folder / CFG, cfg)
    return []


def _theirs(sae: SAE) -> tuple[str, SAE, dict[str, Tensor], dict[str, Any]]:
    """Return SAELens' name for what this SAE does in use, the form of it that is written, the form's tensors and the
    settings it has beside the usual ones."""
    for form in exact_forms.forms(sae):
        four = {
            name: getattr(form, name) for name in ("W_enc", "W_dec", "b_enc", "b_dec") if hasattr(form, name)
        }
        match form:
            case ReLU():
                return "standard", form, four, {}
            case TopK():
                return "topk", form, four, {"k": form.cfg.k, BY_NORM: False}
            case AbsTopK() if form.cfg.per == "token":
                return "abstopk", form, four, {"k": form.cfg.k, BY_NORM: False}
            case JumpReLU() | BatchTopK():
                return "jumprelu", form, {**four, "threshold": form.thresholds()}, {}
            case Gated():
                four["b_gate"] = four.pop("b_enc")
                return "gated", form, {**four, "b_mag": form.b_mag, "r_mag": form.r_mag}, {}
    raise exact_forms.refusal(sae, "SAELens", HOLDS)
