"""One pass over a store: every latent's statistics and examples, by any number of ranks, resumable, in bounded memory."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from activations.disk import files
from activations.errors import ConfigError, RunError
from activations.parallel import ranks
from activations.progress import Progress, no_progress
from activations.shard import shard_name
from activations.store import Store
from sae.architectures import SAE
from sae.code import offsets_of
from sae.features import firings
from sae.features.cofiring import Cofiring, cofiring
from sae.features.examples import Selection, Traces, gather, traces, wanted_pairs
from sae.features.firings import Firings
from sae.features.statistics import Statistics
from sae.runs.saved_sae import read_json

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
    progress: Progress = no_progress,
) -> Collected:
    """Encode each row of the store once and gather statistics and examples for all latents.

    Rows that the store excludes (BOS, padding) are left out, both splits are in. The firings of each finished
    shard are kept in `scratch` (8 bytes each), so that an interrupted call goes on from there as long as `identity`
    (JSON: which SAE, which store) is the same, and examples can be cut out at the end without encoding again. Of
    several ranks each encodes its share of the shards, then gathers for its share of the latents over all shards;
    all return the whole, which is the same whatever their number. Memory: the state of `Statistics` and `Selection`
    (2 kB a latent with the defaults), one shard with its firings, the values of the chosen windows, and a block of
    pair counts (`cofiring`).

    The result does not depend on the order of shards or the batch size, except for float rounding: of the
    encoder's matrix product in the values, and in the sums behind the moments. Raises RunError where the SAE gives
    values that are not finite."""
    with ranks.first_goes_first():
        _prepare(scratch, {**identity, "batch": cfg.batch, "codes": firings.FORMAT})
    numbers = _shards(store, cfg.tokens)
    with progress("features", shards_to_read(store, cfg.tokens)[1], "tokens") as advance:
        for number in _mine(numbers):
            encode_shard(sae, store, hook, number, cfg.batch, scratch, advance)
    ranks.barrier()
    counts = [firings.read_counts(scratch / shard_name(number)) for number in numbers]
    rows, fired = sum(n for n, _ in counts), torch.stack([fired for _, fired in counts]).sum(0)
    unit = store.mean_square_norm(hook) ** 0.5

    def shards(latents: range) -> Iterator[Firings]:
        for number in numbers:
            first_row = store.first_windows[number] * store.context
            yield firings.read(scratch / shard_name(number), latents, first_row)

    def find(latents: range) -> dict[str, Tensor]:
        everyone = range(sae.d_sae)
        limits = cfg.cofiring, cfg.least_together
        with progress("co-firing", len(latents), "latents") as advance:
            together = cofiring(lambda: shards(everyone), latents, fired, rows, *limits, on_latents=advance)
        return {**_seen(shards, latents, store.context, cfg, unit), **_named("cofiring", together._asdict())}

    found = ranks.share_latents(scratch, "pass", sae.d_sae, find)
    return _collected(found, unit, rows, len(numbers))


def _seen(
    shards: Callable[[range], Iterator[Firings]],
    latents: range,
    context: int,
    cfg: FeaturesConfig,
    unit: float,
) -> dict[str, Tensor]:
    """Statistics, chosen windows and traces of some latents, in tensors that can be put one behind the other's."""
    statistics = Statistics(len(latents), unit)
    selection = Selection(latents, cfg.strongest, cfg.sampled)
    for part in shards(latents):
        statistics.add(part)
        selection.add(part, context)
    chosen = selection.windows()
    wanted = wanted_pairs(chosen)
    found = traces(wanted, [gather(wanted, part, context) for part in shards(latents)])
    pairs = {**found._asdict(), "latents": found.latents + latents.start, "offsets": found.offsets.diff()}
    return {
        **_named("statistics", statistics.state()),
        **_named("chosen", chosen),
        **_named("traces", pairs),
    }


def shards_to_read(store: Store, tokens: int | None) -> tuple[int, int]:
    """How many shards, and how many rows, `collect` will look at: this rank."""
    numbers = _mine(_shards(store, tokens))
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


def _mine(numbers: range) -> range:
    return numbers[ranks.rank() :: ranks.world()]


def _prepare(scratch: Path, job: dict[str, Any]) -> None:
    """Keep the scratch of the same job; drop another's."""
    if (scratch / JOB).exists() and read_json(scratch / JOB) == job:
        return
    clear(scratch)
    files.write_sealed(scratch / JOB, job)


@torch.no_grad()
def encode_shard(
    sae: SAE, store: Store, hook: str, number: int, batch: int, scratch: Path, on_rows: Callable[[int], None]
) -> None:
    """Put a shard's firings into the scratch, if they are not there."""
    path = scratch / shard_name(number)
    if firings.is_whole(path):
        on_rows(store.shards[number].rows)
        return
    shard = store.read(number, (hook,))
    flat = shard.activations[hook].flatten(0, 1)
    chosen = store.rows(shard).flatten().nonzero()[:, 0]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for piece in chosen.split(batch):
        code = sae.encode(flat[piece].float().to(sae.device)).without_zeros()
        parts.append((piece[code.rows().cpu()].int(), code.indices.int().cpu(), code.values.float().cpu()))
        on_rows(len(piece))
    rows, latents, values = (torch.cat(column) for column in zip(*parts, strict=True))
    if not values.isfinite().all():
        raise RunError(
            f"the SAE's values on shard {number} of {store.path} are not all finite, needed are numbers: check the "
            f"store with `sae store verify {store.path}`, or train again with a smaller --train.lr"
        )
    firings.write(path, firings.by_latent(rows, latents, values, sae.d_sae), len(chosen))


def _collected(found: dict[str, Tensor], unit: float, rows: int, shards: int) -> Collected:
    """Put together what `_seen` and `cofiring` found of all latents."""
    statistics = Statistics(0, unit)
    vars(statistics).update(_of("statistics", found))
    pairs = _of("traces", found)
    seen = Traces(**{**pairs, "offsets": offsets_of(pairs["offsets"])})
    return Collected(statistics, rows, _of("chosen", found), seen, Cofiring(**_of("cofiring", found)), shards)


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def _of(part: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{part}."): tensor for name, tensor in found.items() if name.startswith(f"{part}.")
    }
