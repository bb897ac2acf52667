"""The texts that a model is shown of a latent: those that it explains, and others, of other documents, that tell how well it did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae.features.feature import FeatureStore
from sae.features.folder import Example
from sae.judging.config import LEAST_FIRING, JudgeConfig
from sae.rules.corpus import chooses
from sae.runs.run import Run, device

SHARDS = 4  # of the store, that windows without a latent are drawn from
STRONGEST, SAMPLED, NEAR = (
    8,
    8,
    8,
)  # texts that are explained: the strongest, drawn at random, and near ones without the latent
LEAST_SHOWN = 3  # texts on which it fires that a latent must have to be explained
TRIED = 4000  # places that are looked at for a text without the latent
BATCH = 2048  # rows encoded at once


@dataclass(frozen=True)
class Text:
    """A piece of one document around the token that it is about."""

    pieces: tuple[str, ...]
    """Text of each token; joined they are the text."""
    centre: int
    """Place of the token that it is about."""
    fires: tuple[bool, ...]
    """On which tokens the latent fires."""
    document: int

    @property
    def plain(self) -> str:
        """The text as it reads."""
        return "".join(self.pieces)

    def marked(self, only_centre: bool = False) -> str:
        """Return the text with the tokens on which the latent fires, or only its centre, in << >>.

        A token that goes on with a character has no text of its own: the token with the character is marked instead."""
        places = [self.centre] if only_centre else [place for place, fires in enumerate(self.fires) if fires]
        marked = {self._with_text(place) for place in places}
        return "".join(
            f"<<{piece}>>" if place in marked else piece for place, piece in enumerate(self.pieces)
        )

    def _with_text(self, place: int) -> int:
        """Return the last place up to this one whose token has a text; the first of all that has one where there is none."""
        before = [other for other in range(place + 1) if self.pieces[other]]
        return before[-1] if before else next((i for i, piece in enumerate(self.pieces) if piece), place)


@dataclass(frozen=True)
class Sheet:
    """The texts of one latent's values of one sign. Those shown and those scored are of different documents."""

    latent: int
    sign: int
    shown: list[Text]
    """Texts that it fires on, to be explained: the strongest first, then some drawn at random."""
    near: list[Text]
    """Texts that it does not fire on, to be told from those: first those about a token that it fires on elsewhere."""
    firing: list[Text]
    """Texts that it fires on, to score explanations: drawn at random from all that it fires on."""
    silent: list[Text]
    """As many texts that it does not fire on; half of them about a token that it fires on elsewhere, where there are such."""


@dataclass(frozen=True)
class Pool:
    """W windows of T tokens drawn from a store, with all firings of all latents on them."""

    tokens: NDArray[np.int32]
    documents: NDArray[np.int32]
    positions: NDArray[np.int32]
    counted: NDArray[np.bool_]
    """Places [W, T] that `sae features` counts."""
    latents: NDArray[np.int64]
    """The latent of each firing, ascending."""
    rows: NDArray[np.int64]
    """Its place, window * T + column."""

    def fires(self, latent: int) -> NDArray[np.bool_]:
        """Return where a latent fires, with either sign [W, T]."""
        low, high = np.searchsorted(self.latents, (latent, latent + 1))
        found = np.zeros(self.tokens.size, bool)
        found[self.rows[low:high]] = True
        return found.reshape(self.tokens.shape)


def read_pool(run: Run, cfg: JudgeConfig) -> Pool:
    """Draw windows from up to four shards of the run's store, and encode them. Raises StoreError when the store is gone."""
    store, sae = run.store, run.sae().to(device())
    rng = np.random.default_rng((cfg.judge_seed, 0))
    numbers = np.sort(rng.permutation(len(store.shards))[:SHARDS])
    shares = np.array_split(np.arange(cfg.judge_windows), len(numbers))
    parts: list[tuple[Tensor, ...]] = []
    before = 0
    for number, share in zip(numbers.tolist(), shares, strict=True):
        shard = store.read(number, (run.hook,))
        n, context = shard.tokens.shape
        windows = torch.from_numpy(np.sort(rng.permutation(n)[: len(share)]))
        counted = store.rows(shard)[windows]
        places = counted.flatten().nonzero()[:, 0]
        firings = []
        for batch in places.split(BATCH):
            rows = windows[batch // context] * context + batch % context
            code = sae.encode(shard.rows(run.hook, rows).to(sae.device)).without_zeros()
            firings.append((code.indices.long().cpu(), batch[code.rows().cpu()] + before))
        latents, rows = (torch.cat(column) for column in zip(*firings, strict=True))
        held = shard.tokens[windows], shard.documents[windows], shard.positions[windows], counted
        parts.append((*held, latents, rows))
        before += counted.numel()
    tokens, documents, positions, counted, latents, rows = (
        torch.cat(column) for column in zip(*parts, strict=True)
    )
    order = latents.argsort(stable=True)
    held = tokens, documents, positions, counted, latents[order], rows[order]
    return Pool(*(part.numpy() for part in held))


def sheets(features: FeatureStore, pool: Pool, cfg: JudgeConfig) -> tuple[list[Sheet], list[int]]:
    """Return the texts of the latents that are asked for, in the order drawn, and the latents named that have too few.

    Latents drawn come in an order that does not depend on how many are drawn, so that more of them ask only what is new."""
    rng = np.random.default_rng((cfg.judge_seed, 1))
    if cfg.judge_only:
        for latent in cfg.judge_only:
            features.check_latent(latent)
        wanted, most = rng.permutation(np.unique(cfg.judge_only)), len(cfg.judge_only)
    else:
        wanted, most = rng.permutation(np.flatnonzero(features.table["fired"].to_numpy())), cfg.judge_latents
    made, too_few = [], []
    for latent in wanted.tolist():
        if len(made) == most:
            break
        sheet = _sheet(features, pool, latent, cfg)
        made += [sheet] if sheet else []
        too_few += [] if sheet else [latent]
    return made, sorted(too_few)


def _sheet(features: FeatureStore, pool: Pool, latent: int, cfg: JudgeConfig) -> Sheet | None:
    """Return a latent's texts; None where it has too few on which it fires, or too few on which it does not."""
    rng = np.random.default_rng((cfg.judge_seed, 2, latent))
    row = features.row(latent)
    share = row.get("positive_share")
    sign = 1 if ((row["mean"] or 0.0) >= 0 if share is None else share >= 0.5) else -1
    drawn = [example for example in features.sampled(latent) if sign * example.values[example.peak] > 0]
    drawn = [drawn[place] for place in rng.permutation(len(drawn))]
    strongest = _excerpts(features.strongest(latent, sign), sign, cfg)
    sampled, half = _excerpts(drawn, sign, cfg), cfg.judge_texts // 2
    shown = [text for text in strongest if _is_shown(text)][:STRONGEST]
    shown = _once([*shown, *[text for text in sampled if _is_shown(text)][:SAMPLED]])
    seen = {text.plain for text in shown}
    firing = [text for text in _once(sampled) if not _is_shown(text) and text.plain not in seen][:half]
    if len(shown) < LEAST_SHOWN or len(firing) < LEAST_FIRING:
        return None
    ids = np.unique([example.ids[example.peak] for example in drawn])
    fires = pool.fires(latent)
    near, others = (_silent(features, pool, fires, ids, rng, cfg, shows) for shows in (True, False))
    silent = others[: len(firing)]
    if len(silent) < len(firing):
        return None
    return Sheet(latent, sign, shown, near[:NEAR], firing, silent)


def _is_shown(text: Text) -> bool:
    """Whether a text belongs to the documents that are shown to be explained."""
    return bool(chooses(np.array([text.document]))[0])


def _once(texts: Sequence[Text]) -> list[Text]:
    return list({text.plain: text for text in reversed(texts)}.values())[::-1]


def _excerpts(examples: Sequence[Example], sign: int, cfg: JudgeConfig) -> list[Text]:
    """Return the piece around each example's peak."""
    found = []
    for example in examples:
        low, high = _ends(example.owners, example.peak, cfg)
        fires = tuple((sign * example.values[low:high] > 0).tolist())
        found.append(Text(tuple(example.tokens[low:high]), example.peak - low, fires, example.document))
    return found


def _ends(documents: NDArray[np.int32], centre: int, cfg: JudgeConfig) -> tuple[int, int]:
    """Return the first and last place of the piece around a token of a window, within the token's document."""
    after = cfg.judge_tokens // 3
    low, high = max(centre + after - cfg.judge_tokens, 0), min(centre + after, len(documents))
    same = documents == documents[centre]
    while not same[low]:
        low += 1
    while not same[high - 1]:
        high -= 1
    return low, high


def _silent(
    features: FeatureStore,
    pool: Pool,
    fires: NDArray[np.bool_],
    ids: NDArray[np.int32],
    rng: np.random.Generator,
    cfg: JudgeConfig,
    shown: bool,
) -> list[Text]:
    """Return texts on which a latent does not fire, of the documents that are shown or of those that are scored.

    Texts about a token that it fires on elsewhere, one of `ids`, and about others take turns, as far as there are any."""
    of_half = pool.counted & (chooses(pool.documents) == shown)
    alike = np.isin(pool.tokens, ids)
    half = max(NEAR, cfg.judge_texts // 2)
    kinds = []
    for chosen in (of_half & alike, of_half & ~alike):
        places = rng.permutation(np.flatnonzero(chosen))[:TRIED]
        kinds.append(_once([*_quiet(features, pool, fires, places.tolist(), half, cfg)]))
    near, other = kinds
    few = min(len(near), max(half // 2, half - len(other))) if not shown else len(near)
    mixed = [*near[:few], *other[: half - few]]
    return mixed if shown else [mixed[place] for place in rng.permutation(len(mixed))]


def _quiet(
    features: FeatureStore,
    pool: Pool,
    fires: NDArray[np.bool_],
    places: Sequence[int],
    most: int,
    cfg: JudgeConfig,
) -> Iterator[Text]:
    """Yield up to `most` pieces around the places on which the latent does not fire, of different windows."""
    used: set[int] = set()
    for place in places:
        window, column = divmod(place, pool.tokens.shape[1])
        if window in used:
            continue
        low, high = _ends(pool.documents[window], column, cfg)
        if fires[window, low:high].any():
            continue
        used.add(window)
        starts = (pool.positions[window, low:high] == 0).tolist()
        pieces = features.token_text.pieces(pool.tokens[window, low:high].tolist(), starts)
        yield Text(tuple(pieces), column - low, (False,) * (high - low), int(pool.documents[window, column]))
        if len(used) == most:
            return
