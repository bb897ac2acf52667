"""Dose and response: what rising strengths of a steering do, beside controls that push as hard elsewhere."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from activations.errors import ConfigError
from activations.generation import PlacedEdit, Sampling, generate
from activations.language_model import LanguageModel
from sae.steering.controls import random_control, shuffled_control
from sae.steering.measure import Measures, Read, log_probabilities, measures, read
from sae.steering.reach import check_positions, remarks
from sae.steering.steering import Steering

Kind = Literal["latent", "random", "shuffled"]
ROWS = 16  # texts written at once: more would gain little, and their predictions take memory
MOST_CONTROLS = 1000  # of a kind
CONTROLS = {"random": random_control, "shuffled": shuffled_control}


@dataclass(frozen=True)
class SweepConfig:
    """How far a sweep goes."""

    doses: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
    """Factors on the strengths of the interventions."""
    random: int = 3
    """Random directions that are tried beside the latent's."""
    shuffled: int = 3
    """Other latents' directions that are tried beside it."""
    direction_seed: int = 0
    """Seed of the controls' directions; the texts have seeds of their own."""

    def __post_init__(self) -> None:
        if not self.doses or not all(map(math.isfinite, self.doses)):
            raise ConfigError(f"doses = {self.doses}: give at least one finite number")
        if len(set(self.doses)) < len(self.doses):
            raise ConfigError(f"doses = {self.doses}: each is needed once")
        for name in ("random", "shuffled"):
            if not 0 <= getattr(self, name) <= MOST_CONTROLS:
                raise ConfigError(f"{name} = {getattr(self, name)} must lie between 0 and {MOST_CONTROLS:,}")
        if not 0 <= self.direction_seed <= 2**63 - 1:
            raise ConfigError(f"direction_seed = {self.direction_seed} must lie between 0 and 2^63 - 1")


class Trial(NamedTuple):
    """One text of one dose."""

    prompt: int
    """Which of the prompts, from 0."""
    seed: int
    control: int
    """Which of the directions of its kind, from 0; 0 for the latent's own."""
    text: str
    measures: Measures


class Point(NamedTuple):
    """All texts of one dose and one kind of direction."""

    kind: Kind
    dose: float
    trials: list[Trial]

    def values(self, name: str) -> list[float]:
        """One of the `Measures` of every text; None left out."""
        found = (getattr(trial.measures, name) for trial in self.trials)
        return [value for value in found if value is not None]

    def mean(self, name: str) -> float | None:
        """Mean over the texts; None where the measure has no value."""
        values = self.values(name)
        return sum(values) / len(values) if values else None

    def spread(self, name: str) -> float | None:
        """Standard deviation over the texts (divided by their number); None where the measure has no value."""
        values, mean = self.values(name), self.mean(name)
        return None if mean is None else math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


class DoseResponse(NamedTuple):
    """What a sweep found: a point for every kind of direction and dose, doses rising."""

    points: list[Point]
    remarks: list[str]
    """What of the steering did nothing with any prompt and dose, a line each."""

    def curves(self) -> dict[Kind, list[Point]]:
        """The points of every kind there is, by dose."""
        found: dict[Kind, list[Point]] = {}
        for point in self.points:
            found.setdefault(point.kind, []).append(point)
        return found

    def to_json(self) -> list[dict[str, Any]]:
        """Every point with the mean and spread of each measure and its texts, as JSON holds it."""
        return [
            {
                "kind": point.kind,
                "dose": point.dose,
                "mean": {name: point.mean(name) for name in Measures._fields},
                "spread": {name: point.spread(name) for name in Measures._fields},
                "trials": [
                    trial._asdict() | {"measures": trial.measures._asdict()} for trial in point.trials
                ],
            }
            for point in self.points
        ]


def dose_response(
    model: LanguageModel,
    steering: Steering,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int] = (0,),
    cfg: SweepConfig | None = None,
    on_done: Callable[[float, str], None] = lambda share, note: None,
) -> DoseResponse:
    """Write texts over a grid of doses, steered along the latents and along controls, and measure each.

    A dose multiplies every strength, so that with a strength of 1 it is the strength. Each control moves every
    activation exactly as far as the latents' steering would (`sae.steering.controls`). Every dose, kind and
    direction goes on with every prompt once for each seed, drawn with the same noise. Same arguments, same numbers.
    `on_done` hears of the share done; what it raises ends the work."""
    cfg = cfg or SweepConfig()
    for prompt in prompts:
        check_positions(steering, len(prompt), sampling.tokens)
    strongest, said = steering.dosed(max(cfg.doses, key=abs)), []
    batches = list(_batches(steering, cfg, max(1, ROWS // len(seeds))))
    total, done = len(prompts) * (len(batches) + 1), 0
    trials: dict[tuple[Kind, float], list[Trial]] = {
        (kind, dose): [] for kind in _kinds(cfg) for dose in sorted(cfg.doses)
    }

    def telling(note: str) -> Callable[[int], None]:
        return lambda count: on_done((done + count / sampling.tokens) / total, note)

    for number, prompt in enumerate(prompts):
        base = generate(model, prompt, None, sampling, seeds, telling("as it is"))
        seen = read(model, steering, prompt, base)
        said.append(remarks(strongest, len(prompt), [one.passing for one in seen], sampling.tokens))
        done += 1
        for batch in batches:
            tell = telling(f"strength x {batch[0].dose:g}")
            tell(0)
            for tried, seed, text, numbers in _try(model, batch, prompt, sampling, seeds, (base, seen), tell):
                written = model.vocabulary.text.text(text)
                trials[tried.kind, tried.dose].append(Trial(number, seed, tried.control, written, numbers))
            done += 1
    on_done(1.0, "")
    common = [line for line in said[0] if all(line in other for other in said)]
    return DoseResponse([Point(kind, dose, found) for (kind, dose), found in trials.items()], common)


class _Tried(NamedTuple):
    kind: Kind
    dose: float
    control: int
    steering: Steering


def _kinds(cfg: SweepConfig) -> dict[Kind, int]:
    """How many directions there are of each kind."""
    counts: dict[Kind, int] = {"latent": 1, "random": cfg.random, "shuffled": cfg.shuffled}
    return {kind: count for kind, count in counts.items() if count}


def _batches(steering: Steering, cfg: SweepConfig, most: int) -> Iterator[list[_Tried]]:
    """Every dose along every direction, `most` of one dose at once."""
    for dose in sorted(cfg.doses):
        dosed = steering.dosed(dose)
        tried = [_Tried("latent", dose, 0, dosed)]
        for kind, count in _kinds(cfg).items():
            if kind != "latent":
                tried += [
                    _Tried(kind, dose, n, CONTROLS[kind](dosed, cfg.direction_seed + n)) for n in range(count)
                ]
        for start in range(0, len(tried), most):
            yield tried[start : start + most]


def _try(
    model: LanguageModel,
    batch: list[_Tried],
    prompt: Sequence[int],
    sampling: Sampling,
    seeds: Sequence[int],
    baseline: tuple[list[list[int]], list[Read]],
    on_token: Callable[[int], None],
) -> Iterator[tuple[_Tried, int, list[int], Measures]]:
    """Each direction's text of each seed, and its measures. What does nothing gives the baseline, unwritten."""
    base, seen = baseline[0] * len(batch), baseline[1] * len(batch)
    before = [one.log_probabilities for one in seen]
    texts, after = base, before
    if not batch[0].steering.changes_nothing:
        edits = _side_by_side([tried.steering for tried in batch], len(prompt))
        texts = generate(model, prompt, edits, sampling, [*seeds] * len(batch), on_token)
        after = log_probabilities(model, prompt, base, edits)
        seen = read(model, batch[0].steering, prompt, texts)
    for place, text in enumerate(texts):
        tried = batch[place // len(seeds)]
        numbers = measures(text, seen[place], tried.steering, before[place], after[place])
        yield tried, seeds[place % len(seeds)], text, numbers


def _side_by_side(steerings: Sequence[Steering], n_prompt: int) -> dict[str, PlacedEdit]:
    """Steerings at one hook point, each on its own share of the rows of a batch: one pass reads the weights once."""
    (hook,) = {steering.hook for steering in steerings}
    edits = [steering.edits(n_prompt)[hook] for steering in steerings]

    def edit(x: Tensor, first: int = 0) -> Tensor:
        return torch.cat([one(part, first) for one, part in zip(edits, x.chunk(len(edits)), strict=True)])

    return {hook: edit}
