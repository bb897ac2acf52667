"""Write a features folder: table, histograms, examples and vocabulary, then features.json (FORMAT.md, Features)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from activations.disk import files, tables
from activations.store import Store
from activations.token_text import TokenText
from sae.features.cluster_names import cluster_tokens
from sae.features.collect import Collected
from sae.features.folder import (
    EXAMPLES,
    FORMAT,
    HISTOGRAMS,
    INDEX,
    SPELLINGS,
    TABLE,
    TEXTS,
    VOCABULARY,
    FeaturesFolder,
)
from sae.features.logit_lens import LogitLens

PEAK_TOKENS = 5  # strongest examples whose peak token the table lists
SIDES = (("positive", 1), ("negative", -1))
TEXT_EXAMPLES = 5  # strongest examples of either sign whose text can be searched
TEXT_AROUND = 10  # tokens to either side of their peaks
AT_ONCE = 4096  # latents whose examples are Python's objects at one time


def write(
    path: Path,
    job: Mapping[str, object],
    columns: Mapping[str, pa.Array],
    collected: Collected,
    lens: LogitLens | None,
    token_text: TokenText,
    store: Store,
) -> FeaturesFolder:
    """Write a whole features folder, features.json last, and open it.

    `job` holds the entries of features.json that identify the SAE, the store and the settings. `columns` are further columns
    of the table, with F entries each, beside the statistics and the logit lens."""
    vocabulary = token_text.names
    examples = _example_tensors(collected, store)
    d_sae = len(collected.statistics.fired)
    table = {"latent": pa.array(range(d_sae), pa.int32())}
    for name, column in collected.statistics.table(collected.rows).items():
        table[name] = pa.array(column.numpy(), from_pandas=True)  # nan becomes null
    table |= columns
    table["peak_tokens"] = _peak_tokens(examples, vocabulary)
    table |= lens_columns(lens, vocabulary)
    files.write_atomically(path / TABLE, lambda part: pq.write_table(pa.table(table), part))
    histograms = {"counts": collected.statistics.histogram, "edges": collected.statistics.edges()}
    files.write_tensors(path / HISTOGRAMS, histograms, f"sae-histograms-{FORMAT}")
    files.write_tensors(path / EXAMPLES, examples, f"sae-examples-{FORMAT}")
    files.write_json(path / VOCABULARY, vocabulary)
    files.write_tensors(path / SPELLINGS, token_text.to_tensors(), f"sae-token-text-{FORMAT}")
    texts = pa.table({"text": pa.array(_texts(examples, token_text), pa.string(), size=d_sae)})
    files.write_atomically(path / TEXTS, lambda part: pq.write_table(texts, part))
    index = {
        "format": FORMAT,
        "d_sae": d_sae,
        "tokens": collected.rows,
        "unit": collected.statistics.unit,
    }
    if "cluster" in columns:
        index["clusters"] = cluster_tokens(columns["cluster"].to_pylist(), table["peak_tokens"].to_pylist())
    written = (TABLE, HISTOGRAMS, EXAMPLES, VOCABULARY, SPELLINGS, TEXTS)
    digests = {name: files.sha256(path / name) for name in written}
    files.write_sealed(path / INDEX, {**index, **job, "sha256": digests})
    return FeaturesFolder(path)


def _example_tensors(collected: Collected, store: Store) -> dict[str, Tensor]:
    """Return the contents of examples.safetensors: traces, their windows, and for each latent which traces to show."""
    traces = collected.traces
    windows, window_of_pair = traces.windows.unique(return_inverse=True)
    pairs = traces.latents << 32 | traces.windows  # sorted, because `wanted_pairs` sorts them
    tensors = {
        "window_of_pair": window_of_pair.int(),
        "offsets": traces.offsets,
        "value_positions": traces.positions.to(torch.int16 if store.context <= 2**15 else torch.int32),
        "values": traces.values,
        "windows": windows,
        **_windows(store, windows, collected.shards),
    }
    for kind, chosen in collected.chosen.items():
        latents = torch.arange(len(chosen))[:, None].expand_as(chosen)
        place = torch.searchsorted(pairs, latents << 32 | chosen.clamp_min(0))
        tensors[kind] = torch.where(chosen >= 0, place, -1).int()
    return tensors


def _windows(store: Store, windows: Tensor, n_shards: int) -> dict[str, Tensor]:
    """Return tokens, documents and positions [W, T] of the windows with these numbers, which must rise."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for number in range(n_shards):
        first = store.first_windows[number]
        inside = windows[(windows >= first) & (windows < first + store.shards[number].windows)] - first
        shard = store.read(number)
        parts.append((shard.tokens[inside], shard.documents[inside], shard.positions[inside]))
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    return dict(zip(("tokens", "documents", "positions"), columns, strict=True))


class _Peaks(NamedTuple):
    """Peaks of the n strongest windows of one sign of each latent, [F, n]."""

    exists: Tensor
    """False where a latent has fewer windows; the other entries mean nothing there."""
    heights: Tensor
    """Value at the peak times the sign, so that larger is stronger."""
    windows: Tensor
    """Place of the window in the list of windows kept."""
    positions: Tensor
    """Position of the peak in the window."""

    @classmethod
    def of(cls, examples: dict[str, Tensor], kind: str, sign: int, n: int) -> "_Peaks":
        """Find the peaks of the windows of a kind. The last of equally high values is the peak."""
        heights = sign * examples["values"]
        counts = examples["offsets"].diff()
        pair = torch.arange(len(counts)).repeat_interleave(counts)
        highest = heights.new_empty(len(counts)).scatter_reduce(0, pair, heights, "amax", include_self=False)
        at = (heights == highest[pair]).nonzero()[:, 0]
        place = torch.zeros_like(counts).scatter_reduce(0, pair[at], at, "amax")
        chosen = examples[kind][:, :n].long()
        exists, pairs = chosen >= 0, chosen.clamp_min(0)
        if not len(counts):
            return cls(exists, *(chosen.new_zeros(chosen.shape) for _ in range(3)))
        windows = examples["window_of_pair"].long()[pairs]
        return cls(exists, highest[pairs], windows, examples["value_positions"].long()[place[pairs]])

    def strongest(self) -> Tensor:
        """Return each latent's largest height [F], -inf where it has no window."""
        return self.heights.where(self.exists, -torch.inf).amax(1)

    def places(self) -> Iterator[list[tuple[int, int]]]:
        """Yield (window, position) of each latent's windows, strongest first. Few latents at a time become Python's objects."""
        for columns in zip(*(column.split(AT_ONCE) for column in self), strict=True):
            for exists, _, *at in zip(*(part.tolist() for part in columns), strict=True):
                yield [
                    (window, position) for is_one, window, position in zip(exists, *at, strict=True) if is_one
                ]


def _peak_tokens(examples: dict[str, Tensor], vocabulary: list[str]) -> pa.Array:
    """Return for each latent the tokens at the peaks of its strongest windows, of the sign in which it is stronger."""
    up, down = (_Peaks.of(examples, kind, sign, PEAK_TOKENS) for kind, sign in SIDES)
    is_down = (down.strongest() > up.strongest())[:, None]
    exists, windows, positions = (
        torch.where(is_down, getattr(down, name), getattr(up, name))
        for name in ("exists", "windows", "positions")
    )
    ids = examples["tokens"][windows[exists], positions[exists]]
    return tables.nested(_names(ids, vocabulary), exists.sum(1).numpy())


def _names(ids: Tensor, vocabulary: list[str]) -> pa.Array:
    """Return the names of token ids [n]."""
    return pa.array(vocabulary, pa.string()).take(pa.array(ids.numpy()))


def _texts(examples: dict[str, Tensor], token_text: TokenText) -> Iterator[str]:
    """Yield for each latent the lower-case text around the peaks of its strongest windows of either sign, one a line."""
    starts = (examples["positions"] == 0).tolist()
    words = [
        [piece.lower() for piece in token_text.pieces(tokens, begin)]
        for tokens, begin in zip(examples["tokens"].tolist(), starts, strict=True)
    ]

    def around(window: int, position: int) -> str:
        return "".join(words[window][max(position - TEXT_AROUND, 0) : position + TEXT_AROUND + 1])

    sides = (_Peaks.of(examples, kind, sign, TEXT_EXAMPLES).places() for kind, sign in SIDES)
    for up, down in zip(*sides, strict=True):
        yield "\n".join(around(*place) for place in up + down)


def lens_columns(lens: LogitLens | None, vocabulary: list[str]) -> dict[str, pa.Array]:
    """Return a lens as columns of a table, by the names of the tokens; no columns without a lens."""
    if lens is None:
        return {}
    columns: dict[str, pa.Array] = {}
    for name in ("raised", "lowered"):
        ids, by = getattr(lens, name), getattr(lens, f"{name}_by")
        counts = np.full(len(ids), ids.shape[1])
        columns[f"{name}_tokens"] = tables.nested(_names(ids.flatten(), vocabulary), counts)
        columns[f"{name}_logits"] = tables.nested(pa.array(by.flatten().double().numpy()), counts)
    return columns
