"""Read and write dictionary_learning's SAEs: ae.pt, the state dict of a class, beside config.json, its training settings.

https://github.com/saprmarks/dictionary_learning, with the classes of release 0.1.0 and commit 60ec6bf."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from activations.disk import files
from activations.errors import ConfigError, ForeignError
from sae.architectures import SAE
from sae.foreign.dictionaries import READERS, Content, number_of, to_theirs
from sae.foreign.exact_forms import finished, notes_on
from sae.foreign.weights import (
    SITES,
    Imported,
    Layout,
    Origin,
    Settings,
    layer_of,
    object_or_empty,
    read_json,
    read_pt,
    site_of,
    state_dict,
    text_or_none,
)

TITLE = "dictionary_learning (ae.pt and config.json)"
WEIGHTS, CONFIG = "ae.pt", "config.json"
LAYOUTS = (
    Layout(re.escape(WEIGHTS), (), (CONFIG, f"../{CONFIG}")),
    Layout(r"ae_\w+\.pt", (), (CONFIG, f"../{CONFIG}"), names_file=True),
)
IN_ACTIVATION_UNITS = frozenset(
    "bias encoder.bias decoder.bias decoder_bias b_enc b_dec mag_bias gate_bias threshold".split()
)
TRAINERS = {
    "AutoEncoder": "StandardTrainerAprilUpdate",
    "GatedAutoEncoder": "GatedSAETrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
}
"""Class -> the trainer that makes it there, by which SAEBench chooses its reader."""


def recognises(path: Path) -> bool:
    """Return whether this is an ae….pt, or a folder with ae.pt."""
    return (path / WEIGHTS).is_file() or bool(re.fullmatch(r"ae\w*\.pt", path.name) and path.is_file())


def read(path: Path) -> Imported:
    """Read the SAE of a folder or of one checkpoint file, also a backup from an unfinished training.

    Raises ForeignError when it cannot be read, lacks its config.json, or is of a class that has no exact form here."""
    file = path / WEIGHTS if path.is_dir() else path
    content = read_pt(file)
    config, where = _config(file)
    notes = []
    if isinstance(content, dict) and "ae" in content:  # a backup, written under the same name while training
        config = {
            **config,
            "trainer": {**object_or_empty(config, "trainer"), **object_or_empty(content, "config")},
        }
        notes.append(f"a backup from the middle of training{_at(content.get('step'))}, not its end")
        content = _in_raw_units(content["ae"], content.get("norm_factor"), file)
    content = state_dict(content, file)
    trainer, buffer = object_or_empty(config, "trainer"), object_or_empty(config, "buffer")
    name = trainer.get("dict_class")
    if what := _other_dictionary(name, content, buffer):
        raise ForeignError(f"{file} is {what}: an SAE here reconstructs what it reads")
    if not isinstance(name, str) or name not in READERS:
        problem = "does not give its dict_class" if name is None else f"is of class {name!r}"
        raise ForeignError(
            f"{file} {problem} ({where or 'no config.json beside it'}); expected one of {', '.join(READERS)}"
        )
    try:
        sae, changes = READERS[name](Content(file, content, trainer))
    except ConfigError as error:
        raise ForeignError(f"{file}: {error}") from error
    context = buffer.get("ctx_len")
    facts = {"trainer": _plain(trainer), "context_size": context if isinstance(context, int) else None}
    origin = Origin(text_or_none(trainer, "lm_name"), _hook(trainer), facts)
    return Imported(finished(sae), origin, notes + changes)


def _other_dictionary(name: object, content: Settings, buffer: Settings) -> str | None:
    """Return what a file is if its class, its buffer or the shape of its encoder shows that it is not an SAE.

    A crosscoder's encoder has one axis more, for the hook points that it reads."""
    weight = content.get("encoder.weight")
    crossing = isinstance(weight, Tensor) and weight.ndim == 3
    if crossing or (isinstance(name, str) and "crosscoder" in name.lower()):
        return f"a crosscoder{f' ({name})' if isinstance(name, str) else ''}, which reads several hook points at once"
    if buffer.get("io") == "in_and_out" or (isinstance(name, str) and "transcoder" in name.lower()):
        return "a transcoder, which reconstructs a module's output from its input"
    return None


def _config(file: Path) -> tuple[dict[str, object], Path | None]:
    """Read the config.json beside a weights file, or above its folder of checkpoints, and return it with its path."""
    for path in (file.parent / CONFIG, file.parent.parent / CONFIG):
        if path.is_file():
            return read_json(path), path
    return {}, None


def _plain(settings: Settings) -> dict[str, object]:
    """Return the settings that JSON can hold; those of a backup may be anything."""
    kinds = (str, int, float, type(None))
    return {
        key: value
        for key, value in settings.items()
        if type(value) in kinds and not (isinstance(value, float) and not math.isfinite(value))
    }


def _at(step: object) -> str:
    return f" (step {step})" if isinstance(step, int) else ""


def _in_raw_units(weights: object, factor: object, file: Path) -> object:
    """Fold the scale of inputs into a backup's state dict, as the end of a training does."""
    number = number_of(factor)
    if number is None or not isinstance(weights, dict):
        return weights
    if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number < math.inf:
        shown = repr(number) if isinstance(number, int | float | str) else f"a {type(number).__name__}"
        raise ForeignError(f"{file}: norm_factor is {shown}, expected a number above 0")
    return {
        name: tensor.double() * number
        if name in IN_ACTIVATION_UNITS and isinstance(tensor, Tensor) and tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }


def _hook(trainer: Settings) -> str | None:
    """Return the hook point by the submodule's name, which users choose freely.

    Recognised are TransformerLens' names and names such as resid_post_layer_8."""
    name = str(trainer.get("submodule_name"))
    if re.fullmatch(r"(blocks\.\d+\.)?(\w+\.)?hook_\w+", name):
        return name
    match = re.fullmatch(r"(\w+?)_layer_(\d+)", name)
    site = match and SITES.get(match[1])
    return f"blocks.{match[2]}.{site}" if match and site else None


def write(sae: SAE, origin: Origin, path: Path) -> list[str]:
    """Write a folder with ae.pt and config.json for `dictionary_learning.utils.load_dictionary`.

    Raises ForeignError for an architecture that has no class there."""
    name, tensors = to_theirs(sae)
    layer, site = layer_of(origin.hook), site_of(origin.hook)
    n_latents = len(tensors["encoder.weight"]) if "encoder.weight" in tensors else sae.d_sae
    trainer = {
        "trainer_class": TRAINERS[name],
        "dict_class": name,
        "activation_dim": sae.d_model,
        "dict_size": n_latents,
        "layer": layer,
        "lm_name": origin.model,
        "submodule_name": f"{site}_layer_{layer}" if site else origin.hook,
    }
    if "k" in tensors:
        trainer["k"] = int(tensors["k"])
    buffer = {"d_submodule": sae.d_model, "io": "out", "ctx_len": origin.facts.get("context_size")}
    # cloned, because torch.save writes the whole storage of a view
    state = {key: value.contiguous().clone() for key, value in tensors.items()}
    with files.new_folder(path) as folder:
        files.write_atomically(folder / WEIGHTS, lambda part: torch.save(state, part))
        files.write_json(folder / CONFIG, {"trainer": trainer, "buffer": buffer})
    return notes_on(sae, n_latents)
