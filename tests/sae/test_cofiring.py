"""Co-firing latents equal a dense float64 count, for both signs, any blocks and both products."""

import numpy as np
import pytest
import torch

from sae.architectures import build
from sae.features import cofiring as module
from sae.features.cofiring import cofiring
from sae.features.feature import FeatureStore
from sae.features.firings import by_latent
from tests.sae.small import D, every_architecture

F, ROWS = 24, 400


def code(density: float, seed: int = 0) -> torch.Tensor:
    """Return dense codes in which latents 3 and 7 fire together, and 5 fires only where 3 does, with the other sign."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(ROWS, F)) * (rng.random((ROWS, F)) < density)
    values[:, 9] = 0
    together = rng.random(ROWS) < 0.2
    values[:, [3, 7]] = together[:, None] * rng.normal(size=(ROWS, 2))
    values[:, 5] = np.where(together & (rng.random(ROWS) < 0.5), -1.0, 0.0)
    return torch.from_numpy(values)


def firings(dense: torch.Tensor, shards: int):
    """Return the firings shard by shard, as the pass keeps them."""
    for part in dense.chunk(shards):
        rows, latents = part.nonzero(as_tuple=True)
        yield by_latent(rows, latents, part[rows, latents], part.shape[1])


def expected(dense: torch.Tensor, n: int, least: int) -> list[list[tuple[int, int, float]]]:
    fires = (dense.numpy() != 0).astype(np.float64)
    counts, single, rows = fires.T @ fires, fires.sum(0), len(fires)
    found = []
    for i in range(fires.shape[1]):
        pairs = []
        for j in range(fires.shape[1]):
            if i != j and counts[i, j] >= least:
                pmi = np.log(counts[i, j] / rows / (single[i] / rows) / (single[j] / rows))
                if pmi > 1e-9:
                    pairs.append((j, int(counts[i, j]), pmi))
        found.append(sorted(pairs, key=lambda pair: -pair[2])[:n])
    return found


@pytest.mark.parametrize("density", [0.05, 0.5])
@pytest.mark.parametrize("block_bytes", [1, 4 * F * 7, 2**20])
@pytest.mark.parametrize("cost", [0, 10**9], ids=["sparse", "dense"])
def test_partners_are_those_of_a_dense_count(density, block_bytes, cost, monkeypatch):
    monkeypatch.setattr(module, "SPARSE_COST", cost)
    dense = code(density)
    fired = (dense != 0).sum(0)
    found = cofiring(lambda: firings(dense, 3), range(F), fired, ROWS, 6, 5, block_bytes)
    for latent, pairs in enumerate(expected(dense, 6, 5)):
        there = found.latents[latent] >= 0
        assert int(there.sum()) == len(pairs)
        np.testing.assert_allclose(found.pmi[latent][there], [pmi for *_, pmi in pairs], rtol=1e-4, atol=1e-5)
        truth = {j: n for j, n, _ in pairs}
        ties = {j: n for j, n, _ in expected(dense, F, 5)[latent]}
        for j, n in zip(
            found.latents[latent][there].tolist(), found.counts[latent][there].tolist(), strict=True
        ):
            assert ties[j] == n
        assert len(truth) == len(pairs)
        assert found.counts[latent][~there].sum() == 0 == found.pmi[latent][~there].sum()


def test_planted_partners_come_first_whatever_their_sign():
    dense = code(0.05)
    found = cofiring(lambda: firings(dense, 2), range(F), (dense != 0).sum(0), ROWS, 2, 5)
    assert set(found.latents[3].tolist()) == {5, 7}
    assert set(found.latents[5].tolist()) == {3, 7}
    assert found.latents[9].tolist() == [-1, -1], "a dead latent has no partners"


def test_a_pair_below_the_least_number_of_rows_is_not_listed():
    dense = torch.zeros(50, 3)
    dense[:4, :2] = 1.0
    fired = (dense != 0).sum(0)
    assert cofiring(lambda: firings(dense, 1), range(3), fired, 50, 2, 4).latents[0].tolist() == [1, -1]
    assert (cofiring(lambda: firings(dense, 1), range(3), fired, 50, 2, 5).latents == -1).all()


@every_architecture
def test_it_counts_what_any_architecture_encodes(cfg):
    torch.manual_seed(0)
    sae = build(cfg, D)
    for parameter in (sae.W_dec, sae.b_dec):
        parameter.data.normal_()
    code = sae.encode(torch.randn(200, D)).without_zeros()
    dense = code.dense().detach().double()
    firings = by_latent(code.rows(), code.indices, code.values.detach(), code.n_latents)
    found = cofiring(lambda: iter([firings]), range(code.n_latents), (dense != 0).sum(0), 200, 4, 2)
    for latent, pairs in enumerate(expected(dense, 4, 2)):
        there = found.latents[latent] >= 0
        np.testing.assert_allclose(found.pmi[latent][there], [pmi for *_, pmi in pairs], rtol=1e-3, atol=1e-5)


def test_the_folder_tells_counts_and_both_conditionals(world):
    features = FeatureStore(world / "runs/toy/features")
    listed = 0
    for latent in range(len(features)):
        row = features.row(latent)
        for partner in features.partners(latent):
            other = features.row(partner.latent)["fired"]
            listed += 1
            assert partner.given_latent == pytest.approx(partner.count / row["fired"])
            assert partner.given_partner == pytest.approx(partner.count / other)
            chance = row["fired"] * other / features.record.tokens
            assert partner.pmi == pytest.approx(np.log(partner.count / chance), rel=1e-3, abs=1e-5)
    assert listed > 10
