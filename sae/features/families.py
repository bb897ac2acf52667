"""Families of latents (`sae families`): families.json and families.parquet of a features folder (FORMAT.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from activations.disk import files, tables
from activations.disk.tables import integers, numbers
from activations.errors import RunError, quoted
from sae.features.folder import FeaturesFolder
from sae.features.parents import NONE, Forest
from sae.runs.records import Scalar
from sae.runs.saved_sae import as_written, read_results

FORMAT = 2  # 1 counted windows with few firings of a latent as fully as those with many
INDEX, TABLE = "families.json", "families.parquet"
MEASURES = ("coverage", "coverage_low", "chance", "times", "share")
COLUMNS = {"parent": integers, "candidates": integers, "fired": integers} | dict.fromkeys(MEASURES, numbers)


@dataclass(frozen=True)
class PairCounts:
    """How many pairs met each condition, one after the other (`sae.features.parents.Forest`)."""

    covered: int
    beyond_chance: int
    reconstructed: int
    edges: int
    """Latents that have a parent."""


@dataclass(frozen=True)
class FamiliesRecord:
    """The content of families.json."""

    features_sha256: str
    sae_sha256: str
    store_fingerprint: str
    hook: str
    config: dict[str, Scalar]
    rows: int
    """Rows of text that were read."""
    windows: int
    """The store's windows that they come from."""
    children: int
    """Latents whose firings amount to enough windows to have a parent."""
    pairs: int
    """Pairs of one of them and another latent that fires."""
    found: PairCounts
    shuffled: list[PairCounts]
    """The same with the windows of each latent in an order of its own, once for each shuffle."""
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Link:
    """A child and what its parent was found by; `FORMAT.md` has the columns."""

    child: int
    parent: int
    coverage: float
    coverage_low: float
    chance: float
    times: float
    share: float


@dataclass(frozen=True)
class Family:
    """The nearest kin of a latent."""

    parent: Link | None
    siblings: list[Link]
    """Other children of its parent, those that fire most often first."""
    children: list[Link]


class Families:
    """What `sae families` found out about a run's latents."""

    def __init__(self, features: FeaturesFolder, record: FamiliesRecord):
        """Open what `record`, the content of families.json, describes. Raises RunError when it is damaged."""
        self.path, self.record, self._n_latents = features.path, record, len(features)
        self._fix = _again(features)
        if not record.shuffled or "split" not in record.config:
            raise RunError(
                f"{self.path / INDEX} is damaged: it names no shuffle, or no split of the text", fix=self._fix
            )

    @cached_property
    def table(self) -> pa.Table:
        """A row for each latent. Its parents make a forest: each fires more often than its children."""
        path = as_written(self.path / TABLE, self.record.sha256.get(TABLE), INDEX, self._fix)
        table = tables.read(path, COLUMNS, self._n_latents, self._fix)
        if any(table[name].null_count for name in ("parent", "candidates", "fired")):
            raise RunError(f"{path} is damaged: it has latents without numbers", fix=self._fix)
        parent, fired = table["parent"].to_numpy(), table["fired"].to_numpy()
        child = np.flatnonzero(parent != NONE)
        inside = (parent >= NONE).all() and (parent < self._n_latents).all()
        if not inside or (fired[parent[child]] <= fired[child]).any():
            raise RunError(f"{path} is damaged: its parents do not make a forest", fix=self._fix)
        if any(table[name].take(child).null_count for name in MEASURES):
            raise RunError(f"{path} is damaged: it has parents without numbers", fix=self._fix)
        return table

    @cached_property
    def parents(self) -> NDArray[np.int64]:
        """The parent of each latent, [F]; -1 for none."""
        return self.table["parent"].to_numpy()

    @cached_property
    def _children(self) -> dict[int, list[int]]:
        fired, families = self.table["fired"].to_numpy(), dict[int, list[int]]()
        for child in np.flatnonzero(self.parents != NONE).tolist():
            families.setdefault(int(self.parents[child]), []).append(child)
        return {
            parent: sorted(some, key=lambda child: (-fired[child], child))
            for parent, some in families.items()
        }

    def link(self, child: int) -> Link | None:
        """Return what joins a latent to its parent; None where it has none."""
        parent = int(self.parents[child])
        if parent == NONE:
            return None
        measured = {name: self.table[name][child].as_py() for name in MEASURES}
        return Link(child, parent, **measured)

    def of(self, latent: int) -> Family:
        """Return a latent's parent, siblings and children."""
        parent = self.link(latent)
        beside = self._children.get(parent.parent, []) if parent else []
        return Family(parent, self._links(beside, latent), self._links(self._children.get(latent, [])))

    def _links(self, latents: list[int], but: int = NONE) -> list[Link]:
        links = (self.link(latent) for latent in latents if latent != but)
        return [link for link in links if link is not None]

    def children(self, latent: int) -> list[int]:
        """Return a latent's children, those that fire most often first."""
        return self._children.get(latent, [])

    @cached_property
    def _below(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each latent how many latents are below it, and how many generations."""
        sizes, depths = np.zeros((2, self._n_latents), np.int64)
        for child in np.argsort(self.table["fired"].to_numpy(), kind="stable").tolist():  # children first
            if (parent := self.parents[child]) != NONE:
                sizes[parent] += 1 + sizes[child]
                depths[parent] = max(depths[parent], 1 + depths[child])
        return sizes, depths

    def descendants(self, latent: int) -> int:
        """Return how many latents are below this one."""
        return int(self._below[0][latent])

    def depth(self, latent: int) -> int:
        """Return how many generations are below this latent."""
        return int(self._below[1][latent])

    @cached_property
    def roots(self) -> list[int]:
        """Latents that have children and no parent, those of the largest families first."""
        roots = [parent for parent in self._children if self.parents[parent] == NONE]
        return sorted(roots, key=lambda root: (-self.descendants(root), root))


def families_of(features: FeaturesFolder) -> Families | None:
    """Return the families of these features; None where there are none, or of other features. Raises RunError when damaged."""
    path = features.path / INDEX
    record = read_results(path, "families", FORMAT, FamiliesRecord, _again(features))
    return Families(features, record) if record and record.features_sha256 == features.digest else None


def _again(features: FeaturesFolder) -> str:
    return f"sae families {quoted(features.path.parent)}"


def counts_of(forest: Forest) -> PairCounts:
    """Return how many pairs met each condition."""
    return PairCounts(forest.covered, forest.beyond_chance, forest.reconstructed, forest.edges)


def save_families(
    features: FeaturesFolder, forest: Forest, fired: NDArray[np.int64], content: Mapping[str, object]
) -> Families:
    """Write the table, then families.json with `content` (the fields of `FamiliesRecord`), and open both.

    What was there before is given up first: an index never names the bytes of another table."""
    measured = {name: pa.array(getattr(forest, name), from_pandas=True) for name in MEASURES}
    columns = {"parent": forest.parent, "candidates": forest.candidates, "fired": fired, **measured}
    (features.path / INDEX).unlink(missing_ok=True)
    files.write_atomically(features.path / TABLE, lambda part: pq.write_table(pa.table(columns), part))
    digests = {TABLE: files.sha256(features.path / TABLE)}
    files.write_sealed(features.path / INDEX, {"format": FORMAT, **content, "sha256": digests})
    saved = families_of(features)
    assert saved is not None, "it was just written"
    return saved
