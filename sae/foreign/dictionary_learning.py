"""dictionary_learning: ae.pt beside config.json, a class's state dict and what it was trained with.

https://github.com/saprmarks/dictionary_learning, its classes as release 0.1.0 and commit 60ec6bf have them."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from activations.disk import files
from activations.errors import ConfigError, ForeignError
from sae.architectures import SAE
from sae.foreign import exact_forms, hook_names
from sae.foreign.dictionaries import READERS, Content, held, number_of
from sae.foreign.weights import Imported, Layout, Origin, finished, read_json, read_pt, state_dict

TITLE = "dictionary_learning (ae.pt and config.json)"
WEIGHTS, ABOUT = "ae.pt", "config.json"
LAYOUTS = (
    Layout(re.escape(WEIGHTS), (), (ABOUT, f"../{ABOUT}")),
    Layout(r"ae_\w+\.pt", (), (ABOUT, f"../{ABOUT}"), names_file=True),
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
"""Class -> the trainer that makes it there; SAEBench chooses its reader by the latter."""


def recognises(path: Path) -> bool:
    """Whether this is an ae….pt, or a folder with ae.pt."""
    return (path / WEIGHTS).is_file() or bool(re.fullmatch(r"ae\w*\.pt", path.name) and path.is_file())


def read(path: Path) -> Imported:
    """The SAE of a folder, or of one of its checkpoints named as a file; a backup of an unfinished training too.

    Raises ForeignError when it cannot be read, lacks its config.json, or is of a class that has no exact form here."""
    file = path / WEIGHTS if path.is_dir() else path
    content = read_pt(file)
    about, where = _config(file)
    notes = []
    if isinstance(content, dict) and "ae" in content:  # written while training, over the same name
        about = {**about, "trainer": {**_part(about, "trainer"), **_part(content, "config")}}
        notes.append(f"a backup from the middle of training{_at(content.get('step'))}, not its end")
        content = _in_raw_units(content["ae"], content.get("norm_factor"), file)
    content = state_dict(content, file)
    trainer, buffer = _part(about, "trainer"), _part(about, "buffer")
    name = trainer.get("dict_class")
    if what := _no_sae(name, content, buffer):
        raise ForeignError(f"{file} is {what}: an SAE here reconstructs what it reads")
    if not isinstance(name, str) or name not in READERS:
        found = "does not say its dict_class" if name is None else f"is of class {name!r}"
        raise ForeignError(
            f"{file} {found} ({where or 'no config.json beside it'}), known are {', '.join(READERS)}"
        )
    try:
        sae, said = READERS[name](Content(file, content, trainer))
    except ConfigError as error:
        raise ForeignError(f"{file}: {error}") from error
    context, model = buffer.get("ctx_len"), trainer.get("lm_name")
    facts = {"trainer": _plain(trainer), "context_size": context if isinstance(context, int) else None}
    origin = Origin(model if isinstance(model, str) else None, _hook(trainer), facts)
    return Imported(finished(sae), origin, notes + said)


def _no_sae(name: Any, content: dict[str, Any], buffer: dict[str, Any]) -> str | None:
    """Return what a file is that holds another kind of dictionary: by its class, its buffer, or the shape of its encoder.

    A crosscoder's encoder has an axis more, for the places of the model it reads."""
    weight = content.get("encoder.weight")
    crossing = isinstance(weight, Tensor) and weight.ndim == 3
    if crossing or (isinstance(name, str) and "crosscoder" in name.lower()):
        return (
            f"a crosscoder{f' ({name})' if isinstance(name, str) else ''}, which reads several places at once"
        )
    if buffer.get("io") == "in_and_out" or (isinstance(name, str) and "transcoder" in name.lower()):
        return "a transcoder, which reconstructs a module's output from its input"
    return None


def _config(file: Path) -> tuple[dict[str, Any], Path | None]:
    """The config.json of a weights file: beside it, or above its folder of checkpoints."""
    for place in (file.parent / ABOUT, file.parent.parent / ABOUT):
        if place.is_file():
            return read_json(place), place
    return {}, None


def _part(about: dict[str, Any], name: str) -> dict[str, Any]:
    part = about.get(name)
    return part if isinstance(part, dict) else {}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Of settings those that JSON can hold: a backup's may be anything."""
    kinds = (str, int, float, type(None))
    return {
        key: value
        for key, value in settings.items()
        if isinstance(key, str)
        and type(value) in kinds
        and not (type(value) is float and not math.isfinite(value))
    }


def _at(step: Any) -> str:
    return f" (step {step})" if isinstance(step, int) else ""


def _in_raw_units(weights: Any, factor: Any, file: Path) -> Any:
    """A backup's state dict with the scale of inputs folded in, as the end of a training does."""
    number = number_of(factor)
    if number is None or not isinstance(weights, dict):
        return weights
    if type(number) not in (int, float) or not 0 < number < math.inf:
        found = repr(number) if isinstance(number, int | float | str) else f"a {type(number).__name__}"
        raise ForeignError(f"{file}: norm_factor is {found}, needed is a number above 0")
    return {
        name: tensor.double() * number
        if name in IN_ACTIVATION_UNITS and isinstance(tensor, Tensor) and tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }


def _hook(trainer: dict[str, Any]) -> str | None:
    """From the submodule's name, which users choose: known are TransformerLens' and such as resid_post_layer_8."""
    name = str(trainer.get("submodule_name"))
    if re.fullmatch(r"(blocks\.\d+\.)?(\w+\.)?hook_\w+", name):
        return name
    found = re.fullmatch(r"(\w+?)_layer_(\d+)", name)
    site = found and hook_names.SITES.get(found[1])
    return f"blocks.{found[2]}.{site}" if found and site else None


def write(sae: SAE, origin: Origin, path: Path) -> list[str]:
    """A folder with ae.pt and config.json, as `dictionary_learning.utils.load_dictionary` reads it.

    Raises ForeignError for an architecture that has no class there."""
    name, tensors = held(sae)
    layer, site = hook_names.layer_of(origin.hook), hook_names.site_of(origin.hook)
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
    whole = {key: value.contiguous().clone() for key, value in tensors.items()}
    with files.new_folder(path) as folder:
        files.write_atomically(folder / WEIGHTS, lambda part: torch.save(whole, part))
        files.write_json(folder / ABOUT, {"trainer": trainer, "buffer": buffer})
    return exact_forms.notes_on(sae, n_latents)
