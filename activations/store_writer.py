"""Write a store shard by shard, so that a crash leaves whole shards and the same harvest can resume from them."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from activations.disk import files
from activations.disk.schema import check
from activations.errors import StoreError, quoted
from activations.int8 import decoded, quantise
from activations.rows import NAN, expand, included, segments_of
from activations.shard import ShardEntry, first_non_finite, scales_name, shard_name
from activations.store import DTYPES, INDEX, JOB, OPTIONAL, Moments, StoreSpec, read_json
from activations.tokens import NOWHERE, Window

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sums:
    """Sums, in float64, over the rows of one hook point that are neither excluded nor padding."""

    sum: list[float]
    squares: float


@dataclass(frozen=True)
class Note:
    """The content of `shard-00000.json`, which describes a finished shard until the index is written."""

    entry: ShardEntry
    sums: dict[str, Sums]
    tokens_sha256: str


class StoreWriter:
    """Writes the shards of a store in any order; `finish` then writes the index.

    A shard's note is written after the shard and the index after all notes. A crash therefore leaves whole shards, and a
    new writer with the same folder, spec and number of `tokens` keeps them. Raises StoreError for a folder that holds
    anything else, a harvest with other settings included."""

    def __init__(self, path: Path, spec: StoreSpec, tokens: int | None = None):
        self.path, self.spec = path, spec
        job = {**_spec_json(spec), "tokens": tokens}
        if (path / JOB).exists():
            job_before = read_json(path / JOB)
            if not isinstance(job_before, dict):
                raise StoreError(f"{path / JOB} is damaged: delete {path} or choose another --out")
            difference = _differences(job_before, job)
            if difference:
                raise StoreError(
                    f"{path} holds an unfinished harvest with other settings ({difference}): "
                    f"use the same settings to resume it, choose another --out, or delete the folder"
                )
        elif files.is_taken(path):
            raise StoreError(f"{path} holds files that are not a store: choose another --out")
        else:
            files.write_sealed(path / JOB, job)

    def has(self, number: int) -> bool:
        """Return whether shard `number` is on disk and intact. A damaged one is logged and has to be written again."""
        path, note = self.path / shard_name(number), self._entry_path(number)
        if not note.exists() or not path.exists():
            return False
        try:
            intact = files.sha256(path) == self._note(number)["entry"]["sha256"]
        except StoreError as error:
            log.warning("%s; the shard is written again", error)
            return False
        if not intact:
            log.warning("%s is damaged: its bytes have changed; it is written again", path)
        return intact

    def check(self, number: int, windows: list[Window]) -> None:
        """Raise StoreError unless shard `number` was made from these windows, as it is unless the text has changed."""
        note = self._note(number)
        if note["tokens_sha256"] != _hash(windows):
            raise StoreError(
                f"{self.path / shard_name(number)} was made from other text: the data set has changed since this "
                f"harvest began; choose another --out"
            )

    def write(
        self,
        number: int,
        windows: list[Window],
        activations: dict[str, Tensor],
        labels: Mapping[int, float] | Tensor | None = None,
    ) -> None:
        """Write windows and their activations [n, T, D] as shard `number`.

        `labels` are given when the spec names their source: one per document, or one per token [n, T]. Raises StoreError
        if an activation is not finite, or is too large for the store's type."""
        tokens = torch.from_numpy(np.stack([window.tokens for window in windows]))
        segments = torch.from_numpy(segments_of(windows))
        documents, positions = expand(segments, tokens.shape)
        counted = included(documents, self.spec.excluded)
        stored, sums = {}, {}
        for hook, activation in activations.items():
            columns = self._columns(hook, activation.cpu())
            *_, last = columns.values()  # the rows, or the scales of int8
            if where := first_non_finite(last, documents, positions):
                self._refuse(hook, activation, last, where)
            stored |= columns
            sums[hook] = _sums([column[counted] for column in columns.values()])
        if isinstance(labels, Tensor):
            stored["labels"] = labels.float().cpu().masked_fill(documents == NOWHERE, NAN)
        elif labels is not None:
            stored["labels"] = torch.tensor([labels[document] for document in segments[:, 3].tolist()])
        path = self.path / shard_name(number)
        files.write_tensors(
            path,
            {"tokens": tokens, "segments": segments, **stored},
            f"sae-store-{self.spec.format}",
        )
        entry = ShardEntry(len(windows), int(counted.sum()), path.stat().st_size, files.sha256(path))
        note = {"entry": asdict(entry), "sums": sums, "tokens_sha256": _hash(windows)}
        files.write_sealed(self._entry_path(number), note)

    def _columns(self, hook: str, activation: Tensor) -> dict[str, Tensor]:
        """Return the tensors that hold a hook point's activations, by their names in the shard."""
        dtype = DTYPES[self.spec.dtype]
        if dtype != torch.int8:
            return {hook: activation.to(dtype).contiguous()}
        q, scales = quantise(activation)
        return {hook: q, scales_name(hook): scales}

    def finish(self, n_shards: int, text_ended: bool) -> None:
        """Write the index over shards 0 to n_shards - 1, then remove the files of an unfinished harvest.

        Raises StoreError when no row counts."""
        # Added in the order of shards, whatever order they were written in, so that the sums are the same bit for bit
        notes = [self._note(number) for number in range(n_shards)]
        rows = sum(note["entry"]["rows"] for note in notes)
        if not rows:
            raise StoreError(
                f"{self.path} would hold no rows: the first position of every window is left out, and the windows "
                f"have no other token; use more text or longer windows"
            )
        moments = {}
        for hook in self.spec.hooks:
            total = torch.tensor([note["sums"][hook]["sum"] for note in notes], dtype=torch.float64).sum(0)
            squares = sum(note["sums"][hook]["squares"] for note in notes)
            moments[hook] = asdict(Moments((total / rows).tolist(), squares / rows))
        index = {
            "format": self.spec.format,
            **_spec_json(self.spec),
            "text_ended": text_ended,
            "moments": moments,
            "shards": [note["entry"] for note in notes],
        }
        files.write_sealed(self.path / INDEX, index)
        clear_unfinished(self.path)

    def _note(self, number: int) -> dict[str, Any]:
        path = self._entry_path(number)
        note = read_json(path)
        try:
            check(Note, note)
            if {hook: len(sums["sum"]) for hook, sums in note["sums"].items()} != self.spec.hooks:
                raise TypeError("its sums belong to other hook points")
        except TypeError as error:
            raise StoreError(
                f"{path} is damaged ({error}); without it, its shard is harvested again",
                fix=f"rm {quoted(path)}",
            ) from error
        return note

    def _entry_path(self, number: int) -> Path:
        return (self.path / shard_name(number)).with_suffix(".json")

    def _refuse(self, hook: str, activation: Tensor, stored: Tensor, where: str) -> NoReturn:
        if activation.isfinite().all():
            raise StoreError(
                f"at {where} {hook} reaches {activation.abs().max():.3g} and {self.spec.dtype} holds up to "
                f"{torch.finfo(stored.dtype).max:.3g}: harvest with --dtype bfloat16, int8 or float32"
            )
        mend = (
            "give its rows a negative document"
            if self.spec.source == "files"
            else "leave the document out, use another hook point, or run the model with --model-dtype float32"
        )
        raise StoreError(
            f"{hook} of {self.spec.model} is NaN or infinite, first at {where} of {self.spec.dataset['dataset']}: "
            f"this shard was not stored; {mend}"
        )


def clear_unfinished(path: Path) -> None:
    """Remove the files that only an unfinished harvest has."""
    for entry in [*path.glob("shard-*.json"), *path.glob(JOB)]:
        entry.unlink(missing_ok=True)
    files.sweep(path)


def _sums(columns: list[Tensor]) -> dict[str, Any]:
    """Return the sum over stored rows [D] and the sum of squared norms, in float64."""
    total, squares = torch.zeros(columns[0].shape[1], dtype=torch.float64), 0.0
    for start in range(0, len(columns[0]), 4096):  # bounds the memory that the float64 copies take
        (block,) = decoded([column[start : start + 4096] for column in columns])
        exact = block.double()
        total += exact.sum(0)
        squares += exact.square().sum().item()
    return {"sum": total.tolist(), "squares": squares}


def _hash(windows: list[Window]) -> str:
    return hashlib.sha256(np.stack(windows).tobytes()).hexdigest()


def _spec_json(spec: StoreSpec) -> dict[str, Any]:
    """Return the spec as JSON without entries that have their default value.

    A store that uses no new feature thus has the same bytes as one of a release that did not know the entry."""
    content = json.loads(json.dumps(asdict(spec)))
    return {key: value for key, value in content.items() if key not in OPTIONAL or value != OPTIONAL[key]}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    old, new = OPTIONAL | old, OPTIONAL | new
    return ", ".join(
        f"{key}: {old.get(key)} there, {new.get(key)} here"
        for key in {**new, **old}
        if old.get(key) != new.get(key)
    )
