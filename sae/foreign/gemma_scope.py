"""Read and write Gemma Scope's JumpReLU SAEs: version 1 is params.npz, version 2 params.safetensors beside config.json.

Lieberum et al. 2024, arXiv:2408.05147. b_dec is not subtracted from the input. A params.npz holds no settings: model, site
and layer are in its path, as in the hub's folders."""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from activations.disk import files
from activations.errors import ForeignError
from sae.architectures import SAE, JumpReLU, JumpReLUConfig
from sae.foreign.exact_forms import assemble, finished, fold_norms, fold_pre_bias, form_of, refusal
from sae.foreign.weights import (
    Imported,
    Layout,
    Origin,
    Settings,
    Weights,
    check_archive,
    read_json,
    read_safetensors,
    text_or_none,
)

TITLE = "Gemma Scope (params.npz; version 2: config.json and params.safetensors)"
FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
LAYOUTS = (Layout(re.escape(FIRST)), Layout(re.escape(SECOND), (), (CONFIG,)))
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
"""Last part of version 1's repositories -> hook within a block."""
MODULES = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
"""Version 2's name of a place within model.layers.N -> hook within a block."""
FOLDERS = {
    "resid_post": "output",
    "attn_out": "self_attn.o_proj.input",
    "mlp_out": "post_feedforward_layernorm.output",
}
"""Version 2's folder names, which may end in _all -> the place within model.layers.N."""


def recognises(path: Path) -> bool:
    """Return whether this is params.npz or params.safetensors, or a folder with one of them."""
    return (path.is_file() and path.name in (FIRST, SECOND)) or any(
        (path / name).is_file() for name in (FIRST, SECOND)
    )


def read(path: Path) -> Imported:
    """Read the SAE of a folder or file, of either version.

    Raises ForeignError when it is damaged or not a plain JumpReLU."""
    candidates = (
        [path / name for name in (FIRST, SECOND) if (path / name).is_file()] if path.is_dir() else [path]
    )
    if not candidates:
        raise ForeignError(f"{path} has neither {FIRST} nor {SECOND}")
    file = candidates[0]
    tensors, origin = (_first_version if file.suffix == ".npz" else _second_version)(file)
    renamed = {
        name[0].upper() + name[1:] if name in ("w_enc", "w_dec") else name: t for name, t in tensors.items()
    }
    weights = Weights(file, renamed)
    W_enc = weights.take("W_enc", None, None)
    d, n = W_enc.shape
    shapes = {"W_dec": (n, d), "b_enc": (n,), "b_dec": (d,)}
    parts = {"W_enc": W_enc} | {name: weights.take(name, *shape) for name, shape in shapes.items()}
    parts["log_threshold"] = (
        weights.take("threshold", n).clamp_min(0).log()
    )  # a ReLU follows: below 0 acts as 0
    weights.done()
    sae = assemble(JumpReLUConfig(d_sae=n), parts)
    notes = fold_pre_bias(sae, subtracted=False)
    if origin.hook == "hook_embed":
        sae.fold_input_scale(d**-0.5)
        notes.append("trained on embeddings before Gemma multiplies them by sqrt(D): the factor is folded in")
    return Imported(finished(sae), origin, notes + fold_norms(sae))


def _first_version(file: Path) -> tuple[dict[str, Tensor], Origin]:
    parts = "/".join(file.absolute().parts)
    repository = re.search(r"gemma-scope-(\d+b)-(pt|it)-(\w+)", parts)
    layer = re.search(r"/layer_(\d+)/", parts)
    model, hook = None, None
    if repository:
        size, kind, site = repository.groups()
        if site not in SITES:
            raise ForeignError(
                f"{file} is a transcoder ({repository[0]}), which reconstructs an MLP's output from its input: an SAE here "
                f"reconstructs what it reads"
            )
        model = f"google/gemma-2-{size}{'-it' if kind == 'it' else ''}"
        hook = f"blocks.{layer[1]}.{SITES[site]}" if layer else None
    if "/embedding/" in parts:
        hook = "hook_embed"
    l0 = re.search(r"/average_l0_(\d+)/", parts)
    return _npz(file), Origin(model, hook, {"average_l0": int(l0[1])} if l0 else {})


def _npz(file: Path) -> dict[str, Tensor]:
    """Read the arrays of an .npz. Nothing is unpickled, and an archive that decompresses to far more than its size is refused."""
    check_archive(file)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (
        Exception
    ) as error:  # anybody may have written the bytes, and numpy raises many kinds of error on them
        raise ForeignError(f"{file} cannot be read as arrays of numbers: {error}") from error


def _second_version(file: Path) -> tuple[dict[str, Tensor], Origin]:
    settings = read_json(file.parent / CONFIG) if (file.parent / CONFIG).exists() else _settings_by_path(file)
    if settings.get("architecture") != "jump_relu":
        raise ForeignError(
            f"{file.parent / CONFIG}: architecture is {settings.get('architecture')!r}, expected jump_relu"
        )
    source, target = settings.get("hf_hook_point_in"), settings.get("hf_hook_point_out")
    if settings.get("affine_connection") or target not in (None, source):
        raise ForeignError(
            f"{file.parent} is a transcoder from {source!r} to {target!r}: an SAE here reconstructs what it reads"
        )
    module = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", str(source))
    hook = f"blocks.{module[1]}.{MODULES[module[2]]}" if module and module[2] in MODULES else None
    return read_safetensors(file), Origin(_gemma_3(settings), hook, settings)


def _settings_by_path(file: Path) -> dict[str, object]:
    """Return the settings of a version 2 file without a config.json, from its path within the hub's folders."""
    parts = "/".join(file.absolute().parts)
    match = re.search(r"gemma-scope-(2-\w+-(?:pt|it)).*/(\w+?)(?:_all)?/layer_(\d+)_", parts)
    if not match:
        raise ForeignError(
            f"{CONFIG} is missing in {file.parent}, and the path does not give model, site and layer"
        )
    release, site, layer = match.groups()
    if site not in FOLDERS:
        raise ForeignError(f"{file} is a {site}, not an SAE: an SAE here reconstructs what it reads")
    module = f"model.layers.{layer}.{FOLDERS[site]}"
    model = f"google/gemma-{release.replace('2-', '3-', 1)}"
    return {"architecture": "jump_relu", "hf_hook_point_in": module, "model_name": model}


def _gemma_3(settings: Settings) -> str | None:
    """Return the hub's name of the model. Some files write gemma-v3, some omit the owner, and the smallest model's name has
    no -pt."""
    name = text_or_none(settings, "model_name")
    if name is None:
        return None
    full_name = ("" if "/" in name else "google/") + name.replace("-v3", "-3")
    return full_name.replace("-270m-pt", "-270m")


def write(sae: SAE, origin: Origin, path: Path) -> list[str]:
    """Write a folder with params.npz, as in version 1. ReLU, BatchTopK, Matryoshka and gated SAEs are exactly JumpReLUs in use.

    Raises ForeignError for other architectures. The format cannot hold `origin`: name folders after it."""
    form = form_of(sae, JumpReLU)
    if form is None:
        raise refusal(sae, "Gemma Scope", "SAEs whose latents fire above thresholds")
    arrays = {name: getattr(form, name).detach().float().contiguous().numpy() for name in TENSORS}

    def save(part: Path) -> None:
        with part.open("wb") as file:  # numpy would add .npz to the name
            np.savez(file, **arrays)

    with files.new_folder(path) as folder:
        files.write_atomically(folder / FIRST, save)
    return [] if form is sae else ["written as the JumpReLU that it is in use"]
