"""Steer in several ways at equal strength, and measure each alike: the texts it writes, and what it does to unrelated text."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.errors import SKLEARN_SEED, ConfigError, check_seed
from activations.generation import PlacedEdit, Sampling, generate
from activations.language_model import LanguageModel
from sae.steering.measure import divergence, log_probabilities, own, repetition

ArmName = Literal["latent", "difference", "probe", "wrong sign", "prompt", "random"]
ARMS: tuple[ArmName, ...] = get_args(ArmName)
ROWS = 48  # texts written side by side; more gain little speed
LEAST_RANDOM = 3  # directions whose spread says how much chance does
STARTS = ("I think that", "The", "Yesterday,", "Here is")


@dataclass(frozen=True)
class ArmsConfig:
    """What the arms of a comparison have in common: strengths, texts, examples."""

    shares: tuple[float, ...] = (0.15, 0.3, 0.6)
    """Strengths: how far an arm moves every activation, as a share of the activations' root mean square norm."""
    directions: int = 8
    """Random directions; their spread says how large a difference chance makes. At least 3."""
    starts: tuple[str, ...] = STARTS
    """Beginnings of the texts, which say nothing of any concept."""
    draws: int = 3
    """Texts written for each beginning, each with noise of its own, which is the same for every arm."""
    new_tokens: int = 16
    """Tokens written for each text."""
    unrelated_windows: int = 6
    """Passages of held-out text of the run's store on which the predictions are compared, each of one document."""
    window_tokens: int = 32
    """Tokens of each of these passages; fewer where the store's documents are shorter."""
    labelled: int = 240
    """Labelled texts used of a concept at most, half of each class."""
    labelled_tokens: int = 64
    """Tokens read of a labelled text, the BOS included: the last ones, where a text has more."""
    shot_tokens: int = 16
    """Tokens of each example in the prompt arm; its n-th strength has n examples."""
    arms_seed: int = 0
    """Seed of the parts of the labelled texts, of the random directions and of the texts."""

    def __post_init__(self) -> None:
        if not self.shares or not all(math.isfinite(share) and share > 0 for share in self.shares):
            raise ConfigError(f"shares = {self.shares} must be numbers above 0")
        if len({*self.shares}) < len(self.shares):
            raise ConfigError(f"shares = {self.shares}: each must be given once")
        for name, least in (("directions", LEAST_RANDOM), ("draws", 1), ("new_tokens", 1), ("unrelated_windows", 1),
                            ("window_tokens", 2), ("labelled", 40), ("labelled_tokens", 2), ("shot_tokens", 1)):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least {least}")
        if not self.starts or not all(start.strip() for start in self.starts):
            raise ConfigError(f"starts = {self.starts}: give at least one beginning, and none that is blank")
        if len(self.starts) * self.draws < 2:
            raise ConfigError("starts times draws makes one text: an interval needs at least two")
        check_seed(self.arms_seed, "arms_seed", SKLEARN_SEED)


class Push(NamedTuple):
    """One arm at one strength: a vector that is added to every activation, or tokens that are put before the prompt."""

    vector: Float[Tensor, "D"] | None = None
    prefix: tuple[int, ...] = ()


NOTHING = Push()


class Bench(NamedTuple):
    """What every push is measured with."""

    hook: str
    first: tuple[int, ...]
    """Ids that every text begins with, such as the BOS. They are never steered."""
    starts: tuple[tuple[int, ...], ...]
    """Ids of each beginning, without `first`."""
    sampling: Sampling
    seeds: tuple[tuple[int, ...], ...]
    """One for each text of each beginning, as many for all of them. Every push has the same."""
    windows: Int[Tensor, "W T"]
    """Unrelated text, without `first`."""

    @property
    def unmoved(self) -> int:
        """Positions at the beginning of a text that are neither steered nor compared: those of `first`, and at least one.

        Models use the first position as an attention sink, whose norm is far above that of others, whatever token is there."""
        return max(1, len(self.first))

    def key(self, weights: str, push: Push) -> str:
        """Return a name for what is measured of a push, with the weights of that hash: different pushes have different names."""
        told = (
            weights,
            self.hook,
            self.first,
            self.starts,
            self.sampling,
            self.seeds,
            self.windows.tolist(),
            push.prefix,
        )
        vector = b"" if push.vector is None else push.vector.float().numpy().tobytes()
        return hashlib.sha256(repr(told).encode() + vector).hexdigest()[:24]


class Outcome(NamedTuple):
    """What a push did. Texts are in the order of the beginnings, for each of them in the order of the seeds."""

    pooled: Float[Tensor, "n D"]
    """Mean activation over each text's new tokens, where the model reads it after its beginning without the push."""
    nll: Float[Tensor, "n"]
    """Mean negative log-probability of each text's new tokens in the same reading, nats a token."""
    repetition: Float[Tensor, "n"]
    """Share of each text's runs of three tokens that occurred earlier in it."""
    kl: Float[Tensor, "W"]
    """Mean KL(without || with the push) of next-token predictions in each unrelated window, nats; without `first`, its first
    position is left out."""
    texts: list[list[int]]
    """New tokens of each text."""


@torch.no_grad()
def unsteered(model: LanguageModel, bench: Bench) -> Float[Tensor, "W P V"]:
    """Return the log-probabilities of the next token at the positions of the unrelated windows that are compared, without a push.

    These are all T positions of a window, or with an empty `bench.first` all but its first."""
    return _predicted(model, bench, NOTHING)


@torch.no_grad()
def measure(
    model: LanguageModel,
    bench: Bench,
    pushes: Sequence[Push],
    clean: Float[Tensor, "W P V"],
    on_tokens: Callable[[int], None] = lambda n: None,
) -> list[Outcome]:
    """Measure pushes that have the same prefix, side by side. `clean` is what `unsteered` returns.

    `on_tokens` is called with the number of tokens that have been written since the last call, where a text that ends early counts
    as whole; an exception that it raises ends the work. Raises GenerationError where the model's predictions overflow or texts do not fit it."""
    (prefix,) = {push.prefix for push in pushes}
    edits = _added(pushes, bench.unmoved)
    rows = len(bench.seeds[0]) * len(pushes)  # texts of a beginning, side by side
    by_start: list[list[tuple[list[int], Tensor, float]]] = []
    for start, seeds in zip(bench.starts, bench.seeds, strict=True):
        prompt = [*bench.first, *prefix, *start]
        texts = generate(
            model,
            prompt,
            {bench.hook: edits},
            bench.sampling,
            seeds * len(pushes),
            on_token=lambda count: on_tokens(rows),
        )
        on_tokens(rows * (bench.sampling.tokens - max(map(len, texts))))
        by_start.append(_read(model, bench.hook, [*bench.first, *start], texts))
    outcomes = []
    for number, push in enumerate(pushes):
        draws = len(bench.seeds[0])
        own = [row for start in by_start for row in start[number * draws : (number + 1) * draws]]
        kl = kl_of(model, bench, push, clean)
        on_tokens(0)
        texts, pooled, nll = zip(*own, strict=True)
        repeated = torch.tensor([repetition(text) for text in texts], dtype=torch.float32)
        outcomes.append(Outcome(torch.stack(pooled), torch.tensor(nll), repeated, kl, [*texts]))
    return outcomes


@torch.no_grad()
def kl_of(
    model: LanguageModel, bench: Bench, push: Push, clean: Float[Tensor, "W P V"]
) -> Float[Tensor, "W"]:
    """Return the mean KL(without || with the push) of next-token predictions in each unrelated window, nats."""
    changed = _predicted(model, bench, push)
    return torch.stack([divergence(*pair).mean() for pair in zip(clean, changed, strict=True)]).float()


def _added(pushes: Sequence[Push], unmoved: int) -> PlacedEdit:
    """Return an edit that adds each push's vector to its own share of a batch's rows, but not at the first `unmoved` positions."""
    vectors = [push.vector for push in pushes]

    def edit(x: Tensor, first: int = 0) -> Tensor:
        moved = (torch.arange(first, first + x.shape[1]) >= unmoved).to(x)[None, :, None]
        parts = [
            rows if vector is None else rows + moved * vector.to(rows)
            for rows, vector in zip(x.chunk(len(vectors)), vectors, strict=True)
        ]
        return torch.cat(parts)

    return edit


def _read(
    model: LanguageModel, hook: str, prompt: Sequence[int], texts: Sequence[Sequence[int]]
) -> list[tuple[list[int], Tensor, float]]:
    """Return each text with its mean activation and its mean negative log-probability, read by the model as it is."""
    seen: list[Tensor] = []

    def record(x: Tensor, first: int = 0) -> Tensor:
        seen.append(x)
        return x

    predicted = log_probabilities(model, prompt, texts, {hook: record})
    new = seen[0][:, len(prompt) :].float().cpu()
    return [
        ([*text], new[row, : len(text)].mean(0), -own(log_p, text).mean().item())
        for row, (text, log_p) in enumerate(zip(texts, predicted, strict=True))
    ]


def _predicted(model: LanguageModel, bench: Bench, push: Push) -> Float[Tensor, "W P V"]:
    """Return the log-probabilities of the next token at the positions of the windows that are compared, with a push."""
    before = torch.tensor([*bench.first, *push.prefix], dtype=torch.long).expand(len(bench.windows), -1)
    edits = None if push.vector is None else {bench.hook: _added([push], bench.unmoved)}
    compared_from = bench.unmoved + len(push.prefix)
    logits = model.logits(torch.cat([before, bench.windows], 1), edits)[:, compared_from:]
    return logits.float().log_softmax(-1).cpu()
