"""A comparison of two runs is kept, known again by the SAEs it is of, and not written by halves."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from activations.disk import files
from activations.errors import RunError
from activations.progress import ignore
from sae.architectures import AbsTopKConfig
from sae.config import RunConfig, TrainConfig
from sae.evaluation.held_out import held_out_rows
from sae.runs.run import Run
from sae.workflows.compare import keep, kept, match_runs, place
from sae.workflows.train import train


@pytest.fixture(scope="module")
def signed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with negative values, 24 latents wide."""
    cfg = TrainConfig(steps=10, batch=64, lr=3e-3)
    arch = AbsTopKConfig(d_sae=24, k=3)
    return train(
        RunConfig(store=str(world / "store"), arch=arch, train=cfg),
        tmp_path_factory.mktemp("runs") / "signed",
    )


@pytest.fixture
def pair(world: Path, signed: Run, tmp_path: Path) -> tuple[Run, Run]:
    """Copies of the toy run, which has 32 latents, and of the signed one."""
    copies = [shutil.copytree(path, tmp_path / path.name) for path in (world / "runs/toy", signed.path)]
    return Run(copies[0]), Run(copies[1])


def test_what_is_kept_is_what_was_found_and_says_when_it_is_of_others(pair):
    first, second = pair
    assert kept(first, second) is None
    assert keep(first, second, match_runs(first, second)) == place(first, second)
    found = kept(first, second)
    content = files.read_json(first.path / "compare-signed.json")
    assert asdict(found) == {name: value for name, value in content.items() if name != files.SEAL}
    assert found.absolute, "a latent of the second is negative somewhere"
    assert [len(found.cosine.latents[side].kind) for side in ("first", "second")] == [32, 24]
    assert kept(second, first) is None, "the other way round it is another comparison"
    about = json.loads((second.path / "sae.json").read_text())
    (second.path / "sae.json").write_text(json.dumps({**about, "weights_file_sha256": "0" * 64}))
    assert kept(first, second) is None, "the second was trained again"


def test_progress_tells_of_every_row_and_latent(pair):
    stages: dict[str, tuple[int, list[int]]] = {}

    @contextmanager
    def progress(stage: str, total: int, unit: str, done: int = 0):
        stages[stage] = total, []
        yield stages[stage][1].append

    match_runs(*pair, tokens=200, block=10, progress=progress)
    total, rows = stages["encode"]
    assert sum(rows) == total == 2 * min(200, held_out_rows(pair[0].store))
    assert stages["match"] == (64, 2 * [10, 10, 10, 2])


@pytest.mark.parametrize("where", ["encode", "match"])
def test_stopped_on_the_way_it_leaves_what_was_there(pair, where):
    def stop(n: int, note: str = "") -> None:
        raise KeyboardInterrupt

    @contextmanager
    def progress(stage: str, total: int, unit: str, done: int = 0):
        yield stop if stage == where else ignore

    before = sorted(pair[0].path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        match_runs(*pair, progress=progress)
    assert sorted(pair[0].path.iterdir()) == before


@pytest.mark.parametrize(("content", "said"), [("{", "cannot be read"), ("{}", "damaged"), ("[]", "damaged"),
    ('{"format": 2}', "format 2"), ('{"format": 1, "first": 3}', "damaged")])  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_line_that_names_it(pair, content: str, said: str):
    place(*pair).write_text(content)
    with pytest.raises(RunError, match=said) as caught:
        kept(*pair)
    assert "compare-signed.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unfinished_run_has_no_comparison(pair):
    (pair[1].path / "sae.json").unlink()
    for ask in (kept, match_runs):
        with pytest.raises(RunError, match="sae resume"):
            ask(*pair)
