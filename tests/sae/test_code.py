"""SparseCode against dense arrays."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sae.code import SparseCode, offsets_of
from tests.sae.codes import from_dense

shapes = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1))


def random_dense(shape: tuple[int, int, int]) -> torch.Tensor:
    """Rows with about a third of their entries non-zero, some rows empty."""
    rows, latents, seed = shape
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, latents, generator=generator)
    return dense * (torch.rand(rows, latents, generator=generator) < 0.35)


@settings(deadline=None)
@given(shapes)
def test_compressing_and_writing_out_are_inverse(shape):
    dense = random_dense(shape)
    assert torch.equal(from_dense(dense).dense(), dense)


@settings(deadline=None)
@given(shapes)
def test_l0_and_fired_count_what_is_not_zero_of_either_sign(shape):
    dense = random_dense(shape)
    code = from_dense(dense)
    assert torch.equal(code.l0(), (dense != 0).sum(1))
    assert torch.equal(code.fired(), (dense != 0).any(0))


@settings(deadline=None)
@given(shapes)
def test_one_latent_s_values_are_its_column(shape):
    dense = random_dense(shape)
    code = from_dense(dense)
    for latent in range(dense.shape[1]):
        assert torch.equal(code.of(latent), dense[:, latent])


def test_a_stored_zero_is_no_firing_and_can_be_dropped():
    code = SparseCode(torch.tensor([0.0, -2.0, 3.0]), torch.tensor([1, 0, 2]), torch.tensor([0, 2, 2, 3]), 4)
    assert code.l0().tolist() == [1, 0, 1]
    assert code.fired().tolist() == [True, False, True, False]
    dropped = code.without_zeros()
    assert (dropped.indices.tolist(), dropped.offsets.tolist()) == ([0, 2], [0, 1, 1, 2])
    assert torch.equal(dropped.dense(), code.dense())


def test_rows_name_each_entrys_row_and_skip_empty_ones():
    code = SparseCode(torch.ones(3), torch.tensor([0, 1, 0]), offsets_of(torch.tensor([2, 0, 1])), 2)
    assert code.rows().tolist() == [0, 0, 2]
    assert code.n_rows == 3


def test_relu_keeps_the_pattern_and_drops_the_negative():
    code = from_dense(torch.tensor([[-1.0, 2.0]])).relu()
    assert_close(code.dense(), torch.tensor([[0.0, 2.0]]))
    assert len(code.indices) == 2


def test_writing_out_carries_gradients_to_the_values():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    code = SparseCode(values, torch.tensor([2, 0]), torch.tensor([0, 1, 2]), 3)
    (code.dense() * torch.arange(6.0).view(2, 3)).sum().backward()
    assert_close(values.grad, torch.tensor([2.0, 3.0]))
