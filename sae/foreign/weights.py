"""What the formats share: an SAE and where it came from, tensors checked as they are taken, norms and biases moved.

Readers compute in float64 and round once, at the end, to the float32 of all our files."""

import json
import math
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
from sae.architectures import ARCHITECTURES, SAE, ArchConfig, name_of
from sae.architectures.config import Selects
from sae.architectures.shared import move_norms

T = TypeVar("T")
LISTED = 8  # files named of a folder that lacks one
LARGEST_JSON = 2**24  # bytes; settings take some thousand
SMALL, MOST_UNPACKED = 2**26, 8
"""An archive may unpack to so many bytes, or else to so many times its size."""


@dataclass(frozen=True)
class Origin:
    """What a file says of where its SAE belongs and how it came to be."""

    model: str | None
    """The language model, as the file names it."""
    hook: str | None
    """The hook point it reads, by TransformerLens' name."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else it says: data set, context size, tokens trained on, versions. As JSON can hold it."""


class Imported(NamedTuple):
    """An SAE out of another tool's file."""

    sae: SAE
    """Ours: on the CPU, in float32, ready to encode raw activations."""
    origin: Origin
    notes: list[str]
    """What was changed on the way and what to beware of, for the user: a line each, no full stop."""


class Layout(NamedTuple):
    """How a format's files lie in a folder: what `sae/hub` looks for in a repository, and fetches."""

    weights: str
    """Regular expression of the file that marks an SAE, as a path within the SAE's folder."""
    beside: tuple[str, ...] = ()
    """Files that must be in that folder too."""
    perhaps: tuple[str, ...] = ()
    """Files that are read where they exist: paths from that folder, which may begin with ../ or end in /*."""
    names_file: bool = False
    """Whether the SAE is called by its file, of which a folder may hold many, and not by its folder."""


class Weights:
    """Tensors of one file, checked as they are taken, one by one, in float64; what is left over is not understood."""

    def __init__(self, path: Path, tensors: Mapping[str, Any]):
        self._path, self._left = path, dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The tensor of this name; None in a shape is any length.

        Raises ForeignError when it is missing, has another shape, is no floating point or has a value that is not finite.
        """
        if name not in self._left:
            has = ", ".join(sorted(self._left)) or "nothing else"
            raise ForeignError(f"{self._path} lacks the tensor {name}; left in it: {has}")
        tensor = self._left.pop(name)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ForeignError(f"{self._path}: {name} is {found}, needed are floating-point numbers")
        if not _is_whole(tensor):
            raise ForeignError(f"{self._path}: {name} claims more numbers than the file holds")
        fits = tensor.ndim == len(shape) and all(
            n in (None, m) for n, m in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise ForeignError(f"{self._path}: {name} has shape {tuple(tensor.shape)}, needed is ({wanted})")
        whole = tensor.double()
        if not whole.isfinite().all():
            raise ForeignError(
                f"{self._path}: {name} has values that are not finite: the file is damaged or its training diverged"
            )
        return whole

    def drop(self, *names: str) -> None:
        """Leave these out: statistics of training that using the SAE does not need."""
        for name in names:
            self._left.pop(name, None)

    def done(self) -> None:
        """Raise ForeignError when there is a tensor nobody has taken: it may change what the SAE does."""
        if self._left:
            raise ForeignError(
                f"{self._path} has tensors that are not understood here: {', '.join(sorted(self._left))}"
            )


def _is_whole(tensor: Tensor) -> bool:
    """Whether every number of a tensor has a place of its own: strides of 0 could make a few bytes fill the memory."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _ordinary(path: Path) -> None:
    """Raise ForeignError for a file that is missing, and for a pipe or a device, which would be waited for.

    Links are followed: a hub's cache is made of them."""
    if not path.parent.is_dir():
        raise ForeignError(f"{path.parent} is no folder: needed is one with {path.name} in it")
    if not path.exists():
        names = sorted(entry.name for entry in path.parent.iterdir())
        found = ", ".join(name if name.isprintable() else ascii(name) for name in names[:LISTED])
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise ForeignError(
            f"{path.name} is missing in {path.parent}; found there: {found or 'nothing'}{more}"
        )
    if not path.is_file():
        raise ForeignError(f"{path} is no ordinary file")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ForeignError when the file is missing or holds something else."""
    _ordinary(path)
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise ForeignError(f"{path} has {size:,} bytes: no settings are that large")
        content = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except (ValueError, OSError, RecursionError) as error:
        raise ForeignError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ForeignError(f"{path} holds a {type(content).__name__}, needed is a JSON object")
    return content


def _finite(text: str) -> float | None:
    """NaN and infinity become null: our own JSON has none."""
    return number if math.isfinite(number := float(text)) else None


def setting(content: Mapping[str, Any], name: str, kind: type[T], path: Path) -> T:
    """A setting of a file. Raises ForeignError when it is missing or of another type."""
    value = content.get(name)
    if kind is float and type(value) is int:
        return kind(value)  # pyright: ignore[reportCallIssue]
    if type(value) is not kind:
        found = "is missing" if value is None else f"is {value!r}"
        raise ForeignError(f"{path}: the setting {name} {found}, needed is one of type {kind.__name__}")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises ForeignError when it cannot be read."""
    _ordinary(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ForeignError(f"{path} cannot be read as safetensors: {error}") from error


def read_pt(path: Path) -> Any:
    """What a .pt file holds, tensors on the CPU, read with `weights_only`: no code in it is run.

    Raises ForeignError for a file that is no such thing, or holds more than tensors and plain containers, and for one
    from before torch 1.6, which would be trusted for how much memory to take."""
    check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes from anywhere: the unpickler may meet whatever there is
        reason = str(error).strip().split("\n")[0][:200]
        raise ForeignError(
            f"{path} cannot be read safely, as tensors and plain containers alone: {reason}"
        ) from error


def state_dict(content: Any, path: Path) -> dict[str, Any]:
    """What was read from a file, if it is a dictionary with names for keys. Raises ForeignError when it is not."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ForeignError(
            f"{path} holds a {type(content).__name__}, needed is a state dict: tensors by name"
        )
    return content


def check_archive(path: Path) -> None:
    """Raise ForeignError unless this is a zip archive, as torch and numpy write, that unpacks to no more than a few times
    its size: weights do not compress further."""
    _ordinary(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ForeignError(
            f"{path} is no archive of arrays, as torch.save and numpy.savez write: {error}"
        ) from error
    if unpacked > max(SMALL, MOST_UNPACKED * path.stat().st_size):
        raise ForeignError(
            f"{path} would unpack to {unpacked / 1e6:,.0f} MB, more than {MOST_UNPACKED} times its size: these are no weights"
        )


def assemble(cfg: ArchConfig, tensors: Mapping[str, Tensor]) -> SAE:
    """An SAE of these tensors, in float64, to be folded and `finished`; buffers left out are as in a new one."""
    return ARCHITECTURES[name_of(cfg)].from_tensors(cfg, tensors)


@torch.no_grad()
def fold_pre_bias(sae: SAE, subtracted: bool) -> list[str]:
    """Let the encoder read what ours does, given whether the file's takes b_dec off x: moved into the biases, exact.

    Returns what to tell the user."""
    if subtracted == sae.pre_bias or not sae.b_dec.any():
        return []
    sae.shift_pre_activations((1 if sae.pre_bias else -1) * (sae.b_dec @ sae.W_enc))
    wherefrom = (
        "the file's encoder reads x, ours x - b_dec" if sae.pre_bias else "the file's reads x - b_dec, ours x"
    )
    return [f"b_dec W_enc moved into the encoder's biases: {wherefrom}"]


@torch.no_grad()
def fold_norms(sae: SAE, ranked_by_norm: bool = False) -> list[str]:
    """Bring decoder rows to norm 1, latents carrying the norms: the same reconstruction, and who fires is the same.

    Where latents are chosen by rank that is so only if the file ranks them times their norms (`ranked_by_norm`) or all
    norms are alike; else the rows stay as they are, and where they share one threshold too. Returns what to tell the user.
    """
    norms = sae.W_dec.norm(dim=1)
    least, most = norms.min().item(), norms.max().item()
    ones = max(abs(least - 1), abs(most - 1)) < 1e-5  # but for rounding: left as they are, the numbers stay
    if ones and not ranked_by_norm:
        return []
    said = f"decoder rows had norms from {least:.4g} to {most:.4g}"
    selects = sae.cfg.selects()
    if selects is Selects.ABOVE_ONE_THRESHOLD:
        return [f"{said} and keep them: which latents are above the threshold depends on it"]
    if selects is Selects.BY_RANK and not ranked_by_norm and most - least > 1e-6 * most:
        return [f"{said} and keep them: which latents are among the k largest depends on it"]
    move_norms(sae)
    return [] if ones else [f"{said}, now 1: latents are multiplied by what the norms were"]


def finished(sae: SAE) -> SAE:
    """The SAE in float32, in use. Raises ForeignError when a value is too large for that."""
    sae = sae.float().eval().requires_grad_(False)
    for name, tensor in sae.state_dict().items():
        if tensor.isnan().any() or (tensor == torch.inf).any():
            raise ForeignError(
                f"{name} has values beyond float32's range: the file's scale cannot be held here"
            )
    return sae
