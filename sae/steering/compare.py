"""A prompt gone on with as the model is and steered, side by side, token by token."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from activations.generation import Sampling, generate
from activations.language_model import LanguageModel
from sae.steering.measure import Measures, divergence, log_probabilities, measures, own, read
from sae.steering.reach import check_positions, remarks
from sae.steering.steering import Steering


class Text(NamedTuple):
    """A continuation, and what both models make of it. Lists are by new token."""

    tokens: list[int]
    text: str
    """What the tokens say, special ones left out."""
    log_probability: list[float]
    """Of each token under the model as it is."""
    steered_log_probability: list[float]
    """Of each token under the steered model."""
    kl: list[float]
    """KL(unsteered || steered) of the prediction of each token, nats."""
    measures: Measures

    @property
    def change(self) -> list[float]:
        """How much likelier steering makes each token: the difference of log-probabilities, nats."""
        return [s - c for s, c in zip(self.steered_log_probability, self.log_probability, strict=True)]


class Comparison(NamedTuple):
    """What one seed gives."""

    seed: int
    baseline: Text
    """Written by the model as it is. Its measures are those of a steering that does nothing."""
    steered: Text
    remarks: list[str]
    """What of the steering did nothing, a line each: positions that do not occur, latents that never fire."""

    def to_json(self) -> dict[str, Any]:
        """Both texts with all their numbers, as JSON holds it."""
        texts = {name: getattr(self, name) for name in ("baseline", "steered")}
        whole = {name: text._asdict() | {"measures": text.measures._asdict()} for name, text in texts.items()}
        return {"seed": self.seed, **whole, "remarks": self.remarks}


def compare(
    model: LanguageModel,
    steering: Steering,
    prompt: Sequence[int],
    sampling: Sampling,
    seeds: Sequence[int] = (0,),
    on_done: Callable[[float, str], None] = lambda share, note: None,
) -> list[Comparison]:
    """Continuations of a prompt as the model is and steered, for each seed, drawn with the same noise.

    Raises ConfigError when no position that occurs is steered, or activations overflow. `on_done` hears of the share done; what it raises ends the work."""

    check_positions(steering, len(prompt), sampling.tokens)

    def writing(note: str, start: float) -> Callable[[int], None]:
        return lambda count: on_done(start + 0.45 * count / sampling.tokens, note)

    plain = generate(model, prompt, None, sampling, seeds, writing("as it is", 0.0))
    changed = generate(model, prompt, steering.edits(len(prompt)), sampling, seeds, writing("steered", 0.45))
    on_done(0.9, "reading")
    texts = [*plain, *changed]
    clean = read(model, steering, prompt, texts)
    after = log_probabilities(model, prompt, texts, steering.edits(len(prompt)))
    found = []
    for place, tokens in enumerate(texts):
        base = place % len(seeds)
        compared = clean[base].log_probabilities if place < len(seeds) else after[base]
        found.append(
            Text(
                tokens,
                model.vocabulary.text.text(tokens),
                clean[place].own.tolist(),
                own(after[place], tokens).tolist(),
                divergence(clean[place].log_probabilities, after[place]).tolist(),
                measures(tokens, clean[place], steering, clean[base].log_probabilities, compared),
            )
        )
    on_done(1.0, "")
    said = [
        remarks(
            steering, len(prompt), [clean[place].passing, clean[len(seeds) + place].passing], sampling.tokens
        )
        for place in range(len(seeds))
    ]
    pairs = zip(seeds, found[: len(seeds)], found[len(seeds) :], said, strict=True)
    return [Comparison(*pair) for pair in pairs]
