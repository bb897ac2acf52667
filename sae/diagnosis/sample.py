"""Choose the rows on which latents are diagnosed: text of a store, its special positions, and text unlike any in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from activations.errors import ConfigError, RunError, check_seed
from activations.language_model import LanguageModel
from activations.rows import is_held_out
from activations.shard import Shard
from activations.store import Store

TRAIN, HELD_OUT, SPECIAL, RANDOM, SHUFFLED = GROUPS = ("train", "held_out", "special", "random", "shuffled")
TEXT = (TRAIN, HELD_OUT)
HELD_OUT_SHARE = 1 / 4  # of the rows of text, where the store has as many
SPECIAL_ROWS = 512  # special positions hold nearly the same activation: a few are enough
WINDOWS_AT_ONCE = 8


@dataclass(frozen=True)
class DeadConfig:
    """The amount of text to diagnose latents on."""

    rows: int = 32_768
    """Rows of text to read, spread evenly over the store, a quarter of them held out if it has as many."""
    off_tokens: int = 4096
    """Uniformly random tokens, and as many tokens of shuffled text, that the language model reads; 0 for none."""
    batch: int = 1024
    """Rows encoded at once."""
    seed: int = 0
    """Seed of the choice of rows, the random tokens and the resampling that is tried."""

    def __post_init__(self) -> None:
        for name in ("rows", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        check_seed(self.seed)
        if self.off_tokens < 0:
            raise ConfigError(
                f"off_tokens = {self.off_tokens} must be at least 0 (0 leaves off-distribution text out)"
            )


class Piece(NamedTuple):
    """A batch of rows of text."""

    x: Float[Tensor, "B D"]
    held_out: Bool[Tensor, "B"]
    tokens: Int[Tensor, "B"]
    columns: Int[Tensor, "B"]
    """Position of each row in its window."""


class Rows:
    """The rows chosen from one hook point of a store, the same ones at each iteration.

    Raises RunError when the store has no row of text."""

    def __init__(self, store: Store, hook: str, cfg: DeadConfig):
        self.store, self.hook, self.cfg = store, hook, cfg
        counts = [self._counts(number) for number in range(len(store.shards))]
        rows_by_group = torch.tensor(counts).T  # [group, shard]
        n_train, n_held_out, n_special = rows_by_group.sum(1).tolist()
        if not n_train + n_held_out:
            raise RunError(f"{store.path} has 0 rows of text, must have at least 1: harvest more")
        train = min(cfg.rows - min(int(cfg.rows * HELD_OUT_SHARE), n_held_out), n_train)
        wanted = (train, min(cfg.rows - train, n_held_out), min(SPECIAL_ROWS, n_special))
        generator = torch.Generator().manual_seed(cfg.seed)
        chosen = [_spread(rows, n, generator) for rows, n in zip(rows_by_group, wanted, strict=True)]
        self.n = {name: sum(map(len, part)) for name, part in zip((*TEXT, SPECIAL), chosen, strict=True)}
        self._chosen, self._special = chosen[:2], chosen[2]

    @property
    def n_text(self) -> int:
        """Number of rows of text, of both splits."""
        return sum(self.n[name] for name in TEXT)

    def text(self) -> Iterator[Piece]:
        """Yield the rows of text in the store's order, up to `batch` at a time; no batch spans two shards."""
        for number in range(len(self.store.shards)):
            parts = [by_shard[number] for by_shard in self._chosen]
            if not sum(map(len, parts)):
                continue
            shard = self.store.read(number, (self.hook,))
            splits = (
                self.store.rows(shard, split).flatten().nonzero()[:, 0] for split in ("train", "held-out")
            )
            chosen = torch.cat([rows[part] for rows, part in zip(splits, parts, strict=True)]).sort().values
            held_out, tokens = is_held_out(shard.documents).flatten(), shard.tokens.flatten().long()
            for some in chosen.split(self.cfg.batch):
                yield Piece(
                    shard.rows(self.hook, some), held_out[some], tokens[some], some % self.store.context
                )

    def special(self) -> Float[Tensor, "n D"]:
        """Return activations at the positions that training leaves out: BOS, or the token that replaces it."""
        parts = [torch.zeros(0, self.store.width(self.hook))]
        for number, part in enumerate(self._special):
            if len(part):
                shard = self.store.read(number, (self.hook,))
                rows = self._special_rows(shard).flatten().nonzero()[:, 0][part]
                parts.append(shard.rows(self.hook, rows))
        return torch.cat(parts)

    def _special_rows(self, shard: Shard) -> Bool[Tensor, "n T"]:
        every, text = (self.store.rows(shard, with_bos=bos, positions="all") for bos in (True, False))
        return every & ~text

    def _counts(self, number: int) -> list[int]:
        shard = self.store.read(number)
        splits = [int(self.store.rows(shard, split).sum()) for split in ("train", "held-out")]
        return [*splits, int(self._special_rows(shard).sum())]


def _spread(counts: Tensor, n: int, generator: torch.Generator) -> list[Tensor]:
    """Draw about n of all rows, one at random from each of n stretches of equal length, as indices into each shard."""
    total = int(counts.sum())
    drawn = torch.rand(n, dtype=torch.float64, generator=generator) + torch.arange(n)
    chosen = (drawn * (total / max(n, 1))).long().clamp_max(max(total - 1, 0)).unique()
    ends = counts.cumsum(0)
    shard = torch.searchsorted(ends, chosen, right=True)
    return [chosen[shard == number] - (ends[number] - counts[number]) for number in range(len(counts))]


def off_rows(store: Store, cfg: DeadConfig) -> int:
    """Return the number of rows of each kind of off-distribution text: off_tokens, rounded up to whole windows."""
    width = store.context - store.spec.excluded
    return -(-cfg.off_tokens // width) * width


@torch.no_grad()
def off_distribution(model: LanguageModel, store: Store, hook: str, cfg: DeadConfig) -> dict[str, Tensor]:
    """Return activations [n, D], n >= off_tokens, of each kind of text that is in no document.

    `random` are tokens drawn uniformly from the vocabulary; `shuffled` are windows of the store with their tokens in random
    order. Both keep the first token of a window, such as BOS, whose row is left out as everywhere."""
    generator = torch.Generator().manual_seed(cfg.seed)
    excluded = store.spec.excluded
    n = off_rows(store, cfg) // (store.context - excluded)
    windows = _windows(store, n)
    known = model.vocabulary.known
    n_tokens = model.vocabulary.rows if known is None else len(known)
    random = torch.randint(n_tokens, windows.shape, generator=generator)
    random = random if known is None else known[random]
    order = torch.rand(windows.shape, generator=generator)
    order[:, :excluded] = -1  # keeps the excluded tokens in front
    shuffled = windows.gather(1, order.argsort(dim=1, stable=True))
    random[:, :excluded] = windows[:, :excluded]
    texts = {RANDOM: random, SHUFFLED: shuffled}
    return {name: _activations(model, tokens, hook, excluded) for name, tokens in texts.items()}


def _activations(model: LanguageModel, tokens: Tensor, hook: str, excluded: int) -> Tensor:
    parts = [model.capture(some, [hook])[hook] for some in tokens.split(WINDOWS_AT_ONCE)]
    return torch.cat(parts)[:, excluded:].flatten(0, 1).float().cpu()


def _windows(store: Store, n: int) -> Tensor:
    """Return the tokens [n, T] of windows spread evenly over the store, with repeats when it has fewer than n."""
    chosen = (torch.arange(n) * (store.windows / n)).long()
    starts = torch.tensor(store.first_windows)
    number = torch.searchsorted(starts, chosen, right=True) - 1
    return torch.cat(
        [store.read(int(shard)).tokens[chosen[number == shard] - starts[shard]] for shard in number.unique()]
    ).long()
