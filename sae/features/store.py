"""The features folder: a row per latent, histograms, examples; written once, read by app and notebook (FORMAT.md)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from activations.disk import files, tables
from activations.disk.schema import fits
from activations.disk.tables import lists, real, text, whole
from activations.errors import RunError
from activations.token_text import TokenText, named_bytes
from sae.features import latent_labels
from sae.features.latent_labels import Labels
from sae.runs.records import AboutFeatures
from sae.runs.saved_sae import as_written, read_json, read_record, read_tensors

if TYPE_CHECKING:
    from sae.features.feature import Feature

FORMAT = 1
INDEX, TABLE, TEXTS = "features.json", "features.parquet", "texts.parquet"
HISTOGRAMS, EXAMPLES, VOCABULARY = "histograms.safetensors", "examples.safetensors", "vocabulary.json"
SPELLINGS = "spellings.safetensors"
COLUMNS = (
    dict.fromkeys(("latent", "fired"), whole)
    | dict.fromkeys(("density", "mean", "max", "min", "enc_dec_cosine"), real)
    | {"neighbours": lists(whole), "neighbour_cosines": lists(real), "peak_tokens": lists(text)}
)
LATER = (
    dict.fromkeys(
        ("positive_share", "std", "skew", "kurtosis", "map_x", "map_y", "decoder_norm", "b_enc"), real
    )
    | dict.fromkeys(("first_row", "last_row", "cluster"), whole)
    | dict.fromkeys(("cofiring", "cofiring_counts"), lists(whole))
    | dict.fromkeys(("cofiring_pmi", "raised_logits", "lowered_logits"), lists(real))
    | dict.fromkeys(("raised_tokens", "lowered_tokens"), lists(text))
)
"""Columns of features.parquet that must be there, and those that may be, or were not in older releases."""
TOGETHER = (
    ("neighbours", "neighbour_cosines"), ("cofiring", "cofiring_counts", "cofiring_pmi"),
    ("raised_tokens", "raised_logits"), ("lowered_tokens", "lowered_logits"),
)  # fmt: skip
"""Columns of lists that say one thing each of the same."""
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
    """What each of the window's T tokens reads as; joined, they are the window's text (`TokenText.pieces`)."""
    values: NDArray[np.float32]
    """The latent's value on each of them, [T]; 0 where it does not fire."""
    ids: NDArray[np.int32]
    """Their token ids, [T]."""
    owners: NDArray[np.int32]
    """The document each of them belongs to, [T]; -1 for none."""


@dataclass(frozen=True)
class Partner:
    """A latent that fires on the same tokens."""

    latent: int
    count: int
    """Tokens on which both fire."""
    pmi: float
    """Pointwise mutual information, in nats: ln of how many times more often than by chance they fire together."""
    given_latent: float
    """P(partner fires | the latent fires)."""
    given_partner: float
    """P(the latent fires | partner fires)."""


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
            raise RunError(f"no finished features at {path}", fix=self._fix)
        self.about = read_record(self.path / INDEX, "features", FORMAT, AboutFeatures, self._fix)
        if self.about.d_sae < 1:
            raise RunError(
                f"{self.path / INDEX} has d_sae = {self.about.d_sae}, must be at least 1", fix=self._fix
            )

    @property
    def _fix(self) -> str:
        """The command that makes the folder again."""
        return f"sae features {self.path.parent}"

    def __len__(self) -> int:
        """F, the number of latents."""
        return self.about.d_sae

    @cached_property
    def table(self) -> pa.Table:
        """A row per latent, in order; columns as FORMAT.md lists them."""
        found = tables.read(self._whole(TABLE), COLUMNS, len(self), self._fix)
        lens = {name: kind for name, kind in LATER.items() if name in found.column_names}
        tables.check_columns(self.path / TABLE, found, lens, self._fix)
        for name in ("neighbours", "cofiring"):
            if name in found.column_names and not tables.within(found, name, len(self)):
                raise RunError(
                    f"{self.path / TABLE} is damaged: {name} has numbers outside 0 to {len(self) - 1}",
                    fix=self._fix,
                )
        for names in TOGETHER:
            if not tables.alike(found, *names):
                raise RunError(
                    f"{self.path / TABLE} is damaged: {' and '.join(names)} have lists of different lengths",
                    fix=self._fix,
                )
        return found

    @cached_property
    def texts(self) -> pa.ChunkedArray | None:
        """Lower-case text around the strongest peaks of each latent, a line an example, to be searched.

        None in a folder from before it was kept."""
        if TEXTS not in self.about.sha256:
            return None
        return tables.read(self._whole(TEXTS), {"text": tables.text}, len(self), self._fix)["text"]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of features.json, which holds those of the other files: what is derived from them is known by it."""
        return files.sha256(self.path / INDEX)

    @property
    def clusters(self) -> list[list[str]]:
        """What each cluster of the map is called by: its latents' commonest peak tokens. Empty without a map."""
        return self.about.clusters

    def partners(self, latent: int) -> list[Partner]:
        """Latents that fire on the same tokens, by falling PMI (`collect` says which are listed).

        Empty, too, in a folder from before they were counted."""
        row = self.row(latent)
        if not row.get("cofiring"):
            return []
        fired = self.table["fired"].take(row["cofiring"]).to_pylist()
        listed = zip(row["cofiring"], row["cofiring_counts"], row["cofiring_pmi"], fired, strict=True)
        return [Partner(other, n, pmi, n / row["fired"], n / own) for other, n, pmi, own in listed]

    @property
    def labels(self) -> Labels:
        """What people wrote about this SAE's latents, beside the folder: read anew at each call, to be written too."""
        return Labels(self.path.parent / latent_labels.FILE, self.about.sae_sha256, len(self))

    def feature(self, latent: int) -> "Feature":
        """One latent with all that is known about it. Raises RunError when there is no such latent."""
        from sae.features.feature import Feature

        self._check(latent)
        return Feature(self, latent)

    def row(self, latent: int) -> dict[str, Any]:
        """The table's row of one latent. Raises RunError when there is no such latent."""
        self._check(latent)
        return self.table.slice(latent, 1).to_pylist()[0]

    def histogram(self, latent: int) -> Histogram:
        """All values of a latent, by sign and size, zeros left out; bins without firings at the ends too."""
        self._check(latent)
        with self._sound(HISTOGRAMS):
            negative, positive = self._histograms["counts"][latent].numpy()
            edges = self._histograms["edges"].numpy()
            # the innermost bins meet at zero: values smaller than the first edge are counted in them
            signed = np.concatenate([-edges[:0:-1], [0.0], edges[1:]])
            counts = np.concatenate([negative[::-1], positive])
            if not (len(signed) == len(counts) + 1 and (np.diff(signed) > 0).all() and (counts >= 0).all()):
                raise ValueError("no histogram")
            if not counts.any() and self.table["fired"][latent].as_py():
                raise ValueError("no value of a latent that fires")
            return Histogram(signed, counts)

    def strongest(self, latent: int, sign: int = 1) -> list[Example]:
        """The windows with the largest (sign = 1) or most negative (sign = -1) values, best first.

        Their peak is the value of that sign, even where the latent is stronger in the other one nearby."""
        self._check(latent)
        kind = "positive" if sign > 0 else "negative"
        return self._examples_at(kind, latent, lambda values: sign * values)

    def sampled(self, latent: int) -> list[Example]:
        """Windows drawn uniformly from all in which the latent fires, by falling peak; a peak is the largest |value|."""
        self._check(latent)
        examples = self._examples_at("sampled", latent, np.abs)
        return sorted(examples, key=lambda example: -example.values[example.peak])

    def bands(self, latent: int, n_bands: int = 5) -> list[Band]:
        """Windows drawn uniformly from all in which the latent fires, by quantile band of their peak.

        The strongest band first; bands hold equally many windows, as far as their number allows, and each
        band's windows are in the order of their peaks."""
        examples = self.sampled(latent)[::-1]
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
        """The name of every token id, no two alike: its text; a piece of a character reads like <0xE2>."""
        found = read_json(self._whole(VOCABULARY), fix=self._fix)
        if not fits(found, list[str]):
            raise RunError(f"{self.path / VOCABULARY} is damaged: it is not a list of texts", fix=self._fix)
        return found

    @cached_property
    def token_text(self) -> TokenText:
        """How token ids are spelled. Folders of older releases hold no spellings: there the names tell."""
        if SPELLINGS not in self.about.sha256:
            return TokenText([named_bytes(name) for name in self.vocabulary])
        with self._sound(SPELLINGS):
            return TokenText.from_tensors(self._load(SPELLINGS))

    @cached_property
    def _histograms(self) -> dict[str, Tensor]:
        return self._load(HISTOGRAMS)

    @cached_property
    def _examples(self) -> dict[str, Tensor]:
        return self._load(EXAMPLES)

    def _load(self, name: str) -> dict[str, Tensor]:
        return read_tensors(self._whole(name), self._fix)

    def check(self) -> None:
        """Raise RunError when a file is missing or its bytes are not those that were written."""
        for name in self.about.sha256:
            self._whole(name)

    def _whole(self, name: str) -> Path:
        """The path of a file whose bytes are those the index names."""
        return as_written(self.path / name, self.about.sha256.get(name), INDEX, self._fix)

    @contextmanager
    def _sound(self, name: str) -> Iterator[None]:
        """What does not fit together in a file that the block reads is one line."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(
                f"{self.path / name} is damaged: {' '.join(str(error).split())}", fix=self._fix
            ) from error

    def _examples_at(self, kind: str, latent: int, height: Height) -> list[Example]:
        with self._sound(EXAMPLES):
            return [
                self._example(place, height) for place in self._examples[kind][latent].tolist() if place >= 0
            ]

    def _example(self, place: int, height: Height) -> Example:
        data = self._examples
        start, stop = data["offsets"][place : place + 2].tolist()
        slot = int(data["window_of_pair"][place])
        ids = data["tokens"][slot].numpy()
        values = np.zeros(len(ids), np.float32)
        values[data["value_positions"][start:stop].long().numpy()] = data["values"][start:stop].numpy()
        peak = int(height(values).argmax())
        owners, position = data["documents"][slot].numpy(), int(data["positions"][slot, peak])
        pieces = self.token_text.pieces(ids.tolist(), (data["positions"][slot] == 0).tolist())
        return Example(int(owners[peak]), position, peak, pieces, values, ids, owners)

    def _check(self, latent: int) -> None:
        if not 0 <= latent < len(self):
            raise RunError(f"feature {latent} does not exist: {self.path} has 0 to {len(self) - 1}")
