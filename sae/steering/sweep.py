"""Dose and response: measure a steering at rising strengths, beside controls of the same size in other directions."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from activations.errors import ConfigError, check_seed
from activations.generation import PlacedEdit, Sampling, generate
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from sae import chance
from sae.steering.measure import Measures, Read, log_probabilities, measures, read, writing
from sae.steering.steering import Steering, check_positions, remarks


def random_control(steering: Steering, seed: int = 0) -> Steering:
    """Return a steering that moves every activation exactly as far, in random directions instead of the latents'.

    Directions are uniform on the sphere, one per latent. Apart from the equal displacement they share nothing with the
    latents, so the control shows what any intervention of that size does to a text."""
    rows = steering.rows
    return replace(
        steering, directions=_with_norms_of(chance.directions(len(rows), rows.shape[1], seed), rows)
    )


def shuffled_control(steering: Steering, seed: int = 0) -> Steering:
    """Return a steering that moves every activation exactly as far, along decoder rows of other latents that fire.

    They are drawn uniformly, without replacement, from the live latents that are not steered. The control shows what
    some other learned direction does. Raises ConfigError when there are too few live latents."""
    others = [latent for latent in steering.calibration.living() if latent not in steering.latents]
    wanted = len(steering.interventions)
    if len(others) < wanted:
        raise ConfigError(
            f"the shuffled control needs {wanted} other latents that fire and has {len(others)}: "
            f"collect features on more text, or leave the control out"
        )
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    chosen = [others[index] for index in order[:wanted].tolist()]
    return replace(
        steering, directions=_with_norms_of(steering.sae.W_dec[chosen].detach().float(), steering.rows)
    )


def _with_norms_of(directions: Tensor, rows: Tensor) -> Tensor:
    """Scale each direction to the norm of the decoder row that it replaces."""
    tiny = torch.finfo(rows.dtype).tiny
    unit = directions.to(rows) / directions.norm(dim=1, keepdim=True).clamp_min(tiny).to(rows)
    return unit * rows.norm(dim=1, keepdim=True)


Kind = Literal["latent", "random", "shuffled"]
ROWS = 16  # texts written in one batch; more gain little speed, and each one's logits take memory
MOST_CONTROLS = 1000  # of a kind
CONTROLS = {"random": random_control, "shuffled": shuffled_control}


@dataclass(frozen=True)
class SweepConfig:
    """The doses and controls of a sweep."""

    doses: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
    """Factors that multiply the strengths of the interventions."""
    random: int = 3
    """Number of random directions to try beside the latents' own."""
    shuffled: int = 3
    """Number of other latents' directions to try beside the latents' own."""
    direction_seed: int = 0
    """Seed of the controls' directions. The seeds of the texts are separate."""

    def __post_init__(self) -> None:
        if not self.doses or not all(map(math.isfinite, self.doses)):
            raise ConfigError(f"doses = {self.doses}: give at least one finite number")
        if len(set(self.doses)) < len(self.doses):
            raise ConfigError(f"doses = {self.doses}: each must be given once")
        for name in ("random", "shuffled"):
            if not 0 <= getattr(self, name) <= MOST_CONTROLS:
                raise ConfigError(f"{name} = {getattr(self, name)} must lie between 0 and {MOST_CONTROLS:,}")
        check_seed(self.direction_seed, "direction_seed")


class Trial(NamedTuple):
    """One text, written at one dose."""

    prompt: int
    """Index of the prompt, from 0."""
    seed: int
    control: int
    """Index of the direction among those of its kind, from 0; 0 for the latents' own."""
    text: str
    measures: Measures


class Point(NamedTuple):
    """All texts of one dose and one kind of direction."""

    kind: Kind
    dose: float
    trials: list[Trial]

    def values(self, name: str) -> list[float]:
        """Return one of the `Measures` of every text, leaving out None."""
        values = (getattr(trial.measures, name) for trial in self.trials)
        return [value for value in values if value is not None]

    def mean(self, name: str) -> float | None:
        """Return the mean over the texts; None where the measure has no value."""
        values = self.values(name)
        return sum(values) / len(values) if values else None

    def spread(self, name: str) -> float | None:
        """Return the standard deviation over the texts (dividing by their number); None where the measure has no value."""
        values, mean = self.values(name), self.mean(name)
        return None if mean is None else math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


class DoseResponse(NamedTuple):
    """The result of a sweep: one point per kind of direction and dose, in rising order of dose."""

    points: list[Point]
    remarks: list[str]
    """Parts of the steering that had no effect at any dose, for any prompt; one line each."""

    def curves(self) -> dict[Kind, list[Point]]:
        """Return the points of each kind, in rising order of dose."""
        by_kind: dict[Kind, list[Point]] = {}
        for point in self.points:
            by_kind.setdefault(point.kind, []).append(point)
        return by_kind

    def to_json(self) -> list[dict[str, object]]:
        """Return every point as JSON content: the mean and spread of each measure, and all texts."""
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
    progress: Progress = no_progress,
    on_points: Callable[[DoseResponse], None] = lambda response: None,
) -> DoseResponse:
    """Write texts over a grid of doses, steered along the latents and along controls, and measure each text.

    A dose multiplies every strength, so with a strength of 1 it is the strength. Each control moves every activation
    exactly as far as steering the latents would (`sae.steering.sweep`). Every dose, kind and direction continues every
    prompt once per seed, drawn with the same noise. The same arguments give the same numbers.

    Progress counts the tokens of a text, once for each batch of texts; `on_points` gets the doses that are done, each time
    there are more. An exception that either raises ends the work. Raises
    ConfigError when none of the positions that occur is steered, or when activations overflow."""
    cfg = cfg or SweepConfig()
    for prompt in prompts:
        check_positions(steering, len(prompt), sampling.tokens)
    strongest, remarks_by_prompt = steering.dosed(max(cfg.doses, key=abs)), []
    batches = list(_batches(steering, cfg, max(1, ROWS // len(seeds))))
    trials: dict[tuple[Kind, float], list[Trial]] = {
        (kind, dose): [] for kind in _kinds(cfg) for dose in sorted(cfg.doses)
    }

    tokens = sampling.tokens
    with progress("steer", len(prompts) * (len(batches) + 1) * tokens, "tokens") as advance:
        for number, prompt in enumerate(prompts):
            with writing(advance, tokens, "as it is") as on_token:
                base = generate(model, prompt, None, sampling, seeds, on_token)
                seen = read(model, steering, prompt, base)
            passing = [text.passing for text in seen]
            remarks_by_prompt.append(remarks(strongest, len(prompt), passing, tokens))
            for batch in batches:
                with writing(advance, tokens, f"strength x {batch[0].dose:g}") as on_token:
                    tries = [*_try(model, batch, prompt, sampling, seeds, (base, seen), on_token)]
                for tried, seed, text, numbers in tries:
                    written = model.vocabulary.text.text(text)
                    trial = Trial(number, seed, tried.control, written, numbers)
                    trials[tried.kind, tried.dose].append(trial)
                on_points(_response(trials, remarks_by_prompt))
    return _response(trials, remarks_by_prompt)


def _response(
    trials: dict[tuple[Kind, float], list[Trial]], remarks_by_prompt: Sequence[list[str]]
) -> DoseResponse:
    """Return the points that have texts, and the remarks."""
    # an intervention without effect on one prompt may well have one on another: only what they share is reported
    common = [line for line in remarks_by_prompt[0] if all(line in lines for lines in remarks_by_prompt)]
    return DoseResponse(
        [Point(kind, dose, [*texts]) for (kind, dose), texts in trials.items() if texts], common
    )


class _Tried(NamedTuple):
    kind: Kind
    dose: float
    control: int
    steering: Steering


def _kinds(cfg: SweepConfig) -> dict[Kind, int]:
    """Return how many directions of each kind are tried."""
    counts: dict[Kind, int] = {"latent": 1, "random": cfg.random, "shuffled": cfg.shuffled}
    return {kind: count for kind, count in counts.items() if count}


def _batches(steering: Steering, cfg: SweepConfig, most: int) -> Iterator[list[_Tried]]:
    """Yield every dose along every direction, in batches of at most `most` directions of one dose; small doses first.

    Who watches the curves sees them grow outwards from 0, and may stop once a dose breaks the text."""
    for dose in sorted(cfg.doses, key=lambda dose: (abs(dose), -dose)):
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
    """Yield each direction's text for each seed, with its measures.

    `baseline` holds the unsteered texts of all seeds and their readings."""
    base, seen = baseline[0] * len(batch), baseline[1] * len(batch)
    before = [text.log_probabilities for text in seen]
    texts, after = base, before
    # All of a batch have one dose. At a dose that changes nothing the texts are the unsteered ones, to the bit, and
    # need not be written again.
    if not batch[0].steering.changes_nothing:
        edits = _side_by_side([tried.steering for tried in batch], len(prompt))
        texts = generate(model, prompt, edits, sampling, [*seeds] * len(batch), on_token)
        after = log_probabilities(model, prompt, base, edits)
        seen = read(model, batch[0].steering, prompt, texts)
    for row, text in enumerate(texts):
        tried = batch[row // len(seeds)]
        numbers = measures(text, seen[row], tried.steering, before[row], after[row])
        yield tried, seeds[row % len(seeds)], text, numbers


def _side_by_side(steerings: Sequence[Steering], n_prompt: int) -> dict[str, PlacedEdit]:
    """Return one edit that applies each steering to its own share of a batch's rows.

    All must read one hook point. Writing many texts in one pass reads the model's weights once per token."""
    (hook,) = {steering.hook for steering in steerings}
    edits = [steering.edits(n_prompt)[hook] for steering in steerings]

    def edit(x: Tensor, first: int = 0) -> Tensor:
        chunks = x.chunk(len(edits))
        return torch.cat([change(chunk, first) for change, chunk in zip(edits, chunks, strict=True)])

    return {hook: edit}
