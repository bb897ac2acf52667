"""Writes a store shard by shard so that a crash leaves whole shards, and a second try goes on from them."""

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
from activations.errors import StoreError
from activations.rows import NAN, expand, kept, place_of_none, segments_of
from activations.store import (
    DTYPES,
    FORMATS,
    INDEX,
    JOB,
    OPTIONAL,
    Moments,
    ShardEntry,
    StoreSpec,
    read_json,
    shard_name,
)
from activations.tokens import NOWHERE, Window

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sums:
    """Sums over the rows of one hook point that count, in float64."""

    sum: list[float]
    squares: float


@dataclass(frozen=True)
class Note:
    """What is kept of a whole shard until the index is written: `shard-00000.json`."""

    entry: ShardEntry
    sums: dict[str, Sums]
    tokens_sha256: str


class StoreWriter:
    """Writes shard after shard, in any order; `finish` makes the folder a store.

    Each shard is whole before its entry is, and the index comes last: a crash leaves whole shards that a
    new writer over the same folder, spec and number of `tokens` asked for keeps."""

    def __init__(self, path: Path, spec: StoreSpec, tokens: int | None = None):
        self.path, self.spec = path, spec
        job = {**_spec_json(spec), "tokens": tokens}
        if (path / JOB).exists():
            before = read_json(path / JOB)
            if not isinstance(before, dict):
                raise StoreError(f"{path / JOB} is damaged: delete {path}, or choose another --out")
            difference = _differences(before, job)
            if difference:
                raise StoreError(
                    f"{path} holds an unfinished harvest with other settings ({difference}): "
                    f"use those again to go on, choose another --out, or delete the folder"
                )
        elif files.is_taken(path):
            raise StoreError(f"{path} exists and is neither a store nor a harvest: choose another --out")
        else:
            files.write_sealed(path / JOB, job)

    def has(self, number: int) -> bool:
        """Whether shard `number` is on disk, whole; one whose bytes have changed is to be written again."""
        path, note = self.path / shard_name(number), self._entry_path(number)
        if not note.exists() or not path.exists():
            return False
        try:
            whole = files.sha256(path) == self._note(number)["entry"]["sha256"]
        except StoreError as error:
            log.warning("%s; the shard is made again", error)
            return False
        if not whole:
            log.warning("%s is damaged: its bytes have changed; it is made again", path)
        return whole

    def check(self, number: int, windows: list[Window]) -> None:
        """Raise StoreError unless shard `number` was made from these windows: the text must not have changed."""
        note = self._note(number)
        if note["tokens_sha256"] != _hash(windows):
            raise StoreError(
                f"{self.path / shard_name(number)} was made from other text than there is now: the data set "
                f"changed since this harvest began; choose another --out"
            )

    def write(
        self,
        number: int,
        windows: list[Window],
        activations: dict[str, Tensor],
        labels: Mapping[int, float] | Tensor | None = None,
    ) -> None:
        """Write windows and their activations [n, T, D] as shard `number`, with labels if the spec names a source:
        one for each document, or one for each token [n, T]. Raises StoreError if an activation is not finite."""
        tokens = torch.from_numpy(np.stack([window.tokens for window in windows]))
        segments = torch.from_numpy(segments_of(windows))
        documents, positions = expand(segments, tokens.shape)
        keep = kept(documents, positions, self.spec.excluded)
        stored, sums = {}, {}
        for hook, activation in activations.items():
            stored[hook] = activation.to("cpu", DTYPES[self.spec.dtype]).contiguous()
            if where := place_of_none(stored[hook], documents, positions):
                self._refuse(hook, activation, stored[hook], where)
            sums[hook] = _sums(stored[hook][keep])
        if isinstance(labels, Tensor):
            stored["labels"] = labels.float().cpu().masked_fill(documents == NOWHERE, NAN)
        elif labels is not None:
            stored["labels"] = torch.tensor([labels[document] for document in segments[:, 3].tolist()])
        path = self.path / shard_name(number)
        files.write_tensors(
            path,
            {"tokens": tokens, "segments": segments, **stored},
            f"sae-store-{FORMATS[self.spec.labels_per]}",
        )
        entry = ShardEntry(len(windows), int(keep.sum()), path.stat().st_size, files.sha256(path))
        note = {"entry": asdict(entry), "sums": sums, "tokens_sha256": _hash(windows)}
        files.write_sealed(self._entry_path(number), note)

    def finish(self, n_shards: int, text_ended: bool) -> None:
        """Write the index over shards 0 to n_shards - 1, then remove what only an unfinished harvest needs.

        Sums are added in the order of shards, whatever the order they were written in."""
        noted = [self._note(number) for number in range(n_shards)]
        rows = sum(note["entry"]["rows"] for note in noted)
        if not rows:
            raise StoreError(
                f"no row of {self.path} would count: the first position of a window is left out, and there is "
                f"no other; needed is more text or longer windows"
            )
        moments = {}
        for hook in self.spec.hooks:
            total = torch.tensor([note["sums"][hook]["sum"] for note in noted], dtype=torch.float64).sum(0)
            squares = sum(note["sums"][hook]["squares"] for note in noted)
            moments[hook] = asdict(Moments((total / rows).tolist(), squares / rows))
        index = {
            "format": FORMATS[self.spec.labels_per],
            **_spec_json(self.spec),
            "text_ended": text_ended,
            "moments": moments,
            "shards": [note["entry"] for note in noted],
        }
        files.write_sealed(self.path / INDEX, index)
        clear_unfinished(self.path)

    def _note(self, number: int) -> dict[str, Any]:
        path = self._entry_path(number)
        note = read_json(path)
        try:
            check(Note, note)
            if {hook: len(sums["sum"]) for hook, sums in note["sums"].items()} != self.spec.hooks:
                raise TypeError("its sums are of other hook points")
        except TypeError as error:
            raise StoreError(
                f"{path} is damaged ({error}): delete it, and its shard is harvested again"
            ) from error
        return note

    def _entry_path(self, number: int) -> Path:
        return (self.path / shard_name(number)).with_suffix(".json")

    def _refuse(self, hook: str, given: Tensor, stored: Tensor, where: str) -> NoReturn:
        if given.isfinite().all():
            raise StoreError(
                f"at {where} {hook} reaches {given.abs().max():.3g} and {self.spec.dtype} holds up to "
                f"{torch.finfo(stored.dtype).max:.3g}: harvest with --dtype bfloat16 or float32"
            )
        raise StoreError(
            f"{hook} of {self.spec.model} gives NaN or infinity, first at {where} of {self.spec.dataset['dataset']}: "
            f"nothing of this shard was stored; leave the document out, take another hook, or run the model with "
            f"--model-dtype float32"
        )


def clear_unfinished(path: Path) -> None:
    """Remove the files of an unfinished harvest that a finished store does not keep."""
    for entry in [*path.glob("shard-*.json"), *path.glob(JOB)]:
        entry.unlink(missing_ok=True)
    files.sweep(path)


def _sums(rows: Tensor) -> dict[str, Any]:
    """Sum over rows [D] and sum of squared norms, float64, block by block to bound memory."""
    total, squares = torch.zeros(rows.shape[1], dtype=torch.float64), 0.0
    for block in rows.split(4096):
        exact = block.double()
        total += exact.sum(0)
        squares += exact.square().sum().item()
    return {"sum": total.tolist(), "squares": squares}


def _hash(windows: list[Window]) -> str:
    return hashlib.sha256(np.stack(windows).tobytes()).hexdigest()


def _spec_json(spec: StoreSpec) -> dict[str, Any]:
    """The spec as JSON; what may be left unsaid is, so that stores keep the bytes of releases that did not say it."""
    content = json.loads(json.dumps(asdict(spec)))
    return {key: value for key, value in content.items() if key not in OPTIONAL or value != OPTIONAL[key]}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    old, new = OPTIONAL | old, OPTIONAL | new
    return ", ".join(
        f"{key}: {old.get(key)} there, {new.get(key)} here"
        for key in {**new, **old}
        if old.get(key) != new.get(key)
    )
