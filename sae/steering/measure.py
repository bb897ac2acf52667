"""What steering does to a text, in numbers: how much of the concept shows, and at what cost to the text."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from activations.generation import PlacedEdit, check_logits
from activations.language_model import LanguageModel
from sae.steering.steering import Steering

LARGEST_PERPLEXITY = 1e100  # stands for all above: their squares, in a spread, would overflow
NGRAM = 3  # length of the runs of tokens whose repetition is counted


class Measures(NamedTuple):
    """One text, written after a prompt by the steered model. Means are over its new tokens, and over the latents."""

    concept: float
    """How much of the concept the text holds: the model, not steered, reads the text, and the SAE its activations
    there; mean of the latent's value as a share of its largest on the corpus, signed. The push itself is not seen."""
    fires: float
    """In the same reading, the share of tokens on which the latent is not zero."""
    peak: float
    """In the same reading, the value largest in size, as a share of the largest on the corpus, signed."""
    peak_gain: float | None
    """Mean, over the positions of the unsteered text, of how much steering raises the log-probability of the tokens
    the latent peaks on, of the sign it is stronger in (nats); None where those are not known."""
    kl: float
    """Mean KL(unsteered || steered) of next-token predictions along the unsteered text, nats. The text is the same
    for every strength, so that the numbers can be compared; at least 0, and 0 where steering does nothing."""
    perplexity: float
    """Of the text under the unsteered model: exp of its mean negative log-probability a token."""
    repetition: float
    """Share of its runs of three tokens that stood in it before; 0 for a text of fewer than three."""
    distinct: float
    """Different tokens as a share of all."""


class Read(NamedTuple):
    """What the unsteered model makes of a text of n new tokens."""

    log_probabilities: Float[Tensor, "n V"]
    """Of every next token, at the position before each new one."""
    own: Float[Tensor, "n"]
    """Of the text's own tokens; float64."""
    concept: float
    fires: float
    peak: float
    passing: Float[Tensor, "T D"]
    """The activations at the hook point, of the prompt and the text."""


@torch.no_grad()
def read(
    model: LanguageModel, steering: Steering, prompt: Sequence[int], texts: Sequence[Sequence[int]]
) -> list[Read]:
    """Let the unsteered model read texts that follow a prompt, and the SAE what passes its hook point meanwhile."""
    seen: list[Tensor] = []

    def look(x: Tensor, first: int = 0) -> Tensor:
        seen.append(x)
        return x

    predicted = log_probabilities(model, prompt, texts, {steering.hook: look})
    found = []
    for row, (text, log_p) in enumerate(zip(texts, predicted, strict=True)):
        passing = seen[0][row, : len(prompt) + len(text)]
        found.append(Read(log_p, own(log_p, text), *_concept(steering, passing[len(prompt) :]), passing))
    return found


def log_probabilities(
    model: LanguageModel,
    prompt: Sequence[int],
    texts: Sequence[Sequence[int]],
    edits: dict[str, PlacedEdit] | None = None,
) -> list[Float[Tensor, "n V"]]:
    """For each text, log-probabilities of the next token at the position before each of its n tokens; on the CPU.

    Raises GenerationError when they are not finite."""
    longest = max(map(len, texts))
    rows = [
        [*prompt, *text, *[text[-1]] * (longest - len(text))] for text in texts
    ]  # what follows is not seen
    logits = model.logits(torch.tensor(rows), edits)[:, len(prompt) - 1 : -1]
    check_logits(logits)
    return [row[: len(text)].float().log_softmax(-1).cpu() for row, text in zip(logits, texts, strict=True)]


def own(log_p: Float[Tensor, "n V"], text: Sequence[int]) -> Float[Tensor, "n"]:
    """Log-probability of each of a text's own tokens, float64."""
    return log_p.gather(1, torch.tensor(text)[:, None])[:, 0].double()


def divergence(clean: Float[Tensor, "n V"], changed: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
    """KL(clean || changed) of predictions given as log-probabilities, in nats, float64, never below 0."""
    return F.kl_div(changed.double(), clean.double(), reduction="none", log_target=True).sum(-1).clamp_min(0)


def perplexity(log_probability: Float[Tensor, "n"]) -> float:
    """exp of the mean negative log-probability of a text's tokens, at most LARGEST_PERPLEXITY."""
    return math.exp(min(-log_probability.mean().item(), math.log(LARGEST_PERPLEXITY)))


def repetition(tokens: Sequence[int], n: int = NGRAM) -> float:
    """Share of the runs of n tokens that stood in the text before; 0 where there is no such run."""
    runs = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def measures(
    text: Sequence[int],
    seen: Read,
    steering: Steering,
    before: Float[Tensor, "n V"],
    after: Float[Tensor, "n V"],
) -> Measures:
    """All numbers of a text: `seen` is its reading, `before` and `after` are what the model predicts along the
    unsteered text as it is and steered."""
    peaks = [token for latent in steering.latents for token in steering.calibration.peaks.get(latent, [])]
    gain = (after[:, peaks].double() - before[:, peaks].double()).mean().item() if peaks else None
    return Measures(
        concept=seen.concept,
        fires=seen.fires,
        peak=seen.peak,
        peak_gain=gain,
        kl=divergence(before, after).mean().item(),
        perplexity=perplexity(seen.own),
        repetition=repetition(text),
        distinct=len(set(text)) / len(text),
    )


def _concept(steering: Steering, x: Float[Tensor, "n D"]) -> tuple[float, float, float]:
    """`concept`, `fires` and `peak` of Measures. A latent that never fired on the corpus is taken as it is."""
    code = steering.sae.encode(x.float().to(steering.sae.device))
    values = torch.stack([code.of(latent) for latent in steering.latents], 1).double().cpu()
    shares = values / torch.tensor(
        [steering.calibration.largest(latent) or 1.0 for latent in steering.latents]
    )
    peak = shares.gather(0, shares.abs().argmax(0, keepdim=True))
    return shares.mean().item(), (values != 0).double().mean().item(), peak.mean().item()
