"""The features folder: a row per latent, histograms, examples; written once, read by app and notebook (FORMAT.md)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from activations import files
from activations.store import Store
from sae.errors import RunError
from sae.features.collect import Collected
from sae.features.logits import LogitLens
from sae.runs import read_json

FORMAT = 1
INDEX, TABLE, HISTOGRAMS, EXAMPLES, VOCABULARY = (
    "features.json", "features.parquet", "histograms.safetensors", "examples.safetensors", "vocabulary.json",
)  # fmt: skip
PEAK_TOKENS = 5  # strongest examples whose peak token is listed in the table
Height = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # of a window's values: the peak is the highest


class Example(NamedTuple):
    """One window in which a latent fires."""

    document: int
    """Number of the document the peak lies in, in the data set's order."""
    position: int
    """Place of the peak in that document, in tokens."""
    peak: int
    """Place of the peak in the window."""
    tokens: list[str]
    """Text of the window's T tokens."""
    values: NDArray[np.float32]
    """The latent's value on each of them, [T]; 0 where it does not fire."""


class Band(NamedTuple):
    """Examples whose peak lies in one quantile band of all the peaks sampled."""

    share: tuple[float, float]
    """Between which quantiles, such as (0.8, 1.0) for the strongest fifth."""
    low: float
    high: float
    examples: list[Example]


@dataclass(frozen=True)
class Histogram:
    """How often a latent fires with which value: counts between consecutive edges, in rising order."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]


class FeatureStore:
    """What `sae features` found out about every latent of an SAE. Read-only; opened in milliseconds.

    Raises RunError when the folder is missing, unfinished, damaged or of a newer format."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not (self.path / INDEX).exists():
            raise RunError(f"no finished features at {path}: run `sae features {self.path.parent}`")
        self.about: dict[str, Any] = read_json(self.path / INDEX)
        if self.about.get("format", 0) > FORMAT:
            raise RunError(
                f"{path} is of features format {self.about['format']}, this release reads {FORMAT}"
            )

    def __len__(self) -> int:
        """F, the number of latents."""
        return self.about["d_sae"]

    @cached_property
    def table(self) -> pa.Table:
        """A row per latent, in order; columns as FORMAT.md lists them."""
        try:
            return pq.read_table(self.path / TABLE)
        except (OSError, pa.ArrowInvalid) as error:
            raise RunError(f"{self.path / TABLE} cannot be read: {error}") from error

    def row(self, latent: int) -> dict[str, Any]:
        """The table's row of one latent. Raises RunError when there is no such latent."""
        self._check(latent)
        return self.table.slice(latent, 1).to_pylist()[0]

    def histogram(self, latent: int) -> Histogram:
        """All values of a latent, by sign and size, zeros left out; bins without firings at the ends too."""
        self._check(latent)
        negative, positive = self._histograms["counts"][latent].numpy()
        edges = self._histograms["edges"].numpy()
        # the innermost bins meet at zero: values smaller than the first edge are counted in them
        signed = np.concatenate([-edges[:0:-1], [0.0], edges[1:]])
        return Histogram(signed, np.concatenate([negative[::-1], positive]))

    def strongest(self, latent: int, sign: int = 1) -> list[Example]:
        """The windows with the largest (sign = 1) or most negative (sign = -1) values, best first.

        Their peak is the value of that sign, even where the latent is stronger in the other one nearby."""
        self._check(latent)
        kind = "positive" if sign > 0 else "negative"
        return self._examples_at(self._examples[kind][latent], lambda values: sign * values)

    def bands(self, latent: int, n_bands: int = 5) -> list[Band]:
        """Windows drawn uniformly from all in which the latent fires, by quantile band of their peak.

        The strongest band first; bands hold equally many windows, as far as their number allows, and each
        band's windows are in the order of their peaks."""
        self._check(latent)
        examples = self._examples_at(self._examples["sampled"][latent], np.abs)
        examples.sort(key=lambda example: example.values[example.peak])
        cuts = np.linspace(0, len(examples), n_bands + 1).round().astype(int)
        bands = []
        for band in range(n_bands - 1, -1, -1):
            part = examples[cuts[band] : cuts[band + 1]][::-1]
            if part:
                ends = part[-1].values[part[-1].peak], part[0].values[part[0].peak]
                share = band / n_bands, (band + 1) / n_bands
                bands.append(Band(share, float(ends[0]), float(ends[1]), part))
        return bands

    @cached_property
    def vocabulary(self) -> list[str]:
        """Text of every token id; a piece of a character reads like <0xE2>."""
        return read_json(self.path / VOCABULARY)

    @cached_property
    def _histograms(self) -> dict[str, Tensor]:
        return self._load(HISTOGRAMS)

    @cached_property
    def _examples(self) -> dict[str, Tensor]:
        return self._load(EXAMPLES)

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.path / name)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self.path / name} cannot be read: {error}; run `sae features` again") from error

    def _examples_at(self, places: Tensor, height: Height) -> list[Example]:
        return [self._example(place, height) for place in places.tolist() if place >= 0]

    def _example(self, place: int, height: Height) -> Example:
        data = self._examples
        start, stop = data["offsets"][place : place + 2].tolist()
        slot = int(data["window_of_pair"][place])
        ids = data["tokens"][slot].tolist()
        values = np.zeros(len(ids), np.float32)
        values[data["value_positions"][start:stop].long().numpy()] = data["values"][start:stop].numpy()
        peak = int(height(values).argmax())
        document, position = int(data["documents"][slot, peak]), int(data["positions"][slot, peak])
        return Example(document, position, peak, [self.vocabulary[token] for token in ids], values)

    def _check(self, latent: int) -> None:
        if not 0 <= latent < len(self):
            raise RunError(f"feature {latent} does not exist: {self.path} has 0 to {len(self) - 1}")


def write(
    path: Path,
    about: dict[str, Any],
    columns: dict[str, Any],
    collected: Collected,
    lens: LogitLens | None,
    vocabulary: Sequence[str],
    store: Store,
) -> FeatureStore:
    """Write a whole features folder, index last, and open it.

    `columns` are more columns [F] or lists per latent for the table, beside the statistics and the lens."""
    examples = _example_tensors(collected, store)
    table = {"latent": pa.array(range(len(collected.statistics.fired)), pa.int32())}
    for name, column in collected.statistics.table(collected.rows).items():
        table[name] = pa.array(column.numpy(), from_pandas=True)  # nan becomes null
    table |= {name: pa.array(list(column)) for name, column in columns.items()}
    table["peak_tokens"] = pa.array(_peak_tokens(examples, vocabulary), pa.list_(pa.string()))
    table |= _lens_columns(lens, vocabulary)
    files.write_atomically(path / TABLE, lambda part: pq.write_table(pa.table(table), part))
    histograms = {"counts": collected.statistics.histogram, "edges": collected.statistics.edges()}
    files.write_tensors(path / HISTOGRAMS, histograms, f"sae-histograms-{FORMAT}")
    files.write_tensors(path / EXAMPLES, examples, f"sae-examples-{FORMAT}")
    files.write_json(path / VOCABULARY, list(vocabulary))
    whole = {"d_sae": len(table["latent"]), "tokens": collected.rows, "unit": collected.statistics.unit}
    digests = {name: files.sha256(path / name) for name in (TABLE, HISTOGRAMS, EXAMPLES, VOCABULARY)}
    files.write_json(path / INDEX, {"format": FORMAT, **whole, **about, "sha256": digests})
    return FeatureStore(path)


def token_texts(tokenizer: Any, ids: Iterable[int] | None = None) -> list[str]:
    """Text of these token ids, or of all. A token that is only part of a character is shown by its bytes."""
    texts = []
    for token in range(len(tokenizer)) if ids is None else ids:
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        texts.append(_bytes_of(tokenizer, token) if "\ufffd" in text or not text else text)
    return texts


def _bytes_of(tokenizer: Any, token: int) -> str:
    piece = str(tokenizer.convert_ids_to_tokens(token))
    table = _byte_alphabet()
    if all(character in table for character in piece):
        return "".join(f"<0x{table[character]:02X}>" for character in piece)
    return piece


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's letter for each byte, turned round (Radford et al. 2019, section 2.2)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def _example_tensors(collected: Collected, store: Store) -> dict[str, Tensor]:
    """The traces, the windows they lie in with their tokens, and for each latent which traces to show."""
    found = collected.traces
    windows, slots = found.windows.unique(return_inverse=True)
    pairs = found.latents << 32 | found.windows  # sorted, as `wanted_pairs` made them
    tensors = {
        "window_of_pair": slots.int(),
        "offsets": found.offsets,
        "value_positions": found.positions.short(),
        "values": found.values,
        "windows": windows,
        **_windows(store, windows, collected.shards),
    }
    for kind, chosen in collected.chosen.items():
        latents = torch.arange(len(chosen))[:, None].expand_as(chosen)
        place = torch.searchsorted(pairs, latents << 32 | chosen.clamp_min(0))
        tensors[kind] = torch.where(chosen >= 0, place, -1).int()
    return tensors


def _windows(store: Store, windows: Tensor, n_shards: int) -> dict[str, Tensor]:
    """Tokens, documents and positions [W, T] of windows given by number, in rising order."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for number in range(n_shards):
        first = store.first_windows[number]
        inside = windows[(windows >= first) & (windows < first + store.shards[number].windows)] - first
        shard = store.read(number)
        parts.append((shard.tokens[inside], shard.documents[inside], shard.positions[inside]))
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    return dict(zip(("tokens", "documents", "positions"), columns, strict=True))


def _peak_tokens(examples: dict[str, Tensor], vocabulary: Sequence[str]) -> list[list[str]]:
    """For each latent the token at the peak of its strongest windows: of the sign it is stronger in."""
    sides = zip(_peaks(examples, "positive", 1), _peaks(examples, "negative", -1), strict=True)
    stronger = (max(up, down, key=lambda side: side[:1]) for up, down in sides)
    return [[vocabulary[token] for _, token in side] for side in stronger]


def _peaks(examples: dict[str, Tensor], kind: str, sign: int) -> list[list[tuple[float, int]]]:
    """For each latent the peaks of that sign in its strongest windows: how high, and on which token."""
    offsets, height = examples["offsets"], sign * examples["values"]
    pair = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    order = height.argsort(stable=True)
    order = order[pair[order].argsort(stable=True)]
    at = order[offsets[1:] - 1]  # of each pair's values in rising order, the last
    tokens = examples["tokens"][examples["window_of_pair"].long(), examples["value_positions"].long()[at]]
    peaks = list(zip(height[at].tolist(), tokens.tolist(), strict=True))
    return [[peaks[place] for place in row if place >= 0] for row in examples[kind][:, :PEAK_TOKENS].tolist()]


def _lens_columns(lens: LogitLens | None, vocabulary: Sequence[str]) -> dict[str, Any]:
    if lens is None:
        return {}
    columns: dict[str, Any] = {}
    for name in ("raised", "lowered"):
        ids, by = getattr(lens, name), getattr(lens, f"{name}_by")
        columns[f"{name}_tokens"] = [[vocabulary[token] for token in row] for row in ids.tolist()]
        columns[f"{name}_logits"] = by.tolist()
    return columns
