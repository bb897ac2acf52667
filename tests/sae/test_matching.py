"""Matching two SAEs, compared with brute force, planted pairs and the laws of matchings."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close

from activations.errors import RunError, ShapeError
from activations.language_model import load
from sae.architectures import TopKConfig, build
from sae.code import SparseCode
from sae.evaluation import matching
from sae.evaluation.matching import compare, kinds, match
from sae.evaluation.similarity import Similarity, codes, correlation, cosine
from sae.runs.run import Run
from tests import tiny
from tests.sae.codes import from_dense

D = 12


@pytest.fixture
def large(monkeypatch):
    """Treat every matrix as too large for an exact solution, with few candidates per latent."""
    monkeypatch.setattr(matching, "EXACT_CELLS", 0)
    monkeypatch.setattr(matching, "CANDIDATES", 3)


def directions(n: int, seed: int = 0, width: int = D) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=1)


def code(rows: int, latents: int, seed: int = 0, signed: bool = False) -> SparseCode:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(rows, latents, generator=generator) + 0.1
    if signed:
        values *= torch.randn(rows, latents, generator=generator).sign()
    return from_dense(values * (torch.rand(rows, latents, generator=generator) < 0.2))


def whole(similarity: Similarity) -> torch.Tensor:
    return similarity.rows(torch.arange(similarity.shape[0]))


def given(matrix: torch.Tensor) -> Similarity:
    return Similarity(tuple(matrix.shape), lambda rows: matrix[rows], lambda columns: matrix.T[columns])


def test_correlation_is_numpy_s_over_all_rows():
    a, b = code(200, 9, 0, signed=True), code(200, 7, 1)
    expected = np.corrcoef(a.dense().numpy().T, b.dense().numpy().T)[:9, 9:]
    similarity = correlation(a, b)
    np.testing.assert_allclose(whole(similarity).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(similarity.T.rows(torch.tensor([4, 2])).numpy(), expected.T[[4, 2]], atol=1e-6)
    np.testing.assert_allclose(whole(correlation(a, b, absolute=True)).numpy(), abs(expected), atol=1e-6)


def test_a_latent_that_never_changes_correlates_with_nothing():
    a = code(50, 4).dense()
    a[:, 1], a[:, 2] = 0.0, 0.7
    similarity = whole(correlation(from_dense(a), from_dense(a)))
    assert_close(similarity[[1, 2]], torch.zeros(2, 4))
    assert_close(similarity.diag()[[0, 3]], torch.ones(2))


def test_cosine_ignores_length_and_a_row_of_zeros_is_like_nothing():
    a, b = directions(5) * torch.tensor([[1e-3], [1.0], [5.0], [1e3], [0.0]]), directions(6, 1)
    expected = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    assert_close(whole(cosine(a, b)), expected)
    assert_close(whole(cosine(a, b).T), expected.T)
    assert not whole(cosine(a, b))[4].any()


def test_decoders_of_different_width_are_refused_with_both_widths():
    with pytest.raises(ShapeError, match="width 12 and of width 13"):
        cosine(directions(4), directions(4, width=13))


@pytest.mark.parametrize("mode", ["exact", "large"])
def test_a_permuted_copy_matches_perfectly(mode: str, request):
    if mode == "large":
        request.getfixturevalue("large")
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    a = directions(40)
    found = match(cosine(a, a[order] * 3), block=7)
    place = order.argsort()
    assert torch.equal(found.first.latents[:, 0], place)
    assert torch.equal(found.second.latents[:, 0], order)
    assert torch.equal(found.one_to_one.second, place)
    assert found.mutual.all()
    assert_close(found.one_to_one.similarities, torch.ones(40))
    assert found.one_to_one.at_most == pytest.approx(1.0)
    assert kinds(found) == (["shared"] * 40, ["shared"] * 40)


@pytest.mark.parametrize("shape", [(6, 6), (5, 7), (7, 5)])
def test_small_matrices_are_matched_as_brute_force_does(shape: tuple[int, int]):
    matrix = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
    small, large = sorted(shape)
    tall = matrix if shape[0] == small else matrix.T
    best = max(
        sum(tall[i, j].item() for i, j in enumerate(columns))
        for columns in itertools.permutations(range(large), small)
    )
    found = match(given(matrix)).one_to_one
    assert found.similarities.sum().item() == pytest.approx(best)
    assert found.at_most == pytest.approx(best / small)


@pytest.mark.parametrize("shape", [(60, 60), (50, 70), (70, 50)])
@pytest.mark.parametrize("seed", range(3))
def test_a_large_matching_is_one_to_one_and_within_its_bound(shape: tuple[int, int], seed: int, large):
    a, b = directions(shape[0], seed), directions(shape[1], seed + 10)
    shared = min(shape) // 2
    b[:shared] = torch.nn.functional.normalize(a[:shared] + 0.2 * directions(shared, seed + 20), dim=1)
    similarity = cosine(a, b)
    found = match(similarity, block=8).one_to_one
    assert len(found.first) == min(shape) == len(set(found.first.tolist())) == len(set(found.second.tolist()))
    assert torch.equal(found.first, found.first.sort().values)
    assert_close(found.similarities, whole(similarity)[found.first, found.second])
    best = whole(similarity).numpy()[linear_sum_assignment(whole(similarity), maximize=True)].mean()
    assert found.similarities.mean() <= best + 1e-6
    assert best <= found.at_most + 1e-6
    assert found.similarities.mean() > 0.97 * best


def test_latents_that_are_like_nothing_are_matched_all_the_same(large):
    """Dead latents have correlation 0 with everything: all candidates are ties and none is better than another."""
    matrix = torch.zeros(30, 40)
    matrix[:10, :10] = torch.eye(10)
    found = match(given(matrix), block=4).one_to_one
    assert torch.equal(found.second[:10], torch.arange(10))
    assert len(set(found.second.tolist())) == 30


def test_one_to_one_is_the_same_from_either_side():
    similarity = cosine(directions(20), directions(30, 1))
    found, turned = match(similarity), match(similarity.T)
    pairs = set(zip(found.one_to_one.first.tolist(), found.one_to_one.second.tolist(), strict=True))
    assert pairs == set(zip(turned.one_to_one.second.tolist(), turned.one_to_one.first.tolist(), strict=True))


def test_a_crowd_around_one_latent_gets_it_once():
    """By largest cosine, all latents may choose the same partner; in a one-to-one matching they may not."""
    hub = directions(1)
    a = torch.nn.functional.normalize(hub + 0.1 * directions(8), dim=1)
    b = torch.cat([hub, directions(7, 5)])
    found = match(cosine(a, b))
    assert (found.first.latents[:, 0] == 0).all()
    assert found.one_to_one.similarities.mean() < found.first.similarities[:, 0].mean() - 0.3


@pytest.mark.parametrize("seed", range(5))
def test_laws_of_nearest_mutual_and_one_to_one(seed: int):
    similarity = cosine(directions(25, seed), directions(35, seed + 50))
    found, turned = match(similarity), match(similarity.T)
    matrix = whole(similarity)
    assert torch.equal(found.first.latents[:, 0], matrix.argmax(1))
    assert torch.equal(found.second.latents[:, 0], matrix.argmax(0))
    ours = {(i, int(found.first.latents[i, 0])) for i in found.mutual.nonzero()[:, 0].tolist()}
    theirs = {(int(turned.first.latents[j, 0]), j) for j in turned.mutual.nonzero()[:, 0].tolist()}
    assert ours == theirs
    assert int(matrix.argmax()) in {i * 35 + j for i, j in ours}
    assert found.one_to_one.similarities.mean() <= found.first.similarities[:, 0].mean()


def test_row_order_and_length_do_not_matter_and_a_turned_row_lowers_the_mean():
    a, b = directions(20), torch.nn.functional.normalize(directions(20) + 0.3 * directions(20, 9), dim=1)

    def mean(x: torch.Tensor, absolute: bool = False) -> float:
        return match(cosine(x, b, absolute)).one_to_one.similarities.mean().item()

    turned = a * torch.ones(20, 1).index_fill(0, torch.tensor([4]), -1)
    assert mean(a.flip(0) * 7) == pytest.approx(mean(a), abs=1e-6)
    assert mean(turned) < mean(a) - 0.01
    assert mean(turned, absolute=True) == pytest.approx(mean(a, absolute=True), abs=1e-6)


@pytest.mark.parametrize("mode", ["exact", "large"])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_the_block_size_changes_nothing(mode: str, block: int, request):
    if mode == "large":
        request.getfixturevalue("large")
    a, b = code(300, 40), code(300, 50, 1)
    for similarity in (cosine(directions(40), directions(50, 1)), correlation(a, b)):
        found, other = match(similarity, block=block), match(similarity, block=1000)
        for one, two in zip((*found.first, *found.second), (*other.first, *other.second), strict=True):
            assert_close(one, two)
        assert torch.equal(found.mutual, other.mutual)
        if mode == "exact":
            assert torch.equal(found.one_to_one.second, other.one_to_one.second)
        assert found.one_to_one.at_most == pytest.approx(other.one_to_one.at_most)


def test_shared_split_merged_new_and_lost_are_told_apart():
    e = torch.eye(8)
    near = torch.nn.functional.normalize(e[1] + 0.5 * e[7], dim=0)
    merged = torch.nn.functional.normalize(e[2] + 0.5 * e[6], dim=0)
    a = torch.stack([e[0], e[1], e[2], merged, e[3]])  # 3 is near 2; 4 has no counterpart in b
    b = torch.stack([e[1], e[0], near, e[2], e[4]])  # 2 is near 0; 4 has no counterpart in a
    found = match(cosine(a, b))
    assert kinds(found, 0.7) == (
        ["shared", "shared", "shared", "merged", "lost"],
        ["shared", "shared", "split", "shared", "new"],
    )
    assert kinds(found, 0.95) == (
        ["shared", "shared", "shared", "lost", "lost"],
        ["shared", "shared", "new", "shared", "new"],
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_kinds_mean_what_they_say(seed: int):
    a = directions(30, seed, width=4)  # crowded: many are near to several
    b = torch.cat([a[:10] + 0.2 * directions(10, seed + 30, 4), directions(25, seed + 60, 4)])
    matrix, near = whole(cosine(a, b)), 0.85
    first, second = kinds(match(cosine(a, b)), near)
    assert {*first, *second} == {"shared", "merged", "lost", "split", "new"}
    assert first.count("shared") == second.count("shared")
    for kind, row in zip(first, matrix, strict=True):
        assert (kind == "lost") == bool((row < near).all())
    for kind, column in zip(second, matrix.T, strict=True):
        assert (kind == "new") == bool((column < near).all())
        if kind == "split":
            assert (matrix[column.argmax()] >= near).sum() >= 2


def planted(signed: bool = False) -> tuple[tuple, tuple]:
    """Return two SAEs that share 12 latents, at different indices, with 8 of their own; and their codes of the same rows."""
    order = torch.randperm(20, generator=torch.Generator().manual_seed(8))
    decoder, own = directions(20, width=64), directions(20, 1, width=64)
    z = code(400, 20, 2, signed).dense()
    turned = torch.ones(20)
    if signed:
        turned[:6] = -1
    other, other_z = decoder * turned[:, None], z * turned
    other[12:], other_z[:, 12:] = own[12:], code(400, 20, 3, signed).dense()[:, 12:]
    return (decoder, other[order]), (from_dense(z), from_dense(other_z[:, order]))


def test_planted_pairs_are_found_by_decoder_and_by_activation():
    decoders, both = planted()
    found = compare(decoders, both)
    assert not found["absolute"]
    for measure in ("cosine", "activation"):
        kind = found[measure]["latents"]["first"]["kind"]
        assert kind == ["shared"] * 12 + ["lost"] * 8
        summary = found[measure]["summary"]
        assert summary["nearest"]["first"]["above_0.9"] == summary["one_to_one"]["above_0.9"] == 0.6
    decoder_first, activation_first = (
        found[measure]["latents"]["first"]["partner"][:12] for measure in ("cosine", "activation")
    )
    assert decoder_first == activation_first


def test_signed_codes_are_matched_by_absolute_value_unless_told_otherwise():
    decoders, both = planted(signed=True)
    found, told = compare(decoders, both), compare(decoders, both, absolute=False)
    assert found["absolute"] and not told["absolute"]
    for measure in ("cosine", "activation"):
        assert found[measure]["latents"]["first"]["kind"].count("shared") == 12
        assert told[measure]["latents"]["first"]["kind"].count("shared") == 6


def test_the_lists_of_both_sides_agree():
    found = compare(*planted())["cosine"]["latents"]
    first, second = found["first"], found["second"]
    for latent, partner in enumerate(first["partner"]):
        assert second["partner"][partner] == latent
        assert second["partner_similarity"][partner] == first["partner_similarity"][latent]
        assert first["similarity"][latent] >= first["partner_similarity"][latent]


def test_a_larger_sae_s_latents_left_over_have_no_partner():
    found = compare((directions(3), directions(5, 1)), (code(50, 3), code(50, 5, 1)))
    assert found["cosine"]["latents"]["second"]["partner"].count(-1) == 2
    assert found["cosine"]["summary"]["one_to_one"]["count"] == 3


def test_codes_are_of_the_first_held_out_rows_whatever_the_batch(world):
    run = Run(world / "runs/toy")
    rows = torch.cat([x for x, *_ in run.store.batches(run.hook, 64, "held-out")])
    for batch, wanted in ((7, 30), (1000, 30), (64, 10**6)):
        found = codes(run.sae(), run.store, run.hook, wanted, batch)
        assert found.n_rows == min(wanted, len(rows))
        assert_close(found.dense(), run.sae().encode(rows[:wanted]).dense())


def test_a_store_without_held_out_text_says_so(tmp_path, world):
    text = tmp_path / "one.jsonl"
    text.write_text('{"text": "' + "a cat sat " * 60 + '"}\n')
    store = tiny.harvest(load(str(world / "model")), tmp_path / "s", tiny.harvest_config(text, tokens=160))
    with pytest.raises(RunError, match="no held-out rows.*more documents"):
        codes(build(TopKConfig(d_sae=8, k=2), 16), store, tiny.HOOK, 100)
