"""The compiled loops of the CPU against the definition in plain torch, on random shapes and on hard ones."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sae import kernels
from sae.architectures import KronConfig, TopKConfig, build
from sae.code import offsets_of
from sae.config import TrainConfig
from sae.kernels import cpu, reference
from sae.kernels.reference import Moments, Pace, Picked
from sae.training.trainer import Trainer

shapes = st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 7, 32, 100, 1000]), st.integers(0, 10**6))
signs = st.booleans()
precisions = st.sampled_from([torch.float32, torch.bfloat16])
trials = settings(max_examples=40, deadline=None)


@pytest.fixture(params=[1, 3], autouse=True, scope="module")
def threads(request: pytest.FixtureRequest):
    """Everything here holds for one thread and for several."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_sets(picked: Picked, width: int) -> torch.Tensor:
    """Where something was picked, and what: [n, F], NaN elsewhere."""
    rows = torch.arange(len(picked.counts)).repeat_interleave(picked.counts)
    found = torch.full((len(picked.counts), width), torch.nan)
    found[rows, picked.indices] = picked.values
    assert int((~found.isnan()).sum()) == len(picked.indices)  # nothing twice
    return found


def same(ours: Picked, theirs: Picked, width: int) -> None:
    assert torch.equal(ours.counts, theirs.counts)
    assert_close(as_sets(ours, width), as_sets(theirs, width), equal_nan=True, rtol=0, atol=0)


@given(shapes, signs, precisions, st.data())
@trials
def test_the_largest_of_each_row(shape, by_size, precision, data):
    n, width, seed = shape
    z, bias = normal(n, width, seed=seed).to(precision), normal(width, seed=seed + 1)
    k = data.draw(st.sampled_from([1, 2, width // 2 + 1, width, width + 3]))
    same(cpu.largest_per_row(z, bias, k, by_size), reference.largest_per_row(z, bias, k, by_size), width)
    each = torch.randint(0, width + 3, (n,), generator=torch.Generator().manual_seed(seed))
    same(
        cpu.largest_per_row(z, bias, each, by_size), reference.largest_per_row(z, bias, each, by_size), width
    )


@given(shapes, signs, precisions, st.data())
@trials
def test_the_largest_of_a_batch(shape, by_size, precision, data):
    n, width, seed = shape
    z, bias = normal(n, width, seed=seed).to(precision), normal(width, seed=seed + 1)
    total = data.draw(st.integers(0, n * width + 2))
    values = (z.float() + bias).flatten()
    ordered = (values.abs() if by_size else values).sort(descending=True).values
    assume(
        not 0 < total < len(ordered) or ordered[total - 1] != ordered[total]
    )  # which of two equal ones it takes is open
    ours, theirs = (m.largest_of_batch(z, bias, total, by_size) for m in (cpu, reference))
    same(ours, theirs, width)


@given(shapes, signs, precisions)
@trials
def test_all_above_a_threshold(shape, by_size, precision):
    n, width, seed = shape
    z = normal(n, width, seed=seed).to(precision)
    bias, level = normal(width, seed=seed + 1), normal(width, seed=seed + 2)
    ours, theirs = (m.above(z, bias, level, by_size) for m in (cpu, reference))
    same(ours, theirs, width)
    assert torch.equal(ours.indices, theirs.indices)


@given(shapes, precisions, st.booleans())
@trials
def test_the_strongest_of_each_row(shape, precision, tied):
    n, width, seed = shape
    u = normal(n, width, seed=seed)
    u = (u.round() if tied else u).to(precision)
    k = 1 + seed % width
    ours, theirs = (m.strongest(u, k).float() for m in (cpu, reference))
    assert torch.equal(ours.abs().sort(1).values, theirs.abs().sort(1).values)
    assert torch.equal(ours, torch.where(ours != 0, u, 0).float())


def test_a_nan_is_among_the_strongest():
    u = torch.tensor([[1.0, torch.nan, -torch.inf, 3.0]])
    assert cpu.strongest(u, 2).isnan().tolist() == [[False, True, False, False]]
    assert cpu.strongest(u, 2)[0, 2] == -torch.inf


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6))
@trials
def test_the_largest_ands(n, heads, p, q, seed):
    u, v = normal(n, heads * p, seed=seed) + 1, normal(n, heads * q, seed=seed + 1) + 1
    k = 1 + seed % (heads * p * q)
    ours, theirs = (m.largest_ands(u, v, heads, k) for m in (cpu, reference))
    assert torch.equal(ours.counts, theirs.counts)
    ordered = [picked.values.view(n, -1).sort().values for picked in (ours, theirs)]
    assert_close(*ordered)  # zeros tie
    left, right = ours.indices // q, ours.indices // (p * q) * q + ours.indices % q
    rows = torch.arange(n).repeat_interleave(ours.counts)
    assert_close(ours.values, u[rows, left].relu().sqrt() * v[rows, right].relu().sqrt())


HARD = {
    "all equal": torch.full((3, 64), 2.0),
    "zeros of both signs": torch.tensor([0.0, -0.0] * 32).repeat(3, 1),
    "few values": torch.randint(0, 3, (3, 64), generator=torch.Generator().manual_seed(0)).float(),
    "infinite": torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).index_fill(
        1, torch.tensor([5]), torch.inf
    ),
    "huge and tiny": 10.0 ** torch.linspace(-38, 38, 192).view(3, 64),
}


@pytest.mark.parametrize("z", HARD.values(), ids=HARD)
@pytest.mark.parametrize("k", [1, 5, 63, 64])
def test_of_equal_ones_exactly_k_are_kept_the_same_at_every_call(z, k):
    zero = torch.zeros(64)
    first, again, theirs = (m.largest_per_row(z, zero, k, False) for m in (cpu, cpu, reference))
    assert torch.equal(first.indices, again.indices)
    best = [picked.values.view(3, k).sort().values for picked in (first, theirs)]
    assert torch.equal(*best)
    whole, definition = (m.largest_of_batch(z, zero, 3 * k, False) for m in (cpu, reference))
    assert torch.equal(whole.values.sort().values, definition.values.sort().values)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3000), st.integers(1, 6))
@trials
def test_the_top_is_what_torch_finds_in_falling_order(seed, rows, width, n):
    x = torch.randint(
        -20, 20, (rows, width), generator=torch.Generator().manual_seed(seed)
    ).float()  # many ties
    n = min(n, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_KERNELS", "cpu")
        values, places = kernels.top(x, n)
    assert torch.equal(values, x.topk(n, dim=1).values)
    assert torch.equal(x.gather(1, places), values)
    assert all(len(set(row)) == n for row in places.tolist())


def test_a_row_of_nan_ends_in_nan_and_not_elsewhere():
    z = normal(3, 500, seed=0)
    z[1] = torch.nan
    picked = cpu.largest_per_row(z, torch.zeros(500), 4, False)
    assert picked.values.view(3, 4).isnan().any(1).tolist() == [False, True, False]
    assert picked.indices.max() < 500


def code(n: int, width: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Values, indices and offsets of a code with empty rows, and the same index more than once."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 6, (n,), generator=generator)
    total = int(counts.sum())
    indices = torch.randint(0, width, (total,), generator=generator)
    return torch.randn(total, generator=generator), indices, offsets_of(counts)


@given(st.integers(0, 9), st.integers(1, 30), st.sampled_from([1, 3, 16, 33]), st.integers(0, 10**6))
@trials
def test_sums_and_products_over_the_entries_of_a_code(n, width, d, seed):
    values, indices, offsets = code(n, width, seed)
    W, x = normal(width, d, seed=seed), normal(n, d, seed=seed + 1)
    decoded = [m.weighted_rows(values, indices, offsets, W) for m in (cpu, reference)]
    assert_close(*decoded, rtol=1e-5, atol=1e-5)
    assert_close(*(m.dots(x, indices, offsets, W) for m in (cpu, reference)), rtol=1e-5, atol=1e-5)
    ours, theirs = (m.group(indices, width) for m in (cpu, reference))
    for mine, defined in zip(ours, theirs, strict=True):
        assert torch.equal(mine, defined)
    rows = torch.arange(n).repeat_interleave(offsets.diff())
    sums = [torch.full((len(ours.latents), d), torch.nan) for _ in range(2)]
    for m, out in zip((cpu, reference), sums, strict=True):
        m.sums_by_latent(ours, rows, values, x, out)
    assert_close(*sums, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 20), st.sampled_from([1, 3, 16, 33]), signs, signs, st.integers(0, 10**6))
@trials
def test_adam_and_the_squares_it_is_clipped_by(n, d, by_slots, tangent, seed):
    W, gradient = normal(n, d, seed=seed), normal(n, d, seed=seed + 1)
    which = slots = None
    if by_slots:
        which = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: n // 2]
        slots = torch.full((n,), -1, dtype=torch.int32)
        slots[which] = torch.arange(len(which), dtype=torch.int32)
        gradient = gradient[: len(which)]
    results = []
    for m in (cpu, reference):
        weights = W.clone()
        moments = Moments(normal(n, d, seed=seed + 2), normal(n, d, seed=seed + 3).square())
        squares, along = m.squares(gradient, W if tangent else None, which)
        m.adam(weights, moments, gradient, slots, along, Pace(0.1, 0.9, 0.99, 1e-8, 3, 0.5), tangent)
        results.append((weights, *moments, squares))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, rtol=2e-4, atol=2e-5)
    if tangent:
        assert_close(results[0][0].norm(dim=1), torch.ones(n))


@pytest.mark.parametrize("cfg", [TopKConfig(d_sae=512, k=8), KronConfig(d_sae=512, k=8)])
def test_training_by_either_gives_the_same_weights_and_the_same_latents(cfg, monkeypatch):
    found = []
    for name in ("cpu", "reference"):
        monkeypatch.setenv("SAE_KERNELS", name)
        monkeypatch.setattr("sae.training.optimizer.WORTHWHILE", 0)
        settings = TrainConfig(steps=6, batch=64, lr=1e-3, dead_after_tokens=100, warmup_steps=0)
        trainer = Trainer(build(cfg, 24), settings)
        trainer.history.silent_tokens[:50] = 200  # AuxK takes part
        losses = [trainer.train_step(x, x) for x in normal(6, 64, 24, seed=1)]
        found.append((trainer.sae.state_dict(), torch.stack([loss.fired for loss, _ in losses])))
    (ours, fired), (theirs, definition) = found
    assert torch.equal(fired, definition)
    for name, tensor in ours.items():
        assert_close(tensor, theirs[name], rtol=0, atol=5e-6)
