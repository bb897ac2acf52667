"""What a latent does to the model, measured: taken out where it fires strongest, how the next tokens change."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.disk import files
from activations.disk.schema import build, check, fits
from activations.errors import ConfigError, RunError
from activations.language_model import LanguageModel
from activations.views import Edit
from sae.architectures import SAE
from sae.features.folder import Example, FeaturesFolder
from sae.features.logit_lens import sees
from sae.runs.saved_sae import read_json

FORMAT = 1
FOLDER = "effects"
BATCH = 8  # windows run at once
BEFORE = 20  # tokens before the peak kept of an example, for reading


class Word(NamedTuple):
    """A token of the vocabulary and how far the latent's presence moves its log-probability, in nats."""

    text: str
    by: float


@dataclass(frozen=True)
class MeasuredExample:
    """One window with the latent taken out at its peak."""

    document: int
    position: int
    """Place of the peak in that document, in tokens."""
    value: float
    """The latent's value at the peak, as the SAE sees it now."""
    kl: list[float]
    """KL(clean || ablated) of the next token, in nats, at the peak and at the positions after it."""
    tokens: list[str]
    """Text from a little before the peak on to the last token that is predicted."""
    peak: int
    """Place of the peak among them."""
    loss_change: list[float]
    """Loss of each of these tokens without the latent, less its loss with it, in nats: above 0 where the latent helped
    to predict it. 0 up to the peak, whose own prediction comes before it."""


@dataclass(frozen=True)
class SideEffect:
    """What firing with one sign does, as means over its examples."""

    loss_change: list[float]
    """Of the actual next token, in nats, ablated less clean, at the peak and at each position after it; see `counted`."""
    counted: list[int]
    """Examples whose text goes on that far in the same document."""
    kl: list[float]
    """KL(clean || ablated), in nats, at the same positions, over all examples that reach so far."""
    up: list[Word]
    """Tokens made likelier by the latent's presence at the peak: mean of clean less ablated log-probability."""
    down: list[Word]
    pearson: float | None
    """Correlation over the vocabulary of that mean with what the logit lens says of the direction it then writes
    (turned round for negative values). None where there is no lens, or nothing varies."""
    spearman: float | None
    examples: list[MeasuredExample]


@dataclass(frozen=True)
class Effect:
    """The measured effect of a latent, for either sign of its values; None for a sign it never shows."""

    latent: int
    positive: SideEffect | None
    negative: SideEffect | None


@dataclass(frozen=True)
class EffectConfig:
    """How to measure."""

    strongest: int = 6
    """Strongest examples of either sign."""
    sampled: int = 6
    """Examples of either sign drawn uniformly from all."""
    following: int = 3
    """Positions after the peak that are looked at too."""
    words: int = 10
    """Tokens listed at either end."""

    def __post_init__(self) -> None:
        for name, least in (("strongest", 1), ("sampled", 0), ("following", 0), ("words", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least {least}")


@torch.no_grad()
def measure_effect(
    model: LanguageModel,
    sae: SAE,
    features: FeaturesFolder,
    hook: str,
    latent: int,
    cfg: EffectConfig | None = None,
    on_done: Callable[[int, int], None] = lambda done, of: None,
) -> Effect:
    """Ablate one latent at the peaks of its own examples and compare the model's next-token distributions.

    At the peak x becomes x - f W_dec[latent], f being what `sae` gives there: the code with f set to 0, the SAE's
    error kept. Other positions stay. Windows are those of the features folder, cut off behind the last position
    looked at (what comes after has no influence) and run in batches, shortest first, each once as it is and once ablated.
    `on_done` hears how many windows of how many are done; what it raises ends the measurement."""
    cfg = cfg or EffectConfig()
    chosen = {sign: _examples(features, latent, sign, cfg) for sign in (1, -1)}
    total, done = sum(map(len, chosen.values())), 0
    lens = _lens(model, sae, latent)
    sides: list[SideEffect | None] = []
    for sign, examples in chosen.items():
        rows = []
        for batch in _batches(examples):
            rows += _measure(model, sae, hook, latent, batch, cfg.following)
            done += len(batch)
            on_done(done, total)
        sides.append(_side(rows, sign, lens, features, cfg) if rows else None)
    return Effect(latent, *sides)


def load_effect(features: FeaturesFolder, latent: int) -> Effect | None:
    """The effect measured before on these very features, or None. Raises RunError when its file is damaged."""
    path = _path(features, latent)
    if not path.exists():
        return None
    fix = f"rm {path}"  # then it is measured again when it is next asked for
    about = read_json(path, within=features.path, fix=fix)
    try:
        if about["format"] > FORMAT or about["features_sha256"] != features.digest:
            return None
        sides = (about[name] and _read_side(about[name]) for name in ("positive", "negative"))
        return Effect(about["latent"], *sides)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error!r}", fix=fix) from error


def save_effect(features: FeaturesFolder, effect: Effect) -> Path:
    """Keep an effect next to the features it was measured on; returns its file (FORMAT.md)."""
    path = _path(features, effect.latent)
    files.write_sealed(path, {"format": FORMAT, "features_sha256": features.digest, **asdict(effect)})
    return path


class _Row(NamedTuple):
    """What one example gives: changes in log-probability at the peak [V], and by position."""

    example: Example
    value: float
    by_presence: Float[Tensor, "V"]
    kl: list[float]
    loss_change: list[float]


def _examples(features: FeaturesFolder, latent: int, sign: int, cfg: EffectConfig) -> list[Example]:
    """The strongest examples of a sign, then sampled ones of that sign that are not among them."""
    strongest = features.strongest(latent, sign)[: cfg.strongest]
    seen = {(example.document, example.position) for example in strongest}
    sampled = [e for e in features.sampled(latent)[::sign] if sign * e.values[e.peak] > 0]
    others = [e for e in sampled if (e.document, e.position) not in seen]
    step = max(len(others) / max(cfg.sampled, 1), 1.0)
    spaced = [others[int(place * step)] for place in range(min(cfg.sampled, len(others)))]
    return strongest + spaced


def _batches(examples: Sequence[Example]) -> list[list[Example]]:
    by_length = sorted(examples, key=lambda example: example.peak)
    return [by_length[start : start + BATCH] for start in range(0, len(by_length), BATCH)]


def _measure(
    model: LanguageModel, sae: SAE, hook: str, latent: int, batch: Sequence[Example], following: int
) -> list[_Row]:
    """Run a batch as it is and ablated, and compare at the peak and the positions after it."""
    peaks = torch.tensor([example.peak for example in batch])
    width = len(batch[0].ids)
    reach = min(int(peaks.max()) + following + 1, width)
    tokens = torch.stack([torch.from_numpy(example.ids[:reach]).long() for example in batch])
    values = torch.zeros(len(batch), dtype=torch.float64)
    each = torch.arange(len(batch))[:, None]
    places = (peaks[:, None] + torch.arange(following + 1)).clamp_max(reach - 1)
    clean, ablated = (
        _log_probabilities(model.logits(tokens, {hook: edit})[each, places])
        for edit in (lambda x: x, _ablation(sae, latent, peaks, values))
    )
    kl = (clean.exp() * (clean - ablated)).sum(-1)
    return [
        _Row(
            example,
            float(values[i]),
            clean[i, 0] - ablated[i, 0],
            kl[i, : width - example.peak].tolist(),
            [
                float(clean[i, step, t] - ablated[i, step, t])
                for step, t in enumerate(_targets(example, following))
            ],
        )
        for i, example in enumerate(batch)
    ]


def _ablation(sae: SAE, latent: int, peaks: Int[Tensor, "n"], values: Float[Tensor, "n"]) -> Edit:
    """The edit that takes the latent out at each window's peak; leaves its values there in `values`."""

    def edit(x: Tensor) -> Tensor:
        each = torch.arange(len(peaks))
        there = x[each, peaks]
        value = sae.encode(there.to(sae.W_dec)).of(latent)
        values.copy_(value)
        out = x.clone()
        out[each, peaks] = there - (value[:, None] * sae.W_dec[latent]).to(x)
        return out

    return edit


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).cpu()


def _targets(example: Example, following: int) -> list[int]:
    """Ids of the tokens after the peak, as far as they are of the same document; 1 + following at most."""
    ahead = slice(example.peak + 1, example.peak + following + 2)
    owned = example.owners[ahead] == example.document
    return example.ids[ahead][owned.cumprod().astype(bool)].tolist()


def _lens(model: LanguageModel, sae: SAE, latent: int) -> Float[Tensor, "V"] | None:
    if not sees(model, sae.d_model):
        return None
    return model.vocabulary_effect(sae.W_dec[latent][None])[0].double().cpu()


def _side(
    rows: Sequence[_Row],
    sign: int,
    lens: Float[Tensor, "V"] | None,
    features: FeaturesFolder,
    cfg: EffectConfig,
) -> SideEffect:
    by, known = torch.stack([row.by_presence for row in rows]).double().mean(0), features.token_text.known
    known = known[known < len(by)]
    by, names = by[known], [features.vocabulary[token] for token in known.tolist()]
    high, low = (side.topk(min(cfg.words, len(by))).indices.tolist() for side in (by, -by))
    loss, counted = _means([row.loss_change for row in rows])
    pearson, spearman = _correlations(by, None if lens is None else sign * lens[known])
    return SideEffect(
        loss,
        counted,
        _means([row.kl for row in rows])[0],
        [Word(names[place], float(by[place])) for place in high],
        [Word(names[place], float(by[place])) for place in low],
        pearson,
        spearman,
        [_for_reading(row) for row in sorted(rows, key=lambda row: -abs(row.value))],
    )


def _means(lists: Sequence[Sequence[float]]) -> tuple[list[float], list[int]]:
    """Mean at each place of lists of different lengths, and how many reach it."""
    columns = [[row[place] for row in lists if len(row) > place] for place in range(max(map(len, lists)))]
    return [sum(column) / len(column) for column in columns], [len(column) for column in columns]


def _correlations(by: Float[Tensor, "V"], lens: Tensor | None) -> tuple[float | None, float | None]:
    """Pearson's and Spearman's, None where there is nothing to compare or one of the two is constant."""
    from scipy.stats import rankdata

    if lens is None or not by.std() > 0 or not lens.std() > 0:
        return None, None
    ranks = [torch.from_numpy(rankdata(column.numpy())) for column in (by, lens)]
    pairs = ((by, lens), ranks)
    pearson, spearman = (float(torch.corrcoef(torch.stack([*pair]))[0, 1]) for pair in pairs)
    return pearson, spearman


def _for_reading(row: _Row) -> MeasuredExample:
    example = row.example
    start, stop = max(example.peak - BEFORE, 0), example.peak + 1 + len(row.loss_change)
    changes = [0.0] * (example.peak + 1 - start) + row.loss_change
    return MeasuredExample(
        example.document,
        example.position,
        row.value,
        row.kl,
        example.tokens[start:stop],
        example.peak - start,
        changes,
    )


def _path(features: FeaturesFolder, latent: int) -> Path:
    return features.path / FOLDER / f"{latent}.json"


def _read_side(about: dict[str, Any]) -> SideEffect:
    words = {name: [_read_word(pair) for pair in about[name]] for name in ("up", "down")}
    examples = [build(MeasuredExample, example) for example in about["examples"]]
    for example in examples:
        if not (example.kl and 0 <= example.peak < len(example.tokens) == len(example.loss_change)):
            raise TypeError("an example's lists do not go together")
    content = {**about, **words, "examples": examples}
    check(SideEffect, content)
    if not about["kl"] or (about["pearson"] is None) != (about["spearman"] is None):
        raise TypeError("its numbers do not go together")
    return SideEffect(**content)


def _read_word(pair: Any) -> Word:
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and fits(pair[1], float)):
        raise TypeError(f"{pair!r} is no token with a number")
    return Word(*pair)
