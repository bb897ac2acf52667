"""Triton's kernels against the reference: in its interpreter, or on a GPU with TRITON_INTERPRET=0; and compiled for one.

The interpreter says nothing of what only a compiler refuses, so each kernel is also compiled for an H100, as code for
it: that takes no GPU."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sae.architectures import BatchTopKConfig, TopKConfig, build, name_of
from sae.config import TrainConfig
from sae.kernels import reference
from sae.kernels.reference import Groups, Moments, Pace, Picked
from sae.training.trainer import Trainer

if sys.platform != "linux" or platform.machine() != "x86_64":
    pytest.skip("Triton is for Linux on x86-64", allow_module_level=True)

from sae.kernels import triton

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
PRECISIONS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts bfloat16 off where a GPU rounds."""
    if DEVICE == "cpu":
        from triton.runtime import interpreter

        convert = interpreter._convert_float

        def rounded(numbers, given, wanted, mode):
            if str(wanted) != "bf16":
                return convert(numbers, given, wanted, mode)
            return torch.tensor(numbers).bfloat16().view(torch.uint16).numpy()

        monkeypatch.setattr(interpreter, "_convert_float", rounded)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_same_choice(ours: Picked, theirs: Picked, u: torch.Tensor, by_size: bool) -> None:
    """Check that each row has entries of u, none twice, with the same sorted keys. Which of several equal keys are taken may
    differ."""
    assert ours.counts.tolist() == theirs.counts.tolist()
    assert ours.values.dtype == theirs.values.dtype
    counts = ours.counts.tolist()
    parts = [picked.split(counts) for picked in (ours.values, ours.indices, theirs.values)]
    for row, values, indices, wanted in zip(u, *parts, strict=True):
        assert len(set(indices.tolist())) == len(indices)
        assert torch.equal(row[indices], values)
        found, best = ((side.abs() if by_size else side).sort().values for side in (values, wanted))
        assert torch.equal(found, best)


SHAPES = [(3, 7, 1), (2, 7, 9), (1, 1, 1), (17, 100, 1), (2, 333, 10), (1, 2500, 1300), (1, 5001, 2)]


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize(("n", "width", "k"), SHAPES)
def test_the_largest_of_each_row_and_of_the_batch(n, width, k, by_size):
    z, bias = random(n, width), random(width, seed=1)
    ours, theirs = (kernels.largest_per_row(z, bias, k, by_size) for kernels in (triton, reference))
    assert_same_choice(ours, theirs, z + bias, by_size)
    for total in (1, n * k // 2 + 1, n * k):
        ours, theirs = (kernels.largest_of_batch(z, bias, total, by_size) for kernels in (triton, reference))
        assert_same_choice(ours, theirs, z + bias, by_size)


@pytest.mark.parametrize(("precision", "of_bias"), PRECISIONS)
def test_sums_are_rounded_as_torch_rounds_them(precision, of_bias):
    """In bfloat16 many are equal after rounding that were not before, and none of them is above another."""
    z, bias = random(2, 700, dtype=precision), random(700, seed=1, dtype=of_bias)
    u = z + bias
    for by_size in (False, True):
        level = (u.abs() if by_size else u)[0].float()
        for name, argument in (("largest_per_row", 5), ("largest_of_batch", 17), ("above", level)):
            ours, theirs = (
                getattr(kernels, name)(z, bias, argument, by_size) for kernels in (triton, reference)
            )
            assert_same_choice(ours, theirs, u, by_size)


@pytest.mark.parametrize("by_size", [False, True])
def test_rows_of_equal_numbers_and_of_zeros_of_both_signs(by_size):
    z = torch.zeros(5, 100, device=DEVICE)
    z[1], z[2] = torch.arange(-100, 0), random(100).round()  # the largest of all before the end of a row
    z[3, ::2] = -0.0
    z[4] = torch.tensor([float("inf"), -float("inf"), 0.0, 1e-45, -1e-45]).repeat(20)
    bias = torch.full((100,), -0.0, device=DEVICE)
    for k in (1, 30, 100):
        ours, theirs = (kernels.largest_per_row(z, bias, k, by_size) for kernels in (triton, reference))
        assert_same_choice(ours, theirs, z + bias, by_size)
        ours = triton.largest_of_batch(z, bias, k, by_size)
        assert len(ours.values) == ours.counts.sum() == k


def test_a_row_of_nan_has_entries_inside_it():
    z = random(3, 300)
    z[1] = float("nan")
    z[2, 5] = -float("nan")
    for k in (2, 100):
        picked = triton.largest_per_row(z, torch.zeros(300, device=DEVICE), k, False)
        assert picked.counts.tolist() == [k, k, k]
        assert all(len(set(part.tolist())) == k for part in picked.indices.split(k))
        assert 0 <= picked.indices.min() <= picked.indices.max() < 300


@pytest.mark.parametrize("width", [9, 200])
def test_each_row_has_its_own_k(width):
    z, bias = random(6, width), random(width, seed=1)
    k = torch.tensor([0, 1, 3, width if width < 10 else 8, 99, 2], device=DEVICE)
    ours, theirs = (kernels.largest_per_row(z, bias, k, False) for kernels in (triton, reference))
    assert_same_choice(ours, theirs, z + bias, False)
    below = z - 100  # where a row has fewer groups than another, what is read instead of them is not above it
    ours, theirs = (kernels.largest_per_row(below, bias, k, False) for kernels in (triton, reference))
    assert_same_choice(ours, theirs, below + bias, False)
    nobody = triton.largest_per_row(z, bias, torch.zeros_like(k), False)
    assert (len(nobody.values), nobody.counts.tolist()) == (0, [0] * 6)


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize(("n", "width"), [(1, 1), (5, 100), (18, 1500)])
def test_all_above_their_latents_threshold_in_order(n, width, by_size):
    z, bias, threshold = random(n, width), random(width, seed=1), random(width, seed=2)
    threshold[width // 2] = z[0, width // 2] + bias[width // 2]  # equal is not above
    for level in (threshold, threshold + 100):
        ours, theirs = (kernels.above(z, bias, level, by_size) for kernels in (triton, reference))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("heads", "p", "q", "k"), [(1, 2, 3, 4), (40, 2, 3, 5), (3, 4, 5, 20), (3, 1, 2, 6)])
def test_the_largest_ands_of_all_heads(heads, p, q, k):
    u, v = random(4, heads * p), random(4, heads * q, seed=1)
    ours, theirs = (kernels.largest_ands(u, v, heads, k) for kernels in (triton, reference))
    a, b = (side.relu().sqrt().unflatten(1, (heads, -1)) for side in (u, v))
    latents = (a[:, :, :, None] * b[:, :, None, :]).flatten(1)
    assert_same_choice(ours, theirs, latents, False)


def test_no_rows_have_no_entries():
    z, bias = torch.zeros(0, 50, device=DEVICE), torch.zeros(50, device=DEVICE)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    for picked in (
        triton.largest_per_row(z, bias, 3, False),
        triton.largest_per_row(z, bias, none, False),
        triton.largest_of_batch(z, bias, 3, False),
        triton.above(z, bias, bias, False),
        triton.largest_ands(z, z, 10, 3),
    ):
        assert [len(part) for part in picked] == [0, 0, 0]


def code(counts: list[int], n_latents: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, indices (some stand more than once in a row) and offsets of rows of these lengths."""
    offsets = torch.tensor([0, *counts], device=DEVICE).cumsum(0)
    indices = torch.randint(n_latents, (sum(counts),), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    return random(sum(counts), seed=4), indices, offsets


COUNTS = [[0, 3, 0, 1, 70, 32, 0], [0, 0], [33]]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("width", [1, 48, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weighted_rows_and_dots(counts, width, dtype):
    values, indices, offsets = code(counts, 11)
    values, W, g = (
        values.to(dtype),
        random(11, width, dtype=dtype),
        random(len(counts), width, seed=5, dtype=dtype),
    )
    wide = [tensor.double() for tensor in (values, W, g)]
    exact = reference.weighted_rows(wide[0], indices, offsets, wide[1])
    products = reference.dots(wide[2], indices, offsets, wide[1])
    near = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-4}
    assert_close(triton.weighted_rows(values, indices, offsets, W), exact.to(dtype), **near)
    assert_close(triton.dots(g, indices, offsets, W), products.to(dtype), **near)


@pytest.mark.parametrize("counts", COUNTS)
def test_entries_by_latent_and_their_sums(counts):
    values, indices, offsets = code(counts, 11)
    ours, theirs = (kernels.group(indices, 11) for kernels in (triton, reference))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    rows = torch.arange(len(counts), device=DEVICE).repeat_interleave(offsets.diff())
    x = random(len(counts), 300, seed=6)
    out, exact = (torch.full((len(ours.latents), 300), 9.0, device=DEVICE) for _ in range(2))
    triton.sums_by_latent(ours, rows, values, x, out)
    reference.sums_by_latent(Groups(*theirs), rows, values, x, exact)
    assert_close(out, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [1, 100, 1300])
def test_squares_with_what_is_along_a_row(width):
    gradient, W = random(5, width), random(9, width, seed=1)
    which = torch.tensor([8, 0, 3, 1, 2], device=DEVICE)
    W[3] = 0
    for given in ((gradient, None, None), (gradient, W, which), (gradient, W[:5], None)):
        ours, theirs = (kernels.squares(*given) for kernels in (triton, reference))
        assert ours[0].dtype == torch.float64
        assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("width", [1, 100, 1300])
def test_three_steps_of_adam(width, tangent, sparse):
    W = random(7, width)
    sides = [(kernels, W.clone(), Moments(W * 0, W * 0)) for kernels in (triton, reference)]
    for step in (1, 2, 3):
        which = torch.tensor([step, 6, 0], device=DEVICE) if sparse else torch.arange(7, device=DEVICE)
        slots = torch.full((7,), -1, dtype=torch.int32, device=DEVICE)
        slots[which] = torch.arange(len(which), dtype=torch.int32, device=DEVICE)
        gradient, pace = random(len(which), width, seed=step), Pace(1e-2, 0.9, 0.999, 1e-8, step, 0.5)
        for kernels, weights, moments in sides:
            along = kernels.squares(gradient, weights, which)[1] if tangent else None
            kernels.adam(
                weights, moments, gradient, slots if sparse else None, along, pace, unit_norm=tangent
            )
    (_, ours, mine), (_, theirs, their) = sides
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert_close(mine, their, rtol=1e-5, atol=1e-6)


def test_a_vector_of_weights_is_one_row_of_many_columns():
    W = random(1, 70_000)
    sides = [(kernels, W.clone(), Moments(W * 0, W * 0)) for kernels in (triton, reference)]
    for kernels, weights, moments in sides:
        kernels.adam(weights, moments, W, None, None, Pace(1e-2, 0.9, 0.999, 1e-8, 1, 1.0), unit_norm=False)
    assert_close(sides[0][1], sides[1][1])
    assert_close(triton.squares(W, None, None)[0], W.double().square().sum())


def test_every_kernel_compiles_for_an_h100():
    cache = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(ROOT / ".pytest_cache/triton")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.sae.compiled"],
        cwd=ROOT,
        env=os.environ | cache,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kernels = {
        name
        for module in (triton.triton_select, triton.triton_rows)
        for name, kernel in vars(module).items()
        if hasattr(kernel, "arg_names") and not name.startswith("_")
    }
    assert set(done.stdout.split()) == kernels


@pytest.mark.parametrize("config", [TopKConfig(d_sae=48, k=3), BatchTopKConfig(d_sae=48, k=3)], ids=name_of)
def test_steps_of_training_are_those_of_the_reference(config, monkeypatch):
    """Dead latents too: with them two decodes share a gradient."""
    weights = {}
    for kernels in ("reference", "triton"):
        monkeypatch.setenv("SAE_KERNELS", kernels)
        sae = build(config, 20, seed=0).to(DEVICE)
        trainer = Trainer(
            sae, TrainConfig(9, lr=1e-2, warmup_steps=0, dead_after_tokens=1).resolved(1, config)
        )
        for step in range(2):
            x = random(7, 20, seed=step)
            trainer.train_step(x, x)
        weights[kernels] = dict(sae.named_parameters())
    assert_close(weights["triton"], weights["reference"], rtol=1e-5, atol=1e-5)
