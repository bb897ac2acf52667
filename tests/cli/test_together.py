"""Runs that are trained at once end with the bits that each has alone, on a store and on a stream, whatever stops them."""

import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from activations import language_model
from activations.document_labels import SURPRISE
from activations.errors import ConfigError
from activations.harvest import harvest
from activations.streaming.folder import StreamConfig
from activations.text import TextConfig
from activations.tokens import PackingConfig
from sae.architectures import AdaptiveKConfig, BatchTopKConfig, TopKConfig
from sae.config import RunConfig, TrainConfig
from sae.runs.run import Run
from sae.workflows import training
from sae.workflows.rings import RingSettings
from sae.workflows.sweep import load
from sae.workflows.together import train_together
from sae.workflows.train import train
from tests import tiny
from tests.cli.commands import ROOT, Server

TRAIN = TrainConfig(steps=20, batch=64, lr=3e-3, log_every=5, held_out_every=5, checkpoint_minutes=0.1)
OTHER = "blocks.0.hook_resid_post"
TEXT_ORDER = 512  # tokens: one shard of the stream below
RING = RingSettings(1_500_000)


def runs(**source) -> dict[str, RunConfig]:
    """Runs that share a reader, one with another seed, one with another batch and length, one of another method."""
    topk = RunConfig(arch=TopKConfig(d_sae=32, k=4), train=TRAIN, **source)
    return {
        "narrow": topk,
        "wide": replace(topk, arch=TopKConfig(d_sae=64, k=2)),
        "seed": replace(topk, train=replace(TRAIN, seed=1)),
        "short": replace(topk, train=replace(TRAIN, steps=13, batch=96)),
        "batchtopk": replace(topk, arch=BatchTopKConfig(d_sae=32, k=4)),
    }


def stream(world: Path) -> StreamConfig:
    text = TextConfig(dataset=str(world / "text.jsonl"))
    packing = PackingConfig(context=16)
    return StreamConfig(
        str(world / "model"), tokens=4000, text=text, packing=packing, shard_tokens=512, batch_tokens=128, kept_tokens=2048
    )  # fmt: skip


@pytest.fixture(scope="module")
def stored(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Return a source of the stream's activations as a store, which is read in the order of the text. A run on a store has
    the bits of one on a stream (tests/faults/test_streams.py) and needs no producer."""
    made = stream(world)
    config = made.harvest(f"{tiny.HOOK},{OTHER}", SURPRISE)
    store = harvest(language_model.load(made.model), tmp_path_factory.mktemp("stored") / "store", config)
    return {"store": str(store.path), "hook": tiny.HOOK, "shuffle_tokens": TEXT_ORDER}


@pytest.fixture(scope="module", params=["store", "stream"])
def source(request: pytest.FixtureRequest, world: Path) -> dict:
    if request.param == "store":
        return {"store": str(world / "store")}
    return {"stream": stream(world), "hook": tiny.HOOK, "shuffle_tokens": TEXT_ORDER}


@pytest.fixture(scope="module")
def alone(source: dict, stored: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the runs, each trained alone."""
    out = tmp_path_factory.mktemp("alone")
    for name, cfg in runs(**(stored if "stream" in source else source)).items():
        train(cfg, out / name)
    return out


def in_folder(folder: Path, configs: dict[str, RunConfig]) -> dict[Path, RunConfig]:
    return {folder / name: cfg for name, cfg in configs.items()}


def assert_same(alone: Path, together: Path, names: list[str]) -> None:
    """Assert that runs have the same weights, histories, last checkpoints and logs, but for the times."""
    for name in names:
        one, other = Run(alone / name), Run(together / name)
        files = ["sae.safetensors", "latents.safetensors"]
        files += [f"{run.relative_to(one.path)}/training.safetensors" for run in one.checkpoints]
        assert len(files) == 4
        for file in files:
            assert (one.path / file).read_bytes() == (other.path / file).read_bytes(), (name, file)
        times = ("seconds", "tokens_per_second")
        logs = [[{k: v for k, v in row.items() if k not in times} for row in run.log] for run in (one, other)]
        assert logs[0] == logs[1]
        assert all("held_out_fvu" in row for row in logs[0])
        assert other.store.fingerprint


def test_each_of_several_runs_has_the_bits_that_it_has_alone(source: dict, alone: Path, tmp_path: Path):
    configs = runs(**source)
    assert train_together(in_folder(tmp_path, configs), tmp_path, ring=RING) == {}
    assert_same(alone, tmp_path, [*configs])
    assert not (tmp_path / "ring").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert train_together(in_folder(tmp_path, configs), tmp_path, ring=RING) == {}
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def train_until(step: int, cfg: RunConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a run alone up to a step, with a checkpoint there."""
    whole = training.fitting

    class Enough(Exception):
        pass

    def some(trainer, batches, *, log, save, stop):
        yield from whole(trainer, batches, log=log, save=save, stop=lambda: trainer.step == step)
        raise Enough

    with monkeypatch.context() as patch:
        patch.setattr(training, "fitting", some)
        with pytest.raises(Enough):
            train(cfg, out, ring=RING)


def test_runs_that_were_stopped_at_different_steps_go_on_together(
    source: dict, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`narrow` has 12 steps, `wide` none, `seed` 6, `short` is finished."""
    configs = runs(**source)
    for name, step in {"narrow": 12, "seed": 6, "short": 13}.items():
        train_until(step, configs[name], tmp_path / name, monkeypatch)
    assert train_together(in_folder(tmp_path, configs), tmp_path, ring=RING) == {}
    for name in configs:
        for file in ("sae.safetensors", "latents.safetensors"):
            assert (alone / name / file).read_bytes() == (tmp_path / name / file).read_bytes(), name


@pytest.mark.parametrize("source", ["store"], indirect=True)
def test_a_run_goes_on_where_those_behind_it_end_or_diverge_before_they_reach_it(
    source: dict, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    configs = runs(**source)
    narrow = configs["narrow"]
    brief = replace(narrow, train=replace(TRAIN, steps=5))
    bad = replace(narrow, train=replace(TRAIN, lr=1e30, clip_norm=1e30, warmup_steps=0))
    train_until(12, narrow, tmp_path / "narrow", monkeypatch)
    train_until(16, configs["wide"], tmp_path / "wide", monkeypatch)
    together = {"narrow": narrow, "brief": brief, "wide": configs["wide"], "bad": bad}
    assert [*train_together(in_folder(tmp_path, together), tmp_path, ring=RING)] == [tmp_path / "bad"]
    assert Run(tmp_path / "brief").finished
    for name in ("narrow", "wide"):
        for file in ("sae.safetensors", "latents.safetensors"):
            assert (alone / name / file).read_bytes() == (tmp_path / name / file).read_bytes(), name


def test_a_run_that_diverges_leaves_the_others_alone(source: dict, alone: Path, tmp_path: Path):
    configs = runs(**source)
    bad = replace(configs["narrow"], train=replace(TRAIN, lr=1e30, clip_norm=1e30, warmup_steps=0))
    said = train_together(in_folder(tmp_path, {"bad": bad, **configs}), tmp_path, ring=RING)
    assert [*said] == [tmp_path / "bad"]
    assert "lower --train.lr" in said[tmp_path / "bad"]
    assert not Run(tmp_path / "bad").finished
    assert_same(alone, tmp_path, [*configs])


def test_runs_of_several_hook_points_and_with_labels_share_one_pass_of_the_model(
    world: Path, stored: dict, tmp_path: Path
):
    base = RunConfig(
        stream=stream(world), arch=TopKConfig(d_sae=32, k=4), train=TRAIN, shuffle_tokens=TEXT_ORDER
    )
    configs = {
        "one": replace(base, hook=tiny.HOOK),
        "other": replace(base, hook=OTHER),
        "labels": replace(
            base, hook=tiny.HOOK, arch=AdaptiveKConfig(d_sae=32, k_min=2, k_max=8), labels=SURPRISE
        ),
    }
    for name, cfg in configs.items():
        train(replace(cfg, stream=None, store=stored["store"]), tmp_path / "alone" / name)
    assert train_together(in_folder(tmp_path, configs), tmp_path, ring=RING) == {}
    for name, cfg in configs.items():
        ours, own = tmp_path / name, tmp_path / "alone" / name
        assert (ours / "sae.safetensors").read_bytes() == (own / "sae.safetensors").read_bytes()
        assert Run(ours).hook == cfg.hook


def test_what_cannot_be_trained_together_is_refused(world: Path, tmp_path: Path):
    made, other = replace(stream(world)), replace(stream(world), tokens=2000)
    base = RunConfig(stream=made, hook=tiny.HOOK, train=TRAIN, shuffle_tokens=TEXT_ORDER)
    stored = RunConfig(str(world / "store"), train=TRAIN)
    for second, fact in (
        (stored, "a stream"),
        (replace(base, stream=other), "the same stream"),
        (replace(base, hook=None), "the same hook"),
        (replace(base, shuffle_tokens=1024), "the same shuffle_tokens"),
    ):
        with pytest.raises(ConfigError, match=fact):
            train_together({tmp_path / "a": base, tmp_path / "b": second}, tmp_path, ring=RING)
    configs = {tmp_path / "a": base, tmp_path / "b": replace(base, hook=OTHER)}
    with pytest.raises(ConfigError, match="3 shuffle groups"):
        train_together(configs, tmp_path, ring=RingSettings(200_000))
    assert not list(tmp_path.rglob("run.json"))


SWEEP = """
out = "{out}"
windows = 0
ring = "1500kB"
shuffle_tokens = 512
[stream]
model = "{world}/model"
dataset = "{world}/text.jsonl"
tokens = 4000
context = 16
shard_tokens = 512
batch_tokens = 128
kept_tokens = 2048
[train]
steps = 20
batch = 64
lr = 3e-3
log_every = 5
checkpoint_minutes = 0.1
[[grid]]
arch = "topk"
hook = ["{hook}", "{other}"]
d_sae = 32
k = [2, 4]
"""


def written(tmp_path: Path, world: Path, **changes: str) -> Path:
    text = SWEEP.format(out=tmp_path / "out", world=world, hook=tiny.HOOK, other=OTHER)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "sweep.toml").write_text(text)
    return tmp_path / "sweep.toml"


def test_the_example_in_the_documentation_is_a_sweep_of_eight_runs_on_a_stream(tmp_path: Path):
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/streaming.md").read_text(), re.S)
    (tmp_path / "sweep.toml").write_text(example)
    sweep = load(tmp_path / "sweep.toml")
    assert len(sweep.runs) == 8
    assert sweep.stream and sweep.stream.dtype == "bfloat16"
    assert {cfg.hook for cfg in sweep.runs.values()} == {
        "blocks.8.hook_resid_post",
        "blocks.16.hook_resid_post",
    }


def test_a_sweep_on_a_stream_reads_it_once_and_goes_on_after_a_stop(
    sae: Server, world: Path, stored: dict, tmp_path: Path
):
    file = written(tmp_path, world)
    names = [*load(file).runs]
    assert len(names) == 4
    stopped = sae.start("sweep", file)
    stopped.when(lambda: (tmp_path / "out" / names[0] / "checkpoints").exists()).kill(signal.SIGINT)
    assert stopped.wait().code == 130
    assert sae("sweep", file).code == 0
    for name in names:
        run = Run(tmp_path / "out" / name)
        assert run.finished
        assert run.evaluation
        train(replace(run.config, stream=None, store=stored["store"]), tmp_path / "alone" / name)
        assert Run(tmp_path / "alone" / name).digest == run.digest
    assert (tmp_path / "out" / "results.csv").read_text().count("\n") == 5


def test_a_stored_sweep_is_trained_together_on_request(sae: Server, world: Path, tmp_path: Path):
    text = f'store = "{world}/store"\nwindows = 0\n[train]\nsteps = 20\nbatch = 64\n[[grid]]\narch = "topk"\nd_sae = 32\nk = [2, 4]\n'
    for name, options in (("one", []), ("all", ["--together"])):
        (tmp_path / f"{name}.toml").write_text(f'out = "{tmp_path / name}"\n{text}')
        assert sae("sweep", tmp_path / f"{name}.toml", *options).code == 0
    for run in ("topk-d_sae32-k2", "topk-d_sae32-k4"):
        assert Run(tmp_path / "one" / run).digest == Run(tmp_path / "all" / run).digest


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"tokens = 4000": "tokenz = 4000"}, ["stream", "'tokenz'", "dataset", "context"]),
        ({"tokens = 4000": 'tokens = "many"'}, ["'many'", "str", "int"]),
        ({"windows = 0": 'windows = 0\nstore = "s"'}, ["either a store", "[stream]"]),
        ({'"1500kB"': '"large"'}, ["large", "20GB"]),
    ],
)
def test_a_mistake_in_a_stream_is_one_line(
    sae: Server, world: Path, tmp_path: Path, changes: dict, facts: list[str]
):
    line = sae("sweep", written(tmp_path, world, **changes)).complaint
    assert all(fact in line for fact in facts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_sweep_on_a_stream_killed_at_random_moments_ends_with_the_same_bits(
    sae: Server, world: Path, stored: dict, tmp_path: Path, kills: int
):
    file, chance = written(tmp_path, world), random.Random(kills)
    for _ in range(kills):
        command, deadline = sae.start("sweep", file), time.monotonic() + chance.uniform(0.5, 4.0)
        command.when(lambda deadline=deadline: time.monotonic() > deadline).kill()
        command.wait()
    assert sae("sweep", file).code == 0
    for name in load(file).runs:
        run = Run(tmp_path / "out" / name)
        train(replace(run.config, stream=None, store=stored["store"]), tmp_path / "alone" / name)
        assert Run(tmp_path / "alone" / name).digest == run.digest
