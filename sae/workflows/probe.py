"""Probe a run's SAE with labelled texts: activations once, then every method at every setting, task after task."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import torch

from activations import language_model
from activations.disk import files
from activations.errors import ConfigError, RunError, quoted
from activations.example_activations import ExampleActivations, Examples, Pooling, token_ids
from activations.labelled_texts import LabelledTexts
from activations.language_model import LanguageModel
from activations.progress import Advance, Progress, no_progress
from sae.architectures import SAE
from sae.probing.latents import probe_loss
from sae.probing.probes import Matrix, Penalty
from sae.probing.records import FORMAT, PROBES, ProbedTask, ProbesRecord
from sae.probing.score import Cell, cell_scores, cells, counted, features, gathered
from sae.probing.splits import Point, Setting, points, split
from sae.runs.run import Run, device
from sae.runs.saved_sae import read_results

log = logging.getLogger(__name__)
INSTALL = "pip install 'sae-workbench[probe]'"
SEED = 42  # of the first draw, as in sae-probes
Pool = Callable[[Iterable[tuple[Any, ...]]], Iterator[tuple[Cell, list[Any]]]]
"""Maps `cell_scores` over arguments and yields (cell, scores), in any order."""


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of `sae probe`: which examples, how they become activations, and what is compared."""

    settings: tuple[Setting, ...] = ("normal",)
    """`normal`, `scarce` (8, 32 and 128 training examples), `imbalanced` (5 % and 20 % of the second class) and `noise` (20 %
    and 40 % of the training labels changed)."""
    ks: tuple[int, ...] = (1, 2, 5, 16)
    """Numbers of latents, random latents and neurons that a probe may read; those above what there is are left out."""
    seeds: int = 3
    """Draws of training and test examples that intervals are taken over; one gives no interval."""
    examples: int = 1500
    """Examples used of a task at most, half of each class."""
    repeats: bool = False
    """Keep texts that a task has several times, as sae-probes does: the same text then trains and tests."""
    penalty: Penalty = "l2"
    """Regularisation of the probes on k columns. sae-probes offers both; `l1` takes some five times as long."""
    pooling: Pooling = "last"
    """Activation of a text: that of its last token, or the mean over its tokens, which the SAE then reads like any other. Where texts
    do not begin with a BOS, the mean leaves out their first token."""
    context: int = 128
    """Tokens that the model reads of a text, the BOS included: the last ones, where a text has more."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("examples", 12), ("context", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least {least}")
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(f"ks = {self.ks} must be numbers of at least 1")
        if not self.settings:
            raise ConfigError("settings is empty: name at least one, such as normal")
        for name in ("ks", "settings"):
            if len({*getattr(self, name)}) < len(getattr(self, name)):
                raise ConfigError(f"{name} = {getattr(self, name)} names one twice")


def probe(
    run: Run,
    tasks: Sequence[LabelledTexts],
    cfg: ProbeConfig | None = None,
    model: LanguageModel | None = None,
    processes: int = 1,
    progress: Progress = no_progress,
) -> ProbesRecord:
    """Probe a finished run's SAE with tasks; add the results to its probes.json and return those of these tasks.

    The language model reads each text once for all runs at the same hook point: activations stay in the user's cache. A task
    whose results are there, for the same SAE, settings and texts, is not probed again; results for another SAE or other settings
    are replaced. Interrupted and called again, the work continues. `model` is loaded when left out. `processes` of a pool share
    the fits of a task.

    Raises LabelError for a task with too few examples, RunError when the run is not finished or has no language model,
    ConfigError without scikit-learn."""
    cfg = cfg or ProbeConfig()
    require_scikit_learn()
    tasks = [prepared(task, cfg) for task in tasks]
    todo = [points(task.labels, cfg.settings, task.name) for task in tasks]
    for task, each in zip(tasks, todo, strict=True):
        if not each:
            log.warning(
                "%s has too few examples for %s: only its probe loss is measured",
                task.name,
                " and ".join(cfg.settings),
            )
    record = _begun(run, cfg)
    names = {task.name: task.sha256 for task in tasks}
    done = {task.name for task in record.tasks if names.get(task.name) == task.texts_sha256}
    if done < {*names}:
        model = model or model_of(run)
        cache = ExampleActivations(examples_of(run, model, cfg))
        cache.fill(model, [text for task in tasks if task.name not in done for text in task.texts], progress)
        sae = run.sae().to(device())
        for what, number in (("latents", sae.d_sae), ("neurons", sae.d_model)):
            if more := [k for k in cfg.ks if k > number]:
                log.warning("no probe on %s %s: there are %d", " or ".join(map(str, more)), what, number)
        count = [len(cells(each, range(cfg.seeds))) for each in todo]
        finished = sum(n for task, n in zip(tasks, count, strict=True) if task.name in done)
        with progress("probe", sum(count), "probes", finished) as advance, _pool(processes) as pool:
            for task, each in zip(tasks, todo, strict=True):
                if task.name in done:
                    continue
                probed = _probed(sae, model, cache, task, each, cfg, pool, advance)
                record = _with(record, probed)
                files.write_sealed(run.path / PROBES, asdict(record))
    order = {name: place for place, name in enumerate(names)}
    chosen = sorted((task for task in record.tasks if task.name in order), key=lambda task: order[task.name])
    return ProbesRecord(record.format, record.sae_sha256, record.hook, record.config, chosen)


def _probed(
    sae: SAE,
    model: LanguageModel,
    cache: ExampleActivations,
    task: LabelledTexts,
    at: Sequence[Point],
    cfg: ProbeConfig,
    pool: Pool,
    advance: Advance,
) -> ProbedTask:
    """Return the results of one task, whose activations are in the cache."""
    first = cache.examples.first
    ids = [token_ids(model, text, first, cfg.context) for text in task.texts]
    x = cache.of(task.texts)
    read = features(sae, x, counted(ids, len(first)), SEED)
    fits = cells(at, range(SEED, SEED + cfg.seeds))
    running = pool((cell, read[cell.method], task.labels, cfg.ks, cfg.penalty) for cell in fits)
    # Gao et al.'s loss has balanced examples, whatever else is asked for
    train, test, _ = split(task.labels, points(task.labels, ("normal",))[0], SEED)
    labels = torch.from_numpy(task.labels)
    # While the pool works on the first fits
    loss = probe_loss(sae, x[train], labels[train], x[test], labels[test])
    results = []
    for result in running:
        results.append(result)
        advance(1, note=task.name)
    scores = [*gathered(sorted(results, key=lambda result: fits.index(result[0])))]
    return ProbedTask(task.name, [*task.classes], len(task.texts), task.sha256, scores, loss)


def read_probes(run: Run) -> ProbesRecord | None:
    """Return the content of a run's probes.json, or None without one or when it is of other weights. Raises RunError when damaged."""
    path, again = run.path / PROBES, f"sae probe {quoted(run.path)} --pooling mean"
    record = read_results(
        path, "probes", FORMAT, ProbesRecord, again, f"rm {quoted(path)}",
        lambda record: record.config.get("pooling") == "last" or bool(run.first_tokens),
    )  # fmt: skip
    return record if record and record.sae_sha256 == run.digest else None


def prepared(task: LabelledTexts, cfg: ProbeConfig) -> LabelledTexts:
    """Return the examples of a task that are used."""
    return (task if cfg.repeats else task.without_repeats()).at_most(cfg.examples)


def examples_of(run: Run, model: LanguageModel, cfg: ProbeConfig) -> Examples:
    """Return how a run's texts become activations."""
    first = run.first_tokens
    if first is None:
        first = [] if model.vocabulary.bos is None else [model.vocabulary.bos]
    dtype = str(model.plain.dtype).removeprefix("torch.")
    weights = run.record.weights_sha256 or model.weights_hash
    pooling = "mean behind the first" if cfg.pooling == "mean" and not first else cfg.pooling
    return Examples(run.record.model, weights, dtype, run.hook, first, cfg.context, pooling)


def model_of(run: Run) -> LanguageModel:
    """Load a run's language model as its activations were harvested: in the same precision, which is faster than float32.

    Raises what `Run.language_model` raises."""
    record = run.record
    if run.reads_files or record.source != "bridge" or record.model_dtype == "float32":
        return run.language_model()
    model = language_model.load(record.model, record.model_revision, record.model_dtype, str(device()))
    if record.weights_sha256 not in (None, model.weights_hash):
        raise RunError(
            f"{model.name} has other weights than when the activations of {run.path} were harvested: restore it, or harvest "
            f"and train again"
        )
    return model


def require_scikit_learn() -> None:
    """Raise ConfigError unless scikit-learn is installed."""
    from importlib.util import find_spec

    if find_spec("sklearn") is None:
        raise ConfigError("probes are fitted with scikit-learn, which is not installed", fix=INSTALL)


def _begun(run: Run, cfg: ProbeConfig) -> ProbesRecord:
    """Return the results so far, or none where they are of other weights or settings."""
    config = json.loads(json.dumps(asdict(cfg)))
    record = read_probes(run)
    if record and record.config == config:
        return record
    return ProbesRecord(FORMAT, run.digest, run.hook, config, [])


def _with(record: ProbesRecord, task: ProbedTask) -> ProbesRecord:
    others = [each for each in record.tasks if each.name != task.name]
    return ProbesRecord(record.format, record.sae_sha256, record.hook, record.config, [*others, task])


@contextmanager
def _pool(processes: int) -> Iterator[Pool]:
    if processes == 1:
        yield lambda jobs: (_cell(*job) for job in jobs)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"))
    try:
        yield lambda jobs: (
            done.result() for done in as_completed([pool.submit(_cell, *job) for job in jobs])
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _cell(cell: Cell, x: Matrix, *rest: Any) -> tuple[Cell, list[Any]]:
    return cell, cell_scores(cell, x, *rest)
