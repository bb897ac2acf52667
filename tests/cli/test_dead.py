"""`sae dead`: the summary, the files, done once, resumable, and mistakes in one line."""

import csv
import io
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from activations.disk import files
from activations.errors import RunError
from sae.diagnosis.report import KINDS, SCHEMA, DeadReport
from sae.runs.run import Run
from tests.cli.commands import Server, contents

QUICK = ("--rows", 400, "--off-tokens", 60, "--batch", 128)
KILLED_LATENT = 7


@pytest.fixture
def wounded(run: Path) -> Path:
    """A run one of whose latents is killed by its bias, after its features were made."""
    tensors = load_file(run / "sae.safetensors")
    tensors["b_enc"][KILLED_LATENT] = -1000.0
    files.write_tensors(run / "sae.safetensors", tensors, "sae-weights-1")
    about = json.loads((run / "sae.json").read_text())
    digest = files.sha256(run / "sae.safetensors")
    (run / "sae.json").write_text(json.dumps({**about, "weights_file_sha256": digest}))
    return run


def test_it_says_how_many_are_dead_and_why_and_writes_what_it_found(sae: Server, wounded: Path):
    ended = sae("dead", wounded, *QUICK)
    assert ended.code == 0, ended.err
    for word in (
        "dead on",
        "why they are dead",
        "bias too low",
        "would fire, bias moved by",
        "would fire, k =",
    ):
        assert word in ended.out
    found = DeadReport(wounded / "dead")
    row = found.row(KILLED_LATENT)
    assert row is not None
    assert (row["kind"], row["cause"], row["fires_on"]) == ("dead", "bias too low", "nothing")
    assert "Bias -" in row["evidence"]
    assert row["training"] in ("alive at the end", "died", "revived and lost")  # the toy run's own history
    assert found.record.kinds["dead"] == len(found.rows("dead"))
    assert found.record.sae_sha256 == Run(wounded).digest
    assert found.record.off_distribution and found.record.rows["random"] >= 60
    assert found.record.features_rows == 0  # the features are of the SAE before it was wounded
    assert set(found.record.kinds) == set(KINDS)


def test_its_files_are_as_the_format_says(sae: Server, wounded: Path):
    assert sae("dead", wounded, *QUICK).code == 0
    assert sorted(contents(wounded / "dead")) == ["dead.json", "latents.parquet"]
    about = json.loads((wounded / "dead/dead.json").read_text())
    assert about["format"] == 1
    assert about["sha256"]["latents.parquet"] == files.sha256(wounded / "dead/latents.parquet")
    assert pq.read_schema(wounded / "dead/latents.parquet").equals(SCHEMA)
    latents = pq.read_table(wounded / "dead/latents.parquet")["latent"].to_pylist()
    assert latents == sorted(set(latents))


def test_finished_work_is_not_done_twice_and_another_question_is_a_new_answer(sae: Server, wounded: Path):
    sae("dead", wounded, *QUICK)
    before = {path: path.stat().st_mtime_ns for path in (wounded / "dead").iterdir()}
    again = sae("dead", wounded, *QUICK)
    assert again.code == 0
    assert {path: path.stat().st_mtime_ns for path in (wounded / "dead").iterdir()} == before
    sae("dead", wounded, *QUICK[2:], "--rows", 200)
    assert DeadReport(wounded / "dead").record.config["rows"] == 200


def test_it_runs_without_the_language_model_and_without_features_and_history(sae: Server, wounded: Path):
    shutil.rmtree(wounded / "features")
    (wounded / "latents.safetensors").unlink()
    ended = sae("dead", wounded, "--rows", 400, "--off-tokens", 0)
    assert ended.code == 0, ended.err
    assert "not recorded" in ended.out
    found = DeadReport(wounded / "dead")
    assert not found.record.off_distribution
    assert found.record.history is False
    row = found.row(KILLED_LATENT)
    assert row is not None
    assert row["fired_random"] is None
    assert row["times_died"] is None


def test_csv_has_a_line_for_each_latent(sae: Server, wounded: Path):
    ended = sae("dead", wounded, *QUICK, "--csv")
    lines = list(csv.DictReader(io.StringIO(ended.out)))
    found = DeadReport(wounded / "dead").rows()
    assert [int(line["latent"]) for line in lines] == [row["latent"] for row in found]
    assert [line["cause"] for line in lines] == [row["cause"] or "" for row in found]


def test_a_crash_before_the_index_leaves_nothing_that_looks_finished(sae: Server, wounded: Path):
    ended = sae.start("dead", wounded, *QUICK, kill_at=(2, wounded / "dead")).wait()
    assert ended.code != 0
    assert not (wounded / "dead/dead.json").exists()
    assert sae("dead", wounded, *QUICK).code == 0
    assert sorted(contents(wounded / "dead")) == ["dead.json", "latents.parquet"]


def test_mistakes_are_one_line(sae: Server, tmp_path: Path, run: Path):
    assert "no run at" in sae("dead", tmp_path / "nowhere").complaint
    assert "rows = 0 must be at least 1" in sae("dead", run, "--rows", 0).complaint
    (run / "sae.json").unlink()
    line = sae("dead", run).complaint
    assert "not finished" in line
    assert not (run / "dead").exists()


def test_a_history_that_cannot_be_read_is_one_line(sae: Server, run: Path):
    (run / "latents.safetensors").write_bytes(b"x")
    assert "latents.safetensors is damaged" in sae("dead", run, *QUICK).complaint


def test_a_damaged_table_is_named_and_made_again(sae: Server, wounded: Path):
    sae("dead", wounded, *QUICK)
    whole = (wounded / "dead/latents.parquet").read_bytes()
    (wounded / "dead/latents.parquet").write_bytes(b"x")
    with pytest.raises(RunError, match=r"latents\.parquet is damaged.*; sae dead "):
        _ = DeadReport(wounded / "dead").table
    ended = sae("dead", wounded, *QUICK)
    assert ended.code == 0
    assert "latents.parquet is damaged" in ended.err
    assert (wounded / "dead/latents.parquet").read_bytes() == whole


def test_the_history_of_the_toy_run_is_whole(world: Path):
    history = Run(world / "runs/toy").history
    assert history is not None
    log = Run(world / "runs/toy").log
    assert log[-1]["died"] == int(history["times_died"].sum())
    assert log[-1]["revived"] == int(history["times_revived"].sum())
    assert torch.equal(history["first_death"] < 0, history["times_died"] == 0)
