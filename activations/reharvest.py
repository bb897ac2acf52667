"""Read a store's windows with another model: a store of the same tokens, documents and shards, with that model's activations."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from activations.capture import ShardBuffer
from activations.errors import StoreError, quoted
from activations.language_model import LanguageModel
from activations.progress import Advance, ignore
from activations.store import INDEX, Store, StoreSpec
from activations.store_writer import StoreWriter
from activations.tokens import Window

BATCH_TOKENS = 4096  # that the model reads at once


def reharvest(model: LanguageModel, store: Store, hook: str, out: Path, advance: Advance = ignore) -> Store:
    """Write the activations of a model at one hook point, on the windows of a store, as a store in `out`; return it opened.

    The model must take the store's token ids. Labels are left out: they belong to the model that made them. Called again after
    an interruption, it keeps whole shards, and a finished store stays as it is. `advance` is called with numbers of tokens. Raises
    HookError when the model lacks the hook point, StoreError when an activation is not finite or `out` holds anything else, such
    as the activations of another model or on other windows."""
    spec = dataclasses.replace(
        store.spec,
        hooks={hook: store.width(hook)},
        weights_sha256=model.weights_hash,
        labels=None,
        labels_per="document",
        source="bridge",
    )
    if (out / INDEX).exists():
        finished = Store(out)
        _refuse_another(finished, spec, store)
        advance(store.windows * store.context)
        return finished
    writer, buffer = StoreWriter(out, spec), ShardBuffer(spec.windows_per_shard, store.context)
    for number, entry in enumerate(store.shards):
        shard = store.read(number)
        columns = (
            column.numpy().astype(np.int32) for column in (shard.tokens, shard.documents, shard.positions)
        )
        block = [Window(*parts) for parts in zip(*columns, strict=True)]
        if writer.has(number):
            writer.check(number, block)
            advance(entry.windows * store.context)
            continue
        buffer.fill(model, block, [hook], BATCH_TOKENS, advance)
        writer.write(number, block, buffer.collect()[0])
    writer.finish(len(store.shards), text_ended=store.text_ended)
    return Store(out)


def _refuse_another(finished: Store, spec: StoreSpec, like: Store) -> None:
    """Raise StoreError unless a store has this spec and the windows of the store `like`."""
    differences = [
        f"{field.name}: {getattr(finished.spec, field.name)} there, {getattr(spec, field.name)} here"
        for field in dataclasses.fields(spec)
        if getattr(finished.spec, field.name) != getattr(spec, field.name)
    ]
    if not differences and not _same_windows(finished, like):
        differences = ["its windows are of other text"]
    if differences:
        raise StoreError(
            f"{finished.path} holds another store ({', '.join(differences)}): delete it, and it is made anew",
            fix=f"rm -r {quoted(finished.path)}",
        )


def _same_windows(one: Store, other: Store) -> bool:
    if [entry.windows for entry in one.shards] != [entry.windows for entry in other.shards]:
        return False
    pairs = ((one.read(number, ()), other.read(number, ())) for number in range(len(one.shards)))
    return all(
        torch.equal(getattr(left, name), getattr(right, name))
        for left, right in pairs
        for name in ("tokens", "documents", "positions")
    )
