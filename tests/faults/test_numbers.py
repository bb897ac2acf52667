"""NaN and infinity from the model, from an old store or from a diverging loss are refused in one line that says where."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from activations.disk import files
from activations.errors import DivergedError
from activations.shard import shard_name
from sae.architectures import ArchConfig, build
from sae.config import TrainConfig
from sae.runs.run import Run
from sae.runs.saved_sae import load_sae
from sae.training import checkpoints
from sae.training.trainer import Trainer
from tests import tiny
from tests.cli.commands import Server, contents, harvest, train
from tests.faults.jobs import differences, end_state
from tests.sae.small import D, every_architecture

BOTH = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])


@pytest.fixture
def sick(tmp_path: Path) -> Path:
    """A world whose model gives NaN for the letter z, which only document 40 contains."""
    model = LlamaForCausalLM.from_pretrained(tiny.model_folder(tmp_path / "model"))
    with torch.no_grad():
        model.model.embed_tokens.weight[tiny.tokenizer().convert_tokens_to_ids("z")] = math.nan
    model.save_pretrained(tmp_path / "model")
    rows = [f"document {number} about a {'zebra' if number == 40 else 'horse'}" for number in range(70)]
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    (tmp_path / "text.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("hooks", "where"),
    [
        ("hook_embed", "token 20 of document 40"),
        (
            f"blocks.1.mlp.hook_post,{tiny.HOOK}",
            "in a window of documents",
        ),  # the whole window, through attention
    ],
)
def test_a_model_that_gives_nan_is_one_line_that_names_hook_and_document(
    sae: Server, sick: Path, hooks: str, where: str
):
    line = sae(*harvest(sick, sick / "store", hooks=hooks)).complaint
    found = re.search(
        r"(\S+) of (\S+) is NaN or infinite, first at (.*) of (\S+): this shard was not stored", line
    )
    assert found, line
    assert found[1] in hooks
    assert (found[2], found[4]) == (str(sick / "model"), str(sick / "text.jsonl"))
    assert where in found[3]
    assert "40" in found[3]
    left = contents(sick / "store")
    assert "index.json" not in left
    assert shard_name(0) in left, "whole shards before it stay"


def poison(store: Path, number: int, value: float) -> None:
    """Put a NaN or an infinity into a shard, as if it had been harvested."""
    path = store / shard_name(number)
    tensors = load_file(path)
    tensors[tiny.HOOK][3, 5, 2] = value
    files.write_tensors(path, tensors, "sae-store-1")
    index = json.loads((store / "index.json").read_text())
    index["shards"][number] |= {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
    (store / "index.json").write_text(json.dumps(index))


@BOTH
def test_an_old_store_with_a_number_that_is_none_is_not_trained_on(
    sae: Server, world: Path, store: Path, tmp_path: Path, value: float
):
    poison(store, 2, value)
    line = sae(*train(world, tmp_path / "run", store=store)).complaint
    assert f"{tiny.HOOK} is NaN or infinite at token " in line
    assert f"in {store / shard_name(2)}" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "features", "dead"])
def test_an_old_store_with_a_number_that_is_none_is_not_measured_on(
    sae: Server, store: Path, run: Path, command: str
):
    poison(store, 2, math.nan)
    about = json.loads((run / "run.json").read_text())
    about["config"]["store"] = str(store)
    about["store_fingerprint"] = files.sha256(store / "index.json")
    (run / "run.json").write_text(json.dumps(about))
    shutil.rmtree(run / "features")
    line = sae(
        command, run, *{"evaluate": ["--windows", 0], "dead": ["--off-tokens", 0]}.get(command, [])
    ).complaint
    assert f"in {store / shard_name(2)}" in line
    assert "NaN or infinite at token" in line


def test_a_store_of_zeros_is_not_trained_on(sae: Server, world: Path, store: Path, tmp_path: Path):
    index = json.loads((store / "index.json").read_text())
    index["moments"][tiny.HOOK] = {"mean": [0.0] * 16, "mean_square_norm": 0.0}
    (store / "index.json").write_text(json.dumps(index))
    assert "zero everywhere" in sae(*train(world, tmp_path / "run", store=store)).complaint
    assert not (tmp_path / "run").exists()


def test_a_loss_that_diverges_stops_at_the_last_good_checkpoint(sae: Server, world: Path, tmp_path: Path):
    out = tmp_path / "run"
    line = sae(*train(world, out), loss_explodes_after=(25,)).complaint
    assert "at step 25: lower --train.lr" in line
    assert line.endswith(f"the last good checkpoint is {out / 'checkpoints' / 'step-00000020'}")
    assert all(tensor.isfinite().all() for tensor in Run(out).sae().state_dict().values())
    assert load_sae(out / "checkpoints" / "step-00000020").d_sae == 32
    assert sae(*train(world, out, "--resume")).code == 0
    assert sae(*train(world, tmp_path / "undisturbed")).code == 0
    assert not differences(end_state(out), end_state(tmp_path / "undisturbed"))


def test_a_loss_that_diverges_before_any_checkpoint_says_so(sae: Server, world: Path, tmp_path: Path):
    line = sae(*train(world, tmp_path / "run"), loss_explodes_after=(3,)).complaint
    assert line.endswith("no checkpoint was due yet")


def trainer(cfg: ArchConfig) -> Trainer:
    torch.manual_seed(0)
    sae = build(cfg, D, seed=0)
    x = torch.randn(64, D)
    sae.initialise(x, x.mean(0), torch.Generator().manual_seed(0))
    return Trainer(sae, TrainConfig(steps=10, batch=16, lr=1e-3).resolved(64, sae.cfg))


@BOTH
@every_architecture
def test_no_architecture_learns_from_a_number_that_is_none(cfg: ArchConfig, value: float):
    found = trainer(cfg)
    x = torch.randn(16, D)
    found.train_step(x, x)
    before = {name: p.detach().clone() for name, p in found.sae.named_parameters()}
    x[3, 2] = value
    with pytest.raises(DivergedError, match="at step 1"):
        found.train_step(x, x)
    assert all(p.equal(before[name]) for name, p in found.sae.named_parameters())


@every_architecture
def test_no_architecture_takes_a_step_on_a_gradient_that_is_none(cfg: ArchConfig):
    found = trainer(cfg)
    x = torch.randn(16, D)
    before = {name: p.detach().clone() for name, p in found.sae.named_parameters()}
    for parameter in found.sae.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match="the gradient is"):
        found.train_step(x, x)
    assert all(p.equal(before[name]) for name, p in found.sae.named_parameters())


def test_no_checkpoint_is_written_of_weights_that_are_none(run: Path):
    made, found = Run(run), trainer(tiny.TopKConfig(d_sae=24, k=3))
    before = contents(run)
    with torch.no_grad():
        found.sae.W_enc[0, 0] = math.nan
    with pytest.raises(DivergedError, match="a weight is no longer finite at step 0"):
        checkpoints.save(made, found, {})
    assert contents(run) == before
