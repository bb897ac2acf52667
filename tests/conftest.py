"""What all tests share: shapes checked at run time, one thread, no network, a toy world made once."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported; 0 to test its kernels on a GPU

from jaxtyping import install_import_hook

import tests.shapes  # before the hook looks it up

# not the kernels: numba compiles some, and the others are called many times in a step
install_import_hook(["sae.code", "sae.losses", "sae.architectures"], "tests.shapes.check")

import pytest
import torch

torch.set_num_threads(1)

from tests import tiny


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy model, text, store and a finished run `runs/toy`; not to be changed."""
    folder = tmp_path_factory.mktemp("world")
    tiny.run(folder)
    return folder
