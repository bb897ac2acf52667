"""Pages share one language model, and one of them at a time uses it."""

import time
from pathlib import Path

import pytest

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
