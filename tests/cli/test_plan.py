"""`sae plan` takes the options of the jobs it plans, measures once, refuses in one line and writes nothing."""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from activations.disk import files
from activations.errors import ConfigError
from activations.store import Store
from sae.cli import plan
from sae.plan import finetune, measure, rates
from sae.plan.finetune import Passes
from sae.plan.forecast import Forecast, total
from sae.plan.rates import GPUS, Machine
from sae.plan.training import Data
from sae.runs.run import Run
from sae.workflows.finetune import FinetuneConfig, settings_of
from sae.workflows.sweep import load
from tests.cli.commands import contents
from tests.tiny import HOOK

TINY = {"B": 64, "D": 16, "F": 512, "WIDE": 1024, "NARROW": 256, "FILE": 1 << 16}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose rates are stored already."""
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    name = rates.this_machine(torch.get_num_threads())
    kept = Machine(name, GPUS["h100"].rates, rates.memory(), "measured 2026-01-01", 10**8)
    rates.save(kept)
    return kept


def planned(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    capsys.readouterr()
    assert plan.main([*map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_machine_is_measured_once_and_again_when_asked(tmp_path, monkeypatch, capsys):
    """Work is of toy size: this tests that every rate is measured, stored and used."""
    monkeypatch.setenv("SAE_CACHE", str(tmp_path))
    for name, value in TINY.items():
        monkeypatch.setattr(measure, name, value)
    first = plan.here()
    assert all(0 < rate < math.inf for rate in asdict(first.rates).values())
    assert first.process > 10**7
    assert [path.name for path in tmp_path.iterdir()] == ["rates.json"]
    assert "measuring this machine, once" in capsys.readouterr().err
    assert plan.here() == first
    assert "measuring" not in capsys.readouterr().err
    assert plan.here(again=True).rates != first.rates


def test_a_training_on_a_store_is_planned_with_the_flags_of_sae_train(machine, world, capsys):
    small = ("--arch.d-sae", 64, "--arch.k", 4, "--train.steps", 20, "--train.batch", 32)
    flags = ("--store", world / "store", *small)
    found = planned(capsys, "train", "topk", *flags)
    assert found["what"].startswith("train topk: 64 latents on width 16, 4 per token")
    assert found["total"]["seconds"] == pytest.approx(sum(found["seconds"].values()))
    assert found["facts"]["steps"].startswith("20 of 32 tokens: 640 tokens")
    assert not found["computed"]
    assert plan.main([*map(str, ("train", "topk", *flags))]) == 0
    table = capsys.readouterr().out
    for said in ("time", "memory", "disk", "encode", "limited by:", "measured 2026-01-01"):
        assert said in table


def test_a_training_without_a_store_on_a_device_that_is_not_here(machine, capsys):
    flags = ("--width", 768, "--tokens", "10_000_000_000", "--arch.d-sae", 2**20, "--train.batch", 8192)
    found = planned(capsys, "train", "topk", *flags, "--device", "h200", "--ranks", 8)
    assert found["computed"]
    assert found["disk"]["the store, not there yet"] == 10**10 * 768 * 2
    assert "share the latents" in found["facts"]["speed"]
    assert plan.main([*map(str, ("train", "topk", *flags, "--device", "h200"))]) == 0
    assert "NOT measured" in capsys.readouterr().out


GRID = """
out = "{out}"
{source}
[train]
steps = 20
batch = 32
[[grid]]
arch = "topk"
k = 4
d_sae = [64, 128]
train.seed = [0, 1]
"""


def test_a_sweep_one_by_one_takes_the_memory_of_its_largest_run_and_together_that_of_all(
    machine, world, tmp_path, capsys
):
    file = tmp_path / "sweep.toml"
    file.write_text(GRID.format(out=tmp_path, source=f'store = "{world / "store"}"'))
    runs = [
        planned(
            capsys, "train", "topk", "--store", world / "store", "--arch.k", 4, "--arch.d-sae", d_sae,
            "--train.steps", 20, "--train.batch", 32,
        )
        for d_sae in (64, 128)
    ]  # fmt: skip
    apart, together = planned(capsys, "sweep", file), planned(capsys, "sweep", file, "--together")
    assert apart["total"]["seconds"] == pytest.approx(2 * sum(run["total"]["seconds"] for run in runs))
    once = runs[0]["seconds"]["reading at the start"]
    assert together["total"]["seconds"] == pytest.approx(apart["total"]["seconds"] - 3 * once)
    for plan_ in (apart, together):
        assert plan_["total"]["disk"] == pytest.approx(2 * sum(run["total"]["disk"] for run in runs))
    assert apart["total"]["memory"] == max(run["total"]["memory"] for run in runs)
    parameters = sum(2 * 4 * (2 * 16 * d_sae + d_sae + 16) for d_sae in (64, 128))
    assert together["memory"]["parameters"] == parameters
    data = Data.of(Store(world / "store"), HOOK)
    assert runs[0]["memory"]["shuffle window"] == data.rows * (data.row + 8)
    assert together["memory"]["shuffle window"] == data.rows * (data.row + 2 * 8), (
        "rows once, an order for each seed"
    )


def test_a_sweep_on_a_stream_takes_its_ring_and_no_store(machine, tmp_path, capsys):
    file = tmp_path / "sweep.toml"
    source = 'ring = "3GB"\n[stream]\nmodel = "gpt2"\ndataset = "x"\ndtype = "float16"\ntokens = 1000000'
    file.write_text(GRID.format(out=tmp_path, source=source))
    found = planned(capsys, "sweep", file, "--width", 768)
    assert found["disk"]["the ring"] == 3e9
    assert found["memory"]["shuffle window"] == 2 * 2 * 262_144 * 2 * 768  # seeds, groups, tokens, bytes
    assert found["disk"]["kept for later commands"] == 1_000_000 * 2 * 768
    file.write_text('ring_folder = "/fast"\n' + file.read_text())
    apart = planned(capsys, "sweep", file, "--width", 768)["disk"]
    assert "the ring" not in apart, "on a disk of its own"
    copies = apart["kept for later commands"] / found["disk"]["kept for later commands"]
    assert copies == len(load(file).runs)
    assert not [name for name in found["disk"] if "store" in name]
    with pytest.raises(ConfigError, match="--width"):
        plan.main(["sweep", str(file)])


STREAM = (
    "train", "topk", "--width", 64, "--tokens", 10**8, "--arch.d-sae", 4096, "--ring", "2GB", "--forward-parameters", 2e9,
)  # fmt: skip


def test_on_gpus_the_slower_of_model_and_training_sets_the_time(machine, capsys):
    flops = GPUS["h200"].rates.selecting_flops
    few, many = (planned(capsys, *STREAM, "--device", "h200", "--producers", n) for n in (1, 1000))
    tokens = few["facts"]["steps"].split(":")[1].split()[0].replace(",", "")
    forward = int(tokens) / 0.9 * 2 * 2e9 / (flops / 2)  # the model also reads what is held out
    saving = few["seconds"]["checkpoints"]
    assert few["total"]["seconds"] == pytest.approx(forward, rel=1e-6)
    assert few["limit"].startswith("the model")
    assert "waiting for the model" not in many["seconds"]
    assert many["total"]["seconds"] < forward / 2
    assert saving > 0
    assert few["disk"]["the ring"] == 2e9
    assert any("computer needs 67.1 MB" in note for note in few["notes"]), (
        "two groups, and not a store's window"
    )
    assert not any("store" in part for part in few["disk"])


def test_a_ring_smaller_than_two_shuffle_groups_is_refused(machine, capsys):
    two = (
        2 * 262_144 * (2 * 64 + 4) + 16 * 100_000
    )  # groups, tokens, bytes of a row and its token; shards, what else one has
    flags = [str(two) if word == "2GB" else str(word) for word in STREAM]
    assert planned(capsys, *flags)["refusals"] == []
    flags = [str(two - 1) if word == str(two) else word for word in flags]
    with pytest.raises(ConfigError, match="too small a ring: .*two shuffle groups of 262,144 tokens take"):
        plan.main(flags)


def test_on_a_cpu_model_and_training_share_the_time(machine, capsys):
    streamed = planned(capsys, *STREAM)
    stored = planned(
        capsys, *[word for word in STREAM if word not in ("--ring", "2GB", "--forward-parameters", 2e9)]
    )
    steps = sum(
        value for part, value in stored["seconds"].items() if part not in ("waiting for rows", "checkpoints")
    )
    parts = {
        part: value
        for part, value in streamed["seconds"].items()
        if part not in ("the model's pass", "checkpoints")
    }
    assert sum(parts.values()) == pytest.approx(steps)
    assert streamed["seconds"]["the model's pass"] > 0
    assert streamed["memory"]["shuffle window"] == 2 * 262_144 * 2 * 64  # groups, tokens, bytes


def test_a_harvest_is_planned_from_the_model_itself_and_makes_no_store(machine, world, run, tmp_path, capsys):
    out = tmp_path / "store"
    flags = (
        "--model", world / "model", "--dataset", world / "text.jsonl", "--hooks", HOOK, "--tokens", 1600,
        "--context", 16, "--shard-tokens", 512, "--batch-tokens", 128, "--out", out,
    )  # fmt: skip
    found = planned(capsys, "harvest", *flags)
    assert found["disk"]["activations"] == 1600 * 16 * 4
    assert found["seconds"]["the model's forward pass"] > 0
    assert not out.exists()
    again = planned(capsys, "harvest", *flags)
    assert again["facts"]["speed"] == found["facts"]["speed"]  # remembered
    half = planned(capsys, "harvest", *flags, "--dtype", "float16", "--ranks", 2)
    assert half["disk"]["activations"] == found["disk"]["activations"] / 2
    assert half["seconds"]["the model's forward pass"] == found["seconds"]["the model's forward pass"] / 2
    plain = planned(capsys, "harvest", *flags, "--engine", "transformers")
    assert plain["facts"]["speed"] != found["facts"]["speed"], "another engine is measured by itself"
    assert planned(capsys, "harvest", *flags)["facts"]["speed"] == found["facts"]["speed"]
    surprise = planned(capsys, "harvest", *flags, "--labels", "surprise")
    assert surprise["facts"]["speed"] != found["facts"]["speed"], "the pass to the logits is another one"
    assert surprise["disk"]["labels"] == 1600 * 4
    needed = planned(capsys, "harvest", *flags, "--labels", f"needed:{run}")
    assert needed["seconds"]["labels by the run"] > 0 and needed["disk"]["labels"] == 1600 * 4
    assert needed["facts"]["speed"] == found["facts"]["speed"]
    with pytest.raises(ConfigError, match="engine fsdp shares it among several"):
        plan.main([*map(str, ("harvest", *flags, "--engine", "fsdp"))])


def test_a_harvest_that_no_disk_holds_is_refused_with_what_would_fit(machine, world, capsys):
    flags = [
        "--model",
        world / "model",
        "--dataset",
        world / "text.jsonl",
        "--hooks",
        HOOK,
        "--context",
        "16",
    ]
    with pytest.raises(
        ConfigError, match="too little disk: it takes .* --tokens [0-9]+ would fit"
    ) as refused:
        plan.main([*map(str, ["harvest", *flags, "--tokens", 10**13])])
    assert "limited by: too little disk" in capsys.readouterr().out
    fits = str(refused.value).split("--tokens ")[1].split()[0]
    assert planned(capsys, "harvest", *flags, "--tokens", fits)["refusals"] == []


def test_fine_tuning_is_planned_from_the_passes_of_the_model_and_trains_nothing(
    machine, run, tmp_path, capsys
):
    before = contents(run)
    found = planned(capsys, "finetune", run, "--tokens", 3200, "--batch", 64, "--out", tmp_path / "tuned")
    assert found["facts"]["steps"].startswith("50 of 64 tokens: 3,200 tokens")
    speed = float(found["facts"]["the model"].split()[0].replace(",", ""))
    assert found["seconds"]["the model's passes"] == pytest.approx(3200 / speed, rel=0.5 / speed)
    assert not {"reading at the start", "waiting for rows"} & {*found["seconds"]}
    longer = planned(capsys, "finetune", run, "--tokens", 32000, "--batch", 64)
    assert longer["facts"]["the model"] == found["facts"]["the model"], "measured once"
    assert longer["seconds"]["the model's passes"] == pytest.approx(
        10 * found["seconds"]["the model's passes"]
    )
    assert contents(run) == before and not (tmp_path / "tuned").exists()
    with pytest.raises(ConfigError, match="one process"):
        plan.main(["finetune", str(run), "--ranks", "2"])


@pytest.mark.parametrize("job", ["finetune", "features"])
def test_the_model_is_measured_again_for_another_engine_or_precision(machine, run, tmp_path, capsys, job):
    flags = ("--tokens", 3200) if job == "features" else ("--tokens", 3200, "--batch", 64)
    planned(capsys, job, run, *flags)
    record = files.read_json(Path(run) / "run.json")
    for change in ({"source": "transformers"}, {"model_dtype": "bfloat16", "weights_sha256": None}):
        other = shutil.copytree(run, tmp_path / "-".join(change))
        files.write_sealed(other / "run.json", {**record, **change})
        before = (tmp_path / "cache" / "rates.json").read_bytes()
        planned(capsys, job, other, *flags)
        assert (tmp_path / "cache" / "rates.json").read_bytes() != before


def test_a_fine_tuning_that_does_not_fit_is_refused_with_options_that_it_has(
    machine, run, tmp_path, monkeypatch
):
    opened, measured = Run(run), Passes(1e5, 1.0, 10**6, "now")

    def forecast(batch: int, memory: float) -> Forecast:
        settings = settings_of(opened, FinetuneConfig(tokens=10**5, batch=batch))
        return finetune.forecast(
            opened, settings, measured, replace(machine, memory=int(memory)), tmp_path / "out"
        )

    need, half = (total(forecast(batch, 1e12).memory) for batch in (4096, 2048))
    assert forecast(4096, need).refusals == ()
    (refusal,) = forecast(4096, half).refusals
    assert refusal.startswith("too little memory: it takes ") and refusal.endswith("; --batch 2048 would fit")
    assert forecast(2048, half).refusals == ()
    # The model alone takes all of it
    assert (
        forecast(4096, measured.memory).refusals[0].endswith("takes less, down to 16, a window of the store")
    )
    assert forecast(16, measured.memory).refusals[0].endswith("a machine with more memory would fit")
    monkeypatch.setattr("activations.disk.files.free_bytes", lambda path: 10)
    (refusal,) = forecast(4096, need).refusals
    assert refusal.startswith("too little disk: it takes") and "an --out on another disk would fit" in refusal
    told = " ".join([refusal, *forecast(4096, need).notes])
    assert not {"--arch", "--ranks", "--train", "--l0", "--dead"} & {
        word.split(".")[0] for word in told.split()
    }


def test_features_are_planned_from_what_the_run_logged(machine, run, capsys):
    before = contents(run)
    found = planned(capsys, "features", run, "--tokens", 1000)
    assert (
        found["facts"]["tokens"].split()[0] == f"{960:,}"
    )  # 64 windows of 16, their first positions left out
    assert "logit lens" in found["seconds"]
    assert contents(run) == before


def test_features_of_a_run_on_files_are_planned_without_a_language_model(machine, run, capsys, monkeypatch):
    monkeypatch.setattr(Run, "reads_files", True)
    found = planned(capsys, "features", run, "--tokens", 1000)
    assert "neighbours" in found["seconds"]
    assert not {"logit lens", "the language model's start"} & {*found["seconds"]}
