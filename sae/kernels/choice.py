"""Choosing a backend: Triton on a GPU, numba's compiled loops on the CPU, plain torch where neither applies."""

import logging
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from activations.errors import ConfigError

log = logging.getLogger(__name__)

VARIABLE = "SAE_KERNELS"  # environment variable that overrides the automatic choice
BACKENDS = ("auto", "reference", "cpu", "triton")
CPU_READS, CPU_SELECTS_FROM = (torch.float32,), (torch.float32, torch.bfloat16)
TRITON_READS = (torch.float32, torch.bfloat16, torch.float16)
WORTHWHILE = 2**18  # numbers in the largest operand; below, plain torch is as fast and needs no compiling


def backend(operand: Tensor, selecting: bool = False) -> ModuleType:
    """Return the module of kernels for work on a tensor of this size, type and device. `reference.py` defines its functions.

    `selecting` says that latents are selected from the operand, which the CPU's kernels do in bfloat16 too. The environment
    variable SAE_KERNELS names one of `reference`, `cpu` (float32 on the CPU, needs numba) and `triton`
    (numbers of at most 32 bits; needs a GPU, or TRITON_INTERPRET=1), which then does all work that it can do. `auto`, the
    default, leaves small work to plain torch; results are the same to rounding. Raises ConfigError for another name."""
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in BACKENDS:
        raise ConfigError(f"{VARIABLE} = {wanted!r} in the environment, must be one of {', '.join(BACKENDS)}")
    if wanted == "auto" and operand.numel() < WORTHWHILE:
        return _module("reference")
    if wanted in ("auto", "triton") and _triton_can(operand, wanted == "triton"):
        return _module("triton")
    if (
        wanted in ("auto", "cpu")
        and operand.device.type == "cpu"
        and operand.dtype in (CPU_SELECTS_FROM if selecting else CPU_READS)
        and _has("numba")
    ):
        return _module("cpu")
    return _module("reference")


def _triton_can(operand: Tensor, wanted: bool) -> bool:
    # The interpreter is far slower than the CPU's own kernels: only tests that name it get it.
    runs = operand.is_cuda or (wanted and os.environ.get("TRITON_INTERPRET") == "1")
    return runs and operand.dtype in TRITON_READS and _has("triton")


@cache
def _has(package: str) -> bool:
    return find_spec(package) is not None


@cache
def _module(name: str) -> ModuleType:
    module = import_module(f"sae.kernels.{name}")
    if name != "reference":
        log.info("kernels: %s (the first use on a machine compiles them)", name)
    return module
