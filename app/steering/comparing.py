"""The job of the Steering page that compares arms: labelled texts that are kept beside the run, the work, and the time it takes."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from activations import labelled_texts
from activations.errors import ConfigError, LabelError, RunError, TextError, quoted
from activations.labelled_texts import LabelledTexts
from activations.progress import Advance, Progress
from app.session import jobs, models
from app.session.jobs import Job, Report
from sae.plan import rates
from sae.runs.arms import FOLDER, TEXTS, ArmsRecord
from sae.runs.run import Run, device
from sae.steering.arms import ARMS, ArmsConfig
from sae.workflows import arm_concepts
from sae.workflows.arms import compare_arms
from sae.workflows.find import NAME, WORDS
from sae.workflows.probe import require_scikit_learn

KIND = "arms"  # of the job
WITHOUT = "(other)"  # label of texts without a concept; it comes before letters and digits, and the second is steered towards
STAGES = {"examples": (0.0, 0.1), "find": (0.1, 0.2), "probes": (0.2, 0.21), "steer": (0.21, 1.0)}
CFG = ArmsConfig()


@dataclass(frozen=True)
class Pace:
    """How fast a comparison went on this machine."""

    seconds: float
    """Time that a token of a text took, with all that is measured."""


def from_sets(name: str, texts: Sequence[str], others: Sequence[str]) -> LabelledTexts:
    """Return labelled texts of this name, the first with its concept. Raises ConfigError for a name that cannot be a file's."""
    _check(name)
    labels = [name] * len(texts) + [WITHOUT] * len(others)
    return _enough(labelled_texts.labelled(name, [*texts, *others], labels))


def from_file(name: str, file_name: str, content: bytes) -> LabelledTexts:
    """Return the labelled texts of a file that was uploaded, under this name, or the file's own where it is empty.

    Raises ConfigError for a name that cannot be a file's, TextError for a file that cannot be read, LabelError for too few texts."""
    uploaded = Path(file_name)
    _check(name := name or uploaded.stem)
    with TemporaryDirectory(prefix="sae-arms-") as scratch:
        path = Path(scratch, name + uploaded.suffix.lower())
        path.write_bytes(content)
        try:
            return _enough(labelled_texts.read_file(path))
        except TextError as error:  # which names the temporary file
            raise TextError(error.message.replace(str(path), uploaded.name)) from error


def kept(run: Run) -> dict[str, Path]:
    """Return the files of labelled texts that were given on the page, by the name of the concept."""
    return {path.stem: path for path in sorted((run.path / FOLDER / TEXTS).glob("*.jsonl"))}


def unfinished(run: Run, record: ArmsRecord | None) -> list[str]:
    """Return the concepts that were given on the page and whose comparison has not come to its end."""
    compared = {} if record is None else record.texts_sha256
    return [
        name for name, path in kept(run).items() if name not in compared or compared[name] != _digest(path)
    ]


def replaced(run: Run, record: ArmsRecord | None) -> list[str]:
    """Return the concepts that a comparison from the page would no longer show, because their texts were not given there."""
    return [] if record is None else [each.name for each in record.concepts if each.name not in kept(run)]


def texts_to_write(run: Run, record: ArmsRecord | None) -> int:
    """Return how many texts a comparison with another concept takes at most, with those of all concepts that were given before and
    are not compared yet; those of random directions are the same for every concept."""
    shared = record is not None and record.config == json.loads(json.dumps(asdict(CFG)))
    of_all = 0 if shared else 1 + len(CFG.shares) * CFG.directions
    concepts = 1 + len(unfinished(run, record if shared else None))
    of_each = len(CFG.shares) * (len(ARMS) - 1)
    return (of_all + concepts * of_each) * len(CFG.starts) * CFG.draws


def seconds(run: Run, texts: int) -> float | None:
    """Return how long it takes to write and measure so many texts at the pace of the last time here, or None before the first."""
    pace = rates.recall(_paced(run), Pace)
    return None if pace is None else pace.seconds * texts * CFG.new_tokens


def add(name: str, run: Run, task: LabelledTexts) -> None:
    """Keep labelled texts beside the run, and start to compare arms on them and on all that were kept before.

    Raises ConfigError where other texts are kept under their name, and what `start` does."""
    _ready(run)
    path = run.path / FOLDER / TEXTS / f"{task.name}.jsonl"
    if path.exists() and _digest(path) != arm_concepts.prepared(task, CFG).sha256:
        raise ConfigError(
            f"{path} holds other texts of a concept {task.name!r}: choose another name, or delete them",
            fix=f"rm {quoted(path)}",
        )
    labelled_texts.write_file(path, task)
    start(name, run, task.name)


def start(name: str, run: Run, newest: str) -> None:
    """Start to compare arms on all concepts whose texts are kept beside the run. The job's result is the concept `newest`.

    Raises ConfigError without scikit-learn, StoreError where the run's store is gone."""
    _ready(run)

    def work(report: Report) -> str:
        tasks = [_read(path) for path in kept(run).values()]
        progress = _timed(jobs.progress(report, STAGES), _paced(run))
        try:
            with models.using(run, report, as_harvested=True) as (model, _):
                compare_arms(run, tasks, CFG, model=model, progress=progress)
        except LabelError:  # no concept can be compared, so that there is nothing to go on with
            kept(run)[newest].unlink()
            raise
        return newest

    jobs.start(f"{KIND} {name}", work, f"comparing arms of {name} on {newest}")


def job(name: str) -> Job[str] | None:
    """Return this visitor's last comparison; None where none was started."""
    return jobs.find(f"{KIND} {name}")


def _ready(run: Run) -> None:
    """Raise, before a model is loaded, what would end a comparison at once."""
    require_scikit_learn()
    _ = run.store


def _read(path: Path) -> LabelledTexts:
    try:
        return labelled_texts.read_file(path)
    except (TextError, LabelError) as error:
        raise RunError(error.message, fix=f"rm {quoted(path)}") from error


def _digest(path: Path) -> str | None:
    """Return the hash of the labelled texts of a file that a comparison uses; None where they cannot be read."""
    try:
        return arm_concepts.prepared(_read(path), CFG).sha256
    except (RunError, LabelError):
        return None


def _check(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(f"a concept cannot be called {name!r}: {WORDS}")


def _enough(task: LabelledTexts) -> LabelledTexts:
    arm_concepts.prepared(task, CFG)
    return task


def _paced(run: Run) -> str:
    """Return the name under which the pace of this run's model on this machine is remembered."""
    where = rates.this_machine(torch.get_num_threads())
    return f"arms, {run.record.model} {run.record.model_dtype}, {device()}, {where}"


def _timed(progress: Progress, key: str) -> Progress:
    """Return a Progress that also remembers under the key how long a token took, once a comparison has written all of its texts."""

    @contextmanager
    def open_stage(stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        began = time.monotonic()
        with progress(stage, total, unit, done) as advance:
            yield advance
        if stage == "steer" and done < total:
            rates.remember(key, Pace((time.monotonic() - began) / (total - done)))

    return open_stage
