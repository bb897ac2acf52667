"""`sae import` and `sae export saelens`: a round trip, what an imported run can be used for, and errors."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.runs.run import Run
from sae.workflows.import_sae import PROBE, SIZES
from tests import tiny
from tests.cli.commands import Server, contents
from tests.probe_file import read_probe
from tests.sae import lens

FEATURES = ("--strongest", 4, "--sampled", 10, "--neighbours", 3, "--logits", 3, "--batch", 64)


@pytest.fixture(scope="module")
def exported(world: Path, sae: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the toy run's SAE to SAELens' files."""
    out = tmp_path_factory.mktemp("exported") / "toy"
    ended = sae("export", "saelens", world / "runs/toy", "--out", out)
    assert ended.code == 0, ended.err
    return out


@pytest.fixture(scope="module")
def imported(world: Path, exported: Path, sae: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Import that export as a run over the toy store."""
    out = tmp_path_factory.mktemp("imported") / "back"
    ended = sae("import", "saelens", exported, "--out", out, "--store", world / "store")
    assert ended.code == 0, ended.err
    assert "topk of 32 latents" in ended.out
    assert f"sae evaluate {out}" in ended.out
    return out


def test_there_and_back_changes_no_number(world, imported, sae):
    """The weights are equal, so the evaluation is equal to the last digit."""
    ended = sae("evaluate", imported, "--windows", 8, "--batch", 64)
    assert ended.code == 0, ended.err
    first, again = Run(world / "runs/toy"), Run(imported)
    assert first.evaluation == again.evaluation
    for name, tensor in first.sae().state_dict().items():
        assert torch.equal(again.sae().state_dict()[name], tensor)


def test_an_imported_run_is_taken_like_any_other(world, imported, sae, tmp_path):
    run = Path(shutil.copytree(imported, tmp_path / "run"))
    for command in (
        ("features", run, *FEATURES),
        ("dead", run),
        ("compare", run, world / "runs/toy"),
    ):
        ended = sae(*command)
        assert ended.code == 0, ended.err
    again = tmp_path / "again"
    assert sae("export", "saelens", run, "--out", again).code == 0
    facts = json.loads((again / "cfg.json").read_text())["metadata"]
    assert facts["dataset_path"] == str(world / "text.jsonl")
    assert "finished" in repr(Run(run))


def test_the_run_says_where_its_sae_comes_from(world, exported, imported):
    record = Run(imported).record
    source = record.imported
    assert (source.format, source.path) == ("saelens", str(exported))
    assert {*source.sha256} == {"cfg.json", "sae_weights.safetensors"}
    assert source.hook == record.hook == tiny.HOOK
    assert source.facts["context_size"] == 16
    assert record.config["arch"] == {"d_sae": 32, "k": 4}
    assert record.config["train"] == {}


def test_the_probe_holds_rows_of_the_store_and_what_the_sae_makes_of_them(imported):
    run = Run(imported)
    probe, (x, *_) = read_probe(run), next(run.store.batches(run.hook, 16))
    assert torch.equal(probe.x, x)
    code = run.sae().encode(probe.x)
    assert all(torch.equal(a, b) for a, b in zip(probe.code[:3], code[:3], strict=True))
    assert torch.equal(probe.x_hat, run.sae().decode(code))
    assert probe.code.values.any()


def test_without_a_store_the_weights_are_there_and_the_rest_says_what_to_do(exported, sae, tmp_path):
    out = tmp_path / "run"
    ended = sae("import", exported, "--out", out)  # the format shows in the files
    assert ended.code == 0, ended.err
    assert "--store" in ended.out
    run = Run(out)
    assert (run.hook, run.sae().d_sae) == (tiny.HOOK, 32)
    sizes = (read_probe(run).x - run.sae().b_dec).square().mean(1).sqrt()
    assert [*sizes.view(4, 4).log10().round().mean(1)] == [*torch.tensor(SIZES).log10()]
    before = contents(out)
    for command in (
        ("evaluate", out, "--windows", 0),
        ("features", out),
        ("dead", out, "--off-tokens", 0),
    ):
        line = sae(*command).complaint
        assert "was imported without a store" in line
        assert "sae harvest" in line
    assert contents(out) == before
    assert sae("export", "saelens", out, "--out", tmp_path / "again").code == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nosuch", "FILES"], "there is no format 'nosuch'"),
        (["a", "b", "c"], "expected sae import [FORMAT] PATH"),
        (["/nowhere"], "there is no file or folder /nowhere"),
        (["STORE"], "looks like none of the known formats"),
        (["saelens", "/nowhere"], "there is no file or folder /nowhere"),
        (["saelens", "STORE"], "cfg.json is missing in STORE, which holds index.json, shard-00000"),
        (
            ["saelens", "BUCKET"],
            "which holds ae.pt; this looks like dictionary_learning; sae import dictionary_learning BUCKET",
        ),
        (
            ["saelens", "BUCKET/ae.pt"],
            "BUCKET/ae.pt is not a folder, expected one with cfg.json in it; this looks like dic",
        ),
        (
            ["dictionary_learning", "FILES"],
            "ae.pt is missing in FILES, which holds cfg.json, sae_weights.safetensors; this looks like saelens",
        ),
        (["FILES", "--store", "/nowhere"], "/nowhere is not a store"),
        (
            ["FILES", "--store", "STORE", "--hook", "blocks.7.hook_resid_pre"],
            f"holds {tiny.HOOK}: harvest it",
        ),
        (["FILES", "--store", "STORE", "--model", "gpt2"], "--model gpt2 is not the model of"),
        (["WIDE", "--store", "STORE", "--hook", tiny.HOOK], "reads width 8"),
        (["LOST"], "does not say its hook: give --store, or --hook, as in --hook blocks.8"),
        (["LOST", "--hook", "x\x1b[2J", "--model", "gpt2"], "the hook 'x\\x1b[2J' is not a name"),
        (["LOST", "--hook", "x"], "does not say its model"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(world, exported, sae, tmp_path, args, said):
    wide, lost = (
        lens.folder(tmp_path / "wide", "topk"),
        lens.folder(tmp_path / "lost", "topk", metadata={"sae_lens_version": "6"}),
    )
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    (bucket / "ae.pt").touch()
    named = {"FILES": exported, "STORE": world / "store", "WIDE": wide, "LOST": lost, "BUCKET": bucket}

    def fill(text: str) -> str:
        return re.sub("|".join(named), lambda name: str(named[name[0]]), text)

    out = tmp_path / "run"
    assert fill(said) in sae("import", *map(fill, args), "--out", out).complaint
    assert {path.name for path in tmp_path.iterdir()} == {"wide", "lost", "bucket"}


def test_nothing_that_is_there_is_overwritten(world, exported, sae, run):
    before = contents(run)
    assert "is not empty" in sae("import", exported, "--out", run).complaint
    assert "already taken" in sae("export", "saelens", world / "runs/toy", "--out", run).complaint
    file = run / "run.json"
    assert "is not empty" in sae("import", exported, "--out", file).complaint
    assert "already taken" in sae("export", "saelens", world / "runs/toy", "--out", file).complaint
    assert contents(run) == before


def test_an_unfinished_run_is_not_exported(sae, run, tmp_path):
    (run / "sae.json").unlink()
    assert "is not finished" in sae("export", "saelens", run, "--out", tmp_path / "out").complaint
    assert not (tmp_path / "out").exists()


def test_an_import_that_fails_halfway_leaves_nothing_and_can_be_made_again(world, exported, sae, tmp_path):
    """The probe is written last but one, and fails here because the store's shard is gone."""
    store = Path(shutil.copytree(world / "store", tmp_path / "store"))
    (store / "shard-00000.safetensors").unlink()
    out = tmp_path / "runs/run"
    assert "is missing" in sae("import", exported, "--out", out, "--store", store).complaint
    assert not [*(tmp_path / "runs").iterdir()]
    left = tmp_path / "runs/run.part"  # as a process that was killed leaves it
    left.mkdir()
    (left / "sae.json").touch()
    assert sae("import", exported, "--out", out, "--store", world / "store").code == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    assert {path.name for path in out.iterdir()} == {"run.json", "sae.json", "sae.safetensors", PROBE}


def test_damaged_files_are_one_line(exported, sae, tmp_path):
    files = Path(shutil.copytree(exported, tmp_path / "files"))
    tensors = load_file(files / "sae_weights.safetensors")
    save_file({**tensors, "W_enc": tensors["W_enc"][:5].clone()}, files / "sae_weights.safetensors")
    line = sae("import", files, "--out", tmp_path / "run").complaint
    assert "W_enc has shape (5, 32), expected (16, 32)" in line
    assert not (tmp_path / "run").exists()
