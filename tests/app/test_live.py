"""Pages share one language model, and one of them at a time uses it."""

import shutil
import time
from pathlib import Path

import pytest

from activations.disk import files
from activations.errors import RunError
from app.session import models
from app.session.jobs import Job, Report
from sae.runs.run import Run


def test_the_model_is_loaded_once_and_used_by_one_at_a_time(world: Path):
    run, seen, inside, most = Run(world / "runs" / "toy"), [], 0, 0

    def look(report: Report) -> None:
        nonlocal inside, most
        with models.using(run, report) as (model, sae):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            seen.append((id(model), id(sae)))
            inside -= 1

    for job in [Job(look) for _ in range(4)]:
        job.thread.join()
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert most == 1


def test_an_unfinished_run_has_no_sae_to_use(world: Path, tmp_path: Path):
    (tmp_path / "run.json").write_text((world / "runs" / "toy" / "run.json").read_text())

    def use(report: Report) -> None:
        with pytest.raises(RunError, match="not finished"), models.using(Run(tmp_path), report):
            pass

    job = Job(use)
    job.thread.join()
    assert job.error is None


def test_a_run_of_another_engine_does_not_get_the_model_that_is_loaded(world: Path, tmp_path: Path):
    copy = shutil.copytree(world / "runs" / "toy", tmp_path / "other")
    record = files.read_json(copy / "run.json")
    files.write_sealed(copy / "run.json", {**record, "source": "transformers"})
    toy, other = Run(world / "runs" / "toy"), Run(copy)
    engines = []

    def use(report: Report) -> None:
        for run in (toy, other, toy):
            with models.using(run, report) as (model, _):
                engines.append(model.engine)

    job = Job(use)
    job.thread.join()
    assert job.error is None
    assert engines == ["bridge", "transformers", "bridge"]
