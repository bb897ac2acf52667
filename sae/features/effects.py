"""Measure what a latent does to the model: ablate it where it fires strongest and see how the next tokens change."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.disk import files
from activations.disk.schema import build, check, fits
from activations.errors import ConfigError, RunError, quoted
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from activations.views import Edit
from sae.architectures import SAE
from sae.features.folder import Example, FeaturesFolder
from sae.features.logit_lens import correlations, jacobian_effect, sees
from sae.runs.saved_sae import read_json

FORMAT = 1
FOLDER = "effects"
BATCH = 8  # windows run at once
BEFORE = 20  # tokens before the peak that an example keeps, for reading


class Word(NamedTuple):
    """A token of the vocabulary and by how much the latent's presence changes its log-probability, in nats."""

    text: str
    by: float


@dataclass(frozen=True)
class MeasuredExample:
    """One window, measured with the latent ablated at its peak."""

    document: int
    position: int
    """Position of the peak in that document, in tokens."""
    value: float
    """The latent's value at the peak, encoded anew."""
    kl: list[float]
    """KL(clean || ablated) of the next token, in nats, at the peak and at the positions after it."""
    tokens: list[str]
    """Text of the tokens from `BEFORE` before the peak to the last one whose prediction is measured."""
    peak: int
    """Position of the peak among `tokens`."""
    loss_change: list[float]
    """Loss of each of `tokens` without the latent minus its loss with it, in nats: above 0 where the latent helped to
    predict it. 0 up to the peak, because the peak itself is predicted before the ablation."""


@dataclass(frozen=True)
class SideEffect:
    """The effect of firing with one sign, as means over examples."""

    loss_change: list[float]
    """Mean change of the actual next token's loss, ablated minus clean, in nats, at the peak and each position after it."""
    counted: list[int]
    """Number of examples that each of these means is over: those whose document goes on that far."""
    kl: list[float]
    """Mean KL(clean || ablated) in nats at the same positions, over all examples whose window reaches that far."""
    up: list[Word]
    """Tokens that the latent's presence makes likelier at the peak, by the mean of clean minus ablated log-probability."""
    down: list[Word]
    pearson: float | None
    """Correlation over the vocabulary of that mean with the logit lens of the direction written, which is the negated
    decoder row for negative values. None where there is no lens, or nothing varies."""
    spearman: float | None
    examples: list[MeasuredExample]
    jacobian_spearman: float | None = None
    """Rank correlation with the Jacobian lens; None without one, and in effects measured by an older release."""


@dataclass(frozen=True)
class Effect:
    """The measured effect of a latent for each sign of its values; None for a sign without examples."""

    latent: int
    positive: SideEffect | None
    negative: SideEffect | None


@dataclass(frozen=True)
class EffectConfig:
    """Settings of a measured effect: the examples, and how many tokens after the peak are compared."""

    strongest: int = 6
    """Strongest examples of either sign."""
    sampled: int = 6
    """Examples of either sign drawn uniformly from all."""
    following: int = 3
    """Positions after the peak that are measured too."""
    words: int = 10
    """Tokens listed that become likelier, and as many that become less likely."""

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
    progress: Progress = no_progress,
    jacobian: Float[Tensor, "N D"] | None = None,
) -> Effect:
    """Ablate one latent at the peaks of its own examples and compare the model's next-token distributions.

    At the peak x becomes x - f W_dec[latent], where f is the latent's value there: the code with f set to 0 is decoded and the
    SAE's error is kept. Other positions stay. The windows of the features folder are cut off after the last position
    measured (later tokens have no influence) and run in batches, shortest first, once clean and once ablated. With a mean
    `jacobian` (`activations.jacobian`) the effect is compared with its lens too. Progress counts the windows; an exception
    that it raises ends the measurement."""
    cfg = cfg or EffectConfig()
    chosen = {sign: _examples(features, latent, sign, cfg) for sign in (1, -1)}
    lenses = lenses_of(model, sae, latent, jacobian)
    sides: list[SideEffect | None] = []
    with progress("effect", sum(map(len, chosen.values())), "examples") as advance:
        for sign, examples in chosen.items():
            rows = []
            for batch in _batches(examples):
                rows += _measure(model, sae, hook, latent, batch, cfg.following)
                advance(len(batch))
            sides.append(_side(rows, sign, lenses, features, cfg) if rows else None)
    return Effect(latent, *sides)


@torch.no_grad()
def effect_on_tokens(
    model: LanguageModel, sae: SAE, features: FeaturesFolder, hook: str, latent: int, cfg: EffectConfig
) -> Float[Tensor, "V"] | None:
    """Return how much a latent's presence raises each token's log-probability at its peaks, in nats: clean minus ablated, float64.

    It is the mean over the examples of its positive values or, for a latent without any, over those of its negative values
    with its sign turned, so that it compares with a lens of the decoder row. None for a latent without examples."""
    for sign in (1, -1):
        if batches := _batches(_examples(features, latent, sign, cfg)):
            rows = [row for batch in batches for row in _measure(model, sae, hook, latent, batch, 0)]
            return sign * torch.stack([row.by_presence for row in rows]).double().mean(0)
    return None


def load_effect(features: FeaturesFolder, latent: int) -> Effect | None:
    """Return the effect that was measured on these features, or None. Raises RunError when its file is damaged."""
    path = _path(features, latent)
    if not path.exists():
        return None
    fix = f"rm {quoted(path)}"  # then it is measured again when it is next asked for
    content = read_json(path, within=features.path, fix=fix)
    try:
        if content["format"] != FORMAT or content["features_sha256"] != features.digest:
            return None
        sides = (content[name] and _read_side(content[name]) for name in ("positive", "negative"))
        return Effect(content["latent"], *sides)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error!r}", fix=fix) from error


def save_effect(features: FeaturesFolder, effect: Effect) -> Path:
    """Write an effect beside the features it was measured on (FORMAT.md, effects/) and return its file."""
    path = _path(features, effect.latent)
    files.write_sealed(path, {"format": FORMAT, "features_sha256": features.digest, **asdict(effect)})
    return path


class _Row(NamedTuple):
    """The measurements of one example."""

    example: Example
    value: float
    by_presence: Float[Tensor, "V"]
    """Clean minus ablated log-probability of each token after the peak."""
    kl: list[float]
    loss_change: list[float]


def _examples(features: FeaturesFolder, latent: int, sign: int, cfg: EffectConfig) -> list[Example]:
    """Return the strongest examples of a sign, then sampled ones of that sign, evenly spaced by strength, without repeats."""
    strongest = features.strongest(latent, sign)[: cfg.strongest]
    seen = {(example.document, example.position) for example in strongest}
    sampled = [e for e in features.sampled(latent)[::sign] if sign * e.values[e.peak] > 0]
    others = [e for e in sampled if (e.document, e.position) not in seen]
    step = max(len(others) / max(cfg.sampled, 1), 1.0)
    spaced = [others[int(number * step)] for number in range(min(cfg.sampled, len(others)))]
    return strongest + spaced


def _batches(examples: Sequence[Example]) -> list[list[Example]]:
    by_length = sorted(examples, key=lambda example: example.peak)
    return [by_length[start : start + BATCH] for start in range(0, len(by_length), BATCH)]


def _measure(
    model: LanguageModel, sae: SAE, hook: str, latent: int, batch: Sequence[Example], following: int
) -> list[_Row]:
    """Run a batch clean and ablated, and compare the predictions at the peak and the positions after it."""
    peaks = torch.tensor([example.peak for example in batch])
    width = len(batch[0].ids)
    reach = min(int(peaks.max()) + following + 1, width)
    tokens = torch.stack([torch.from_numpy(example.ids[:reach]).long() for example in batch])
    values = torch.zeros(len(batch), dtype=torch.float64)
    each = torch.arange(len(batch))[:, None]
    # positions beyond the batch's last are clamped here and cut off below
    positions = (peaks[:, None] + torch.arange(following + 1)).clamp_max(reach - 1)
    clean, ablated = (
        _log_probabilities(model.logits(tokens, {hook: edit})[each, positions])
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
    """Return the edit that ablates the latent at each window's peak. It stores the latent's values there in `values`."""

    def edit(x: Tensor) -> Tensor:
        each = torch.arange(len(peaks))
        at_peaks = x[each, peaks]
        value = sae.encode(at_peaks.to(sae.W_dec)).of(latent)
        values.copy_(value)
        out = x.clone()
        out[each, peaks] = at_peaks - (value[:, None] * sae.W_dec[latent]).to(x)
        return out

    return edit


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).cpu()


def _targets(example: Example, following: int) -> list[int]:
    """Return the ids of the tokens after the peak, up to 1 + following, until the document ends."""
    ahead = slice(example.peak + 1, example.peak + following + 2)
    owned = example.owners[ahead] == example.document
    return example.ids[ahead][owned.cumprod().astype(bool)].tolist()


def lenses_of(
    model: LanguageModel, sae: SAE, latent: int, jacobian: Float[Tensor, "N D"] | None
) -> tuple[Float[Tensor, "V"] | None, Float[Tensor, "V"] | None]:
    """Return the logit lens and the Jacobian lens of a latent's decoder row, float64, each None where there is none."""
    row = sae.W_dec[latent][None]
    direct = model.vocabulary_effect(row)[0].double().cpu() if sees(model, sae.d_model) else None
    through = None if jacobian is None else jacobian_effect(model, row, jacobian)[0].double().cpu()
    return direct, through


def _side(
    rows: Sequence[_Row],
    sign: int,
    lenses: Sequence[Float[Tensor, "V"] | None],
    features: FeaturesFolder,
    cfg: EffectConfig,
) -> SideEffect:
    by, known = torch.stack([row.by_presence for row in rows]).double().mean(0), features.token_text.known
    known = known[known < len(by)]
    by, names = by[known], [features.vocabulary[token] for token in known.tolist()]
    high, low = (side.topk(min(cfg.words, len(by))).indices.tolist() for side in (by, -by))
    loss, counted = _means([row.loss_change for row in rows])
    direct, through = (correlations(by, None if lens is None else sign * lens[known]) for lens in lenses)
    return SideEffect(
        loss,
        counted,
        _means([row.kl for row in rows])[0],
        [Word(names[place], float(by[place])) for place in high],
        [Word(names[place], float(by[place])) for place in low],
        *direct,
        [_for_reading(row) for row in sorted(rows, key=lambda row: -abs(row.value))],
        through[1],
    )


def _means(lists: Sequence[Sequence[float]]) -> tuple[list[float], list[int]]:
    """Return the mean at each index of lists of different lengths, and how many lists reach it."""
    columns = [[row[i] for row in lists if len(row) > i] for i in range(max(map(len, lists)))]
    return [sum(column) / len(column) for column in columns], [len(column) for column in columns]


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


def _read_side(side: Any) -> SideEffect:
    """Build the effect of one sign from its JSON. Raises KeyError, TypeError or AttributeError where it does not fit."""
    words = {name: [_read_word(pair) for pair in side[name]] for name in ("up", "down")}
    examples = [build(MeasuredExample, example) for example in side["examples"]]
    for example in examples:
        if not (example.kl and 0 <= example.peak < len(example.tokens) == len(example.loss_change)):
            raise TypeError("an example's lists have different lengths")
    content = {**side, **words, "examples": examples}
    check(SideEffect, content)
    if not side["kl"] or (side["pearson"] is None) != (side["spearman"] is None):
        raise TypeError("it has no KL, or one correlation without the other")
    return SideEffect(**content)


def _read_word(pair: Any) -> Word:
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and fits(pair[1], float)):
        raise TypeError(f"{pair!r} is not a token with a number")
    return Word(*pair)
