"""Which backend does the work: Triton on a GPU, numba's loops on the CPU, plain torch where neither can."""

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

VARIABLE = "SAE_KERNELS"  # in the environment: what `auto` is not to decide
BACKENDS = ("auto", "reference", "cpu", "triton")
TRITON_READS = (torch.float32, torch.bfloat16, torch.float16)
WORTHWHILE = 2**18  # numbers in the largest operand; below, plain torch is as fast and has nothing to load


def backend(operand: Tensor) -> ModuleType:
    """The module of kernels (`reference.py` says what is in it) for work on a tensor as large as this one.

    The environment's SAE_KERNELS names one of `reference`, `cpu` (float32 on the CPU, needs numba) and `triton` (numbers
    of up to 32 bits; needs a GPU, or TRITON_INTERPRET=1) for all work that it can do; `auto`, as when it is not set,
    leaves small work to plain torch, since its result is the same to rounding. Raises ConfigError for another name."""
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in BACKENDS:
        raise ConfigError(
            f"{VARIABLE} = {wanted!r} in the environment: needed is one of {', '.join(BACKENDS)}"
        )
    if wanted == "auto" and operand.numel() < WORTHWHILE:
        return _module("reference")
    if wanted in ("auto", "triton") and _triton_can(operand, wanted == "triton"):
        return _module("triton")
    if (
        wanted in ("auto", "cpu")
        and operand.device.type == "cpu"
        and operand.dtype == torch.float32
        and _has("numba")
    ):
        return _module("cpu")
    return _module("reference")


def _triton_can(operand: Tensor, wanted: bool) -> bool:
    where = operand.is_cuda or (wanted and os.environ.get("TRITON_INTERPRET") == "1")
    return where and operand.dtype in TRITON_READS and _has("triton")


@cache
def _has(package: str) -> bool:
    return find_spec(package) is not None


@cache
def _module(name: str) -> ModuleType:
    found = import_module(f"sae.kernels.{name}")
    if name != "reference":
        log.info("kernels: %s (the first use on a machine compiles them)", name)
    return found
