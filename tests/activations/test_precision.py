"""The precision a model runs in: named, or chosen by a measurement that everything made from it keeps."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from activations import precision
from activations.errors import ModelError
from activations.harvest import begun_in
from activations.language_model import load
from activations.precision import resolve, speedup, widths
from activations.store import JOB, Store
from activations.store_writer import StoreWriter
from activations.streaming import producer
from activations.streaming.folder import RingFolder, StreamConfig
from activations.streaming.producer import Job
from sae.cli.store import harvest_main
from sae.config import RunConfig
from sae.runs.run import Run
from sae.workflows import rings
from sae.workflows.rings import RingSettings
from tests import tiny
from tests.activations.harvests import config, interrupted
from tests.activations.toys import spec
from tests.cli.commands import harvest

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def model_of(width: int, inner: object = 1536) -> SimpleNamespace:
    text = SimpleNamespace(hidden_size=width, intermediate_size=inner)
    return SimpleNamespace(get_text_config=lambda: text)


@pytest.fixture(autouse=True)
def _unmeasured() -> Iterator[None]:
    """Let each test measure anew, as a process does."""
    for each in (precision.faster, precision.tell):
        each.cache_clear()
    yield
    for each in (precision.faster, precision.tell):
        each.cache_clear()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Let the measurement find that bfloat16 is 3.1 times as fast, for models of any size; returns what was measured."""
    asked: list[tuple[int, int]] = []

    def fast(width: int, inner: int) -> float:
        asked.append((width, inner))
        return 3.1

    monkeypatch.setattr(precision, "speedup", fast)
    monkeypatch.setattr(precision, "SMALLEST", 1)
    return asked


@pytest.mark.parametrize(
    ("ratio", "chosen"), [(3.1, "bfloat16"), (1.3, "bfloat16"), (1.29, "float32"), (0.13, "float32")]
)
def test_on_a_cpu_auto_is_what_the_measurement_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ratio: float, chosen: str
):
    monkeypatch.setattr(precision, "speedup", lambda width, inner: ratio)
    with caplog.at_level(logging.INFO, "activations"):
        assert resolve("auto", model_of(576), CPU) == getattr(torch, chosen)
    (line,) = caplog.messages
    assert chosen in line
    assert f"{ratio:.2g} times" in line


def test_on_a_gpu_auto_is_bfloat16_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch, measured: list):
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert resolve("auto", model_of(16), GPU) == dtype
    assert not measured


def test_a_small_model_runs_in_float32_without_a_measurement(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "speedup", lambda width, inner: 1 / 0)
    assert resolve("auto", model_of(255), CPU) == torch.float32


def test_a_named_precision_is_taken_as_it_is_and_an_unknown_one_refused(measured: list):
    for name in ("float32", "float16", "bfloat16"):
        assert (
            resolve(name, model_of(576), CPU)
            == resolve(getattr(torch, name), None, CPU)
            == getattr(torch, name)
        )
    assert not measured
    with pytest.raises(ModelError, match="'float8'.*bfloat16"):
        resolve("float8", model_of(576), CPU)


@pytest.mark.parametrize(
    ("inner", "widest"), [(1536, 1536), (None, 2304), ([64, 128], 2304), (0, 2304)]
)  # per layer in some models, unset in others
def test_the_shapes_are_those_of_the_models_mlps(inner: object, widest: int):
    assert widths(model_of(576, inner)) == (576, widest)


class Machine:
    """A clock that products move on, by the seconds that are left in a list for their precision."""

    def __init__(self, float32: list[float], bfloat16: list[float]):
        self.now = 0.0
        self._left = {torch.float32: [*float32], torch.bfloat16: [*bfloat16]}

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        self.now += self._left[x.dtype].pop(0) / 2  # two products a turn
        return x

    def clock(self) -> float:
        return self.now


def twice(turns: list[float]) -> list[float]:
    return [seconds for seconds in turns for _ in range(2)]


def test_the_median_of_the_turns_counts_and_not_the_first(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(twice([0.5, 0.03, 0.03, 0.03, 0.03, 0.09]), twice([0.9, 0.01, 0.01, 0.08, 0.01, 0.01]))
    monkeypatch.setattr(precision, "linear", machine.linear)
    monkeypatch.setattr(precision, "BUDGET", 9.0)
    assert speedup(576, 1536, machine.clock) == pytest.approx(3)


def test_a_slow_machine_takes_two_turns_and_no_more(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(twice([0.05] * 3), twice([0.4] * 3))
    monkeypatch.setattr(precision, "linear", machine.linear)
    assert speedup(576, 1536, machine.clock) == pytest.approx(1 / 8)


def test_it_can_be_measured_here():
    assert speedup(64, 128) > 0


def test_a_harvest_ends_in_the_precision_it_began_in(
    world: Path, tmp_path: Path, measured: list, monkeypatch: pytest.MonkeyPatch
):
    words = [str(word) for word in harvest(world, tmp_path / "store")[1:]]
    half = load(str(world / "model"), dtype="auto")
    assert measured == [(16, 32)]
    interrupted(half, tmp_path / "store", config(world / "text.jsonl"), after=600)
    monkeypatch.setattr(precision, "speedup", lambda width, inner: 0.1)  # another measurement, another day
    for _ in range(2):  # to finish it, and when it is finished
        assert harvest_main(words) == 0
        assert Store(tmp_path / "store").spec.model_dtype == "bfloat16"
    assert begun_in(tmp_path / "store", "float32") == "float32"
    assert begun_in(tmp_path / "other", "auto") == "auto"


def test_a_harvest_of_an_older_release_goes_on_in_float32(world: Path, tmp_path: Path, measured: list):
    interrupted(load(str(world / "model")), tmp_path / "store", config(world / "text.jsonl"), after=600)
    assert "model_dtype" not in (tmp_path / "store" / JOB).read_text()
    assert harvest_main([str(word) for word in harvest(world, tmp_path / "store")[1:]]) == 0
    assert Store(tmp_path / "store").spec.model_dtype == "float32"
    assert not measured


@pytest.mark.parametrize(
    ("number", "device", "waits"), [(0, "cpu", False), (1, "cuda:1", False), (1, "cpu", True)]
)
def test_the_producers_of_a_ring_take_the_first_ones_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, device: str, waits: bool
):
    ring = RingFolder(tmp_path / "ring")
    job = Job(StreamConfig(), None, None, str(ring.path), 10**9, number, 2, device, 1)
    waited: list[float] = []

    def first_begins(seconds: float) -> None:
        waited.append(seconds)
        StoreWriter(ring.shards, dataclasses.replace(spec({"h": 1}, 4), model_dtype="bfloat16"))

    monkeypatch.setattr(producer.time, "sleep", first_begins)
    assert producer._model_dtype(ring, job) == ("bfloat16" if waits else "auto")
    assert bool(waited) == waits
    first_begins(0)
    assert producer._model_dtype(ring, job) == "bfloat16"  # a producer that is started again


def test_a_run_on_a_stream_that_resumes_keeps_its_models_precision(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    opened: list[StreamConfig] = []

    def ring(folder: Path, stream: StreamConfig, **_: object) -> SimpleNamespace:
        opened.append(stream)
        return SimpleNamespace(spec=spec({tiny.HOOK: 8}, context=128, windows_per_shard=256))

    monkeypatch.setattr(rings, "Ring", ring)
    cfg = RunConfig(stream=StreamConfig())
    rings.open_ring({tmp_path: cfg}, tmp_path, RingSettings())
    half = tiny.store(tmp_path, load(str(tiny.model_folder(tmp_path / "model")), dtype="bfloat16"))
    Run.create(tmp_path / "run", cfg, half, tiny.HOOK, 1.0)
    rings.open_ring({tmp_path / "run": cfg}, tmp_path / "run", RingSettings())
    assert [stream.model_dtype for stream in opened] == ["auto", "bfloat16"]
