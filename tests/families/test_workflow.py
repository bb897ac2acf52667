"""The workflow with models of every family: harvest, train, evaluate, features, dead, read, steer, export and import."""

import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import sae
from activations.generation import Sampling, prompt_ids
from activations.language_model import load
from sae.diagnosis.sample import DeadConfig
from sae.features.feature import FeatureStore
from sae.foreign import writable
from sae.steering.interventions import Calibration, Intervention
from sae.steering.measure import compare
from sae.steering.steering import Steering
from sae.workflows.diagnose import diagnose_run
from sae.workflows.import_sae import import_sae, origin_of
from tests import tiny
from tests.cli.commands import Server
from tests.families.models import ROWS, Family

MIDDLE = "blocks.1.hook_resid_pre"


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=() if row.quick else pytest.mark.slow)
        for row in ROWS
        if not row.refused
    ],
)
def test_the_whole_way_from_text_to_steering(row: Family, tmp_path: Path):
    """Do everything that a user does with a model, in that order."""
    row.folder(tmp_path / "model")
    model = load(str(tmp_path / "model"))
    tiny.store(tmp_path, model, hooks=MIDDLE, tokens=1600)
    run = tiny.run(tmp_path, steps=10)
    assert run.evaluation is not None
    losses = run.evaluation.splice.estimates
    assert all(math.isfinite(losses[name].value) for name in ("ce_clean", "ce_spliced", "ce_zero"))
    assert losses["ce_zero"].value != losses["ce_clean"].value, "the splice does something"
    features = FeatureStore(run.path / "features")
    assert len(features) == 32
    assert len(features.feature(3).row["raised_logits"]) > 0, "a logit lens"
    report = diagnose_run(run, DeadConfig(rows=200, off_tokens=40, batch=64), lambda: nullcontext(model))
    assert sum(report.record.kinds.values()) > 0

    autoencoder = run.sae()
    reading = sae.read(model, autoencoder, run.hook, "a cat sat on the mat", features)
    assert reading.log_probs[:-1].isfinite().any()
    assert (reading.effects is not None) == row.effects

    latent = int(np.nanargmax(features.table["max"].to_numpy()))
    push = Intervention(latent, "add", 2.0)
    steering = Steering(autoencoder, run.hook, (push,), Calibration.of(features))
    (pair,) = compare(model, steering, prompt_ids(model, "the cat"), Sampling(tokens=6))
    assert max(map(abs, pair.steered.change)) > 0, "steering does something"

    writable()["saelens"].write(autoencoder, origin_of(run), tmp_path / "theirs")
    again = import_sae(tmp_path / "theirs", tmp_path / "runs" / "again", "saelens", store=tmp_path / "store")
    x = torch.randn(6, autoencoder.d_model, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        again.sae().encode(x).dense(), autoencoder.encode(x).dense(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["BERT", "T5", "BioGPT"])
def test_at_the_command_line_a_refusal_is_one_line_and_leaves_nothing(sae: Server, name: str, tmp_path: Path):
    row = next(row for row in ROWS if row.name == name)
    row.folder(tmp_path / "model")
    text = tiny.text_file(tmp_path / "text.jsonl")
    ended = sae(
        "harvest", "--model", tmp_path / "model", "--dataset", text, "--hooks", MIDDLE,
        "--tokens", 1600, "--context", 16, "--out", tmp_path / "store",
    )  # fmt: skip
    assert row.refused in ended.complaint
    assert not (tmp_path / "store").exists()
