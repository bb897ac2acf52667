"""The ring of a run on a stream: where it lies, how large it is, who fills it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from activations.document_labels import SURPRISE
from activations.parallel import ranks
from activations.ring import Ring
from activations.ring_folder import RingFolder
from sae.config import RunConfig
from sae.runs.run import RING, STORE

SHUFFLE_TOKENS = 262_144  # of a stream: 8 shards, whose rows fit into memory twice with room to spare


@dataclass(frozen=True)
class RingSettings:
    """Where a stream's activations lie while they are needed, and who makes them: it does not change a run's numbers."""

    size: int = 20_000_000_000
    """Bytes that they may take."""
    folder: Path | None = None
    """Folder in which the ring gets one of its own, and which every process must be able to read; when left out, the run's."""
    producers: int = 1
    """Processes that run the language model, each on a device of its own where there are enough."""

    def path(self, out: Path) -> Path:
        """Return the folder of the ring of the run in `out`."""
        if self.folder is None:
            return out / RING
        place = hashlib.sha256(
            str(out.absolute()).encode()
        ).hexdigest()  # runs of one name may share the folder
        return self.folder / f"{out.absolute().name}-{place[:8]}"


def open_ring(cfg: RunConfig, out: Path, ring: RingSettings) -> Ring:
    """Return the ring that a run on a stream reads."""
    assert cfg.stream is not None
    labels = (cfg.labels or SURPRISE) if cfg.arch.reads_labels else None
    return Ring(
        ring.path(out), cfg.stream, kept=out / STORE, size=ring.size, producers=ring.producers,
        shuffle_tokens=cfg.shuffle_tokens or SHUFFLE_TOKENS, hook=cfg.hook, labels=labels,
    )  # fmt: skip


def clear_ring(out: Path, ring: RingSettings) -> None:
    """Remove the ring of a run that is finished or has not begun."""
    with ranks.first_goes_first():
        if not ranks.rank():
            RingFolder(ring.path(out)).remove()
