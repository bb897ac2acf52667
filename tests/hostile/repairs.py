"""Mend the checksums of files that have been damaged on purpose, so that what reads them sees the damage itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from activations.disk import files
from activations.shard import shard_name
from activations.store import INDEX

RUN = "runs/toy"
FEATURES = f"{RUN}/features"


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """Change an object in a JSON file, and leave out what would seal it."""
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    change(content)
    path.write_text(json.dumps(content))


def repair_store(world: Path) -> None:
    """The size and the checksum of the first shard."""
    shard = world / "store" / shard_name(0)
    repaired = {"bytes": shard.stat().st_size, "sha256": files.sha256(shard)}
    rewrite(world / "store" / INDEX, lambda index: index["shards"][0].update(repaired))


def repair_sae(world: Path) -> None:
    """The checksum of the weights."""
    path = world / RUN / "sae.json"
    about = json.loads(path.read_text())
    path.write_text(
        json.dumps({**about, "weights_file_sha256": files.sha256(world / RUN / "sae.safetensors")})
    )


def repair_lenses(world: Path) -> None:
    """The checksum of the table."""
    folder = world / FEATURES
    digests = {"lens.parquet": files.sha256(folder / "lens.parquet")}
    rewrite(folder / "lens.json", lambda about: about.update(sha256=digests))


def repair_kin(world: Path) -> None:
    """The checksum of the table."""
    digests = {"families.parquet": files.sha256(world / FEATURES / "families.parquet")}
    rewrite(world / FEATURES / "families.json", lambda about: about.update(sha256=digests))


def repair_explained(world: Path) -> None:
    """The checksum of the table."""
    folder = world / FEATURES
    digests = {"explanations.parquet": files.sha256(folder / "explanations.parquet")}
    rewrite(folder / "explanations.json", lambda about: about.update(sha256=digests))


def repair_features(world: Path) -> None:
    """The checksums of its files."""
    folder = world / FEATURES

    def change(about: Any) -> None:
        about["sha256"] = {name: files.sha256(folder / name) for name in about["sha256"]}

    rewrite(folder / "features.json", change)


def repair_dead(world: Path) -> None:
    """The checksum of the table of dead latents."""
    folder = world / RUN / "dead"
    digest = {"latents.parquet": files.sha256(folder / "latents.parquet")}
    rewrite(folder / "dead.json", lambda about: about.update(sha256=digest))
