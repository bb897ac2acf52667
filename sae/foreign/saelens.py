"""Read and write SAELens' SAEs, of version 6 and older: a folder with cfg.json and sae_weights.safetensors.

After the source of SAELens 6.54.12. Its pre-activations are (x - b_dec) W_enc + b_enc, where b_dec is only subtracted with
apply_b_dec_to_input. It saves BatchTopK and Matryoshka as the JumpReLUs that they, like ours, are in use."""

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

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
from sae.foreign import processing
from sae.foreign.exact_forms import assemble, finished, fold_norms, fold_pre_bias, forms, refusal
from sae.foreign.weights import (
    ATTENTION,
    MLP,
    Imported,
    Layout,
    Origin,
    Settings,
    Weights,
    hook_of_module,
    near_twin,
    object_or_empty,
    read_json,
    read_safetensors,
    setting,
    text_or_none,
)

TITLE = "SAELens: cfg.json and sae_weights.safetensors"
CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LAYOUTS = (Layout(re.escape(WEIGHTS), (CFG,)),)
LAYOUT = "6.54.12"  # the version whose layout is written; SAELens converts files that name one below 6

OLD_NAMES = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
"""Settings before version 6, which lay flat in cfg.json -> their later names."""
BY_NORM = "rescale_acts_by_decoder_norm"
DEFAULTS = {"apply_b_dec_to_input": True, BY_NORM: False}
PLACE = ("model_name", "hook_name")
OF_THE_SAE = frozenset(
    "architecture d_in d_sae dtype device k activation_fn activation_fn_kwargs metadata apply_b_dec_to_input "
    "normalize_activations reshape_activations finetuning_scaling_factor".split()
)
"""Settings of an older file that belong to the SAE itself; the others become its metadata."""

NOT_READ = {
    "matching_pursuit": "it picks latents one after the other, each from the residual of x that the others leave",
    "temporal": "it also reads the tokens before each one; here every row is encoded on its own",
    "transcoder": "it reconstructs another hook point than it reads; an SAE here reconstructs what it reads",
}
NOT_READ |= dict.fromkeys(
    ("skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"), NOT_READ["transcoder"]
)
"""Architectures without an exact form here, and why."""
HOLDS = "standard, topk, abstopk (per token), jumprelu and gated SAEs"
NORMALISED = {
    "expected_average_only_in": "by a number that is not in the file; SAELens' fold_activation_norm_scaling_factor puts "
    "it into the weights",
    "constant_norm_rescale": "each by its own norm, which fixed weights cannot do",
    "layer_norm": "each by its own mean and standard deviation, which fixed weights cannot do",
    "covariance_whitening": "by matrices that are not in the file; SAELens' fold_activation_whitening puts them into the "
    "weights",
}
"""Scalings of activations that a file may ask for -> how they scale, and so why they have no exact form here."""


@dataclass(frozen=True)
class _Config:
    """The settings in cfg.json that say what the SAE computes."""

    architecture: str
    d_in: int
    d_sae: int
    k: int
    """Latents that fire, where they are selected by rank; 0 elsewhere."""
    subtracted: bool
    """Whether b_dec is subtracted from x before it is encoded."""
    by_norm: bool
    """Whether latents are ranked by value times the norm of their decoder row."""
    dtype: object
    metadata: dict[str, object]
    """Everything about the training."""


def recognises(path: Path) -> bool:
    """Return whether this is a folder with both files."""
    return (path / CFG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Imported:
    """Read the SAE in a folder. Raises ForeignError when it is damaged or has no exact form here."""
    cfg = _read_config(path)
    name, meta = cfg.architecture, cfg.metadata
    weights = Weights(path / WEIGHTS, read_safetensors(path / WEIGHTS))
    sae = assemble(_arch(cfg, path / CFG), _tensors(cfg, weights, path / CFG))
    notes = fold_pre_bias(sae, cfg.subtracted) + fold_norms(sae, cfg.by_norm)
    notes += processing.plain_activations(sae, meta, path / CFG) + _rows(meta)
    trained = meta.get("training_architecture")
    if name == "jumprelu" and trained not in (None, name):
        notes.append(f"trained as {trained!r}, saved by SAELens as the {name} that it is in use")
    if cfg.dtype != "float32":
        notes.append(f"SAELens computes this SAE in {cfg.dtype!r}, here it is float32")
    facts = {key: value for key, value in meta.items() if key not in PLACE}
    return Imported(finished(sae), Origin(text_or_none(meta, "model_name"), _hook(meta), facts), notes)


def _read_config(path: Path) -> _Config:
    """Read cfg.json. Raises ForeignError when it is damaged, or for an SAE that has no exact form here."""
    file = path / CFG
    content, meta = _modern(read_json(file))
    content = DEFAULTS | content
    name = setting(content, "architecture", str, file)
    _refuse(content, meta, name, path)
    subtracted, by_norm = (setting(content, key, bool, file) for key in DEFAULTS)
    d_sae = setting(content, "d_sae", int, file)
    k = setting(content, "k", int, file) if name in ("topk", "abstopk") else 0
    d_in, dtype = setting(content, "d_in", int, file), content.get("dtype", "float32")
    return _Config(name, d_in, d_sae, k, subtracted, by_norm, dtype, meta)


def _hook(meta: Settings) -> str | None:
    """Return TransformerLens' name of the hook point, or the file's own where it has none."""
    hook = text_or_none(meta, "hook_name")
    if meta.get("model_class_name") == "AutoModelForCausalLM" and hook is not None:
        return hook_of_module(hook) or hook
    return hook


def _rows(meta: Settings) -> list[str]:
    """Return notes on tokens that training left out and a store holds."""
    notes, part, special = [], meta.get("seqpos_slice"), meta.get("exclude_special_tokens")
    if isinstance(part, list) and any(bound is not None for bound in part):
        notes.append(
            f"trained only on positions [{':'.join('' if b is None else str(b) for b in part)}] of each window"
        )
    if special:
        which = "special tokens" if special is True else f"the special tokens {special!r}"
        notes.append(f"trained without {which}; a store leaves out only BOS")
    return notes


def _modern(cfg: Settings) -> tuple[dict[str, object], dict[str, object]]:
    """Return the settings and their `metadata`, which version 6 keeps apart; older files are flat."""
    meta = object_or_empty(cfg, "metadata")
    if meta.get("sae_lens_version"):
        return dict(cfg), meta
    flat = {OLD_NAMES.get(key, key): value for key, value in cfg.items()}
    if flat.get("activation_fn", "relu") == "topk":
        arguments = flat.get("activation_fn_kwargs")
        flat |= {"architecture": "topk", "k": arguments.get("k") if isinstance(arguments, dict) else None}
    if isinstance(scaled := flat.get("normalize_activations"), bool):
        flat["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    return {"architecture": "standard", **flat}, {
        key: value for key, value in flat.items() if key not in OF_THE_SAE
    }


def _refuse(cfg: Settings, meta: Settings, name: str, path: Path) -> None:
    """Raise ForeignError for an SAE that has no exact form here."""
    if name in NOT_READ:
        raise ForeignError(f"{path} is a {name} SAE, which has no exact form here: {NOT_READ[name]}")
    target = meta.get("hook_name_out")
    if "d_out" in cfg or target not in (None, meta.get("hook_name")):
        raise ForeignError(f"{path} is a transcoder (to {target}), not an SAE: {NOT_READ['transcoder']}")
    scaled = cfg.get("normalize_activations") or "none"
    if scaled != "none":
        how = NORMALISED.get(str(scaled), "in a way that is not known here")
        raise ForeignError(f"{path} scales activations when it is used ({scaled!r}): {how}")
    if cfg.get("activation_fn", "relu") not in ("relu", "topk"):
        raise ForeignError(f"{path} has the activation function {cfg['activation_fn']!r}, expected relu")
    if (head := meta.get("hook_head_index")) is not None:
        raise ForeignError(f"{path} reads only attention head {head}: an SAE here reads all of a hook point")


def _arch(cfg: _Config, path: Path) -> ArchConfig:
    """Return the config of our architecture that computes in use what theirs does."""
    F, name = cfg.d_sae, cfg.architecture
    try:
        match name:
            case "standard":
                return ReLUConfig(d_sae=F)
            case "topk":
                return TopKConfig(d_sae=F, k=cfg.k)
            case "abstopk":
                return AbsTopKConfig(d_sae=F, k=cfg.k)
            case "gated":
                return GatedConfig(d_sae=F)
            case "jumprelu" | "batchtopk" | "matryoshka_batchtopk":  # the last two in training checkpoints
                return JumpReLUConfig(d_sae=F)
    except ConfigError as error:
        raise ForeignError(f"{path}: {error}") from error
    raise ForeignError(f"{path}: the architecture {name!r} is not known here")


def _tensors(cfg: _Config, weights: Weights, path: Path) -> dict[str, Tensor]:
    """Return the file's tensors by our names, before any folding."""
    D, F, name = cfg.d_in, cfg.d_sae, cfg.architecture
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_dec": (D,)}
    shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag") if name == "gated" else ("b_enc",), (F,))
    tensors = {key: weights.take(key, *shape) for key, shape in shapes.items()}
    if "b_gate" in tensors:
        tensors["b_enc"] = tensors.pop("b_gate")
    if name == "jumprelu":
        # values pass through a ReLU too, so a threshold below 0 acts as 0
        tensors["log_threshold"] = weights.take("threshold", F).clamp_min(0).log()
    if name.endswith("batchtopk"):
        threshold = weights.take("topk_threshold").clamp_min(0).log().expand(F)
        norms = tensors["W_dec"].norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        # where latents are ranked by value times norm, the threshold applies to that product
        tensors["log_threshold"] = threshold - norms.log() if cfg.by_norm else threshold
    if "scaling_factor" in weights and bool((weights.take("scaling_factor", F) != 1).any()):
        raise ForeignError(
            f"{path}: scaling_factor is not 1 for every latent, and SAELens 6 does not apply it"
        )
    weights.done()
    return tensors


def write(sae: SAE, origin: Origin, path: Path) -> list[str]:
    """Write the folder, in float32.

    Raises ForeignError when SAELens cannot compute this SAE, FileExistsError when the folder exists."""
    architecture, form, tensors, settings = _theirs(sae)
    meta = {
        "training_architecture": name_of(sae.cfg),
        "training_architecture_details": dict(vars(sae.cfg)),
        **origin.facts,  # for an SAE trained elsewhere, its own facts replace the two above
        "sae_lens_version": LAYOUT,
        "model_name": origin.model,
        "hook_name": origin.hook,
        "model_class_name": "HookedTransformer",
        # whatever model an imported SAE was trained on, importing made it read the unprocessed model's activations
        "model_from_pretrained_kwargs": processing.PLAIN,
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
        "metadata": meta,
    }
    with files.new_folder(path) as folder:
        files.write_tensors(
            folder / WEIGHTS, {name: tensor.float() for name, tensor in tensors.items()}, "pt"
        )
        files.write_json(folder / CFG, cfg)
    if not (origin.hook and origin.hook.endswith((MLP, ATTENTION))):
        return []
    return [
        f"a HookedTransformer has no hook point {origin.hook}: name {near_twin(origin.hook)} in {CFG} where the model has one place "
        f"under both names"
    ]


def _theirs(sae: SAE) -> tuple[str, SAE, dict[str, Tensor], dict[str, float]]:
    """Return SAELens' name for what this SAE does in use, the form that is written, its tensors, and the settings that it
    needs besides the common ones."""
    for form in forms(sae):
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
    raise refusal(sae, "SAELens", HOLDS)
