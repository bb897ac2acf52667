"""Export a features folder in the layout that Neuronpedia imports: four JSON lines about the SAE, gzipped features and examples.

The layout is the one that SAEDashboard writes (sae_dashboard/neuronpedia/neuronpedia_export.py) and that Neuronpedia's
/api/admin/import reads; the importer takes the keys of a file's first line for its columns. Neuronpedia knows positive
latents only, so the positive side of signed ones is written."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from activations.disk import files
from activations.errors import ConfigError
from sae.features.feature import FeatureStore
from sae.features.folder import Example

IMPORTS = "clkht01d40000jv08hvalcvly"  # the user under whom Neuronpedia files its own bulk imports
AT_ONCE = 256  # features in a file
TOP = -1.0, -1.0  # binMin and binContains by which SAEDashboard marks the strongest examples


class Feature(TypedDict):
    """A line of features/batch-N.jsonl.gz: a latent, by the names of Neuronpedia's columns."""

    modelId: str
    layer: str
    index: str
    sourceSetName: str
    creatorId: str
    createdAt: str
    hookName: str
    maxActApprox: float
    frac_nonzero: float
    pos_str: list[str]
    pos_values: list[float]
    neg_str: list[str]
    neg_values: list[float]
    topkCosSimIndices: list[int]
    topkCosSimValues: list[float]
    freq_hist_data_bar_heights: list[float]
    freq_hist_data_bar_values: list[float]


class Activation(TypedDict):
    """A line of activations/batch-N.jsonl.gz: a window in which a latent fires."""

    id: str
    modelId: str
    layer: str
    index: str
    creatorId: str
    createdAt: str
    tokens: list[str]
    values: list[float]
    maxValue: float
    maxValueTokenIndex: int
    minValue: float
    binMin: float
    binMax: float
    binContains: float
    qualifyingTokenIndex: int


@dataclass(frozen=True)
class Listing:
    """The names under which Neuronpedia shows an SAE."""

    model_id: str
    """Neuronpedia's name of the language model, such as gpt2-small."""
    source_set: str
    """Name of the SAE and its siblings on other layers, such as res-mine-8k; the layer number is prepended."""
    release: str
    """Name of the release that the set belongs to."""
    creator: str
    """Name of whoever made it."""
    creator_id: str = IMPORTS
    """Id of the creator's account, which must exist on the Neuronpedia instance."""
    description: str = ""
    """Title of the set on its page."""
    url: str | None = None
    """Address of a paper or repository."""
    layer: int | None = None
    """Number of the block it reads; when left out, that of the hook point."""

    def __post_init__(self) -> None:
        for name in ("model_id", "source_set", "release"):
            value = getattr(self, name)
            if (
                not value
                or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in value)
                or value[0] == "."
            ):
                raise ConfigError(
                    f"{name} = {value!r} must consist of letters, digits, dashes, underscores and dots"
                )

    @property
    def source(self) -> str:
        """The layer and the set's name: the id under which the features are filed."""
        return f"{self.layer}-{self.source_set}"


def write_listing(features: FeatureStore, hook: str, model: str, listing: Listing, out: Path) -> Path:
    """Write the folder `out`/MODEL/LAYER-SET, complete or not at all, and return its path.

    `hook` and `model` are the SAE's own, written for information. Memory: 256 features. Raises FileExistsError when the
    folder exists."""
    if listing.layer is None:
        listing = replace(listing, layer=_layer(hook))
    target, now = out / listing.model_id / listing.source, datetime.now(UTC).isoformat()
    with files.new_folder(target) as folder:
        for name, row in _header_rows(features, hook, model, listing, now).items():
            files.write_atomically(
                folder / f"{name}.jsonl", lambda part, row=row: part.write_bytes(_line(row))
            )
        for kind in ("features", "activations"):
            (folder / kind).mkdir()
        for number, first in enumerate(range(0, len(features), AT_ONCE)):
            latents = range(first, min(first + AT_ONCE, len(features)))
            name = f"batch-{number}.jsonl.gz"
            examples = {latent: _examples(features, latent, listing, now) for latent in latents}
            highest = {i: max([row["maxValue"] for row in rows], default=0.0) for i, rows in examples.items()}
            rows = (_feature(features, latent, hook, listing, now, highest[latent]) for latent in latents)
            _write(folder / "features" / name, rows)
            _write(folder / "activations" / name, (row for rows in examples.values() for row in rows))
    return target


def _layer(hook: str) -> int:
    match = re.match(r"blocks\.(\d+)\.", hook)
    if not match:
        raise ConfigError(
            f"{hook} is not in a block, and Neuronpedia files SAEs by layer: give one with --layer"
        )
    return int(match[1])


def _header_rows(
    features: FeatureStore, hook: str, model: str, listing: Listing, now: str
) -> dict[str, dict[str, object]]:
    """Return the rows of release, model, source set and source, by the name of their file."""
    by = {"creatorId": listing.creator_id, "createdAt": now}
    named = {"creatorName": listing.creator, "urls": [listing.url] if listing.url else []}
    title = listing.description or listing.source_set
    return {
        "release": {"name": listing.release, "description": title, "descriptionShort": title, **named, **by},
        "model": {
            "id": listing.model_id,
            "instruct": listing.model_id.endswith("-it"),
            "displayNameShort": listing.model_id,
            "displayName": model,
            "updatedAt": now,
            **by,
        },
        "sourceset": {
            "modelId": listing.model_id,
            "name": listing.source_set,
            "description": title,
            "type": "",
            "releaseName": listing.release,
            "visibility": "PUBLIC",
            **named,
            **by,
        },
        "source": {
            "modelId": listing.model_id,
            "id": listing.source,
            "setName": listing.source_set,
            "visibility": "PUBLIC",
            "hasDashboards": True,
            "notes": f"{hook}, {len(features)} latents",
            **by,
        },
    }


def _feature(
    features: FeatureStore, latent: int, hook: str, listing: Listing, now: str, highest: float
) -> Feature:
    row, histogram = features.row(latent), features.histogram(latent)
    seen = (histogram.counts > 0) & (histogram.edges[:-1] >= 0)
    middles = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    return {
        "modelId": listing.model_id,
        "layer": listing.source,
        "index": str(latent),
        "sourceSetName": listing.source_set,
        "creatorId": listing.creator_id,
        "createdAt": now,
        "hookName": hook,
        "maxActApprox": highest,
        "frac_nonzero": row["density"],
        "pos_str": row.get("raised_tokens") or [],
        "pos_values": row.get("raised_logits") or [],
        "neg_str": row.get("lowered_tokens") or [],
        "neg_values": row.get("lowered_logits") or [],
        "topkCosSimIndices": row["neighbours"],
        "topkCosSimValues": row["neighbour_cosines"],
        "freq_hist_data_bar_heights": histogram.counts[seen].tolist(),
        "freq_hist_data_bar_values": middles[seen].tolist(),
    }


def _examples(features: FeatureStore, latent: int, listing: Listing, now: str) -> list[Activation]:
    """Return the strongest windows, then those drawn by band, each window once."""
    listed: dict[str, Activation] = {}

    def add(example: Example, low: float, high: float, contains: float) -> None:
        if example.values.max() <= 0:
            return
        seed = f"{features.digest} {listing} {latent} {example.document} {example.position}"
        key = "c" + hashlib.sha256(seed.encode()).hexdigest()[:24]
        values = example.values.clip(0).tolist()
        top = max(range(len(values)), key=values.__getitem__)
        row: Activation = {
            "id": key,
            "modelId": listing.model_id,
            "layer": listing.source,
            "index": str(latent),
            "creatorId": listing.creator_id,
            "createdAt": now,
            "tokens": example.tokens,
            "values": values,
            "maxValue": values[top],
            "maxValueTokenIndex": top,
            "minValue": min(values),
            "binMin": low,
            "binMax": high,
            "binContains": contains,
            "qualifyingTokenIndex": top,
        }
        listed.setdefault(key, row)

    for example in features.strongest(latent):
        add(example, TOP[0], float(example.values.max()), TOP[1])
    for band in features.bands(latent):
        for example in band.examples:
            add(example, band.low, band.high, band.share[1] - band.share[0])
    return list(listed.values())


def _line(row: Mapping[str, object]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _write(path: Path, rows: Iterator[Mapping[str, object]]) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed:
            for row in rows:
                compressed.write(_line(row))

    files.write_atomically(path, write)
