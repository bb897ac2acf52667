"""Prepare concepts for a comparison of steering: what steers towards each, chosen on one part of its texts, and a judge taught on another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.errors import LabelError
from activations.example_activations import ExampleActivations
from activations.labelled_texts import LabelledTexts
from activations.language_model import LanguageModel
from activations.progress import Progress
from sae.architectures import SAE
from sae.probing import latents, probes
from sae.probing.latents import FoundLatent
from sae.runs.run import Run
from sae.steering.arms import ArmName, ArmsConfig
from sae.steering.judges import Judge
from sae.workflows.find import pooled
from sae.workflows.probe import ProbeConfig, examples_of

LEAST = 20  # texts of each class
LEAST_AUC = 0.6  # of a judge
PARTS = (0.4, 0.8)  # where the part that chooses ends, and the part that teaches the judge; the rest tests it
SEPARATOR = "\n"  # behind each example of the prompt arm


class Concept(NamedTuple):
    """A concept, ready to be steered: what chose the arms, and a judge that knows none of these texts."""

    task: LabelledTexts
    latent: FoundLatent
    judge: Judge
    vectors: dict[ArmName, Float[Tensor, "D"]]
    """Unit directions, towards the concept."""
    prefixes: list[tuple[int, ...]]
    """What the prompt arm puts before a prompt, at each strength."""
    x: Float[np.ndarray, "n D"]
    """Mean activation of every labelled text."""
    sizes: list[int]


def prepared(task: LabelledTexts, cfg: ArmsConfig) -> LabelledTexts:
    """Return the texts of a task that are used. Raises LabelError for too few, or too few for the prompt arm's strengths."""
    used = task.without_repeats().at_most(cfg.labelled)
    least = int(min(used.labels.sum(), (~used.labels).sum()))
    if least < LEAST:
        raise LabelError(
            f"{task.name} has a class of {least} different texts, and needs at least {LEAST} of each"
        )
    shots = int(PARTS[0] * used.labels.sum())
    if len(cfg.shares) > shots:
        raise LabelError(
            f"{task.name} has {shots} texts with the concept to choose the arms on, and the prompt arm needs one more of them at "
            f"each strength: give at most {shots} strengths, not {len(cfg.shares)}, or more texts"
        )
    return used


def concepts_of(
    run: Run,
    model: LanguageModel,
    sae: SAE,
    tasks: Sequence[LabelledTexts],
    cfg: ArmsConfig,
    progress: Progress,
) -> tuple[list[Concept], dict[str, str]]:
    """Return every concept with what steers towards it, chosen on one part of its texts and judged by another, and those that
    cannot be judged or steered, by name with the reason."""
    # the mean over the positions that an arm would move
    cache = ExampleActivations(
        examples_of(run, model, ProbeConfig(context=cfg.labelled_tokens, pooling="mean"))
    )
    cache.fill(model, [text for task in tasks for text in task.texts], progress)
    drawn = [parts(task.labels, cfg.arms_seed) for task in tasks]
    chosen_on = [task.texts[row] for task, (choose, _, _) in zip(tasks, drawn, strict=True) for row in choose]
    values = pooled(run, chosen_on, "max", cfg.labelled_tokens, model, sae, progress)
    concepts: list[Concept] = []
    left_out: dict[str, str] = {}
    start = 0
    with progress("probes", len(tasks), "concepts") as advance:
        for task, (choose, teach, test) in zip(tasks, drawn, strict=True):
            own = values[start : start + len(choose)]
            start += len(choose)
            x, y = cache.of(task.texts).numpy(), task.labels
            judge = Judge.taught(x[teach], y[teach], x[test], y[test], cfg.arms_seed)
            found = latents.find(own, y[choose], cfg.arms_seed).latents
            if reason := unfit(judge, len(teach), len(test)):
                left_out[task.name] = reason
            elif not found:
                left_out[task.name] = "no latent fires differently on its two classes"
            else:
                vectors = _directions(sae, found[0], x[choose], y[choose], cfg.arms_seed)
                prefixes = _prefixes(model, [task.texts[row] for row in choose if y[row]], cfg)
                sizes = [len(choose), len(teach), len(test)]
                concepts.append(Concept(task, found[0], judge, vectors, prefixes, x, sizes))
            advance(1, note=task.name)
    return concepts, left_out


def unfit(judge: Judge, taught: int, tested: int) -> str | None:
    """Return why a judge that was taught on so many texts and tested on others cannot tell what steering does, None if it can."""
    told = f"a probe taught on {taught} of its texts"
    if judge.auc < LEAST_AUC:
        return f"{told} has an AUC of {judge.auc:.2f} on {tested} others, and needs {LEAST_AUC} to judge what steering does"
    if not judge.scale > 0:
        return f"{told} scores those of {tested} others with the concept no higher on average than those without it"
    return None


def parts(labels: Bool[np.ndarray, "n"], seed: int) -> list[list[int]]:
    """Return the rows that choose the arms, that teach the judge and that test it, drawn from each class."""
    rng = np.random.default_rng(seed)
    drawn: list[list[int]] = [[], [], []]
    for side in (False, True):
        rows = rng.permutation(np.flatnonzero(labels == side))
        cuts = [int(share * len(rows)) for share in PARTS]
        for part, own in zip(drawn, np.split(rows, cuts), strict=True):
            part.extend(own.tolist())
    return drawn


def _directions(
    sae: SAE, latent: FoundLatent, x: Float[np.ndarray, "n D"], y: Bool[np.ndarray, "n"], seed: int
) -> dict[ArmName, Tensor]:
    """Return the unit vector of every arm that has one, towards the concept."""
    row = latent.sign * sae.W_dec[latent.latent].detach().float().cpu()
    difference = torch.from_numpy(x[y].mean(0) - x[~y].mean(0)).float()
    probe = torch.from_numpy(probes.weights(x, y, seed)).float()
    vectors: dict[ArmName, Tensor] = {
        "latent": row,
        "difference": difference,
        "probe": probe,
        "wrong sign": -row,
    }
    return {name: vector / vector.norm() for name, vector in vectors.items()}


def _prefixes(model: LanguageModel, shots: Sequence[str], cfg: ArmsConfig) -> list[tuple[int, ...]]:
    """Return the ids of one example of the concept, of two, and so on, as many prefixes as there are strengths."""
    encode = model.vocabulary.encode
    examples = [(*encode(text)[: cfg.shot_tokens], *encode(SEPARATOR)) for text in shots[: len(cfg.shares)]]
    return [sum(examples[: number + 1], ()) for number in range(len(cfg.shares))]
