"""One pass over a store that collects every latent's statistics and examples: resumable, in bounded memory, on any number of ranks."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from activations.disk import files
from activations.errors import ConfigError, RunError, quoted
from activations.parallel import ranks
from activations.progress import Advance, Progress, no_progress
from activations.rows import Split
from activations.shard import shard_name
from activations.store import Store
from sae.architectures import SAE
from sae.code import SparseCode, offsets_of
from sae.features import firings
from sae.features.cofiring import Cofiring, cofiring
from sae.features.examples import Selection, Traces, gather, traces, wanted_pairs
from sae.features.firings import Firings, Statistics
from sae.runs.saved_sae import read_json

SCRATCH, JOB = "codes", "job.json"


class Encoder(Protocol):
    """What `encode_shard` asks of an SAE."""

    @property
    def d_sae(self) -> int:
        """F, the number of latents."""
        ...

    @property
    def device(self) -> torch.device:
        """The device that rows are to be on."""
        ...

    def encode(self, x: Tensor) -> SparseCode:
        """Return the code of rows [B, D]."""
        ...


@dataclass(frozen=True)
class FeaturesConfig:
    """Settings of `sae features`: the text to read, and how many examples, neighbours and tokens to collect per latent."""

    tokens: int | None = None
    """Read only the store's first tokens, rounded up to whole shards; all of them when left out."""
    strongest: int = 20
    """Windows kept for each sign: those with the strongest activations."""
    sampled: int = 40
    """Windows drawn uniformly from all in which a latent fires, which are shown by activation interval."""
    neighbours: int = 10
    """Nearest latents listed by decoder cosine."""
    logits: int = 10
    """Tokens listed that the logit lens raises most, and as many that it lowers most."""
    cofiring: int = 10
    """Latents listed that fire on the same tokens more often than by chance, by pointwise mutual information."""
    least_together: int = 10
    """Tokens on which two latents must fire together to be listed as co-firing."""
    batch: int = 2048
    """Rows encoded at once."""

    def __post_init__(self) -> None:
        for name in ("strongest", "sampled", "neighbours", "logits", "cofiring", "least_together", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"tokens = {self.tokens} must be at least 1, or left out for all of them")


@dataclass(frozen=True)
class Collected:
    """The result of the pass over the store."""

    statistics: Statistics
    rows: int
    """Rows that were encoded."""
    chosen: dict[str, Tensor]
    """Window numbers [F, n] by kind (`positive`, `negative`, `sampled`), -1 for none."""
    traces: Traces
    cofiring: Cofiring
    shards: int
    """Shards that were read."""


def collect(
    sae: SAE,
    store: Store,
    hook: str,
    cfg: FeaturesConfig,
    scratch: Path,
    identity: Mapping[str, object],
    progress: Progress = no_progress,
) -> Collected:
    """Encode each row of the store once and collect statistics and examples of all latents.

    Rows that the store leaves out (BOS, padding, those at other than its `positions`) are not read; training and held-out rows
    are. The firings of each finished shard are kept in `scratch` (8 bytes each): an interrupted call resumes from them as long
    as `identity` (JSON that names the SAE and the store) is the same, and examples are cut out at the end without encoding again. With
    several ranks each encodes its share of the shards, then collects its share of the latents over all shards; all return
    the whole result, which does not depend on their number. Memory: the state of `Statistics` and `Selection` (2 kB a
    latent with the defaults), one shard with its firings, the values of the chosen windows, and a block of pair counts
    (`cofiring`).

    The result does not depend on the order of shards or the batch size, up to float rounding of the encoder's matrix
    product and of the sums behind the moments. Raises RunError where the SAE's values are not finite."""
    with ranks.first_goes_first():
        prepare(scratch, {**identity, "batch": cfg.batch, "codes": firings.FORMAT})
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
            together = cofiring(lambda: shards(everyone), latents, fired, rows, *limits, advance=advance)
        return {**_seen(shards, latents, store.context, cfg, unit), **_named("cofiring", together._asdict())}

    tensors = ranks.share_latents(scratch, "pass", sae.d_sae, find)
    return _collected(tensors, unit, rows, len(numbers))


def _seen(
    shards: Callable[[range], Iterator[Firings]],
    latents: range,
    context: int,
    cfg: FeaturesConfig,
    unit: float,
) -> dict[str, Tensor]:
    """Collect statistics, chosen windows and traces of a range of latents, in tensors that can be concatenated over ranges."""
    statistics = Statistics(len(latents), unit)
    selection = Selection(latents, cfg.strongest, cfg.sampled)
    for part in shards(latents):
        statistics.add(part)
        selection.add(part, context)
    chosen = selection.windows()
    wanted = wanted_pairs(chosen)
    seen = traces(wanted, [gather(wanted, part, context) for part in shards(latents)])
    # offsets as lengths, and latents by their number in the SAE: both can then be concatenated
    pairs = {**seen._asdict(), "latents": seen.latents + latents.start, "offsets": seen.offsets.diff()}
    return {
        **_named("statistics", statistics.state()),
        **_named("chosen", chosen),
        **_named("traces", pairs),
    }


def shards_to_read(store: Store, tokens: int | None) -> tuple[int, int]:
    """Return how many shards, and how many rows, this rank reads in `collect`."""
    numbers = _mine(_shards(store, tokens))
    return len(numbers), sum(store.count(number) for number in numbers)


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


def prepare(scratch: Path, job: Mapping[str, object]) -> None:
    """Keep the scratch of the same job, named by JSON, and delete that of another."""
    if (scratch / JOB).exists() and read_json(scratch / JOB) == job:
        return
    clear(scratch)
    files.write_sealed(scratch / JOB, job)


@torch.no_grad()
def encode_shard(
    sae: Encoder,
    store: Store,
    hook: str,
    number: int,
    batch: int,
    scratch: Path,
    advance: Advance,
    split: Split = "all",
) -> None:
    """Encode a shard's rows of one split, which must be some, and write their firings to the scratch, unless they are there."""
    path = scratch / shard_name(number)
    if firings.is_whole(path):
        advance(store.count(number, split))
        return
    shard = store.read(number, (hook,))
    chosen = store.rows(shard, split).flatten().nonzero()[:, 0]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for piece in chosen.split(batch):
        code = sae.encode(shard.rows(hook, piece).to(sae.device)).without_zeros()
        parts.append((piece[code.rows().cpu()].int(), code.indices.int().cpu(), code.values.float().cpu()))
        advance(len(piece))
    rows, latents, values = (torch.cat(column) for column in zip(*parts, strict=True))
    if not values.isfinite().all():
        raise RunError(
            f"the SAE gives NaN or infinity on shard {number} of {store.path}: the shard is damaged, or training diverged and "
            f"needs a smaller --train.lr",
            fix=f"sae store verify {quoted(store.path)}",
        )
    firings.write(path, firings.by_latent(rows, latents, values, sae.d_sae), len(chosen))


def _collected(tensors: dict[str, Tensor], unit: float, rows: int, shards: int) -> Collected:
    """Build the result from the tensors of all latents, named as `find` names them."""
    statistics = Statistics(0, unit)
    vars(statistics).update(_of("statistics", tensors))
    pairs = _of("traces", tensors)
    seen = Traces(**{**pairs, "offsets": offsets_of(pairs["offsets"])})
    return Collected(
        statistics, rows, _of("chosen", tensors), seen, Cofiring(**_of("cofiring", tensors)), shards
    )


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def _of(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that `_named` gave the prefix of a part, under their own names."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
