"""A model that ran in bfloat16: the store and the run remember it, and what comes after reads the same weights."""

from pathlib import Path

from sae.runs.run import Run
from tests.cli.commands import Server, harvest, train


def test_a_run_of_a_store_made_in_bfloat16_finds_its_model_again(sae: Server, world: Path, tmp_path: Path):
    assert sae(*harvest(world, tmp_path / "store", model_dtype="bfloat16")).code == 0
    assert sae(*train(world, tmp_path / "run", store=tmp_path / "store")).code == 0
    assert sae("evaluate", tmp_path / "run", "--windows", 4).code == 0
    run = Run(tmp_path / "run")
    assert run.record.model_dtype == "bfloat16"
    assert all((w == w.bfloat16().float()).all() for w in run.language_model().plain.parameters())
