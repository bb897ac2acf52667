"""Reads probe.safetensors, which an import writes for others to compare with (FORMAT.md)."""

from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from sae.code import SparseCode
from sae.runs.run import Run
from sae.workflows.import_sae import PROBE


class Probe(NamedTuple):
    """Some rows [n, D], and the code and reconstruction that an SAE gave for them when it was imported."""

    x: Tensor
    code: SparseCode
    x_hat: Tensor


def read_probe(run: Run) -> Probe:
    """Return the probe of an imported run."""
    tensors = load_file(run.path / PROBE)
    code = SparseCode(tensors["values"], tensors["indices"], tensors["offsets"], run.config.arch.d_sae)
    return Probe(tensors["x"], code, tensors["x_hat"])
