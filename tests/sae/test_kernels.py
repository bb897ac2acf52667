"""Kernels against dense autograd in float64, and selection against brute force."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from sae import kernels
from sae.code import SparseCode, from_dense
from sae.kernels import reference

B, D, F = 5, 3, 7


@pytest.fixture(params=["sparse", "crowded"], autouse=True)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds whichever products are used, those over entries or the dense ones."""
    if request.param == "crowded":
        monkeypatch.setattr(reference, "CROWDED_ENTRIES", 0)
        monkeypatch.setattr(reference, "CROWDED_SHARE", 0.0)


def test_only_a_large_code_with_many_entries_is_crowded(products: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    for rows, share, crowded in ((4, 0.5, False), (400, 0.05, False), (400, 0.2, True)):
        code = from_dense((torch.rand(rows, 1000) < share).float())
        assert reference._crowded(code) == crowded


def test_an_entry_selected_twice_counts_twice():
    x, W, b, _ = (tensor.requires_grad_() for tensor in inputs())
    twice = kernels.Pattern(torch.tensor([1, 1, 4]), torch.tensor([0, 2, 3, 3, 3, 3]))
    code = kernels.project(x, W, b).keep(twice)
    code.values.sum().backward()
    assert_close(b.grad, torch.tensor([0.0, 2, 0, 0, 1, 0, 0], dtype=torch.float64))
    assert_close(W.grad[:, 1], 2 * x.detach()[0])
    assert_close(x.grad[0], 2 * W.detach()[:, 1])


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, D), (D, F), (F,), (F, D))
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)


def test_decoding_is_the_dense_product_in_value_and_both_gradients():
    _, _, _, W_dec = inputs()
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


def test_an_empty_row_decodes_to_zero():
    code = SparseCode(torch.ones(1), torch.tensor([2]), torch.tensor([0, 0, 1]), F)
    W_dec = torch.randn(F, D)
    assert_close(kernels.decode(code, W_dec), torch.stack([torch.zeros(D), W_dec[2]]))


def test_kept_pre_activations_have_the_dense_values_and_gradients():
    x, W, b, _ = (tensor.requires_grad_() for tensor in inputs())
    projection = kernels.project(x, W, b)
    pattern = kernels.largest_per_row(projection.dense, 3)
    code = projection.keep(pattern)
    twins = [tensor.detach().clone().requires_grad_() for tensor in (x, W, b)]
    dense = twins[0] @ twins[1] + twins[2]
    mask = code.dense().detach() != 0
    assert_close(code.dense(), dense * mask)
    upstream = torch.randn(B, F, dtype=torch.float64)
    (code.dense() * upstream).sum().backward()
    (dense * mask * upstream).sum().backward()
    for ours, theirs in zip((x, W, b), twins, strict=True):
        assert_close(ours.grad, theirs.grad)


def test_the_sparse_backward_passes_a_numerical_gradient_check():
    x, W, b, _ = inputs(1)
    pattern = kernels.largest_per_row(x @ W + b, 2)

    def values(x, W, b):
        return kernels.project(x, W, b).keep(pattern).values

    assert gradcheck(values, [tensor.requires_grad_() for tensor in (x, W, b)])


def test_a_transposed_parameter_gets_its_gradient_in_its_own_memory_order():
    W = torch.nn.Parameter(torch.randn(F, D).T)
    kernels.project(torch.randn(B, D), W, torch.zeros(F)).keep(
        kernels.largest_per_row(torch.randn(B, F), 2)
    ).values.sum().backward()
    assert W.grad.stride() == W.stride()


def test_the_largest_of_each_row_are_what_brute_force_finds():
    u = torch.randn(4, 6, dtype=torch.float64)
    code = kernels.project(u, torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64))
    kept = code.keep(kernels.largest_per_row(u, 3)).dense()
    for row, chosen in zip(u, kept, strict=True):
        best = max(itertools.combinations(range(6), 3), key=lambda support: sum(row[i] for i in support))
        assert sorted(chosen.nonzero()[:, 0].tolist()) == list(best)


def test_k_beyond_the_width_keeps_everything():
    pattern = kernels.largest_per_row(torch.randn(2, 3), 9)
    assert pattern.offsets.tolist() == [0, 3, 6]


def test_the_largest_of_a_batch_are_the_overall_largest_whatever_their_rows():
    u = torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 0.0], [6.0, -1.0, 3.0]])
    pattern = kernels.largest_per_batch(u, 4)
    chosen = torch.zeros_like(u, dtype=torch.bool)
    rows = torch.arange(3).repeat_interleave(pattern.offsets.diff())
    chosen[rows, pattern.indices] = True
    assert chosen.tolist() == [[True, True, True], [False, False, False], [True, False, False]]


def test_a_batch_has_no_more_entries_than_it_has():
    assert len(kernels.largest_per_batch(torch.randn(2, 3), 100).indices) == 6


def test_where_names_exactly_the_true_entries():
    chosen = torch.rand(4, 5) < 0.5
    pattern = kernels.where(chosen)
    again = torch.zeros_like(chosen)
    again[torch.arange(4).repeat_interleave(pattern.offsets.diff()), pattern.indices] = True
    assert torch.equal(again, chosen)


def test_each_row_keeps_as_many_largest_entries_as_it_is_allowed():
    u = torch.randn(6, F, generator=torch.Generator().manual_seed(2))
    k = torch.tensor([0, 1, 3, F, F + 5, 2])
    pattern = kernels.largest_varying(u, k)
    assert pattern.offsets.diff().tolist() == [min(n, F) for n in k.tolist()]
    for row, n, begin, end in zip(u, k, pattern.offsets, pattern.offsets[1:], strict=False):
        assert pattern.indices[begin:end].tolist() == row.argsort(descending=True)[:n].tolist()


def test_one_number_for_all_rows_chooses_as_largest_per_row_does():
    u = torch.randn(6, F, generator=torch.Generator().manual_seed(3))
    each, alike = kernels.largest_varying(u, torch.full((6,), 3)), kernels.largest_per_row(u, 3)
    assert torch.equal(each.offsets, alike.offsets)
    assert torch.equal(each.indices.view(6, 3).sort().values, alike.indices.view(6, 3).sort().values)


def test_no_rows_have_no_entries():
    pattern = kernels.largest_varying(torch.zeros(0, F), torch.zeros(0, dtype=torch.long))
    assert pattern.indices.tolist() == []
    assert pattern.offsets.tolist() == [0]
