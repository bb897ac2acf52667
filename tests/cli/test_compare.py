"""`sae compare`: the table, the file of partners, and one line for what cannot be compared."""

import json
import shutil
from pathlib import Path

import pytest

from activations.language_model import load
from sae.architectures import BatchTopKConfig
from sae.config import RunConfig, TrainConfig
from sae.workflows.train import train
from tests import tiny
from tests.cli.commands import Server, contents


@pytest.fixture(scope="module")
def other(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another architecture and width on the toy store, not evaluated."""
    cfg = TrainConfig(steps=10, batch=64, lr=3e-3, seed=1)
    arch = BatchTopKConfig(d_sae=48, k=3)
    folder = tmp_path_factory.mktemp("other") / "batch"
    return train(RunConfig(store=str(world / "store"), arch=arch, train=cfg), folder).path


def test_a_copy_of_a_run_is_matched_with_it_latent_by_latent(sae: Server, world: Path, run: Path):
    ended = sae("compare", run, world / "runs/toy")
    assert ended.code == 0, ended.err
    assert "one to one" in ended.out
    found = json.loads((run / "compare-toy.json").read_text())
    latents = found["cosine"]["latents"]["first"]
    assert latents["nearest"] == latents["partner"] == list(range(32))
    assert set(latents["kind"]) == {"shared"}
    assert found["cosine"]["summary"]["one_to_one"]["above_0.9"] == 1
    firing = round(found["firing"]["first"] * 32)
    assert found["activation"]["latents"]["first"]["kind"].count("shared") == firing > 0
    assert found["first"]["run"] == str(run)
    assert not found["absolute"]


def test_runs_of_different_widths_and_methods_are_compared(sae: Server, run: Path, other: Path):
    ended = sae("compare", run, other, "--tokens", 50, "--near", 0.5, "--absolute", True)
    assert ended.code == 0, ended.err
    found = json.loads((run / "compare-batch.json").read_text())
    assert (found["tokens"], found["near"], found["absolute"]) == (50, 0.5, True)
    second = found["activation"]["latents"]["second"]
    assert {len(column) for column in second.values()} == {48}
    assert second["partner"].count(-1) == 48 - 32
    assert found["second"]["weights_file_sha256"] == weights(other)


def weights(run: Path) -> str:
    return json.loads((run / "sae.json").read_text())["weights_file_sha256"]


def test_the_table_shows_what_was_measured_and_a_dash_for_what_was_not(sae: Server, run: Path, other: Path):
    ended = sae("compare", run, other, other)
    assert ended.code == 0, ended.err
    estimates = json.loads((run / "eval.json").read_text())["estimates"]
    lines = {line.split()[0]: line for line in ended.out.splitlines() if "topk" in line}
    assert "topk" in lines["run"]
    assert f"{estimates['fvu']['value']:.4f}" in lines["run"]
    assert f"{estimates['l0']['value']:.1f}" in lines["run"]
    assert "48" in lines["batch"]
    assert lines["batch"].count("–") == 6
    assert not list(run.glob("compare-*"))  # three runs are not matched


def test_the_plot_is_one_page_with_the_measured_runs(sae: Server, run: Path, other: Path, tmp_path: Path):
    page = tmp_path / "new folder" / "pareto.html"
    ended = sae("compare", run, other, other, "--plot", page)
    assert ended.code == 0, ended.err
    assert str(page) in ended.out.replace("\n", "")
    drawn = page.read_text()
    assert "topk, 32 latents" in drawn
    assert "batchtopk" not in drawn, "it has no evaluation"


def test_a_run_that_is_not_there_is_one_line(sae: Server, run: Path):
    before = contents(run)
    assert "no run at /nowhere" in sae("compare", run, "/nowhere").complaint
    assert "runs given: 1" in sae("compare", run).complaint
    assert contents(run) == before


def test_runs_on_activations_of_different_width_are_one_line_with_both(
    sae: Server, run: Path, world: Path, tmp_path: Path
):
    wide = tiny.harvest(
        load(str(world / "model")),
        tmp_path / "store",
        tiny.harvest_config(world / "text.jsonl", hooks="blocks.1.mlp.hook_post"),
    )
    cfg = TrainConfig(steps=2, batch=64)
    train(RunConfig(store=str(wide.path), train=cfg, arch=BatchTopKConfig(d_sae=8, k=2)), tmp_path / "wide")
    before = contents(run)
    line = sae("compare", run, tmp_path / "wide").complaint
    assert "width 16" in line and "width 32" in line
    assert tiny.HOOK in line and "blocks.1.mlp.hook_post" in line
    assert contents(run) == before


def test_an_unfinished_run_is_not_matched(sae: Server, run: Path, other: Path):
    (run / "sae.json").unlink()
    line = sae("compare", other, run).complaint
    assert str(run) in line
    assert f"sae resume {run}" in line


def test_another_store_may_be_shown_to_both(sae: Server, run: Path, other: Path, store: Path, tmp_path: Path):
    for gone in (run, other):
        copy = Path(shutil.copytree(gone, tmp_path / f"{gone.name}-moved"))
        about = json.loads((copy / "run.json").read_text())
        about["config"]["store"] = "/nowhere"
        (copy / "run.json").write_text(json.dumps(about))
    moved = [tmp_path / f"{gone.name}-moved" for gone in (run, other)]
    assert "/nowhere is not a store" in sae("compare", *moved).complaint
    assert sae("compare", *moved, "--store", store).code == 0


def test_a_store_without_the_second_run_s_hook_point_is_one_line(
    sae: Server, run: Path, other: Path, tmp_path: Path
):
    copy = Path(shutil.copytree(other, tmp_path / "elsewhere"))
    about = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**about, "hook": "blocks.0.hook_resid_pre"}))
    assert "no 'blocks.0.hook_resid_pre'" in sae("compare", run, copy).complaint


@pytest.mark.parametrize(
    ("flag", "value"), [("--tokens", 0), ("--block", 0), ("--near", 0.0), ("--near", 1.5)]
)
def test_a_number_out_of_range_is_one_line_that_names_it(
    sae: Server, run: Path, other: Path, flag: str, value: float
):
    line = sae("compare", run, other, flag, value).complaint
    assert f"{flag.strip('-')} = {value}" in line


def test_nothing_is_cut_on_a_terminal_of_80_columns(sae: Server, run: Path, tmp_path: Path):
    long = shutil.copytree(run, tmp_path / "matryoshka-d_sae4096-k32-lr0.001-seed7")
    ended = sae("compare", run, long, environment=({"COLUMNS": "80"},))
    assert ended.code == 0, ended.err
    assert "…" not in ended.out
    assert all(len(line) <= 80 or "compare-" in line for line in ended.out.splitlines())
    assert "architecture" in ended.out
    assert "topk" in ended.out


def test_options_of_matching_are_refused_beside_three_runs(sae: Server, run: Path, other: Path, world: Path):
    line = sae("compare", run, other, run, "--near", 0.8, "--store", world / "store").complaint
    assert "--store, --near match the latents of two runs, and 3 are given" in line
