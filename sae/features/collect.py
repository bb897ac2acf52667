"""One pass over a store: every latent's statistics and examples, resumable, within bounded memory."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from activations import files
from activations.store import Store, shard_name
from sae.architectures import SAE
from sae.errors import ConfigError
from sae.features.cofiring import Cofiring, cofiring
from sae.features.examples import Selection, Traces, gather, traces, wanted_pairs
from sae.features.statistics import Statistics
from sae.runs import read_json

SCRATCH, JOB = "codes", "job.json"


@dataclass(frozen=True)
class FeaturesConfig:
    """What to keep of each latent."""

    tokens: int | None = None
    """Look at the store's first tokens only, rounded up to whole shards; at all of them when left out."""
    strongest: int = 20
    """Windows kept for each sign: those with the strongest activations."""
    sampled: int = 40
    """Windows drawn uniformly from all in which a latent fires, to be shown by value band."""
    neighbours: int = 10
    """Nearest latents listed by decoder cosine."""
    logits: int = 10
    """Tokens listed at either end of the logit lens."""
    cofiring: int = 10
    """Latents listed that fire on the same tokens most for chance, by pointwise mutual information."""
    least_together: int = 10
    """Tokens on which two latents must fire together to be listed so."""
    batch: int = 2048
    """Rows encoded at once."""

    def __post_init__(self) -> None:
        for name in ("strongest", "sampled", "neighbours", "logits", "cofiring", "least_together", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"tokens = {self.tokens} must be at least 1; leave it out for all of them")


@dataclass(frozen=True)
class Collected:
    """What the pass found."""

    statistics: Statistics
    rows: int
    chosen: dict[str, Tensor]
    """Window numbers [F, n] by kind (`positive`, `negative`, `sampled`), -1 for none."""
    traces: Traces
    cofiring: Cofiring
    shards: int


def collect(
    sae: SAE,
    store: Store,
    hook: str,
    cfg: FeaturesConfig,
    scratch: Path,
    identity: dict[str, Any],
    on_rows: Callable[[int], None] = lambda n: None,
) -> Collected:
    """Encode each row of the store once and gather statistics and examples for all latents.

    Rows that the store excludes (BOS, padding) are left out, both splits are in. The sparse codes of each
    finished shard are kept in `scratch` (12 bytes a firing), so that an interrupted call goes on from there
    as long as `identity` (JSON: which SAE, which store) is the same, and examples can be cut out at the end
    without encoding again. Memory: the state of `Statistics` and `Selection` (2 kB a latent with the
    defaults), one shard with its codes, the values of the chosen windows, and a block of pair counts (`cofiring`).

    The result does not depend on the order of shards or the batch size, except for float rounding: of the
    encoder's matrix product in the values, and in the sums behind the moments."""
    _prepare(scratch, {**identity, "batch": cfg.batch})
    numbers = _shards(store, cfg.tokens)
    statistics = Statistics(sae.d_sae, unit=store.mean_square_norm(hook) ** 0.5)
    selection = Selection(sae.d_sae, cfg.strongest, cfg.sampled)
    rows_seen = 0
    for number in numbers:
        codes = _codes(sae, store, hook, number, cfg.batch, scratch, on_rows)
        first_window = store.first_windows[number]
        rows, latents, values = codes["rows"].long(), codes["latents"].long(), codes["values"]
        statistics.add(rows + first_window * store.context, latents, values)
        selection.add(rows // store.context + first_window, latents, values)
        rows_seen += int(codes["n_rows"])
    chosen = selection.windows()
    wanted = wanted_pairs(chosen)
    found = list(_gathered(store, numbers, scratch, wanted))
    together = cofiring(
        lambda: _firings(numbers, scratch), statistics.fired, rows_seen, cfg.cofiring, cfg.least_together
    )
    return Collected(statistics, rows_seen, chosen, traces(wanted, found), together, len(numbers))


def shards_to_read(store: Store, tokens: int | None) -> tuple[int, int]:
    """How many shards, and how many rows, `collect` will look at."""
    numbers = _shards(store, tokens)
    return len(numbers), sum(store.shards[number].rows for number in numbers)


def clear(scratch: Path) -> None:
    """Remove the scratch once its result is saved."""
    shutil.rmtree(scratch, ignore_errors=True)


def _shards(store: Store, tokens: int | None) -> range:
    count, windows = 0, 0
    for entry in store.shards:
        if tokens is not None and windows * store.context >= tokens:
            break
        count, windows = count + 1, windows + entry.windows
    return range(count)


def _prepare(scratch: Path, job: dict[str, Any]) -> None:
    """Keep the scratch of the same job; drop another's."""
    if (scratch / JOB).exists() and read_json(scratch / JOB) == job:
        return
    clear(scratch)
    files.write_json(scratch / JOB, job)


@torch.no_grad()
def _codes(
    sae: SAE, store: Store, hook: str, number: int, batch: int, scratch: Path, on_rows: Callable[[int], None]
) -> dict[str, Tensor]:
    """A shard's firings: from the scratch if they are there, else encoded and put there."""
    path = scratch / shard_name(number)
    if path.exists():
        on_rows(store.shards[number].rows)
        return load_file(path)
    shard = store.read(number, (hook,))
    flat = shard.activations[hook].flatten(0, 1)
    chosen = store.rows(shard).flatten().nonzero()[:, 0]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for piece in chosen.split(batch):
        code = sae.encode(flat[piece].float().to(sae.device)).without_zeros()
        parts.append((piece[code.rows().cpu()].int(), code.indices.int().cpu(), code.values.float().cpu()))
        on_rows(len(piece))
    rows, latents, values = (torch.cat(column) for column in zip(*parts, strict=True))
    codes = {"rows": rows, "latents": latents, "values": values, "n_rows": torch.tensor(len(chosen))}
    files.write_tensors(path, codes, "sae-codes-1")
    return codes


def _gathered(
    store: Store, numbers: range, scratch: Path, wanted: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for number in numbers:
        codes = load_file(scratch / shard_name(number))
        rows = codes["rows"].long() + store.first_windows[number] * store.context
        yield gather(wanted, rows, codes["latents"], codes["values"], store.context)


def _firings(numbers: range, scratch: Path) -> Iterator[tuple[Tensor, Tensor]]:
    for number in numbers:
        codes = load_file(scratch / shard_name(number))
        yield codes["rows"], codes["latents"]
