"""Each planted kind of dense latent is named, and its numbers equal a plain computation."""

import numpy as np
import pytest
import torch

from sae.architectures import SAE, TopK, TopKConfig, build
from sae.diagnosis.dense import CLASSES, KINDS, classes_of, describe, kind_of
from sae.diagnosis.evidence import Firings, firings
from tests.sae.planted import CONTEXT, PlantedRows, axes

D, F = 16, 24
POSITION, CLASS, PRINCIPAL, AVERAGE, UP, DOWN, NOTHING = range(7)
WORDS = [" a", "b", "7", "!", "\n", " the", "ing", " x", "y", " z", "q", " w"]


def dense_world() -> tuple[SAE, PlantedRows, Firings]:
    """Return an SAE and rows on which seven latents fire on half of all tokens, each for a reason of its own."""
    rows = PlantedRows(n=2000)
    generator = torch.Generator().manual_seed(1)
    columns = torch.arange(len(rows.x)) % CONTEXT
    classes = classes_of(WORDS)[rows.tokens]
    noise = torch.randn(len(rows.x), D, generator=generator)
    x = 0.05 * noise
    x[:, POSITION] = (columns - (CONTEXT - 1) / 2) * 0.5
    x[:, CLASS] = torch.where(classes == 0, 1.0, -1.0)
    x[:, PRINCIPAL] = 5 * noise[:, PRINCIPAL]
    x[:, AVERAGE] = 3 + noise[:, AVERAGE]
    x[:, UP] = 0.8 * noise[:, UP]
    x[:, NOTHING] = 0.8 * noise[:, NOTHING]
    rows.x = x
    sae = build(TopKConfig(d_sae=F, k=F), D).requires_grad_(False)
    encoder = torch.zeros(F, D)
    for latent in (POSITION, CLASS, PRINCIPAL, AVERAGE, UP, NOTHING):
        encoder[latent] = axes[latent]
    encoder[DOWN] = -axes[UP]
    sae.W_enc.copy_(encoder.T)
    sae.W_dec.copy_(encoder)
    sae.W_dec[7:] = axes[8]
    return sae, rows, firings(sae, rows, {})


def test_planted_kinds_are_named():
    found = {row["latent"]: row for row in describe(*dense_world(), WORDS)}
    expected = {
        POSITION: "position",
        CLASS: "token class",
        PRINCIPAL: "principal direction",
        AVERAGE: "mean activation",
        UP: "antipodal pair",
        DOWN: "antipodal pair",
        NOTHING: "unexplained",
    }
    assert {latent: row["kind"] for latent, row in found.items()} == expected
    assert found[UP]["antipode"] == DOWN
    assert found[DOWN]["antipode"] == UP
    assert found[UP]["antipodality"] == pytest.approx(1)
    assert found[NOTHING]["antipode"] is None
    assert found[CLASS]["token_class"] == "first piece of a word"
    assert found[CLASS]["token_class_firings"] == 1
    assert set(expected.values()) == set(KINDS)


def test_numbers_are_those_of_numpy():
    sae, rows, firing = dense_world()
    found = {row["latent"]: row for row in describe(sae, rows, firing, WORDS)}
    x = rows.x.double().numpy()
    z = sae.encode(rows.x).dense().double().numpy()
    columns = np.arange(len(x)) % CONTEXT
    centred = x - x.mean(0)
    principal = np.linalg.svd(centred, full_matrices=False)[2][0]
    mean = x.mean(0) / np.linalg.norm(x.mean(0))
    first = (classes_of(WORDS)[rows.tokens] == 0).numpy()
    for latent, row in found.items():
        direction = sae.W_dec[latent].double().numpy()
        assert row["density"] == pytest.approx((z[:, latent] != 0).mean())
        assert row["position_correlation"] == pytest.approx(
            np.corrcoef(z[:, latent], columns)[0, 1], abs=1e-6
        )
        assert abs(row["principal_alignment"]) == pytest.approx(abs(direction @ principal), abs=1e-3)
        assert row["mean_alignment"] == pytest.approx(direction @ mean, abs=1e-5)
        share = z[:, latent].var() / centred.var(0).sum()
        assert row["variance_share"] == pytest.approx(share, rel=1e-5)
    between = sum(first_is.mean() * (z[first_is, CLASS].mean() - z[:, CLASS].mean()) ** 2 for first_is in (first, ~first))  # fmt: skip
    assert found[CLASS]["class_share"] == pytest.approx(between / z[:, CLASS].var(), abs=0.02)


def test_without_a_vocabulary_token_classes_are_left_out():
    found = {row["latent"]: row for row in describe(*dense_world(), None)}
    assert found[CLASS]["class_share"] is None
    assert found[CLASS]["kind"] != "token class"


def test_token_texts_fall_into_classes():
    texts = [" the", "ing", "42", " 7", "…", " ,", "\n\n", "3rd", "<0xE2>", " éa", ""]
    named = [CLASSES[place] for place in classes_of(texts)]
    assert named == [
        "first piece of a word", "inside a word", "number", "number", "punctuation", "punctuation",
        "space or line break", "other", "other", "first piece of a word", "space or line break",
    ]  # fmt: skip


def test_a_kind_is_the_first_whose_rule_is_met():
    row = {"position_correlation": -0.9, "class_share": 0.9, "principal_alignment": -0.9, "mean_alignment": 0.0, "antipode": 3}  # fmt: skip
    assert kind_of(row) == "position"
    assert kind_of({**row, "position_correlation": 0.0}) == "token class"
    assert kind_of({**row, "position_correlation": 0.0, "class_share": None}) == "principal direction"


def test_an_sae_without_dense_latents_has_none():
    sae = build(TopKConfig(d_sae=F, k=1), D).requires_grad_(False)
    sae.b_enc[:] = -1e6
    assert isinstance(sae, TopK)
    rows = PlantedRows()
    assert describe(sae, rows, firings(sae, rows, {}), None) == []
