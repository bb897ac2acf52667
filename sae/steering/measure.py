"""Measure steered texts: how much of the steered concept they hold and at what cost, beside the unsteered model's texts, token by token."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from activations.generation import PlacedEdit, Sampling, check_logits, generate
from activations.language_model import LanguageModel
from activations.progress import Advance, Progress, no_progress
from sae.steering.steering import Steering, check_positions, remarks

# Larger perplexities are reported as this one: the standard deviation over texts squares them, and float64 ends at 1.8e308.
LARGEST_PERPLEXITY = 1e100
NGRAM = 3  # tokens in the runs whose repetition is counted


class Measures(NamedTuple):
    """Measures of one text that the steered model wrote after a prompt. Means are over its new tokens and over the latents."""

    concept: float
    """Strength of the concept in the text. The unsteered model reads the text and the SAE encodes its activations: the
    mean of the latent's value as a share of its largest on the corpus, signed. The intervention itself is not seen."""
    fires: float
    """In the same reading, the share of tokens on which the latent is not zero."""
    peak: float
    """In the same reading, the value of largest size as a share of the largest on the corpus, signed."""
    peak_gain: float | None
    """Mean over the positions of the unsteered text of how much steering raises the log-probability of the tokens that
    the latent peaks on, for the sign in which it is stronger (nats). None where those tokens are not known."""
    kl: float
    """Mean KL(unsteered || steered) of next-token predictions along the unsteered text, nats. The text is the same for
    every strength, so the numbers are comparable. At least 0, and 0 where steering does nothing."""
    perplexity: float
    """Perplexity of the text under the unsteered model: exp of the mean negative log-probability per token."""
    repetition: float
    """Share of the text's runs of three tokens that occurred earlier in it; 0 for a text of fewer than three tokens."""
    distinct: float
    """Number of different tokens as a share of all tokens."""


class Read(NamedTuple):
    """A text of n new tokens, read by the unsteered model."""

    log_probabilities: Float[Tensor, "n V"]
    """Log-probabilities of every possible next token, at the position before each new token."""
    own: Float[Tensor, "n"]
    """Log-probabilities of the text's own tokens; float64."""
    concept: float
    fires: float
    peak: float
    passing: Float[Tensor, "T D"]
    """Activations at the hook point over the prompt and the text."""


@torch.no_grad()
def read(
    model: LanguageModel, steering: Steering, prompt: Sequence[int], texts: Sequence[Sequence[int]]
) -> list[Read]:
    """Read texts that follow a prompt with the unsteered model, and encode the activations at the hook point."""
    activations: list[Tensor] = []

    def record(x: Tensor, first: int = 0) -> Tensor:
        activations.append(x)
        return x

    predicted = log_probabilities(model, prompt, texts, {steering.hook: record})
    reads = []
    for row, (text, log_p) in enumerate(zip(texts, predicted, strict=True)):
        passing = activations[0][row, : len(prompt) + len(text)]
        reads.append(Read(log_p, own(log_p, text), *_concept(steering, passing[len(prompt) :]), passing))
    return reads


def log_probabilities(
    model: LanguageModel,
    prompt: Sequence[int],
    texts: Sequence[Sequence[int]],
    edits: dict[str, PlacedEdit] | None = None,
) -> list[Float[Tensor, "n V"]]:
    """Return, for each text, log-probabilities of the next token at the position before each of its n tokens.

    The tensors are on the CPU. Raises GenerationError when logits are not finite."""
    longest = max(map(len, texts))
    # Shorter texts are padded at the end, where causal attention hides the padding from every position that counts.
    rows = [[*prompt, *text, *[text[-1]] * (longest - len(text))] for text in texts]
    logits = model.logits(torch.tensor(rows), edits)[:, len(prompt) - 1 : -1]
    check_logits(logits)
    return [row[: len(text)].float().log_softmax(-1).cpu() for row, text in zip(logits, texts, strict=True)]


def own(log_p: Float[Tensor, "n V"], text: Sequence[int]) -> Float[Tensor, "n"]:
    """Return the log-probability of each of a text's own tokens, float64."""
    return log_p.gather(1, torch.tensor(text)[:, None])[:, 0].double()


def divergence(clean: Float[Tensor, "n V"], changed: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
    """Return KL(clean || changed) of predictions given as log-probabilities, in nats, float64, at least 0."""
    # Two nearly equal predictions have a KL of 0 up to rounding, which may fall below 0.
    return F.kl_div(changed.double(), clean.double(), reduction="none", log_target=True).sum(-1).clamp_min(0)


def perplexity(log_probability: Float[Tensor, "n"]) -> float:
    """Return exp of the mean negative log-probability of a text's tokens, at most LARGEST_PERPLEXITY."""
    return math.exp(min(-log_probability.mean().item(), math.log(LARGEST_PERPLEXITY)))


def repetition(tokens: Sequence[int], n: int = NGRAM) -> float:
    """Return the share of the runs of n tokens that occurred earlier in the text; 0 for a text without such runs."""
    runs = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def measures(
    text: Sequence[int],
    seen: Read,
    steering: Steering,
    before: Float[Tensor, "n V"],
    after: Float[Tensor, "n V"],
) -> Measures:
    """Compute all measures of a text from its reading `seen`.

    `before` and `after` are the log-probabilities along the unsteered text, predicted by the unsteered and by the steered
    model."""
    # The mean over each latent's own tokens first: a latent that peaks on more of them counts no more than the others
    peaks = [own for latent in steering.latents if (own := steering.calibration.peaks.get(latent))]
    gains = [(after[:, own].double() - before[:, own].double()).mean().item() for own in peaks]
    return Measures(
        concept=seen.concept,
        fires=seen.fires,
        peak=seen.peak,
        peak_gain=statistics.fmean(gains) if gains else None,
        kl=divergence(before, after).mean().item(),
        perplexity=perplexity(seen.own),
        repetition=repetition(text),
        distinct=len(set(text)) / len(text),
    )


def _concept(steering: Steering, x: Float[Tensor, "n D"]) -> tuple[float, float, float]:
    """Return `concept`, `fires` and `peak` of `Measures`. The value of a latent that never fired on the corpus is not
    divided by anything."""
    code = steering.sae.encode(x.float().to(steering.sae.device))
    values = torch.stack([code.of(latent) for latent in steering.latents], 1).double().cpu()
    shares = values / torch.tensor(
        [steering.calibration.largest(latent) or 1.0 for latent in steering.latents]
    )
    peak = shares.gather(0, shares.abs().argmax(0, keepdim=True))
    return shares.mean().item(), (values != 0).double().mean().item(), peak.mean().item()


class Text(NamedTuple):
    """A continuation and how both models predict it. Every list has one entry per new token."""

    tokens: list[int]
    text: str
    """The decoded tokens, without special tokens."""
    log_probability: list[float]
    """Log-probability of each token under the unsteered model, nats."""
    steered_log_probability: list[float]
    """Log-probability of each token under the steered model, nats."""
    kl: list[float]
    """KL(unsteered || steered) of the prediction of each token, nats."""
    measures: Measures

    @property
    def change(self) -> list[float]:
        """The change of each token's log-probability by steering, in nats."""
        return [s - c for s, c in zip(self.steered_log_probability, self.log_probability, strict=True)]


class Comparison(NamedTuple):
    """The unsteered and the steered continuation of one seed."""

    seed: int
    baseline: Text
    """The unsteered model's text. Its measures are those of a steering that does nothing."""
    steered: Text
    remarks: list[str]
    """Parts of the steering that had no effect, one line each: positions that do not occur, latents that never fire."""

    def to_json(self) -> dict[str, object]:
        """Return both texts with all their numbers as JSON content."""
        texts = {name: getattr(self, name) for name in ("baseline", "steered")}
        content = {
            name: text._asdict() | {"measures": text.measures._asdict()} for name, text in texts.items()
        }
        return {"seed": self.seed, **content, "remarks": self.remarks}


class Draft(NamedTuple):
    """The token ids that are written so far, a list for each seed; the steered texts begin when the unsteered are done."""

    baseline: list[list[int]]
    steered: list[list[int]]


@contextmanager
def writing(advance: Advance, tokens: int, note: str) -> Iterator[Callable[[int], None]]:
    """Count the tokens of the texts that are written side by side in the block, under a note.

    Yield what `generate` calls with the number of tokens written so far. Texts that end early count as whole at the end."""
    written = 0

    def on_token(count: int) -> None:
        nonlocal written
        advance(count - written, note=note)
        written = count

    advance(0, note=note)
    yield on_token
    advance(tokens - written, note=note)


def compare(
    model: LanguageModel,
    steering: Steering,
    prompt: Sequence[int],
    sampling: Sampling,
    seeds: Sequence[int] = (0,),
    progress: Progress = no_progress,
    on_draft: Callable[[Draft], None] = lambda draft: None,
) -> list[Comparison]:
    """Continue a prompt unsteered and steered, once per seed; both texts of a seed are drawn with the same noise.

    Progress counts the tokens of a text, once unsteered and once steered; `on_draft` gets both texts after every token. An
    exception that either raises ends the work. Raises ConfigError when none of the positions that occur is steered, or when activations overflow."""
    check_positions(steering, len(prompt), sampling.tokens)
    edits = steering.edits(len(prompt))
    with progress("steer", 2 * sampling.tokens, "tokens") as advance:
        with writing(advance, sampling.tokens, "as it is") as on_token:
            plain = generate(
                model,
                prompt,
                None,
                sampling,
                seeds,
                on_token,
                on_texts=lambda texts: on_draft(Draft(texts, [[] for _ in seeds])),
            )
        with writing(advance, sampling.tokens, "steered") as on_token:
            changed = generate(
                model,
                prompt,
                edits,
                sampling,
                seeds,
                on_token,
                on_texts=lambda texts: on_draft(Draft(plain, texts)),
            )
            advance(0, note="reading")
            return _compared(model, steering, prompt, seeds, plain, changed, sampling.tokens)


def _compared(
    model: LanguageModel,
    steering: Steering,
    prompt: Sequence[int],
    seeds: Sequence[int],
    plain: list[list[int]],
    changed: list[list[int]],
    tokens_asked: int,
) -> list[Comparison]:
    """Read the unsteered and the steered texts of all seeds with and without steering, and measure them."""
    token_lists = [*plain, *changed]
    clean = read(model, steering, prompt, token_lists)
    after = log_probabilities(model, prompt, token_lists, steering.edits(len(prompt)))
    texts = []
    for index, tokens in enumerate(token_lists):
        # `token_lists` holds the unsteered texts of all seeds, then the steered ones. peak_gain and KL of a text's
        # measures are taken along the unsteered text of its seed, so that they compare across strengths; an unsteered
        # text is compared with itself and gets 0.
        base = index % len(seeds)
        is_baseline = index < len(seeds)
        compared = clean[base].log_probabilities if is_baseline else after[base]
        texts.append(
            Text(
                tokens,
                model.vocabulary.text.text(tokens),
                clean[index].own.tolist(),
                own(after[index], tokens).tolist(),
                divergence(clean[index].log_probabilities, after[index]).tolist(),
                measures(tokens, clean[index], steering, clean[base].log_probabilities, compared),
            )
        )
    remarks_by_seed = [
        remarks(
            steering, len(prompt), [clean[index].passing, clean[len(seeds) + index].passing], tokens_asked
        )
        for index in range(len(seeds))
    ]
    pairs = zip(seeds, texts[: len(seeds)], texts[len(seeds) :], remarks_by_seed, strict=True)
    return [Comparison(*pair) for pair in pairs]
