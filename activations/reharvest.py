"""Read a store's windows with another model: a store of the same tokens, documents and shards, with that model's activations."""

import dataclasses
from pathlib import Path

import numpy as np

from activations.capture import ShardBuffer
from activations.language_model import LanguageModel
from activations.progress import Advance, ignore
from activations.store import INDEX, Store
from activations.store_writer import StoreWriter
from activations.tokens import Window

BATCH_TOKENS = 4096  # that the model reads at once


def reharvest(model: LanguageModel, store: Store, hook: str, out: Path, advance: Advance = ignore) -> Store:
    """Write the activations of a model at one hook point, on the windows of a store, as a store in `out`; return it opened.

    The model must take the store's token ids. Labels are left out: they belong to the model that made them. Called again after
    an interruption, it keeps whole shards, and a finished store stays as it is. `advance` is called with numbers of tokens. Raises
    HookError when the model lacks the hook point, StoreError when an activation is not finite or `out` holds anything else."""
    if (out / INDEX).exists():
        advance(sum(entry.windows for entry in store.shards) * store.context)
        return Store(out)
    spec = dataclasses.replace(
        store.spec,
        hooks={hook: store.width(hook)},
        weights_sha256=model.weights_hash,
        labels=None,
        labels_per="document",
        source="bridge",
    )
    writer, buffer = StoreWriter(out, spec), ShardBuffer(spec.windows_per_shard, store.context)
    for number, entry in enumerate(store.shards):
        if writer.has(number):
            advance(entry.windows * store.context)
            continue
        shard = store.read(number)
        columns = (
            column.numpy().astype(np.int32) for column in (shard.tokens, shard.documents, shard.positions)
        )
        block = [Window(*parts) for parts in zip(*columns, strict=True)]
        buffer.fill(model, block, [hook], BATCH_TOKENS, advance)
        writer.write(number, block, buffer.collect()[0])
    writer.finish(len(store.shards), text_ended=store.text_ended)
    return Store(out)
