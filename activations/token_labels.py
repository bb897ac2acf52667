"""Labels of tokens: the model's surprise, and sets of labels that are added to a store after its harvest."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError
from torch import Tensor

from activations.disk import files
from activations.document_labels import unit_of
from activations.errors import StoreError, WorkbenchError, quoted
from activations.language_model import LanguageModel
from activations.rows import NAN
from activations.shard import Shard, shard_name
from activations.store import Store, read_json
from activations.tokens import NOWHERE

FORMAT = 1
FOLDER, INDEX, JOB = "labels", "labels.json", "job.json"
ROWS = 512  # rows of logits that become log-probabilities at once: a row has the size of the vocabulary

Labeller = Callable[[Shard], Tensor]  # a shard -> the label of each of its tokens, [n, T]


def surprisal(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return -log p(token | the tokens before it in its window), in nats, for token ids [n, T]: float32 [n, T].

    `logits` [n, T, V] at a position predict the next token, so the label of position t comes from position t - 1.
    Nothing predicts the first token of a window: its label is NaN. A label that is not finite is NaN too."""
    surprise = torch.full(tokens.shape, NAN, device=logits.device)
    following = tokens[:, 1:].to(logits.device, torch.long)
    for window, row in enumerate(logits[:, :-1]):
        pieces = zip(row.split(ROWS), following[window].split(ROWS), strict=True)
        losses = [
            torch.nn.functional.cross_entropy(x.float(), target, reduction="none") for x, target in pieces
        ]
        surprise[window, 1:] = torch.cat(losses) if losses else NAN
    return surprise.where(surprise.isfinite(), NAN)


def surprise_of(model: LanguageModel, batch_tokens: int = 2048) -> Labeller:
    """Return a labeller that runs the model on a shard, `batch_tokens` tokens at a time, and returns their `surprisal`."""

    def label(shard: Shard) -> Tensor:
        blocks = shard.tokens.split(max(1, batch_tokens // shard.tokens.shape[1]))
        return torch.cat([surprisal(model.logits(block), block).cpu() for block in blocks])

    return label


class _Identity(TypedDict):
    """What labels depend on: job.json, and a part of labels.json."""

    unit: str
    made_with: dict[str, str]
    store_fingerprint: str


class LabelSet:
    """A set of labels, one for each token of a store, added after its harvest and kept in `STORE/labels/NAME` (FORMAT.md).

    Raises StoreError if there is no such set, if it was made for other activations than the store holds, or if it is
    damaged."""

    def __init__(self, store: Store, name: str):
        self.store, self.name = store, name
        self.path = _folder(store, name)
        self.source = ""  # until the index is read
        self._checked: set[int] = set()
        if not (self.path / INDEX).exists():
            raise StoreError(
                f"{store.path} has no labels {name!r}, it has {', '.join(names(store)) or 'none'}",
                fix=f"sae store label {quoted(store.path)} --labels SOURCE --name {quoted(name)}",
            )
        index = read_json(self.path / INDEX)
        try:
            if (number := index["format"]) > FORMAT:
                raise StoreError(f"{self.path} is of format {number}, this release reads up to {FORMAT}")
            self.source, self.unit, self.made_with = str(index["source"]), index["unit"], index["made_with"]
            self._sha256: list[str] = [str(digest) for digest in index["shards"]]
            self.mean, self.std = float(index["mean"]), float(index["std"])
            if self.unit != unit_of(self.source):
                raise ValueError(f"labels of {self.source} are in {unit_of(self.source)}, not {self.unit}")
            fits = index["store_fingerprint"] == store.fingerprint
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{self.path / INDEX} is damaged: {error!r}", fix=self._fix) from error
        if not fits or len(self._sha256) != len(store.shards):
            raise StoreError(
                f"{self.path} was made for other activations than {store.path} holds now", fix=self._fix
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the files' SHA-256, by which a run recognises the labels that it was started with."""
        return hashlib.sha256("".join(self._sha256).encode()).hexdigest()

    def read(self, number: int) -> Tensor:
        """Return the labels of shard `number`, [n, T] float32, NaN where there is none. Raises StoreError if they are damaged."""
        path = self.path / shard_name(number)
        if number not in self._checked and (fault := self.fault(number)):
            raise StoreError(f"{path} is damaged: {fault}", fix=self._fix)
        self._checked.add(number)
        try:
            labels = files.read_tensors(path)["labels"]
        except (OSError, SafetensorError, KeyError) as error:
            raise StoreError(f"{path} is damaged: {error}", fix=self._fix) from error
        if labels.shape != (shape := (self.store.shards[number].windows, self.store.context)):
            raise StoreError(
                f"{path} holds labels of shape {tuple(labels.shape)}, must be {shape}", fix=self._fix
            )
        return labels

    def fault(self, number: int) -> str | None:
        """Return what is wrong with the file of shard `number`; None if its bytes are those that were written."""
        try:
            digest = files.sha256(files.plain(self.path / shard_name(number)))
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            return str(error)
        return None if digest == self._sha256[number] else "its bytes have changed"

    @property
    def _fix(self) -> str:
        source = self.source or "SOURCE"
        made = (
            f"sae store label {quoted(self.store.path)} --labels {quoted(source)} --name {quoted(self.name)}"
        )
        return f"rm -r {quoted(self.path)} && {made}"


def names(store: Store) -> list[str]:
    """Return the names of the sets of labels that were added to a store, in alphabetical order."""
    return sorted(path.parent.name for path in store.path.glob(f"{FOLDER}/*/{INDEX}"))


def choose(store: Store, name: str | None) -> LabelSet | None:
    """Return the set of labels to read; None stands for the labels of the harvest.

    Without a name, that is the harvest's labels, or else the only set that the store has. Raises StoreError if there
    are no labels, none of that name, or several to choose from."""
    if store.spec.labels is not None and name in (None, store.spec.labels):
        return None
    if name is not None:
        return LabelSet(store, name)
    if not (added := names(store)):
        raise StoreError(
            f"{store.path} holds no labels, and they are needed here: add surprise or needed:RUN, or harvest again with "
            f"--labels builtin, column:NAME or module:function",
            fix=f"sae store label {quoted(store.path)} --labels surprise",
        )
    if len(added) > 1:
        raise StoreError(
            f"{store.path} holds several sets of labels: choose one with --labels: {', '.join(added)}"
        )
    return LabelSet(store, added[0])


def add(
    store: Store,
    name: str,
    source: str,
    labeller: Labeller,
    made_with: dict[str, str],
    hooks: tuple[str, ...] = (),
    advance: Callable[[int], None] = lambda n: None,
) -> LabelSet:
    """Label every token of a store and return the set. The store's own files and fingerprint do not change.

    The labeller gets each shard with the activations of `hooks`; tokens that belong to no document get no label.
    `made_with` holds the SHA-256 of what the labels depend on besides the store. After an interruption the same call
    continues; a finished set of the same source is returned unchanged. Raises StoreError if the name is taken or not
    valid, or if no token has a label, and BusyError if another process is making the set."""
    folder = _folder(store, name)
    identity: _Identity = {
        "unit": unit_of(source),
        "made_with": made_with,
        "store_fingerprint": store.fingerprint,
    }
    if name == store.spec.labels:
        raise StoreError(
            f"{store.path} was harvested with labels {name!r}: use those, or choose another --name"
        )
    if (folder / INDEX).exists():
        existing = LabelSet(store, name)
        if (existing.unit, existing.made_with) != (identity["unit"], made_with):
            raise StoreError(
                f"{store.path} already has labels {name!r}, made by {existing.source}: choose another --name, or "
                f"delete {folder}"
            )
        # A crash may have come after the index was written and before the job file was deleted
        files.clear_lock(folder, lambda: (folder / JOB).unlink(missing_ok=True))
        return existing
    with files.alone_in(folder):
        _begin(folder, identity)
        for number, entry in enumerate(store.shards):
            if not (folder / shard_name(number)).exists():
                shard = store.read(number, hooks)
                labels = labeller(shard).float().cpu()
                labels = labels.masked_fill(shard.documents == NOWHERE, NAN)
                files.write_tensors(folder / shard_name(number), {"labels": labels}, f"sae-labels-{FORMAT}")
            advance(entry.windows * store.context)
        mean, std = _moments(store, folder)
        digests = [files.sha256(folder / shard_name(number)) for number in range(len(store.shards))]
        index = {"format": FORMAT, "source": source, "per": "token", **identity, "mean": mean, "std": std}
        # The index is written last: a set without one is unfinished
        files.write_sealed(folder / INDEX, {**index, "shards": digests})
        (folder / JOB).unlink(missing_ok=True)
    return LabelSet(store, name)


def verify(store: Store) -> Iterator[tuple[str, str | None]]:
    """Check every file of the added sets of labels; yield (file name, what is wrong with it or None)."""
    for name in names(store):
        try:
            labels = LabelSet(store, name)
        except WorkbenchError as error:
            yield f"{FOLDER}/{name}/{INDEX}", str(error)
            continue
        for number in range(len(store.shards)):
            yield f"{FOLDER}/{name}/{shard_name(number)}", labels.fault(number)


def _begin(folder: Path, identity: _Identity) -> None:
    """Keep the shards of an interrupted call if it was making the same labels; delete them otherwise."""
    try:
        same = files.read_json(folder / JOB) == identity
    except (OSError, ValueError):
        same = False
    if not same:
        for path in folder.glob("shard-*.safetensors"):
            path.unlink()
        files.write_sealed(folder / JOB, identity)
    files.sweep(folder)


def _moments(store: Store, folder: Path) -> tuple[float, float]:
    """Return the mean and the standard deviation (in float64) of the labels of the store's rows.

    Raises StoreError if no row has a label."""
    rows = torch.cat(
        [
            files.read_tensors(folder / shard_name(number))["labels"][store.rows(store.read(number))]
            for number in range(len(store.shards))
        ]
    ).double()
    rows = rows[rows.isfinite()]
    if not len(rows):
        raise StoreError(f"no row of {store.path} has a label")
    return rows.mean().item(), rows.std(correction=0).item()


def _folder(store: Store, name: str) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise StoreError(
            f"{name!r} is not a valid name of labels, must be of letters, digits, '-', '_' and '.'"
        )
    return store.path / FOLDER / name
