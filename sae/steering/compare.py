"""Continue a prompt with the unsteered model and with the steered one, and compare both texts token by token."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from activations.generation import Sampling, generate
from activations.language_model import LanguageModel
from sae.steering.measure import Measures, divergence, log_probabilities, measures, own, read
from sae.steering.steering import Steering, check_positions, remarks


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

    def to_json(self) -> dict[str, Any]:
        """Return both texts with all their numbers as JSON content."""
        texts = {name: getattr(self, name) for name in ("baseline", "steered")}
        content = {
            name: text._asdict() | {"measures": text.measures._asdict()} for name, text in texts.items()
        }
        return {"seed": self.seed, **content, "remarks": self.remarks}


def compare(
    model: LanguageModel,
    steering: Steering,
    prompt: Sequence[int],
    sampling: Sampling,
    seeds: Sequence[int] = (0,),
    on_done: Callable[[float, str], None] = lambda share, note: None,
) -> list[Comparison]:
    """Continue a prompt unsteered and steered, once per seed; both texts of a seed are drawn with the same noise.

    `on_done` is called with the share done and a note; an exception that it raises ends the work. Raises ConfigError when
    none of the positions that occur is steered, or when activations overflow."""

    check_positions(steering, len(prompt), sampling.tokens)

    def writing(note: str, start: float) -> Callable[[int], None]:
        return lambda count: on_done(start + 0.45 * count / sampling.tokens, note)

    plain = generate(model, prompt, None, sampling, seeds, writing("as it is", 0.0))
    changed = generate(model, prompt, steering.edits(len(prompt)), sampling, seeds, writing("steered", 0.45))
    on_done(0.9, "reading")
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
    on_done(1.0, "")
    remarks_by_seed = [
        remarks(
            steering, len(prompt), [clean[index].passing, clean[len(seeds) + index].passing], sampling.tokens
        )
        for index in range(len(seeds))
    ]
    pairs = zip(seeds, texts[: len(seeds)], texts[len(seeds) :], remarks_by_seed, strict=True)
    return [Comparison(*pair) for pair in pairs]
