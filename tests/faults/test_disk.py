"""A full disk, a read-only folder, an impossible path: one line, finished parts stay, and the command can resume."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sae.cli.main import _message as message
from tests.cli.commands import Server, contents, harvest, train
from tests.faults.conftest import fill
from tests.faults.jobs import FEATURES, JOBS, Job, bare, differences, end_state


def test_a_harvest_on_a_disk_that_fills_up_keeps_its_shards_and_goes_on(
    sae: Server, world: Path, tmp_path: Path, small_disk: Path
):
    settings = {"tokens": 4000}  # 256 kB of activations, which fit; the rest does not
    line = sae(*harvest(world, small_disk / "store", **settings)).complaint
    assert "disk is full" in line
    assert "kept" in line
    left = contents(small_disk / "store")
    assert len([name for name in left if name.startswith("shard-") and name.endswith(".safetensors")]) >= 4
    assert not [name for name in left if ".part" in name or ".tmp" in name]
    assert "index.json" not in left
    (small_disk / "ballast").unlink()
    assert sae(*harvest(world, small_disk / "store", **settings)).code == 0
    assert sae(*harvest(world, tmp_path / "undisturbed", **settings)).code == 0
    whole = contents(tmp_path / "undisturbed")
    assert contents(small_disk / "store") == whole
    assert all(whole[name] == content for name, content in left.items() if name.endswith(".safetensors"))


def test_a_training_on_a_disk_that_fills_up_goes_on_from_its_checkpoint(
    sae: Server, world: Path, tmp_path: Path, small_disk: Path
):
    settings = {"arch.d-sae": 256, "train.keep-checkpoints": 9}  # about 180 kB per checkpoint
    line = sae(*train(world, small_disk / "run", **settings)).complaint
    assert "disk is full" in line
    checkpoints = sorted(path.name for path in (small_disk / "run" / "checkpoints").iterdir())
    assert checkpoints[0] == "step-00000010"
    (small_disk / "ballast").unlink()
    assert sae(*train(world, small_disk / "run", "--resume", **settings)).code == 0
    assert sae(*train(world, tmp_path / "undisturbed", **settings)).code == 0
    for name in ("sae.safetensors", "sae.json"):
        assert (small_disk / "run" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_features_on_a_disk_that_fills_up_go_on_later(
    sae: Server, world: Path, tmp_path: Path, small_disk: Path
):
    run = small_disk / "run"
    (small_disk / "ballast").unlink()
    bare(world, run)
    fill(small_disk, 60_000)  # enough for some of the pass
    line = sae("features", run, *FEATURES).complaint
    assert "disk is full" in line
    assert not (run / "features" / "features.json").exists()
    assert not [name for name in contents(run) if ".part" in name or ".tmp" in name or ".lock" in name]
    (small_disk / "ballast").unlink()
    assert sae("features", run, *FEATURES).code == 0
    assert not differences(end_state(run / "features"), end_state(world / "runs" / "toy" / "features"))


@pytest.mark.parametrize("files", [0, 2, 5, 12])
def test_a_harvest_that_meets_a_full_disk_at_any_file_goes_on_from_there(
    sae: Server, world: Path, tmp_path: Path, files: int
):
    out = tmp_path / "store"
    assert "disk is full" in sae(*harvest(world, out), disk_full_after=(files,)).complaint
    assert not [name for name in contents(out) if ".part" in name]
    assert sae(*harvest(world, out)).code == 0
    assert sae(*harvest(world, tmp_path / "undisturbed")).code == 0
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("files", [0, 3, 10, 16])
def test_a_training_that_meets_a_full_disk_at_any_file_goes_on_from_there(
    sae: Server, world: Path, tmp_path: Path, files: int
):
    out = tmp_path / "run"
    assert "disk is full" in sae(*train(world, out), disk_full_after=(files,)).complaint
    assert sae(*train(world, out, "--resume")).code == 0
    assert sae(*train(world, tmp_path / "undisturbed")).code == 0
    assert (out / "sae.safetensors").read_bytes() == (
        tmp_path / "undisturbed" / "sae.safetensors"
    ).read_bytes()


def test_an_evaluation_on_a_full_disk_leaves_the_old_one(sae: Server, run: Path):
    before = contents(run)
    assert "disk is full" in sae("evaluate", run, "--windows", 0, disk_full_after=(0,)).complaint
    assert contents(run) == before


@pytest.mark.parametrize("files", [0, 6, 20])
def test_features_that_meet_a_full_disk_at_any_file_go_on_from_there(sae: Server, run: Path, files: int):
    whole = contents(run / "features")
    for path in (run / "features").iterdir():
        path.unlink()
    ended = sae("features", run, *FEATURES, disk_full_after=(files,))
    assert ended.code == 2
    assert "disk is full" in ended.err.splitlines()[-1], "the last of the progress it tells"
    assert not (run / "features" / "features.json").exists()
    assert sae("features", run, *FEATURES).code == 0
    assert contents(run / "features") == whole


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may write to."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize("command", [harvest, train])
@pytest.mark.parametrize("below", ["", "new"])
def test_a_folder_that_cannot_be_written_is_one_line(
    sae: Server, world: Path, read_only: Path, command, below: str
):
    line = sae(*command(world, read_only / below)).complaint
    assert "no permission" in line
    assert str(read_only) in line
    assert not list(read_only.iterdir())


def test_evaluating_a_run_that_cannot_be_written_is_one_line(sae: Server, run: Path):
    before = contents(run)
    run.chmod(0o555)
    line = sae("evaluate", run, "--windows", 0).complaint
    run.chmod(0o755)
    assert "no permission" in line
    assert contents(run) == before


@pytest.mark.parametrize("command", [harvest, train])
@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
def test_a_place_where_no_folder_can_be_is_one_line(
    sae: Server, world: Path, tmp_path: Path, command, place: str
):
    (tmp_path / "file").write_text("mine")
    line = sae(*command(world, tmp_path / place)).complaint
    assert place in line
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("command", [harvest, train])
@pytest.mark.parametrize("place", ["/proc/sae", "/sys/sae"])
def test_a_disk_that_takes_no_folders_is_one_line(sae: Server, world: Path, command, place: str):
    assert place in sae(*command(world, Path(place))).complaint


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_read_only_disk_is_one_line_and_a_finished_folder_on_it_is_as_good(
    sae: Server, world: Path, tmp_path: Path, as_read_only: Callable[[Path], Path], job: Job
):
    folder = tmp_path / "disk"
    folder.mkdir()
    job.prepare(world, folder / "out")
    disk = as_read_only(folder)
    line = sae(*job.words(world, disk / "out")).complaint
    assert str(disk / "out") in line
    assert "Read-only file system" in line
    shutil.rmtree(folder / "out", ignore_errors=True)
    job.prepare(world, folder / "out")
    assert sae(*job.words(world, folder / "out")).code == 0
    before = contents(folder)
    assert sae(*job.words(world, disk / "out"), *job.again).code == 0
    assert contents(folder) == before


def test_features_of_a_run_that_cannot_be_written_are_one_line(sae: Server, world: Path, tmp_path: Path):
    run = tmp_path / "run"
    bare(world, run)
    before = contents(run)
    run.chmod(0o555)
    line = sae("features", run, *FEATURES).complaint
    run.chmod(0o755)
    assert "no permission" in line
    assert str(run) in line
    assert contents(run) == before


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EDQUOT, "the disk is full (while writing): free some space"),
        (errno.EIO, "a file cannot be used (Input/output error): choose another place"),
    ],
)
def test_what_a_disk_says_without_a_file_s_name_is_one_line(number: int, says: str):
    assert (message(OSError(number, os.strerror(number))) or "").startswith(says)
