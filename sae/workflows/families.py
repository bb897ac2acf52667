"""Find families among a run's latents: which latent is the parent of which, and how many such pairs chance alone would give."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from activations.disk import files
from activations.errors import ConfigError, RunError, check_seed, quoted
from activations.progress import Progress, no_progress
from activations.rows import Split
from activations.shard import shard_name
from activations.store import Store
from sae import kernels
from sae.architectures import SAE
from sae.code import SparseCode
from sae.features import collect, firings
from sae.features.families import Families, counts_of, families_of, save_families
from sae.features.feature import features_of
from sae.features.firings import Firings
from sae.features.parents import Rules, parents, shuffled
from sae.runs.run import Run, device

SCRATCH = "families-measuring"


@dataclass(frozen=True)
class FamiliesConfig:
    """Settings of `sae families`: the text that is read, and what makes one latent the parent of another."""

    rows: int = 2**18
    """Rows of text to read, rounded up to whole shards, spread over the store; fewer where it has fewer."""
    split: Split = "held-out"
    """Text to read. Where held-out text is so short that few latents fire often enough, `all` reads training text too."""
    shuffles: int = 3
    """How often families are looked for among shuffled firings, to tell how many chance alone would give."""
    batch: int = 2048
    """Rows encoded at once."""
    seed: int = 0
    """Seed of the shuffles."""
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("shuffles", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least {least}")
        check_seed(self.seed)


def families(run: Run, cfg: FamiliesConfig | None = None, progress: Progress = no_progress) -> Families:
    """Find the parent of each of a run's latents, and keep the result in its features folder.

    Rows of the store are encoded once; what each firing contributes to the reconstruction is kept while the command works, so that,
    interrupted and called again, it goes on after the last whole shard. A result of the same features and settings is returned as it
    is. Raises RunError where features are missing or of other weights, or the store has no such row; StoreError when the store is gone;
    BusyError when another process works in the features folder."""
    cfg, features, store = cfg or FamiliesConfig(), features_of(run), run.store
    done = families_of(features)
    if done is not None and done.record.config == _flat(cfg):
        return done
    counts = _chosen(run, store, cfg)
    with files.alone_in(features.path):
        scratch = features.path / SCRATCH
        identity = {"features_sha256": features.digest, "store_fingerprint": store.fingerprint}
        collect.prepare(
            scratch, {**identity, "split": cfg.split, "batch": cfg.batch, "codes": firings.FORMAT}
        )
        costs = Costs(run.sae().to(device()))
        with progress("families", sum(counts.values()), "rows") as advance:
            for number in counts:
                collect.encode_shard(costs, store, run.hook, number, cfg.batch, scratch, advance, cfg.split)
        together, windows = _together(store, counts, cfg.split, scratch, costs.d_sae)
        forests = []
        with progress("pairs", len(features) * (1 + cfg.shuffles), "latents") as advance:
            for n in range(1 + cfg.shuffles):
                # Without a name for the shuffled firings, so that there is one shuffle in memory at a time
                forest = parents(
                    shuffled(together, windows, cfg.seed + n - 1) if n else together,
                    windows,
                    cfg.rules,
                    advance,
                )
                advance(len(features) - forest.children)  # those that fire too rarely to be asked
                forests.append(forest)
        content = {
            **identity,
            "sae_sha256": run.digest,
            "hook": run.hook,
            "config": _flat(cfg),
            "rows": len(windows),
            "windows": len(np.unique(windows)),
            "children": forests[0].children,
            "pairs": forests[0].pairs,
            "found": asdict(counts_of(forests[0])),
            "shuffled": [asdict(counts_of(forest)) for forest in forests[1:]],
        }
        saved = save_families(features, forests[0], together.starts.diff().numpy(), content)
        collect.clear(scratch)
        files.sweep(features.path)
    return saved


class Costs:
    """Encodes rows as an SAE does, but gives for each firing what it would cost to take that latent away from that row.

    That is the rise of the squared error: of x - x_hat = e, taking away z d leaves e + z d, which is z² |d|² + 2 z d·e more."""

    def __init__(self, sae: SAE):
        self.sae, self.d_sae, self.device = sae, sae.d_sae, sae.device
        self.rows = sae.W_dec.detach().contiguous()
        self.squares = self.rows.float().square().sum(1)

    @torch.no_grad()
    def encode(self, x: Tensor) -> SparseCode:
        """Return the costs of the firings on rows [B, D], none of them 0, since a code's zeros are no firings."""
        code = self.sae.encode(x).without_zeros()
        error = (x - self.sae.decode(code)).contiguous()
        along = kernels.backend(self.rows).dots(error, code.indices, code.offsets, self.rows)
        costs = code.values * (code.values * code.spread(self.squares) + 2 * along)
        return code._replace(values=torch.where(costs == 0, torch.finfo(costs.dtype).tiny, costs))


def _flat(cfg: FamiliesConfig) -> dict[str, int | float | str]:
    """Return the settings as families.json has them: the rules with their name before them."""
    own = {name: value for name, value in asdict(cfg).items() if name != "rules"}
    return own | {f"rules.{name}": value for name, value in asdict(cfg.rules).items()}


def _chosen(run: Run, store: Store, cfg: FamiliesConfig) -> dict[int, int]:
    """Return the shards to read, evenly spread over those with rows of the split, with their numbers of rows."""
    counts = {number: store.count(number, cfg.split) for number in range(len(store.shards))}
    counts = {number: count for number, count in counts.items() if count}
    if not counts:
        raise RunError(
            f"{store.path} has 0 rows of {cfg.split} text, at least 1 is needed",
            fix=f"sae families {quoted(run.path)} --split all",
        )
    shards = min(len(counts), max(1, round(cfg.rows / (sum(counts.values()) / len(counts)))))
    while True:
        places = [place * len(counts) // shards for place in range(shards)]
        some = {number: counts[number] for number in [[*counts][place] for place in places]}
        if sum(some.values()) >= cfg.rows or shards == len(counts):
            return some
        shards += 1


def _together(
    store: Store, counts: dict[int, int], split: Split, scratch: Path, n_latents: int
) -> tuple[Firings, NDArray[np.int64]]:
    """Return the firings of all shards on the chosen rows, numbered one after the other, and the store's window of each of these rows."""
    windows: list[Tensor] = []

    def parts() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        before = 0
        for number, count in counts.items():
            part = firings.read(scratch / shard_name(number), range(n_latents), 0)
            chosen = store.rows(store.read(number), split)
            windows.append(store.first_windows[number] + chosen.nonzero()[:, 0])
            place = chosen.flatten().cumsum(0) - 1 + before
            yield part.latents(), place[part.rows.long()], part.values
            before += count

    latents, rows, values = (torch.cat(column) for column in zip(*parts(), strict=True))
    n_rows = sum(counts.values())
    order = (latents * n_rows + rows).argsort()
    starts = torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.bincount(latents, minlength=n_latents).cumsum(0)]
    )
    return Firings(starts, rows[order].int(), values[order]), torch.cat(windows).numpy()
