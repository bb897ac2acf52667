"""Read a features folder: statistics, histograms and examples of every latent of an SAE (FORMAT.md, Features)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from activations.disk import files, tables
from activations.disk.schema import fits
from activations.disk.tables import integers, lists, numbers, strings
from activations.errors import RunError, quoted
from activations.token_text import TokenText, named_bytes
from sae.features import latent_labels
from sae.features import lists as latent_lists
from sae.features.latent_labels import Labels
from sae.features.lists import Lists
from sae.runs.records import FeatureRow, FeaturesRecord
from sae.runs.saved_sae import as_written, read_json, read_record, read_tensors

FORMAT = 1
INDEX, TABLE, TEXTS = "features.json", "features.parquet", "texts.parquet"
HISTOGRAMS, EXAMPLES, VOCABULARY = "histograms.safetensors", "examples.safetensors", "vocabulary.json"
SPELLINGS = "spellings.safetensors"
COLUMNS = (
    dict.fromkeys(("latent", "fired"), integers)
    | dict.fromkeys(("density", "mean", "max", "min", "enc_dec_cosine"), numbers)
    | {"neighbours": lists(integers), "neighbour_cosines": lists(numbers), "peak_tokens": lists(strings)}
)
OPTIONAL_COLUMNS = (
    dict.fromkeys(
        ("positive_share", "std", "skew", "kurtosis", "map_x", "map_y", "decoder_norm", "b_enc"), numbers
    )
    | dict.fromkeys(("first_row", "last_row", "cluster"), integers)
    | dict.fromkeys(("cofiring", "cofiring_counts"), lists(integers))
    | dict.fromkeys(("cofiring_pmi", "raised_logits", "lowered_logits"), lists(numbers))
    | dict.fromkeys(("raised_tokens", "lowered_tokens"), lists(strings))
)
"""Columns of features.parquet that every folder has, and those that depend on the SAE or are missing in older releases."""
PARALLEL_LISTS = (
    ("neighbours", "neighbour_cosines"), ("cofiring", "cofiring_counts", "cofiring_pmi"),
    ("raised_tokens", "raised_logits"), ("lowered_tokens", "lowered_logits"),
)  # fmt: skip
"""Columns whose lists describe the same things, so that they must have the same lengths in each row."""
Height = Callable[
    [NDArray[np.float32]], NDArray[np.float32]
]  # maps a window's values to heights; the peak is the highest


class Example(NamedTuple):
    """A window of T tokens in which a latent fires. Its peak is the token with the strongest value."""

    document: int
    """Document that the peak lies in, numbered in the data set's order."""
    position: int
    """Position of the peak in that document, in tokens."""
    peak: int
    """Position of the peak in the window."""
    tokens: list[str]
    """Text of each token; joined, they are the window's text (`TokenText.pieces`)."""
    values: NDArray[np.float32]
    """The latent's value on each token, [T]; 0 where it does not fire."""
    ids: NDArray[np.int32]
    """Token ids, [T]."""
    owners: NDArray[np.int32]
    """Document that each token belongs to, [T]; -1 for none."""


@dataclass(frozen=True)
class Partner:
    """A latent that fires on the same tokens as another, with how often."""

    latent: int
    count: int
    """Tokens on which both fire."""
    pmi: float
    """Pointwise mutual information in nats: ln of how many times more often than by chance both fire."""
    given_latent: float
    """P(partner fires | the latent fires)."""
    given_partner: float
    """P(the latent fires | partner fires)."""


class Band(NamedTuple):
    """Sampled examples whose peaks lie in one quantile band of all sampled peaks."""

    share: tuple[float, float]
    """Quantiles the band lies between, such as (0.8, 1.0) for the strongest fifth."""
    low: float
    """The band's weakest peak."""
    high: float
    """The band's strongest peak."""
    examples: list[Example]


@dataclass(frozen=True)
class Histogram:
    """Counts of a latent's values between consecutive edges, in rising order."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]


class FeaturesFolder:
    """A folder in which `sae features` described every latent of an SAE. Read-only; opens in milliseconds and reads files
    when they are needed.

    Raises RunError when the folder is missing, unfinished, damaged or of a newer format."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not (self.path / INDEX).exists():
            raise RunError(f"no finished features at {path}", fix=self._fix)
        self.record = read_record(self.path / INDEX, "features", FORMAT, FeaturesRecord, self._fix)
        if self.record.d_sae < 1:
            raise RunError(
                f"{self.path / INDEX} has d_sae = {self.record.d_sae}, must be at least 1", fix=self._fix
            )

    @property
    def _fix(self) -> str:
        """The command that makes the folder anew."""
        return f"sae features {quoted(self.path.parent)}"

    def __len__(self) -> int:
        """F, the number of latents."""
        return self.record.d_sae

    @cached_property
    def table(self) -> pa.Table:
        """The table with a row for each latent, in order; FORMAT.md lists its columns."""
        table = tables.read(self._checked(TABLE), COLUMNS, len(self), self._fix)
        optional = {name: kind for name, kind in OPTIONAL_COLUMNS.items() if name in table.column_names}
        tables.check_columns(self.path / TABLE, table, optional, self._fix)
        for name in ("neighbours", "cofiring"):
            if name in table.column_names and not tables.within(table, name, len(self)):
                raise RunError(
                    f"{self.path / TABLE} is damaged: {name} has numbers outside 0 to {len(self) - 1}",
                    fix=self._fix,
                )
        for names in PARALLEL_LISTS:
            if not tables.alike(table, *names):
                raise RunError(
                    f"{self.path / TABLE} is damaged: {' and '.join(names)} have lists of different lengths",
                    fix=self._fix,
                )
        return table

    @cached_property
    def texts(self) -> pa.ChunkedArray | None:
        """Lower-case text around each latent's strongest peaks, one example a line, for searching.

        None in a folder of an older release, which did not keep it."""
        if TEXTS not in self.record.sha256:
            return None
        return tables.read(self._checked(TEXTS), {"text": tables.strings}, len(self), self._fix)["text"]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of features.json. It identifies the whole folder, since features.json holds the other files' SHA-256."""
        return files.sha256(self.path / INDEX)

    @property
    def clusters(self) -> list[list[str]]:
        """For each cluster of the map its name: its latents' commonest peak tokens. Empty without a map."""
        return self.record.clusters

    def partners(self, latent: int) -> list[Partner]:
        """Return the latents that fire on the same tokens, by falling PMI; `cofiring` says which are listed.

        Empty in a folder of an older release, which did not count them. Raises RunError when there is no such latent."""
        row = self.row(latent)
        if not row.get("cofiring"):
            return []
        fired = self.table["fired"].take(row["cofiring"]).to_pylist()
        columns = zip(row["cofiring"], row["cofiring_counts"], row["cofiring_pmi"], fired, strict=True)
        return [
            Partner(other, count, pmi, count / row["fired"], count / other_fired)
            for other, count, pmi, other_fired in columns
        ]

    @property
    def labels(self) -> Labels:
        """Labels and notes on this SAE's latents, in labels.json beside the folder. Each access reads and writes the file anew."""
        return Labels(self.path.parent / latent_labels.FILE, self.record.sae_sha256, len(self))

    @property
    def lists(self) -> Lists:
        """Lists of this SAE's latents, in lists.json beside the folder. Each access reads and writes the file anew."""
        return Lists(self.path.parent / latent_lists.FILE, self.record.sae_sha256, len(self))

    def row(self, latent: int) -> FeatureRow:
        """Return the table's row of a latent as a dictionary by column. Raises RunError when there is no such latent."""
        self.check_latent(latent)
        return self.table.slice(latent, 1).to_pylist()[0]

    def histogram(self, latent: int) -> Histogram:
        """Return the histogram of all nonzero values of a latent, both signs, with the empty bins at either end."""
        self.check_latent(latent)
        with self.damage_named(HISTOGRAMS):
            negative, positive = self._histograms["counts"][latent].numpy()
            edges = self._histograms["edges"].numpy()
            # The innermost bins reach to zero, because values below the first edge were counted in them.
            signed = np.concatenate([-edges[:0:-1], [0.0], edges[1:]])
            counts = np.concatenate([negative[::-1], positive])
            if not (len(signed) == len(counts) + 1 and (np.diff(signed) > 0).all() and (counts >= 0).all()):
                raise ValueError(f"edges and counts of latent {latent} do not fit together")
            if not counts.any() and self.table["fired"][latent].as_py():
                raise ValueError(f"latent {latent} fires and has no counts")
            return Histogram(signed, counts)

    def strongest(self, latent: int, sign: int = 1) -> list[Example]:
        """Return the windows with the largest (sign = 1) or most negative (sign = -1) values, strongest first.

        Their peak is the strongest value of that sign, even where the window has a stronger one of the other sign."""
        self.check_latent(latent)
        kind = "positive" if sign > 0 else "negative"
        return self._examples_at(kind, latent, lambda values: sign * values)

    def sampled(self, latent: int) -> list[Example]:
        """Return windows drawn uniformly from all in which the latent fires, by falling value of their peak, the largest |value|."""
        self.check_latent(latent)
        examples = self._examples_at("sampled", latent, np.abs)
        return sorted(examples, key=lambda example: -example.values[example.peak])

    def bands(self, latent: int, n_bands: int = 5) -> list[Band]:
        """Return the `sampled` windows in quantile bands of their peaks, strongest band first.

        Bands hold equally many windows, up to rounding; each band's windows are in falling order of their peaks. Empty bands
        are left out."""
        examples = self.sampled(latent)[::-1]
        cuts = np.linspace(0, len(examples), n_bands + 1).round().astype(int)
        bands = []
        for band in range(n_bands - 1, -1, -1):
            within = examples[cuts[band] : cuts[band + 1]][::-1]
            if within:
                low, high = within[-1].values[within[-1].peak], within[0].values[within[0].peak]
                share = band / n_bands, (band + 1) / n_bands
                bands.append(Band(share, float(low), float(high), within))
        return bands

    @cached_property
    def vocabulary(self) -> list[str]:
        """The name of every token id, all different: its text, or such as <0xE2> for a piece of a character."""
        names = read_json(self._checked(VOCABULARY), fix=self._fix)
        if not fits(names, list[str]):
            raise RunError(f"{self.path / VOCABULARY} is damaged: it is not a list of texts", fix=self._fix)
        return names

    @cached_property
    def token_text(self) -> TokenText:
        """The bytes of every token id. Folders of older releases do not hold them: there the names are used."""
        if SPELLINGS not in self.record.sha256:
            return TokenText([named_bytes(name) for name in self.vocabulary])
        with self.damage_named(SPELLINGS):
            return TokenText.from_tensors(self._load(SPELLINGS))

    @cached_property
    def _histograms(self) -> dict[str, Tensor]:
        return self._load(HISTOGRAMS)

    @cached_property
    def example_tensors(self) -> dict[str, Tensor]:
        """The tensors of examples.safetensors, which FORMAT.md describes."""
        return self._load(EXAMPLES)

    def _load(self, name: str) -> dict[str, Tensor]:
        return read_tensors(self._checked(name), self._fix)

    def check(self) -> None:
        """Raise RunError when a file is missing or its bytes differ from those that were written."""
        for name in self.record.sha256:
            self._checked(name)

    def _checked(self, name: str) -> Path:
        """Return the path of a file after checking its bytes against features.json."""
        return as_written(self.path / name, self.record.sha256.get(name), INDEX, self._fix)

    @contextmanager
    def damage_named(self, name: str) -> Iterator[None]:
        """Turn whatever fails in the block, which reads the file `name`, into a RunError that names the file."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(
                f"{self.path / name} is damaged: {' '.join(str(error).split())}", fix=self._fix
            ) from error

    def _examples_at(self, kind: str, latent: int, height: Height) -> list[Example]:
        with self.damage_named(EXAMPLES):
            pairs = self.example_tensors[kind][latent].tolist()
            return [self._example(pair, height) for pair in pairs if pair >= 0]

    def _example(self, pair: int, height: Height) -> Example:
        """Return the example of a (latent, window) pair, given by its place in examples.safetensors."""
        data = self.example_tensors
        start, stop = data["offsets"][pair : pair + 2].tolist()
        slot = int(data["window_of_pair"][pair])
        ids = data["tokens"][slot].numpy()
        values = np.zeros(len(ids), np.float32)
        values[data["value_positions"][start:stop].long().numpy()] = data["values"][start:stop].numpy()
        peak = int(height(values).argmax())
        owners, position = data["documents"][slot].numpy(), int(data["positions"][slot, peak])
        pieces = self.token_text.pieces(ids.tolist(), (data["positions"][slot] == 0).tolist())
        return Example(int(owners[peak]), position, peak, pieces, values, ids, owners)

    def check_latent(self, latent: int) -> None:
        """Raise RunError unless the SAE has a latent of this number."""
        if not 0 <= latent < len(self):
            raise RunError(f"feature {latent} does not exist: {self.path} has 0 to {len(self) - 1}")


class Bidirectional(NamedTuple):
    """Counts of one latent's firings with either sign; `FeaturesFolder.strongest(latent, sign)` gives its examples."""

    latent: int
    positive: int
    """Firings above zero."""
    negative: int
    """Firings below zero."""

    @property
    def rarer_share(self) -> float:
        """Share of its firings that have the rarer sign, from 0 to 0.5."""
        return min(self.positive, self.negative) / (self.positive + self.negative)


def bidirectional(
    features: FeaturesFolder, least_share: float = 0.1, least_firings: int = 10
) -> list[Bidirectional]:
    """Return the latents whose rarer sign has at least `least_share` of their firings, and at least `least_firings`.

    The most balanced come first, then those that fire more often. The list is empty where codes cannot be negative. A latent
    that uses both signs need not stand for two opposites: whether its examples do is for a reader to judge."""
    table = features.table.select(["latent", "fired", "positive_share"]).to_pylist()
    both_signs = []
    for row in table:
        positive = round(row["fired"] * (row["positive_share"] or 0.0))
        use = Bidirectional(row["latent"], positive, row["fired"] - positive)
        if min(use.positive, use.negative) >= max(least_firings, 1) and use.rarer_share >= least_share:
            both_signs.append(use)
    return sorted(both_signs, key=lambda use: (-use.rarer_share, -use.positive - use.negative, use.latent))
