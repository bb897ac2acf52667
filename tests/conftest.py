"""What all tests share: shapes checked at run time, one thread, no network, a toy world made once."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported; 0 to test its kernels on a GPU

from jaxtyping import install_import_hook

import tests.shapes  # before the hook looks it up

# of the kernels what others call: numba compiles what is behind it, and all of it together triples a toy's step
CHECKED = ["sae.code", "sae.losses", "sae.kernels.autograd", "sae.architectures"]
install_import_hook(CHECKED, "tests.shapes.check")

import pytest
import torch

torch.set_num_threads(1)

import sae.cli.train
from tests import tiny
from tests.cli.commands import Server

sae.cli.train.fit = tiny.fit_by_steps  # a real clock would put checkpoints after other steps each time


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
