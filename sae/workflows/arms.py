"""Compare steering by a latent with its rivals on concepts given as labelled texts, and keep the result in the run's folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.disk import files
from activations.errors import LabelError, RunError, quoted
from activations.generation import Sampling
from activations.labelled_texts import LabelledTexts
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from sae import chance
from sae.evaluation.splicing import held_out_passages
from sae.features.feature import features_of
from sae.runs.arms import (
    FOLDER,
    FORMAT,
    INDEX,
    POINT_FORMAT,
    POINTS,
    TEXTS,
    ArmResult,
    ArmsRecord,
    ConceptResult,
    Nulls,
    Overall,
)
from sae.runs.run import Run, device
from sae.runs.saved_sae import read_tensors
from sae.steering import judges
from sae.steering.arms import (
    ARMS,
    NOTHING,
    ROWS,
    ArmName,
    ArmsConfig,
    Bench,
    Outcome,
    Push,
    measure,
    unsteered,
)
from sae.workflows.arm_concepts import Concept, concepts_of, prepared
from sae.workflows.probe import model_of, require_scikit_learn


def compare_arms(
    run: Run,
    tasks: Sequence[LabelledTexts],
    cfg: ArmsConfig | None = None,
    unrelated: Sequence[LabelledTexts] = (),
    model: LanguageModel | None = None,
    progress: Progress = no_progress,
) -> ArmsRecord:
    """Steer a run towards concepts by a latent and by its rivals at equal strength, measure all alike, and write `arms/arms.json`.

    Each task is a concept: its second class. `unrelated` tasks are not steered towards; their judges only watch. What was
    measured of an arm at a strength is kept in `arms/points` and found again by what it is, so that an interrupted comparison
    goes on where it stopped, and one with more concepts measures only what is new. arms.json holds the concepts of the last call.

    A concept that a probe cannot learn from its texts is left out, with the reason. Raises LabelError for one with fewer than 20
    texts of a class, for two of one name, and when none is left; RunError for a run without features or held-out text; StoreError
    for a run whose store is not there; BusyError when another process works in the folder; ConfigError without scikit-learn."""
    cfg = cfg or ArmsConfig()
    require_scikit_learn()
    _ = run.digest
    norm = features_of(run).record.unit
    used = [prepared(task, cfg) for task in (*tasks, *unrelated)]
    names = [task.name for task in used]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise LabelError(f"two sets of labelled texts are called {twice!r}: name each concept once")
    model, sae = model or model_of(run), run.sae().to(device())
    with _alone(run):
        bench = bench_of(run, model, cfg)  # refuses a missing store before the model reads all texts
        ready, left_out = concepts_of(run, model, sae, used, cfg, progress)
        concepts = {each.task.name: each for each in ready}
        steered = [concepts[task.name] for task in tasks if task.name in concepts]
        if not steered:
            raise LabelError(
                "none of the concepts can be compared: "
                + "; ".join(f"{task.name}: {left_out[task.name]}" for task in tasks)
            )
        random = chance.directions(cfg.directions, sae.d_model, cfg.arms_seed)
        pushes = _pushes(steered, random, cfg, norm)
        outcomes = measured(run, model, bench, [NOTHING, *pushes.values()], progress)
        found = _Measured(model, cfg, concepts, outcomes[0], dict(zip(pushes, outcomes[1:], strict=True)))
        results, nulls = zip(*(_result(found, concept) for concept in steered), strict=True)
        total = Nulls(sum(each.judged for each in nulls), sum(each.distinguishable for each in nulls))
        config = json.loads(json.dumps(asdict(cfg)))
        record = ArmsRecord(
            FORMAT,
            run.digest,
            run.hook,
            norm,
            config,
            [*results],
            _overall(results),
            total,
            {task.name: task.sha256 for task in used},
            left_out,
        )
        files.write_sealed(run.path / FOLDER / INDEX, asdict(record))
    return record


@contextmanager
def _alone(run: Run) -> Iterator[None]:
    (run.path / FOLDER / POINTS).mkdir(parents=True, exist_ok=True)
    with files.alone_in(run.path / FOLDER):
        for folder in (FOLDER, f"{FOLDER}/{POINTS}", f"{FOLDER}/{TEXTS}"):
            files.sweep(run.path / folder)
        yield


def bench_of(run: Run, model: LanguageModel, cfg: ArmsConfig) -> Bench:
    """Return what every push is measured with: beginnings, seeds, and held-out windows of the run's store."""
    first = run.first_tokens
    if first is None:
        first = [] if model.vocabulary.bos is None else [model.vocabulary.bos]
    starts = tuple(tuple(model.vocabulary.encode(start)) for start in cfg.starts)
    seeds = tuple(
        tuple(_seed(cfg.arms_seed, start, draw) for draw in range(cfg.draws)) for start in range(len(starts))
    )
    windows = held_out_passages(run.store, cfg.unrelated_windows, cfg.window_tokens)
    return Bench(run.hook, tuple(first), starts, Sampling(cfg.new_tokens, 0.7, 0.95), seeds, windows.long())


def _seed(arms_seed: int, start: int, draw: int) -> int:
    """Return a text's own seed: intervals take the texts of all beginnings, and of different `arms_seed`, for independent."""
    return int(np.random.SeedSequence(arms_seed, spawn_key=(start, draw)).generate_state(1)[0])


def measured(
    run: Run, model: LanguageModel, bench: Bench, pushes: Sequence[Push], progress: Progress = no_progress
) -> list[Outcome]:
    """Return what each push does, measuring only those that are not among the run's points yet.

    Raises RunError for a damaged point."""
    weights = run.record.weights_sha256 or model.weights_hash
    paths = [run.path / FOLDER / POINTS / f"{bench.key(weights, push)}.safetensors" for push in pushes]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    tokens = sum(map(len, bench.seeds)) * bench.sampling.tokens  # of a push
    done = tokens * (len(pushes) - len(missing))
    with progress("steer", tokens * len(pushes), "tokens", done) as advance:
        clean = unsteered(model, bench) if missing else None
        for group in _groups(missing, pushes, max(1, ROWS // len(bench.seeds[0]))):
            assert clean is not None
            for number, outcome in zip(
                group, measure(model, bench, [pushes[n] for n in group], clean, advance), strict=True
            ):
                _write(paths[number], outcome)
    return [_read(path) for path in paths]


def _groups(missing: Sequence[int], pushes: Sequence[Push], most: int) -> Iterator[list[int]]:
    """Yield the numbers of pushes that are measured side by side: of vectors at most `most`, each prefix alone."""
    vectors = [number for number in missing if not pushes[number].prefix]
    for start in range(0, len(vectors), most):
        yield vectors[start : start + most]
    yield from ([number] for number in missing if pushes[number].prefix)


def _write(path: Path, outcome: Outcome) -> None:
    longest = max(map(len, outcome.texts))
    tokens = torch.tensor(
        [[*text, *[-1] * (longest - len(text))] for text in outcome.texts], dtype=torch.int32
    )
    content = outcome._asdict() | {"texts": tokens}
    files.write_tensors(path, content, POINT_FORMAT)


def _read(path: Path) -> Outcome:
    fix = f"rm {quoted(path)}"
    content = read_tensors(path, fix)
    if {*content} != {*Outcome._fields}:
        raise RunError(f"{path} is damaged: it holds {', '.join(sorted(content))}", fix=fix)
    texts = [[token for token in row if token >= 0] for row in content.pop("texts").tolist()]
    return Outcome(**content, texts=texts)


Key = tuple[str, ArmName, int, int]
"""Concept (empty for random directions, which all concepts share), arm, number of the strength, number of the direction."""


def _pushes(
    concepts: Sequence[Concept], random: Float[Tensor, "R D"], cfg: ArmsConfig, norm: float
) -> dict[Key, Push]:
    pushes: dict[Key, Push] = {}
    for number, share in enumerate(cfg.shares):
        for r, vector in enumerate(random):
            pushes["", "random", number, r] = Push(vector * share * norm)
        for concept in concepts:
            for arm, vector in concept.vectors.items():
                pushes[concept.task.name, arm, number, 0] = Push(vector * share * norm)
            pushes[concept.task.name, "prompt", number, 0] = Push(prefix=concept.prefixes[number])
    return pushes


class _Measured(NamedTuple):
    """Everything that results are computed from."""

    model: LanguageModel
    cfg: ArmsConfig
    concepts: Mapping[str, Concept]
    plain: Outcome
    outcomes: Mapping[Key, Outcome]

    @property
    def random(self) -> list[list[Outcome]]:
        """Outcomes of the random directions, by strength."""
        levels, directions = range(len(self.cfg.shares)), range(self.cfg.directions)
        return [[self.outcomes["", "random", number, r] for r in directions] for number in levels]

    def of(self, concept: Concept, arm: ArmName) -> list[list[Outcome]]:
        """Return the outcomes of an arm, by strength: of the random arm one for each direction."""
        if arm == "random":
            return self.random
        return [[self.outcomes[concept.task.name, arm, number, 0]] for number in range(len(self.cfg.shares))]


def _result(found: _Measured, concept: Concept) -> tuple[ConceptResult, Nulls]:
    """Return the results of all arms on a concept, and what the random directions are judged as."""
    task, judge = concept.task, concept.judge
    known = {name: each.judge for name, each in found.concepts.items()}
    unrelated = judges.unrelated_to(task.name, known, concept.x, task.labels)
    watching = [known[name] for name in unrelated]
    random = np.mean([judges.gains(judge, each, found.plain) for each in found.random], 0)
    arms: dict[str, ArmResult] = {}
    smallest = 0.0
    for arm in ARMS:
        own = found.of(concept, arm)
        strengths = range(1, len(own) + 1) if arm == "prompt" else found.cfg.shares
        levels = [
            judges.level(float(strength), each, found.plain, judge, watching)
            for strength, each in zip(strengths, own, strict=True)
        ]
        written = [[found.model.vocabulary.text.text(text) for text in each[0].texts] for each in own]
        beside = None
        if arm != "random":
            mean_gain = np.mean([judges.gains(judge, each, found.plain)[0] for each in own], 0)
            beside = judges.beside_random(mean_gain, random)
            smallest = beside.smallest
        arms[arm] = ArmResult(levels, written, beside and beside.better_by, beside and beside.verdict)
    latent = concept.latent
    result = ConceptResult(
        task.name,
        task.classes[1],
        concept.sizes,
        latent.latent,
        latent.sign,
        latent.auc,
        latent.q,
        judge.auc,
        unrelated,
        smallest,
        arms,
    )
    return result, judges.nulls(random)


def _overall(results: Sequence[ConceptResult]) -> list[Overall]:
    """Return the mean over concepts of every arm at every strength; nothing for a single concept, which has no interval."""
    if len(results) < 2:
        return []
    overall = []
    for arm in results[0].arms:
        for number, first in enumerate(results[0].arms[arm].levels):
            own = [result.arms[arm].levels[number] for result in results]
            moved = [level.moved.value for level in own if level.moved and level.moved.value is not None]
            concept, kl, surprise = (
                judges.mean(np.array([getattr(level, name).value for level in own]))
                for name in ("concept", "kl", "surprise")
            )
            overall.append(
                Overall(
                    arm,
                    first.strength,
                    concept,
                    kl,
                    surprise,
                    judges.mean(np.array(moved)) if moved else None,
                )
            )
    return overall
