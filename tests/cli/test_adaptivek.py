"""AdaptiveK from the command line: labels harvested, a run trained, stopped, resumed, evaluated; mistakes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from activations.shuffle import ShuffledReader
from sae.architectures import AdaptiveKConfig
from sae.config import RunConfig, TrainConfig, from_json, to_json
from sae.runs.run import Run
from sae.workflows.train import train
from tests.cli.commands import Server, harvest
from tests.tiny import train_until

ARCH = AdaptiveKConfig(d_sae=32, k_min=1, k_max=12, joint_share=0.5)


@pytest.fixture(scope="module")
def labelled(sae: Server, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the toy text with built-in labels."""
    out = tmp_path_factory.mktemp("labelled") / "store"
    ended = sae(*harvest(world, out, tokens=4000, labels="builtin"))
    assert ended.code == 0, ended.err
    return out


def command(store: Path, out: Path, *more: object) -> list[object]:
    return [
        "train", "adaptivek", "--store", store, "--out", out, "--arch.d-sae", 32, "--arch.k-min", 1,
        "--arch.k-max", 12, "--train.steps", 40, "--train.batch", 64, "--train.log-every", 5, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("positions", ["all", "last"])
def test_from_text_to_an_evaluated_run(sae: Server, labelled: Path, tmp_path: Path, positions: str):
    assert "builtin" in sae("store", "show", labelled).out
    batch = ["--positions", positions, "--train.batch", 64 if positions == "all" else 16]
    ended = sae(*command(labelled, tmp_path / "run", *batch))
    assert ended.code == 0, ended.err
    assert sae("evaluate", tmp_path / "run", "--windows", 0).code == 0
    run = Run(tmp_path / "run")
    assert run.config.positions == positions
    assert all("probe_mse" in row for row in run.log)
    assert [("probe_deviation" in row) for row in run.log] == [False] * 7 + [True]
    assert run.evaluation.positions == positions
    rows = [
        run.store.rows(run.store.read(n), "held-out", positions=positions)
        for n in range(len(run.store.shards))
    ]
    assert run.evaluation.tokens == sum(int(chosen.sum()) for chosen in rows)
    l0 = run.evaluation.estimates["l0"]
    assert 1 <= l0.low <= l0.high <= 12


def test_the_saved_probe_reads_raw_activations(labelled: Path, tmp_path: Path):
    run = train(config(labelled), tmp_path / "run")
    scale, sae = run.record.input_scale, run.sae()
    assert scale != 1
    kept = load_file(run.checkpoints[-1] / "training.safetensors")
    x = next(iter(ShuffledReader(run.store, run.hook, 500))).x
    assert sae.score(x).std() > 0
    assert_close(sae.score(x), (x * scale) @ kept["units.probe_w"] + sae.probe_b)


def config(store: Path) -> RunConfig:
    settings = TrainConfig(steps=20, batch=64, lr=3e-3, log_every=4, checkpoint_minutes=0.1)
    return RunConfig(store=str(store), arch=ARCH, train=settings)


def test_stopped_in_any_stage_and_resumed_the_weights_and_the_probe_are_the_very_same_bits(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = train(config(labelled), tmp_path / "whole")
    for stop_at in (4, 10, 15):  # stage 3 begins after step 10
        out = tmp_path / f"stopped-{stop_at}"
        train_until(config(labelled), out, stop_at, monkeypatch)
        again = train(config(labelled), out, resume=True)
        for name in ("sae.safetensors", "checkpoints/step-00000020/training.safetensors"):
            assert (again.path / name).read_bytes() == (whole.path / name).read_bytes(), (stop_at, name)
        assert [row["loss"] for row in again.log] == [row["loss"] for row in whole.log]
    assert not torch.equal(whole.sae().probe_w, whole.sae().probe_w_start)


def test_the_settings_survive_json_and_a_run_from_before_positions_read_all():
    cfg = RunConfig(store="s", arch=ARCH, positions="last")
    content = json.loads(json.dumps(to_json(cfg)))
    assert from_json(content) == cfg
    del content["positions"]
    assert from_json(content).positions == "all"


def test_a_store_without_labels_is_one_line_and_makes_nothing(sae: Server, world: Path, tmp_path: Path):
    line = sae(*command(world / "store", tmp_path / "run")).complaint
    assert "holds no labels" in line
    assert "--labels builtin, column:NAME or module:function" in line
    assert not (tmp_path / "run").exists()


def numbered(path: Path, labels: list[object]) -> Path:
    text = "the cat sat on a mat and looked at birds while rain fell " * 3
    path.write_text("".join(json.dumps({"text": text, "level": label}) + "\n" for label in labels))
    return path


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([float(n) for n in range(40)], "outside 0 to score_max = 10"),
        ([3.0] * 40, "1 different values"),
        ([None] * 40, "0 of the sampled rows have a label"),
    ],
)
def test_labels_no_probe_can_learn_from_are_one_line_and_make_nothing(
    sae: Server, world: Path, tmp_path: Path, labels: list[object], says: str
):
    text = numbered(tmp_path / "text.jsonl", labels)
    store = tmp_path / "store"
    assert sae(*harvest(world, store, tokens=4000, dataset=text, labels="column:level")).code == 0
    assert says in sae(*command(store, tmp_path / "run")).complaint
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "no such source": ("nosuch", ["'nosuch'", "builtin, column:NAME or module:function"]),
    "no such column": ("column:lvl", ["'lvl'", "text, level"]),
    "a column of text": ("column:text", ["'text' holds str"]),
    "no such function": ("nosuch:f", ["nosuch:f", "module:function"]),
    "a function that fails": ("judge:fails", ["judge:fails fails", "RuntimeError: out of credit"]),
}


@pytest.mark.parametrize(("source", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistaken_source_of_labels_is_one_line_and_makes_nothing(
    sae: Server, world: Path, tmp_path: Path, source: str, says: list[str]
):
    (tmp_path / "judge.py").write_text("def fails(text):\n    raise RuntimeError('out of credit')\n")
    text = numbered(tmp_path / "text.jsonl", [1, 2, 3])
    how = harvest(world, tmp_path / "store", dataset=text, labels=source)
    line = sae(*how, cwd=tmp_path).complaint
    assert all(part in line for part in says), line
    assert not (tmp_path / "store").exists()


def test_a_function_in_the_folder_one_is_in_gives_labels(sae: Server, world: Path, tmp_path: Path):
    (tmp_path / "judge.py").write_text("def words(text):\n    return len(text.split()) / 10\n")
    how = harvest(world, tmp_path / "store", labels="judge:words")
    assert sae(*how, cwd=tmp_path).code == 0
    assert "judge:words" in sae("store", "show", tmp_path / "store").out


def test_labels_are_added_to_a_store_and_a_run_is_trained_on_them(sae: Server, world: Path, tmp_path: Path):
    store, run = tmp_path / "store", tmp_path / "batchtopk"
    shutil.copytree(world / "store", store)
    how = ["--arch.d-sae", 32, "--arch.k", 4, "--train.steps", 20, "--train.batch", 64]
    assert sae("train", "batchtopk", "--store", store, "--out", run, *how).code == 0
    ended = sae("store", "label", store, "--labels", f"needed:{run}")
    assert ended.code == 0, ended.err
    assert f"needed:{run}" in sae("store", "show", store).out
    assert sae("store", "verify", store).code == 0
    ended = sae(*command(store, tmp_path / "run"))
    assert ended.code == 0, ended.err
    assert "one for each token" in ended.out
    assert Run(tmp_path / "run").config.arch.labels_in == "latents"
    _ = Run(run).store  # labels have not changed the store it was trained on
    line = sae("store", "label", store, "--labels", "needed:nosuch").complaint
    assert "nosuch" in line
