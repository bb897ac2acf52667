"""Kernels in the graph: values and gradients against dense autograd in float64, whichever products are used."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from sae import kernels, losses
from sae.code import SparseCode
from sae.kernels import RowGradient, autograd, autograd_functions, gradients_by_row
from tests.sae.codes import from_dense

B, D, F = 5, 3, 7


@pytest.fixture(params=["sparse", "crowded"], autouse=True)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds whichever products are used, those over entries or the dense ones."""
    if request.param == "crowded":
        monkeypatch.setattr(autograd_functions, "CROWDED_ENTRIES", 0)
        monkeypatch.setattr(autograd_functions, "CROWDED_SHARE", 0.0)


@pytest.fixture(params=[1, 2, 100])
def rows_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Pre-activations are looked at so many rows at a time."""
    monkeypatch.setattr(autograd, "BLOCK", request.param * F)
    return request.param


def inputs(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """x, W, b, shift, W_dec."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, D), (D, F), (F,), (D,), (F, D))
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)


def dense_of(x, W, b, shift):
    return (x - shift) @ W + b


CHOICES = {
    "largest": lambda p: p.largest(3),
    "largest by size": lambda p: p.largest(3, by_size=True),
    "each its own": lambda p: p.largest(torch.tensor([0, 1, 3, F, F + 5])),
    "of the batch": lambda p: p.largest_of_batch(2.3),
    "of the batch by size": lambda p: p.largest_of_batch(2.3, by_size=True),
    "all of the batch": lambda p: p.largest_of_batch(200),
    "above one": lambda p: p.above(torch.tensor(0.2)),
    "above each": lambda p: p.above(torch.linspace(-1, 1, F, dtype=torch.float64)),
    "above by size": lambda p: p.above(torch.tensor(0.5), by_size=True),
    "none": lambda p: p.above(torch.tensor(1e9)),
    "a pattern": lambda p: p.keep(kernels.where(p.dense > 0.1)),
}
each_choice = pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)


def brute_force(name: str, u: torch.Tensor) -> torch.Tensor:
    """Which entries of [B, F] a choice keeps, entry by entry."""
    level = u.abs() if "size" in name else u
    kept = torch.zeros_like(u, dtype=torch.bool)
    each = {"largest": [3] * B, "largest by size": [3] * B, "each its own": [0, 1, 3, F, F]}
    if name in each:
        for row, k in enumerate(each[name]):
            kept[row, level[row].argsort(descending=True)[:k]] = True
    elif name.startswith(("of the batch", "all of the batch")):
        best = level.flatten().argsort(descending=True)[: 11 if name.startswith("of") else 1000]
        kept.view(-1)[best] = True
    else:
        levels = {
            "above one": 0.2, "above by size": 0.5, "none": 1e9, "a pattern": 0.1,
            "above each": torch.linspace(-1, 1, F, dtype=torch.float64),
        }  # fmt: skip
        kept = level > levels[name]
    return kept


@pytest.mark.parametrize("name", CHOICES)
def test_each_choice_keeps_what_brute_force_finds_in_value_and_gradient(name, rows_at_once):
    given = [tensor.requires_grad_() for tensor in inputs()[:4]]
    twins = [tensor.detach().clone().requires_grad_() for tensor in given]
    code = CHOICES[name](kernels.project(*given))
    dense = dense_of(*twins)
    expected = dense * brute_force(name, dense.detach())
    assert_close(code.dense(), expected)
    assert len(code.values) == int(brute_force(name, dense.detach()).sum())
    upstream = torch.randn(B, F, dtype=torch.float64)
    (code.dense() * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for ours, theirs in zip(given, twins, strict=True):
        assert_close(ours.grad, theirs.grad)


@each_choice
def test_the_sparse_backward_passes_a_numerical_gradient_check(choose):
    given = [tensor.requires_grad_() for tensor in inputs(1)[:4]]
    assert gradcheck(lambda *tensors: choose(kernels.project(*tensors)).values, given)


def test_without_a_shift_x_is_read_as_it_is():
    x, W, b, *_ = inputs()
    assert_close(kernels.project(x, W, b).largest(F).dense(), x @ W + b)
    assert_close(kernels.project(x, W, b).dense, x @ W + b)


def test_an_entry_selected_twice_counts_twice():
    x, W, b, *_ = (tensor.requires_grad_() for tensor in inputs())
    twice = kernels.Pattern(torch.tensor([1, 1, 4]), torch.tensor([0, 2, 3, 3, 3, 3]))
    code = kernels.project(x, W, b).keep(twice)
    code.values.sum().backward()
    assert_close(b.grad, torch.tensor([0.0, 2, 0, 0, 1, 0, 0], dtype=torch.float64))
    assert_close(W.grad[:, 1], 2 * x.detach()[0])
    assert_close(x.grad[0], 2 * W.detach()[:, 1])


def test_some_latents_on_every_row_pass_a_numerical_gradient_check():
    latents = torch.tensor([4, 0, 6])
    given = [tensor.requires_grad_() for tensor in inputs(2)[:4]]
    assert_close(kernels.project(*given).of(latents), dense_of(*given)[:, latents])
    assert gradcheck(lambda *tensors: kernels.project(*tensors).of(latents), given)


def test_decoding_is_the_dense_product_in_value_and_both_gradients():
    W_dec = inputs()[4]
    dense = torch.randn(B, F, dtype=torch.float64) * (torch.rand(B, F) < 0.4)
    sparse_values, dense_values = from_dense(dense), dense.clone().requires_grad_()
    values = sparse_values.values.clone().requires_grad_()
    W_sparse, W_dense = W_dec.clone().requires_grad_(), W_dec.clone().requires_grad_()
    out = kernels.decode(sparse_values._replace(values=values), W_sparse)
    expected = dense_values @ W_dense
    assert_close(out, expected)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    assert_close(W_sparse.grad, W_dense.grad)
    assert_close(values.grad, dense_values.grad[dense != 0])


def test_decoding_and_rows_pass_a_numerical_gradient_check():
    W_dec = inputs()[4].requires_grad_()
    code = from_dense(torch.randn(B, F, dtype=torch.float64) * (torch.rand(B, F) < 0.4))
    values = code.values.clone().requires_grad_()
    assert gradcheck(lambda values, W: kernels.decode(code._replace(values=values), W), (values, W_dec))
    assert gradcheck(lambda W: kernels.rows_of(W, torch.tensor([5, 2])), (W_dec,))


def test_an_empty_row_decodes_to_zero():
    code = SparseCode(torch.ones(1), torch.tensor([2]), torch.tensor([0, 0, 1]), F)
    W_dec = torch.randn(F, D)
    assert_close(kernels.decode(code, W_dec), torch.stack([torch.zeros(D), W_dec[2]]))


def test_a_transposed_parameter_gets_its_gradient_in_its_own_memory_order():
    W = torch.nn.Parameter(torch.randn(F, D).T)
    kernels.project(torch.randn(B, D), W, torch.zeros(F)).largest(2).values.sum().backward()
    assert W.grad.stride() == W.stride()


def test_gradients_by_row_are_the_whole_gradient_wherever_they_come_from():
    """Entries, decoding and rows all add to one matrix, seen as it is and transposed; what else there is goes to .grad."""
    x, _, b, shift, W = inputs(3)
    W, twin = W.clone().requires_grad_(), W.clone().requires_grad_()

    def loss(W):
        code = kernels.project(x, W.T, b, shift).largest(2)
        some = kernels.rows_of(W, torch.tensor([3, 1]))
        return kernels.decode(code, W).pow(3).sum() + (some**2).sum() + kernels.decode(code.detach(), W).sum()

    gradient = RowGradient(W.detach())
    for _ in range(2):  # the second time in the memory of the first
        gradient.clear()
        W.grad = None
        assert not gradient.touched
        with gradients_by_row([gradient]):
            (loss(W) + W.sum()).backward()
        assert gradient.touched
        assert_close(W.grad, torch.ones_like(W))
        whole = torch.zeros_like(W).index_copy(0, gradient.latents, gradient.rows)
        twin.grad = None
        loss(twin).backward()
        assert_close(whole, twin.grad)
        assert gradient.slots[gradient.latents].tolist() == list(range(len(gradient.latents)))
        assert int((gradient.slots >= 0).sum()) == len(gradient.latents)


def test_only_matrices_asked_for_are_collected():
    x, W, b, *_ = (tensor.requires_grad_() for tensor in inputs())
    with gradients_by_row([RowGradient(torch.randn(F, D))]):
        kernels.project(x, W, b).largest(2).values.sum().backward()
    assert W.grad is not None


def test_the_strongest_are_kept_in_place():
    u = torch.tensor([[1.0, -3.0, 2.0, 0.5]], requires_grad=True)
    kept = kernels.strongest(u, 2)
    kept.sum().backward()
    assert kept.tolist() == [[0.0, -3.0, 2.0, 0.0]]
    assert u.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    assert kernels.strongest(u, 4) is u


def test_where_names_exactly_the_true_entries():
    chosen = torch.rand(4, 5) < 0.5
    pattern = kernels.where(chosen)
    again = torch.zeros_like(chosen)
    again[torch.arange(4).repeat_interleave(pattern.offsets.diff()), pattern.indices] = True
    assert torch.equal(again, chosen)


def test_no_rows_have_no_entries():
    nothing = kernels.project(torch.zeros(0, D), torch.zeros(D, F), torch.zeros(F))
    for code in (nothing.largest(2), nothing.largest_of_batch(2), nothing.above(torch.zeros(()))):
        assert code.indices.tolist() == []
        assert code.offsets.tolist() == [0]


def test_only_a_large_code_with_many_entries_is_crowded(products: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    for rows, share, crowded in ((4, 0.5, False), (400, 0.05, False), (400, 0.2, True)):
        code = from_dense((torch.rand(rows, 1000) < share).float())
        assert autograd_functions.crowded(code) == crowded


def test_chosen_in_a_low_precision_latents_still_have_the_exact_values_and_gradients():
    x, W, b, shift = (tensor.float().requires_grad_() for tensor in inputs(4)[:4])
    with kernels.products_in(torch.bfloat16):
        code = kernels.project(x, W, b, shift).largest(3)
    exact = kernels.project(x, W, b, shift).largest(3)
    assert (code.dense() != 0).eq(
        exact.dense() != 0
    ).float().mean() > 0.9  # nearly equal ones may change places
    assert_close(code.dense(), dense_of(x, W, b, shift) * (code.dense() != 0))
    code.values.sum().backward()
    assert_close(b.grad, torch.bincount(code.indices, minlength=F).float())


def test_in_a_low_precision_auxk_has_nearly_the_same_gradients():
    x, W, b, shift = (tensor.float().requires_grad_() for tensor in inputs(4)[:4])
    W_dec, residual = torch.randn(F, D).requires_grad_(), torch.randn(len(x), D)
    of = torch.arange(F)
    found = []
    for dtype in (None, torch.bfloat16):
        with kernels.products_in(dtype):
            loss = losses.auxk(kernels.project(x, W, b, shift).of(of), W_dec, residual, F)
        assert loss.dtype == torch.float32
        found.append(torch.autograd.grad(loss, (x, W, b, shift, W_dec)))
    for exact, low in zip(*found, strict=True):
        assert low.dtype == torch.float32
        assert 1e-5 < ((low - exact).norm() / exact.norm()).item() < 0.02
