"""Labels per token: how the model's surprise is computed, and sets of labels that are added to a store after its harvest."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from activations.disk import files, locks
from activations.document_labels import unit_of
from activations.errors import StoreError, WorkbenchError
from activations.language_model import LanguageModel
from activations.rows import NAN
from activations.shard import Shard, shard_name
from activations.store import Store, read_json
from activations.tokens import NOWHERE

FORMAT = 1
FOLDER, INDEX, JOB = "labels", "labels.json", "job.json"
ROWS = 512  # rows of logits turned into probabilities at once: a vocabulary is large

Labeller = Callable[[Shard], Tensor]  # a shard -> a label for each of its tokens, [n, T]


def surprisal(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return -log p(token | the tokens before it in its window), in nats, for token ids [n, T]: float32 [n, T].

    `logits` [n, T, V] at a position predict the next token, so the label of position t comes from position t - 1.
    Nothing predicts the first token of a window: its label is NaN, as is one that is not finite."""
    found = torch.full(tokens.shape, NAN, device=logits.device)
    following = tokens[:, 1:].to(logits.device, torch.long)
    for window, row in enumerate(logits[:, :-1]):
        pieces = zip(row.split(ROWS), following[window].split(ROWS), strict=True)
        losses = [
            torch.nn.functional.cross_entropy(x.float(), target, reduction="none") for x, target in pieces
        ]
        found[window, 1:] = torch.cat(losses) if losses else NAN
    return found.where(found.isfinite(), NAN)


def surprise_of(model: LanguageModel, batch_tokens: int = 2048) -> Labeller:
    """Return a labeller that runs the model on a shard's tokens, `batch_tokens` at once, and takes `surprisal`."""

    def label(shard: Shard) -> Tensor:
        blocks = shard.tokens.split(max(1, batch_tokens // shard.tokens.shape[1]))
        return torch.cat([surprisal(model.logits(block), block).cpu() for block in blocks])

    return label


class LabelSet:
    """One label for each token of a store, made after its harvest and kept in `STORE/labels/NAME` (FORMAT.md).

    Raises StoreError when there is no such set, or it was made for a store of other content, or is damaged."""

    def __init__(self, store: Store, name: str):
        self.store, self.name = store, name
        self.path = _folder(store, name)
        self._checked: set[int] = set()
        if not (self.path / INDEX).exists():
            raise StoreError(
                f"{store.path} holds no labels {name!r}: it has {', '.join(names(store)) or 'none'}; "
                f"`sae store label {store.path}` makes them"
            )
        about = read_json(self.path / INDEX)
        try:
            if (number := about["format"]) > FORMAT:
                raise StoreError(f"{self.path} is of format {number}, this release reads up to {FORMAT}")
            self.source, self.unit, self.made_with = str(about["source"]), about["unit"], about["made_with"]
            self._sha256: list[str] = [str(digest) for digest in about["shards"]]
            self.mean, self.std = float(about["mean"]), float(about["std"])
            if self.unit != unit_of(self.source):
                raise ValueError(f"labels of {self.source} are in {unit_of(self.source)}, not {self.unit}")
            fits = about["store_fingerprint"] == store.fingerprint
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{self.path / INDEX} is damaged: {error!r}; {self._remedy}") from error
        if not fits or len(self._sha256) != len(store.shards):
            raise StoreError(
                f"{self.path} was made for another store than {store.path} is now: {self._remedy}"
            )

    @property
    def digest(self) -> str:
        """SHA-256 over the files' SHA-256, by which a run knows the labels it was begun with."""
        return hashlib.sha256("".join(self._sha256).encode()).hexdigest()

    def read(self, number: int) -> Tensor:
        """Return the labels of shard `number`, [n, T] float32, NaN for none. Raises StoreError if they are damaged."""
        path = self.path / shard_name(number)
        if number not in self._checked and (fault := self.fault(number)):
            raise StoreError(f"{path} is damaged: {fault}; {self._remedy}")
        self._checked.add(number)
        try:
            labels = files.read_tensors(path)["labels"]
        except (OSError, SafetensorError, KeyError) as error:
            raise StoreError(f"{path} is damaged: {error}; {self._remedy}") from error
        if labels.shape != (shape := (self.store.shards[number].windows, self.store.context)):
            raise StoreError(
                f"{path} holds labels of shape {tuple(labels.shape)}, not {shape}; {self._remedy}"
            )
        return labels

    def fault(self, number: int) -> str | None:
        """What is wrong with the file of shard `number`; None if its bytes are those that were written."""
        try:
            digest = files.sha256(files.plain(self.path / shard_name(number)))
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            return str(error)
        return None if digest == self._sha256[number] else "its bytes have changed"

    @property
    def _remedy(self) -> str:
        return f"delete {self.path} and run `sae store label {self.store.path}` again"


def names(store: Store) -> list[str]:
    """Return the names of the sets of labels that were added to a store, in order."""
    return sorted(path.parent.name for path in store.path.glob(f"{FOLDER}/*/{INDEX}"))


def choose(store: Store, name: str | None) -> LabelSet | None:
    """Return the set of labels to read: None stands for those of the harvest.

    Without a name that is the harvest's, or else the only set there is. Raises StoreError when there are no labels,
    none of that name, or several to choose from."""
    if store.spec.labels is not None and name in (None, store.spec.labels):
        return None
    if name is not None:
        return LabelSet(store, name)
    if not (there := names(store)):
        raise StoreError(
            f"{store.path} holds no labels, and they are needed here: add them with `sae store label {store.path} "
            f"--labels surprise` (or needed:RUN), or harvest again with --labels builtin, column:NAME or module:function"
        )
    if len(there) > 1:
        raise StoreError(
            f"{store.path} holds several sets of labels: choose one with --labels: {', '.join(there)}"
        )
    return LabelSet(store, there[0])


def add(
    store: Store,
    name: str,
    source: str,
    labeller: Labeller,
    made_with: dict[str, str],
    hooks: tuple[str, ...] = (),
    on_tokens: Callable[[int], None] = lambda n: None,
) -> LabelSet:
    """Label every token of a store and return the set; the store's own files and fingerprint stay as they are.

    The labeller sees each shard with the activations of `hooks`; tokens of no document have no label. `made_with`
    says, by SHA-256, what the labels depend on beside the store. An interrupted call goes on where it was; a finished
    set of the same source is returned as it is. Raises StoreError where the name is taken or is no name, BusyError
    when another process is making the set."""
    folder = _folder(store, name)
    identity = {"unit": unit_of(source), "made_with": made_with, "store_fingerprint": store.fingerprint}
    if name == store.spec.labels:
        raise StoreError(
            f"{store.path} was harvested with labels {name!r}: they are there, or choose another --name"
        )
    if (folder / INDEX).exists():
        there = LabelSet(store, name)
        if (there.unit, there.made_with) != (identity["unit"], made_with):
            raise StoreError(
                f"{store.path} has labels {name!r} already, made by {there.source}: choose another --name, "
                f"or delete {folder}"
            )
        # a crash may have come between the index and this
        locks.clear(folder, lambda: (folder / JOB).unlink(missing_ok=True))
        return there
    with locks.alone_in(folder):
        _begin(folder, identity)
        for number, entry in enumerate(store.shards):
            if not (folder / shard_name(number)).exists():
                shard = store.read(number, hooks)
                labels = labeller(shard).float().cpu()
                labels = labels.masked_fill(shard.documents == NOWHERE, NAN)
                files.write_tensors(folder / shard_name(number), {"labels": labels}, f"sae-labels-{FORMAT}")
            on_tokens(entry.windows * store.context)
        mean, std = _moments(store, folder)
        digests = [files.sha256(folder / shard_name(number)) for number in range(len(store.shards))]
        about = {"format": FORMAT, "source": source, "per": "token", **identity, "mean": mean, "std": std}
        files.write_sealed(folder / INDEX, {**about, "shards": digests})
        (folder / JOB).unlink(missing_ok=True)
    return LabelSet(store, name)


def verify(store: Store) -> Iterator[tuple[str, str | None]]:
    """Check every file of the sets of labels that were added; yield (name, None if right or else what is wrong)."""
    for name in names(store):
        try:
            labels = LabelSet(store, name)
        except WorkbenchError as error:
            yield f"{FOLDER}/{name}/{INDEX}", str(error)
            continue
        for number in range(len(store.shards)):
            yield f"{FOLDER}/{name}/{shard_name(number)}", labels.fault(number)


def _begin(folder: Path, identity: dict[str, Any]) -> None:
    """Keep what an interrupted call has made if it was making the same labels; else begin anew."""
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
    """Return mean and standard deviation, float64, of the labels of rows that count."""
    rows = torch.cat(
        [
            files.read_tensors(folder / shard_name(number))["labels"][store.rows(store.read(number))]
            for number in range(len(store.shards))
        ]
    ).double()
    rows = rows[rows.isfinite()]
    if not len(rows):
        raise StoreError(f"no token of {store.path} has a label: there is nothing to learn from")
    return rows.mean().item(), rows.std(correction=0).item()


def _folder(store: Store, name: str) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise StoreError(f"{name!r} is no name for labels: needed are letters, digits, '-', '_' and '.'")
    return store.path / FOLDER / name
