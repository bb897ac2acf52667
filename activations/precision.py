"""Which precision a language model runs in, or an SAE's training multiplies in: the one named, or the faster one by a
measurement of some tens of milliseconds."""

import logging
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.functional import linear

from activations.errors import ModelError
from activations.parallel import ranks

log = logging.getLogger(__name__)
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
AT_LEAST = 1.3  # bfloat16 has to be this much faster than float32: less is not worth its rounding
SMALLEST = 256  # width of a model below which nothing is measured
# Widths of the products that are timed: larger ones run at the same rate and take too long
LARGEST = (1024, 2048)
ROWS, ROUNDS, BUDGET = 128, 5, 0.2

Clock = Callable[[], float]


def resolve(dtype: torch.dtype | str, config: Any, device: torch.device) -> torch.dtype:
    """Return the torch type for a model with this transformers configuration; `auto` chooses between bfloat16 and float32.

    `auto` is bfloat16 on a GPU that has units for it. On a CPU it is bfloat16 when that makes the model's largest products
    at least AT_LEAST times faster. Processor flags do not tell: without AMX tiles, bfloat16 was three times faster on one
    processor and eight times slower on another. A model narrower than SMALLEST runs in float32 without a measurement,
    because products are then too small a part of its pass for their speed to decide. Every rank has to call this, and all
    get what rank 0 found. Raises ModelError for an unknown name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in PRECISIONS:
        return PRECISIONS[dtype]
    if dtype != "auto":
        raise ModelError(f"a model cannot run in {dtype!r}: the precisions are auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    chosen, ratio = faster(*widths(config))
    tell("model", chosen, ratio)
    return chosen


@cache
def faster(width: int, inner: int) -> tuple[torch.dtype, float]:
    """Return the faster of bfloat16 and float32 for products between these widths on this CPU, and how many times faster bfloat16 is.

    It is measured once in a process. Below a width of SMALLEST it is float32 without a measurement, and the ratio is 0.
    Every rank has to call this, and all get what rank 0 found, because two measurements near the limit might not agree."""
    if width < SMALLEST:
        return torch.float32, 0.0
    ratio = ranks.from_first(0.0 if ranks.rank() else speedup(width, inner))
    return (torch.bfloat16 if ratio >= AT_LEAST else torch.float32), ratio


@cache
def tell(what: str, chosen: torch.dtype, ratio: float) -> None:
    """Log on the first rank, once for all runs of a process, in which precision something computes, unless nothing was measured."""
    if ratio and not ranks.rank():
        measured = f"on this machine its products are {ratio:.2g} times as fast in bfloat16 as in float32"
        log.info("%s in %s: %s", what, str(chosen).removeprefix("torch."), measured)


def widths(config: Any) -> tuple[int, int]:
    """Return the width of a model's residual stream and of its MLPs' hidden layer, 4 times the former where not stated."""
    text = config.get_text_config()
    width = getattr(text, "hidden_size", None)
    inner = getattr(text, "intermediate_size", None)
    width = width if isinstance(width, int) else SMALLEST
    return width, inner if isinstance(inner, int) and inner > 0 else 4 * width


def speedup(width: int, inner: int, clock: Clock = time.thread_time) -> float:
    """Return how many times faster bfloat16 is than float32 in a product [ROWS, width] -> inner and the one back.

    The two precisions take turns in one thread, whose processor time counts: what other programs take is not in it, and
    neither is waiting for a second thread, which on a busy machine takes longer than the products. Medians count. There are
    at least two turns of each after the warm-up, and up to ROUNDS while they take less than BUDGET seconds: bfloat16 without
    hardware for it would take far longer."""
    width, inner = min(width, LARGEST[0]), min(inner, LARGEST[1])
    operands = {
        dtype: [
            torch.full(shape, 0.5, dtype=dtype) for shape in ((ROWS, width), (inner, width), (width, inner))
        ]
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in operands}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        began = clock()
        for number in range(ROUNDS + 1):
            for dtype, (x, up, down) in operands.items():
                started = clock()
                linear(linear(x, up), down)
                if number:  # the first turn compiles kernels
                    seconds[dtype].append(clock() - started)
            if number >= 2 and clock() - began > BUDGET:
                break
    finally:
        torch.set_num_threads(threads)
    exact, low = (statistics.median(taken) for taken in seconds.values())
    return exact / max(low, 1e-9)
