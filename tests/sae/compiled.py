"""Compile every Triton kernel for an H100 (no GPU is needed) and print their names: `python -m tests.sae.compiled`.

As it runs on a large dictionary; those that stand here twice the second time with sizes of 1, which Triton makes
constants."""

from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from sae.kernels import triton_rows, triton_select

H100 = GPUTarget("cuda", 90, 32)
POINTERS = {"b": "*bf16", "f": "*fp32", "i": "*i32", "l": "*i64"}
# a kernel's pointers in their order, how many sizes follow, how many numbers, constants
SELECT = [
    ("maxima", "bfi", 3, 0, {"BY_SIZE": True, "SIZE": 32, "GROUPS": 64, "ROWS": 16}),
    ("maxima", "bbi", 3, 0, {"BY_SIZE": False, "SIZE": 1, "GROUPS": 2048, "ROWS": 16}),
    ("members", "bfli", 3, 0, {"BY_SIZE": True, "SIZE": 2048, "GROUPS": 1}),
    ("choose", "illl", 1, 0, {"BLOCK": 2048}),
    ("take", "bfllfl", 3, 0, {"SIZE": 32, "BLOCK": 512}),
    ("count_above", "bffi", 2, 0, {"ROUND": tl.float32, "BY_SIZE": True, "BLOCK": 512, "ROWS": 16}),
    ("take_above", "bbflbl", 2, 0, {"ROUND": tl.bfloat16, "BY_SIZE": True, "BLOCK": 512, "ROWS": 16}),
]
ROWS = [
    ("weighted_rows", "bllbb", 1, 0, {"BLOCK": 256, "MANY": 32, "FEW": 4}),
    ("weighted_rows", "fllff", 1, 0, {"BLOCK": 256, "MANY": 32, "FEW": 4}),
    ("dots", "bllbb", 1, 0, {"BLOCK": 256, "ENTRIES": 32}),
    ("squares", "fflff", 1, 0, {"TOWARD": True, "WHICH": True, "BLOCK": 4096}),
    ("squares", "fffff", 1, 0, {"TOWARD": False, "WHICH": False, "BLOCK": 1024}),
    ("adam", "ffffif", 1, 7, {"SLOTS": True, "ALONG": True, "UNIT_NORM": True, "BLOCK": 4096}),
    ("adam", "ffffff", 1, 7, {"SLOTS": False, "ALONG": False, "UNIT_NORM": False, "BLOCK": 1024}),
]


def compile_for(
    kernel: Any, pointers: str, sizes: int, numbers: int, constants: dict[str, Any], ones: bool
) -> None:
    kinds = (
        [POINTERS[pointer] for pointer in pointers]
        + sizes * ["constexpr" if ones else "i32"]
        + numbers * ["fp32"]
    )
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, kinds, strict=True)) | dict.fromkeys(constants, "constexpr")
    values = constants | {name: 1 for name in names if signature[name] == "constexpr"}
    ordered = {name: signature[name] for name in kernel.arg_names}
    aligned = [i for i, kind in enumerate(ordered.values()) if kind == "i32" or kind.startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = triton.compiler.ASTSource(kernel, ordered, values, attributes)
    assert triton.compile(source, target=H100).asm["cubin"]


for module, kernels in ((triton_select, SELECT), (triton_rows, ROWS)):
    done: set[str] = set()
    for name, *how in kernels:
        compile_for(getattr(module, name), *how, name in done)
        done.add(name)
    print(*done)
