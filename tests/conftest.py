"""What all tests share: shapes checked at run time, one thread, no network, a toy world made once."""

import atexit
import itertools
import os
import reprlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["PIP_NO_INDEX"] = "1"  # what is fetched with pip, a test has to make up
os.environ["SAE_CACHE"] = tempfile.mkdtemp(prefix="sae-tests-")  # what a user has fetched changes no test
atexit.register(shutil.rmtree, os.environ["SAE_CACHE"], True)
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported; 0 to test its kernels on a GPU

import jaxtyping
from jaxtyping import install_import_hook

import tests.shapes  # before the hook looks it up

# of the kernels what others call: numba compiles what is behind it, and all of it together triples a toy's step
CHECKED = ["sae.code", "sae.losses", "sae.kernels.autograd", "sae.architectures"]
install_import_hook(CHECKED, "tests.shapes.check")

import pytest
import torch

torch.set_num_threads(1)

import sae.workflows.training
from sae.training.trainer import Trainer
from tests import tiny
from tests.cli.commands import Server

CHECKED_STEPS = 50

sae.workflows.training.fitting = (
    tiny.fitting_by_steps
)  # a real clock would put checkpoints after other steps each time


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy model, text, store and a finished run `runs/toy`; not to be changed."""
    folder = tmp_path_factory.mktemp("world")
    tiny.run(folder)
    return folder


@pytest.fixture(scope="session")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs `sae` commands, each in a process of its own."""
    server = Server(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _shapes_of_first_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check shapes in a test's first training steps only: the later have the same, and a check triples a toy's step."""
    train_step, steps = Trainer.train_step, itertools.count(1)

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(steps) > CHECKED_STEPS:
            jaxtyping.config.update("jaxtyping_disable", True)
        return train_step(*args, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", counted)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Name the files that differ between two folders' contents, whose bytes nobody can read."""
    if op != "==" or not (isinstance(left, dict) and isinstance(right, dict)):
        return None
    if not any(isinstance(content, bytes) for content in {**left, **right}.values()):
        return None
    names = sorted(name for name in {*left, *right} if left.get(name) != right.get(name))
    return [
        "The contents of two folders are equal but for these files:",
        *(f"{name}: {reprlib.repr(left.get(name))}, {reprlib.repr(right.get(name))}" for name in names),
    ]
