"""Shuffled reading against a plain copy of as many rows, and SAELens' cached reader: one process, batches of 2048.

    PYTHONPATH=. python benchmarks/shuffle.py --store stores/demo [--rounds 5]
    pip install sae-lens==6.54.12 && PYTHONPATH=. python benchmarks/shuffle.py --store stores/demo --saelens
The plain copy takes rows in order, in the store's dtype, into one batch used again: no shuffling, no conversion. The store's windows are first copied into the layout SAELens caches in (a `datasets` folder of [T, D] arrays, float32 and
float16). Its mixing buffer holds half of all rows; ours shuffles all of them. Rounds alternate; medians count.
"""
# pyright: reportMissingImports=false

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from activations.shuffle import ShuffledReader
from activations.store import Store

BATCH = 2048


def copy_for_saelens(store: Store, hook: str, dtype: str, folder: str) -> None:
    """Write the windows as SAELens' cache runner does."""
    import datasets

    shape = (store.context, store.width(hook))
    columns = {hook: datasets.Array2D(shape, dtype), "token_ids": datasets.Sequence(datasets.Value("int32"))}

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(len(store.shards)):
            shard = store.read(number, (hook,))
            values = shard.activations[hook].to(getattr(torch, dtype)).numpy()
            for tokens, window in zip(shard.tokens.numpy(), values, strict=True):
                yield {hook: window, "token_ids": tokens}

    made = datasets.Dataset.from_generator(rows, features=datasets.Features(columns))
    made.save_to_disk(folder)


def saelens_reader(store: Store, hook: str, folder: str) -> Iterator[Tensor]:
    """Return an endless stream of SAELens' batches."""
    from sae_lens.training.activations_store import ActivationsStore

    return iter(
        ActivationsStore(
            model=None,  # type: ignore[arg-type]  # never run: everything is cached
            dataset=None,
            streaming=False,
            hook_name=hook,
            hook_head_index=None,
            context_size=store.context,
            d_in=store.width(hook),
            n_batches_in_buffer=store.windows // 2,
            total_training_tokens=10**12,
            store_batch_size_prompts=16,
            train_batch_size_tokens=BATCH,
            prepend_bos=True,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float32",
            cached_activations_path=folder,
        )
    )


def copies(store: Store, hook: str) -> Iterator[Tensor]:
    """Yield endless batches of memory copied in order."""
    rows = store.read(0, (hook,)).activations[hook].flatten(0, 1)
    batch = torch.empty(BATCH, rows.shape[1], dtype=rows.dtype)
    while True:
        for piece in rows.split(BATCH):
            if len(piece) == BATCH:
                yield batch.copy_(piece)


def seconds(stream: Iterator[Any], batches: int) -> float:
    """Time to take that many batches."""
    started = time.perf_counter()
    for _ in islice(stream, batches):
        pass
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--saelens", action="store_true", help="beside SAELens, where it is installed")
    args = parser.parse_args()
    store = Store(args.store)
    hook = store.only_hook()
    batches = store.tokens // BATCH
    with tempfile.TemporaryDirectory() as folder:
        streams: dict[str, Iterator[Any]] = {
            "ours": iter(ShuffledReader(store, hook, BATCH)),
            "ours, none made ahead": iter(ShuffledReader(store, hook, BATCH, prefetch=0)),
            "plain copy": copies(store, hook),
        }
        for dtype in ("float32", "float16") if args.saelens else ():
            copy_for_saelens(store, hook, dtype, f"{folder}/{dtype}")
            streams[f"SAELens {dtype}"] = saelens_reader(store, hook, f"{folder}/{dtype}")
        times: dict[str, list[float]] = {name: [] for name in streams}
        for number in range(args.rounds + 1):  # the first round fills buffers and caches
            for name, stream in streams.items():
                taken = seconds(stream, batches)
                if number:
                    times[name].append(taken)
    for name, values in times.items():
        speed = batches * BATCH / statistics.median(values)
        ratio = statistics.median(theirs / ours for theirs, ours in zip(values, times["ours"], strict=True))
        print(f"| {name} | {speed / 1e6:.2f} M rows/s | time {ratio:.1f}x ours |")


if __name__ == "__main__":
    main()
