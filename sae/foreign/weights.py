"""Shared by all formats: the result of an import, checks on files and tensors, and folding of norms and biases.

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
LISTED = 8  # files listed when a folder lacks the one that is looked for
LARGEST_JSON = 2**24  # bytes; real settings take a few thousand
# An archive may unpack to SMALL bytes, or to MOST_UNPACKED times its size if that is more. Weights hardly compress, so a
# file that unpacks to more is made to fill the memory.
SMALL, MOST_UNPACKED = 2**26, 8


@dataclass(frozen=True)
class Origin:
    """Facts that a file states about the model that its SAE reads and about its training."""

    model: str | None
    """The language model, as the file names it."""
    hook: str | None
    """The hook point that the SAE reads, by TransformerLens' name."""
    facts: dict[str, Any] = field(default_factory=dict)
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

    def __init__(self, path: Path, tensors: Mapping[str, Any]):
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


def read_json(path: Path) -> dict[str, Any]:
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


def setting(content: Mapping[str, Any], name: str, kind: type[T], path: Path) -> T:
    """Return a setting of a file. Raises ForeignError when it is missing or of another type."""
    value = content.get(name)
    if kind is float and type(value) is int:
        return kind(value)  # pyright: ignore[reportCallIssue]
    if type(value) is not kind:
        problem = "is missing" if value is None else f"is {value!r}"
        raise ForeignError(f"{path}: the setting {name} {problem}, expected one of type {kind.__name__}")
    return value


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


def state_dict(content: Any, path: Path) -> dict[str, Any]:
    """Return the content of a file as a state dict. Raises ForeignError when it is not a dictionary with string keys."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ForeignError(
            f"{path} holds a {type(content).__name__}, expected a state dict (tensors by name)"
        )
    return content


def check_archive(path: Path) -> None:
    """Raise ForeignError unless this is a zip archive, as torch and numpy write, that unpacks to at most a few times its
    size."""
    _check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ForeignError(
            f"{path} is not an archive of arrays, as torch.save and numpy.savez write: {error}"
        ) from error
    if unpacked > max(SMALL, MOST_UNPACKED * path.stat().st_size):
        raise ForeignError(
            f"{path} would unpack to {unpacked / 1e6:,.0f} MB, more than {MOST_UNPACKED} times its size: these cannot be weights"
        )


def assemble(cfg: ArchConfig, tensors: Mapping[str, Tensor]) -> SAE:
    """Build an SAE from tensors, in float64, ready for folding and `finished`. Missing buffers are those of a new SAE."""
    return ARCHITECTURES[name_of(cfg)].from_tensors(cfg, tensors)


@torch.no_grad()
def fold_pre_bias(sae: SAE, subtracted: bool) -> list[str]:
    """Adapt the encoder's biases exactly, in place, where the file's encoder and ours disagree on subtracting b_dec from x.

    `subtracted` says whether the file's encoder does. Returns notes for the user."""
    if subtracted == sae.pre_bias or not sae.b_dec.any():
        return []
    sae.shift_pre_activations((1 if sae.pre_bias else -1) * (sae.b_dec @ sae.W_enc))
    theirs, ours = ("x", "x - b_dec") if sae.pre_bias else ("x - b_dec", "x")
    return [f"b_dec W_enc moved into the encoder's biases: the file's encoder reads {theirs}, ours {ours}"]


@torch.no_grad()
def fold_norms(sae: SAE, ranked_by_norm: bool = False) -> list[str]:
    """Scale decoder rows to norm 1 and latents by the norms, in place; reconstructions and firing latents stay the same.

    Where latents are chosen by rank, this holds only if the file ranks them by value times norm (`ranked_by_norm`) or all
    norms are equal; otherwise the rows keep their norms. They also do where all latents share one threshold. Returns notes
    for the user."""
    norms = sae.W_dec.norm(dim=1)
    least, most = norms.min().item(), norms.max().item()
    # norms of 1 up to rounding are left alone, so that the file's numbers come through unchanged
    ones = max(abs(least - 1), abs(most - 1)) < 1e-5
    if ones and not ranked_by_norm:
        return []
    note = f"decoder rows had norms from {least:.4g} to {most:.4g}"
    selects = sae.cfg.selects()
    if selects is Selects.ABOVE_ONE_THRESHOLD:
        return [f"{note} and keep them: which latents are above the threshold depends on them"]
    if selects is Selects.BY_RANK and not ranked_by_norm and most - least > 1e-6 * most:
        return [f"{note} and keep them: which latents are among the k largest depends on them"]
    move_norms(sae)
    return [] if ones else [f"{note}, now 1: latents are multiplied by the old norms"]


def finished(sae: SAE) -> SAE:
    """Return the SAE in float32, ready for use. Raises ForeignError when a value does not fit float32."""
    sae = sae.float().eval().requires_grad_(False)
    for name, tensor in sae.state_dict().items():
        if tensor.isnan().any() or (tensor == torch.inf).any():
            raise ForeignError(f"{name} has values beyond float32's range, in which SAEs are kept here")
    return sae
