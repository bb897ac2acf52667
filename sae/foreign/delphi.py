"""Export which latents fire where in a store as a cache from which delphi explains and scores latents.

The layout is that of https://github.com/EleutherAI/delphi, delphi/latents/cache.py (`save_splits`) and loader.py: a folder
for the hook point holds config.json and, for each range of latents, FIRST_LAST.safetensors with `locations [n, 3]` (window,
column, latent minus FIRST; uint16 or uint32), `activations [n]` and the `tokens [N, T]` of all windows. Rows that a store
leaves out (BOS, padding) have no latents."""

import shutil
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from activations.disk import files
from activations.errors import RunError
from activations.progress import Advance, ignore
from activations.shard import shard_name
from activations.store import Store
from sae.architectures import SAE
from sae.features import firings
from sae.features.collect import encode_shard, shards_to_read

MOST = 2**24  # firings in a file, which the last latent of a range may exceed; 400 MB in memory


@torch.no_grad()
def write_cache(
    sae: SAE,
    store: Store,
    hook: str,
    out: Path,
    tokens: int | None = None,
    batch: int = 2048,
    advance: Advance = ignore,
    most: int = MOST,
) -> list[Path]:
    """Write the latents of a store's first `tokens` tokens, or of all, into the folder `out`, and return its files.

    The folder appears complete or not at all. Each shard is encoded once, and its firings stay on disk (8 bytes each) until
    the files are written. Memory: one shard, `most` firings, and 4 bytes per token. Raises RunError when no latent fires or
    `out` is not empty."""
    if out.exists() and (not out.is_dir() or files.is_taken(out)):
        raise RunError(f"{out} is not empty: choose another --out")
    numbers = range(shards_to_read(store, tokens)[0])
    with files.new_folder(out) as folder:
        scratch, module = folder / ".codes", folder / files.as_name(hook)
        scratch.mkdir()
        module.mkdir()
        for number in numbers:
            encode_shard(sae, store, hook, number, batch, scratch, advance)
        fired = torch.stack([firings.read_counts(scratch / shard_name(n))[1] for n in numbers]).sum(0)
        if not fired.any():
            raise RunError(f"no latent fires on {store.path}: there is nothing to explain")
        windows = torch.cat([store.read(number).tokens for number in numbers])
        ranges = _ranges(fired, most)
        names = []
        for latents in ranges:
            name = f"{latents.start}_{latents.stop - 1}.safetensors"
            total = int(fired[latents.start : latents.stop].sum())
            entries = _entries(scratch, store, numbers, latents, total)
            files.write_tensors(module / name, {**entries, "tokens": windows}, "pt")
            names.append(out / module.name / name)
        shutil.rmtree(scratch)
        files.write_json(module / "config.json", _config(store, len(windows), len(ranges)))
    return names


def _ranges(fired: Int[Tensor, "F"], most: int) -> list[range]:
    """Split all latents into ranges that share a file, each with at least one firing and about `most` at most."""
    alive = fired.nonzero()[:, 0]
    part = (fired[alive].cumsum(0) - 1) // most
    firsts = alive[part.diff(prepend=torch.tensor([-1])) > 0].tolist()
    return [range(a, b) for a, b in zip([0, *firsts[1:]], [*firsts[1:], len(fired)], strict=True)]


def _entries(scratch: Path, store: Store, numbers: range, latents: range, total: int) -> dict[str, Tensor]:
    """Return the `total` firings of a range of latents, ordered by shard, then by latent, then by row."""
    locations, values = np.empty((total, 3), np.uint32), np.empty(total, np.float32)
    start = 0
    for number in numbers:
        part = firings.read(scratch / shard_name(number), latents, 0)
        here = slice(start, start := start + len(part.values))
        window, column = np.divmod(part.rows.numpy(), store.context)
        locations[here, 0], locations[here, 1] = window + store.first_windows[number], column
        locations[here, 2], values[here] = part.latents().numpy(), part.values.numpy()
    activations = torch.from_numpy(values)
    half = activations.half()
    return {
        "locations": torch.from_numpy(locations.astype(np.uint16) if locations.max() < 2**16 else locations),
        "activations": half if half.isfinite().all() else activations,
    }


def _config(store: Store, windows: int, splits: int) -> dict[str, str | int]:
    """Return the content of delphi's CacheConfig; `ctx_len` is its older name for `cache_ctx_len`."""
    spec = store.spec
    return {
        "dataset_repo": spec.dataset["dataset"],
        "dataset_split": spec.dataset.get("split", "train"),
        "dataset_name": spec.dataset.get("subset") or "",
        "dataset_column": spec.dataset.get("column", "text"),
        "batch_size": 1,
        "cache_ctx_len": store.context,
        "ctx_len": store.context,
        "n_tokens": windows * store.context,
        "n_splits": splits,
        "model_name": spec.model,
    }
