"""The claims of benchmarks/acceptance.py that show on real activations: every run is `sae train` with its default rate.

Each number compares runs of one store, width and number of steps. Runs are folders, so that a stopped call goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from activations.store import Store
from benchmarks.matched_table import measured
from benchmarks.trained import measured_run
from sae.architectures import ARCHITECTURES
from sae.config import RunConfig, TrainConfig
from sae.runs.run import Run
from sae.workflows.harvest import label


class Length(NamedTuple):
    """The length of a training run: its steps, and rows per step."""

    steps: int
    batch: int


WIDE, NARROW, LONG = Length(600, 1024), Length(1500, 512), Length(3000, 512)


class OnText:
    """Trains and measures single runs on a store, or finds them in `out`."""

    def __init__(self, store: Path, out: Path, seed: int):
        self.store, self.out, self.seed = store, out, seed

    def run(self, name: str, arch: str, length: Length, labels: str | None = None, **settings: Any) -> Run:
        """Train the run named `name`, unless it exists, and measure it on the held-out rows."""
        cfg = RunConfig(
            store=str(self.store),
            arch=ARCHITECTURES[arch].config(**settings),
            train=TrainConfig(length.steps, length.batch, seed=self.seed, log_every=50),
            labels=labels,
        )
        return measured_run(cfg, self.out / f"{name}-seed{self.seed}")

    def topk(self, width: int, k: int, length: Length) -> Run:
        """The TopK run that others are compared with."""
        return self.run(f"topk-{width}-{k}-{length.steps}", "topk", length, d_sae=width, k=k)

    def needed(self, teacher: Run) -> str:
        """Return the name of the store's labels that say how many latents a run spends on each token."""
        name = f"acceptance-{self.seed}"
        label(Store(self.store), f"needed:{teacher.path}", name)
        return name


def fvu(run: Run) -> float:
    """Return a run's FVU on the held-out rows."""
    return measured(run)[1]


def l0(run: Run) -> float:
    """Return the mean number of latents that fire on a held-out row."""
    return measured(run)[0]


def topk(on: OnText) -> Iterator[float]:
    """The default rate suits a run of some minutes."""
    yield fvu(on.topk(2048, 32, WIDE))


def kron(on: OnText) -> Iterator[float]:
    """At the encoder FLOPs of a TopK of half the latents."""
    run = on.run("kron-4x4", "kron", WIDE, d_sae=2048, m=4, n=4)
    yield fvu(run)
    yield fvu(run) / fvu(on.topk(1024, 32, WIDE))


def gba(on: OnText) -> Iterator[float]:
    """Against a TopK of the L0 it comes to, where it is sparse and where L0 is about an eighth of the width."""
    sparse = on.run("gba-sparse", "gba", WIDE, d_sae=2048, p_first=0.1, p_last=0.001)
    yield fvu(sparse) / fvu(on.topk(2048, round(l0(sparse)), WIDE))
    dense = on.run("gba-dense", "gba", LONG, d_sae=1024, p_first=0.5, p_last=0.001)
    yield fvu(dense) / fvu(on.topk(1024, round(l0(dense)), LONG))


def abstopk(on: OnText) -> Iterator[float]:
    """At its paper's k = D / 10, chosen per token against TopK and per batch against BatchTopK."""
    store = Store(on.store)
    k = round(store.width(store.only_hook()) / 10)
    per_token = on.run("abstopk-token", "abstopk", NARROW, d_sae=1024, k=k, per="token")
    yield fvu(per_token) / fvu(on.topk(1024, k, NARROW))
    per_batch = on.run("abstopk-batch", "abstopk", NARROW, d_sae=1024, k=k, per="batch")
    yield fvu(per_batch) / fvu(on.run("batchtopk-dense", "batchtopk", NARROW, d_sae=1024, k=k))


def adaptivek(on: OnText) -> Iterator[float]:
    """With labels of what each token needs, against a TopK of the L0 it comes to."""
    teacher = on.run("batchtopk", "batchtopk", NARROW, d_sae=1024, k=32)
    run = on.run("adaptivek", "adaptivek", NARROW, on.needed(teacher), d_sae=1024, k_min=4, k_max=96)
    yield fvu(run) / fvu(on.topk(1024, round(l0(run)), NARROW))
