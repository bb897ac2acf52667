"""Read what a foreign file states: its tensors and settings, each checked before it is used, and its names of hook points.

Readers compute in float64 and round once, at the end, to the float32 of all our files."""

import json
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from activations.errors import ForeignError
from sae.architectures import SAE

T = TypeVar("T")
LISTED = 8  # files listed when a folder lacks the one that is looked for
LARGEST_JSON = 2**24  # bytes; real settings take a few thousand
# An archive may decompress to SMALL bytes, or to MOST_DECOMPRESSED times its size if that is more. Weights hardly compress, so a
# file that decompresses to more is made to fill the memory.
SMALL, MOST_DECOMPRESSED = 2**26, 8
# What these modules give, before a norm that may follow them
ATTENTION, MLP = "attn.hook_out", "mlp.hook_out"
SITES = {"resid_post": "hook_resid_post", "mlp_out": MLP, "attn_out": ATTENTION}
"""Site names of dictionary_learning's users -> TransformerLens' hook within a block."""
MODULES = {
    "": "hook_resid_post",
    "mlp": MLP,
    "self_attn": ATTENTION,
    "attn": ATTENTION,
    "attention": ATTENTION,
    "self_attention": ATTENTION,
}
"""Modules of a transformers block -> the hook that sees their output; a block's own output is the residual stream."""


Settings = Mapping[str, object]
"""A JSON object that another tool wrote: values may be of any type, and are checked where they are used."""


@dataclass(frozen=True)
class Origin:
    """Facts that a file states about the model that its SAE reads and about its training."""

    model: str | None
    """The language model, as the file names it."""
    hook: str | None
    """The hook point that the SAE reads, by TransformerLens' name."""
    facts: dict[str, object] = field(default_factory=dict)
    """Everything else: data set, context size, tokens trained on, versions; JSON content."""


class Imported(NamedTuple):
    """An SAE read from another tool's file."""

    sae: SAE
    """The SAE as one of ours: on the CPU, in float32, ready to encode raw activations."""
    origin: Origin
    notes: list[str]
    """Changes that were made and warnings, for the user: one line each, without a full stop."""


class Layout(NamedTuple):
    """An arrangement of a format's files in a folder, by which `sae/hub` finds SAEs in a repository and knows what to fetch."""

    weights: str
    """Regular expression of the file that marks an SAE, as a path within the SAE's folder."""
    beside: tuple[str, ...] = ()
    """Files that must also be in that folder."""
    perhaps: tuple[str, ...] = ()
    """Files that are read where they exist: paths relative to that folder, which may begin with ../ or end in /*."""
    names_file: bool = False
    """Whether an SAE is named by its file, because a folder may hold many, and not by its folder."""


class Weights:
    """The tensors of one file, checked and converted to float64 as they are taken.

    `done` refuses a file with tensors that nobody took."""

    def __init__(self, path: Path, tensors: Mapping[str, object]):
        self._path, self._left = path, dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int | None) -> Tensor:
        """Return the tensor of this name in float64; None in a shape stands for any length.

        Raises ForeignError when it is missing, has another shape or type, or has a value that is not finite."""
        if name not in self._left:
            others = ", ".join(sorted(self._left)) or "none"
            raise ForeignError(f"{self._path} lacks the tensor {name}; its remaining tensors: {others}")
        tensor = self._left.pop(name)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ForeignError(f"{self._path}: {name} is {kind}, expected floating-point numbers")
        if not _is_stored_in_full(tensor):
            raise ForeignError(f"{self._path}: {name} claims more numbers than the file holds")
        fits = tensor.ndim == len(shape) and all(
            n in (None, m) for n, m in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ForeignError(f"{self._path}: {name} has shape {tuple(tensor.shape)}, expected ({wanted})")
        tensor = tensor.double()
        if not tensor.isfinite().all():
            raise ForeignError(
                f"{self._path}: {name} has values that are not finite: the file is damaged or its training diverged"
            )
        return tensor

    def drop(self, *names: str) -> None:
        """Ignore these tensors: training statistics that the SAE does not need in use."""
        for name in names:
            self._left.pop(name, None)

    def done(self) -> None:
        """Raise ForeignError when a tensor was not taken, because it may change what the SAE computes."""
        if self._left:
            raise ForeignError(
                f"{self._path} has tensors that are not understood here: {', '.join(sorted(self._left))}"
            )


def _is_stored_in_full(tensor: Tensor) -> bool:
    """Return whether every element is stored. Strides of 0 could make a few bytes in a file fill the memory."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _check_file(path: Path) -> None:
    """Raise ForeignError for a file that is missing, and for a pipe or a device, which would block the reader.

    Links are followed, since the hub's cache consists of them."""
    if not path.parent.is_dir():
        raise ForeignError(f"{path.parent} is not a folder, expected one with {path.name} in it")
    if not path.exists():
        names = sorted(entry.name for entry in path.parent.iterdir())
        listed = ", ".join(name if name.isprintable() else ascii(name) for name in names[:LISTED])
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise ForeignError(
            f"{path.name} is missing in {path.parent}, which holds {listed or 'nothing'}{more}"
        )
    if not path.is_file():
        raise ForeignError(f"{path} is not an ordinary file")


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object. Raises ForeignError when the file is missing or holds something else."""
    _check_file(path)
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise ForeignError(f"{path} has {size:,} bytes, settings may have at most {LARGEST_JSON:,}")
        content = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (ValueError, OSError, RecursionError) as error:
        raise ForeignError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ForeignError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def _finite(text: str) -> float | None:
    """Parse a number, replacing NaN and infinity by null, because our own JSON has neither."""
    return number if math.isfinite(number := float(text)) else None


def setting(content: Settings, name: str, kind: type[T], path: Path) -> T:
    """Return a setting of a file. Raises ForeignError when it is missing or of another type."""
    value = content.get(name)
    if kind is float and type(value) is int:
        return kind(value)  # pyright: ignore[reportCallIssue]
    if type(value) is not kind:
        problem = "is missing" if value is None else f"is {value!r}"
        raise ForeignError(f"{path}: the setting {name} {problem}, expected one of type {kind.__name__}")
    return value


def text_or_none(content: Settings, name: str) -> str | None:
    """Return a setting that is a text; None where it is missing or of another type."""
    value = content.get(name)
    return value if isinstance(value, str) else None


def object_or_empty(content: Settings, name: str) -> dict[str, object]:
    """Return a setting that is an object with strings for keys; {} where it is missing or of another type."""
    value = content.get(name)
    return (
        {key: each for key, each in value.items() if isinstance(key, str)} if isinstance(value, dict) else {}
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU. Raises ForeignError when it cannot be read."""
    _check_file(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ForeignError(f"{path} cannot be read as safetensors: {error}") from error


def read_pt(path: Path) -> Any:
    """Read the content of a .pt file, tensors on the CPU, with `weights_only`, so that no code in it is run.

    Raises ForeignError for a file that is not a .pt or holds more than tensors and plain containers, and for one in the
    format before torch 1.6, which itself says how much memory to allocate."""
    check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # anybody may have written the bytes, and the unpickler raises many kinds of error
        reason = str(error).strip().split("\n")[0][:200]
        raise ForeignError(
            f"{path} cannot be read safely, as only tensors and plain containers: {reason}"
        ) from error


def state_dict(content: object, path: Path) -> dict[str, object]:
    """Return the content of a file as a state dict. Raises ForeignError when it is not a dictionary with string keys."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ForeignError(
            f"{path} holds a {type(content).__name__}, expected a state dict (tensors by name)"
        )
    return content


def check_archive(path: Path) -> None:
    """Raise ForeignError unless this is a zip archive, as torch and numpy write, that decompresses to at most a few times its
    size."""
    _check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            decompressed = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ForeignError(
            f"{path} is not an archive of arrays, as torch.save and numpy.savez write: {error}"
        ) from error
    if decompressed > max(SMALL, MOST_DECOMPRESSED * path.stat().st_size):
        raise ForeignError(
            f"{path} would decompress to {decompressed / 1e6:,.0f} MB, more than {MOST_DECOMPRESSED} times its size: these cannot be weights"
        )


def hook_of_module(module: str) -> str | None:
    """Return the hook point at the output of a module of a transformers model, such as `model.layers.3.mlp`.

    None for a module that is not a block, its attention or its MLP."""
    match = re.fullmatch(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)(?:\.([a-z_]+))?", module)
    if not match or (match[2] or "") not in MODULES:
        return None
    return f"blocks.{match[1]}.{MODULES[match[2] or '']}"


def near_twin(hook: str) -> str | None:
    """Return the other name of what an attention or an MLP gives: the module's output, or what it adds to the residual stream.

    These are the same activations unless the model normalises or scales what the module gives. None for other hook points."""
    twins = {MLP: "hook_mlp_out", ATTENTION: "hook_attn_out"}
    for name, twin in (twins | {twin: name for name, twin in twins.items()}).items():
        if hook.endswith("." + name):
            return hook.removesuffix(name) + twin
    return None


def layer_of(hook: str | None) -> int | None:
    """Return the number of the block that a hook point lies in; None where it is not in a block."""
    match = re.match(r"blocks\.(\d+)\.", hook or "")
    return int(match[1]) if match else None


def site_of(hook: str | None) -> str | None:
    """Return the site name in SITES of a hook point; None where it has none."""
    return next((site for site, name in SITES.items() if hook and hook.endswith("." + name)), None)
