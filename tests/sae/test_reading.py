"""A reading recomputed by hand, in float64, for all architectures; its windows and rankings, and what is refused."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError, RunError, TextError
from activations.language_model import LanguageModel, load
from activations.progress import Advance
from activations.store import Store
from activations.tokens import PackingConfig
from sae.architectures import SAE, build
from sae.config import TrainConfig
from sae.features.feature import FeatureStore
from sae.reading import reader
from sae.reading.reader import read
from sae.reading.reading import Reading
from sae.report.numbers import number
from sae.runs.run import Run
from sae.training.trainer import Trainer
from tests import tiny
from tests.sae.small import SMALL, every_architecture

TEXT = "the naïve cat sat on <eos> & a mat"  # three windows of 16, the last one short
CONTEXT = PackingConfig(context=16)
WIDTH = 16


@pytest.fixture(scope="module")
def model(world: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Return the toy world's model with a final norm of uneven gain."""
    made = load(str(world / "model"))
    made.plain.model.norm.weight.data.copy_(torch.linspace(-1.0, 2.0, WIDTH))
    return made


@pytest.fixture(scope="module")
def run(world: Path) -> Run:
    return Run(world / "runs/toy")


@pytest.fixture(scope="module")
def features(run: Run) -> FeatureStore:
    return FeatureStore(run.path / "features")


@pytest.fixture(scope="module")
def reading(model: LanguageModel, run: Run, features: FeatureStore) -> Reading:
    return read(model, run.sae(), run.hook, TEXT, features, CONTEXT, run.store.mean(run.hook))


def trained(cfg, store: Store) -> SAE:
    """Return a run of a few steps on the toy store."""
    x = torch.cat([x for x, *_ in store.batches(tiny.HOOK, 64)])
    settings = TrainConfig(steps=8, batch=64, lr=1e-2, warmup_steps=1, dead_after_tokens=10**9)
    trainer = Trainer(build(cfg, WIDTH, seed=1), settings)
    for batch in x.split(64)[:8]:
        trainer.train_step(batch, batch)
    return trainer.sae.eval().requires_grad_(False)


def windows(model: LanguageModel, text: str = TEXT) -> list[torch.Tensor]:
    """Cut the text into windows of 16 by hand: a BOS, then fifteen bytes."""
    ids = model.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [torch.tensor([[0, *ids[start : start + 15]]]) for start in range(0, len(ids), 15)]


def test_positions_are_the_text_s_tokens_and_a_bos_before_each_window(reading: Reading, model: LanguageModel):
    assert reading.ids.tolist() == torch.cat(windows(model), 1)[0].tolist()
    assert len(reading) == len(TEXT.encode()) + 3
    assert reading.excluded.nonzero()[:, 0].tolist() == [0, 16, 32]
    assert (reading.ids[reading.excluded] == 0).all()
    assert reading.windows.tolist() == [0] * 16 + [1] * 16 + [2] * (len(reading) - 32)
    shown = [text for text, own in zip(reading.tokens, reading.is_text, strict=True) if own]
    assert "".join(shown).replace("<0xC3><0xAF>", "ï") == TEXT
    assert 1 not in reading.ids.tolist(), "the text's <eos> is five characters"


@every_architecture
def test_a_reading_is_what_capture_and_encode_give(cfg, model: LanguageModel, run: Run):
    sae = trained(cfg, run.store)
    reading = read(model, sae, tiny.HOOK, TEXT, packing=CONTEXT)
    x = torch.cat([model.capture(window, [tiny.HOOK])[tiny.HOOK][0] for window in windows(model)])
    code = sae.encode(x)
    assert_close(reading.code.dense(), code.dense(), rtol=1e-4, atol=1e-5)
    assert torch.equal(reading.l0, (reading.code.dense() != 0).sum(1))
    assert_close(reading.total, code.dense().abs().sum(1), rtol=1e-4, atol=1e-4)
    rest = (x - sae.decode(code)).double().numpy()
    spread = (x - x[reading.counted].mean(0)).double().numpy()
    assert_close(
        reading.fvu.numpy(), (rest**2).sum(1) / (spread**2).sum(1), rtol=1e-3, atol=1e-6, check_dtype=False
    )
    counted = reading.counted.numpy()
    assert reading.text_fvu == pytest.approx(
        (rest[counted] ** 2).sum() / (spread[counted] ** 2).sum(), rel=1e-4
    )


@every_architecture
def test_effects_are_value_times_decoder_row_through_the_frozen_norm(cfg, model: LanguageModel, run: Run):
    sae = trained(cfg, run.store)
    reading = read(model, sae, tiny.HOOK, TEXT, packing=CONTEXT)
    assert reading.effects is not None
    norm = model.plain.model.norm
    gain, unembed = norm.weight.double().numpy(), model.plain.get_output_embeddings().weight.double().numpy()
    last = torch.cat(
        [model.capture(w, [model.last_residual])[model.last_residual][0] for w in windows(model)]
    )
    scale = np.sqrt((last.double().numpy() ** 2).mean(1) + norm.variance_epsilon)
    expected, rows = [], reading.code.rows().tolist()
    for row, latent, value in zip(
        rows, reading.code.indices.tolist(), reading.code.values.tolist(), strict=True
    ):
        logits = unembed @ (value * sae.W_dec[latent].double().numpy() / scale[row] * gain)
        token = int(reading.following[row])
        expected.append(logits[token] - logits.mean() if token >= 0 else math.nan)
    np.testing.assert_allclose(reading.effects.numpy(), expected, rtol=2e-3, atol=1e-5)
    assert len(expected) > 30
    assert np.isnan(expected).sum() == (np.array(rows) == len(reading) - 1).sum()


def test_at_the_last_residual_an_effect_is_the_exact_change_of_the_frozen_logit(
    model: LanguageModel, world: Path
):
    """Removing the latent's part from the residual stream, with the norm's scale frozen, lowers the logit by the effect."""
    hook, store = model.last_residual, Store(world / "store")
    sae = trained(SMALL["abstopk"], store)
    reading = read(model, sae, hook, TEXT, packing=CONTEXT)
    assert reading.effects is not None
    logits, found = model.observe(windows(model)[0], [hook])
    x, norm = found[hook][0].double(), model.plain.model.norm
    scale = (x.square().mean(1, keepdim=True) + norm.variance_epsilon).sqrt()
    head = model.plain.get_output_embeddings().weight.double()

    def frozen(residual: torch.Tensor) -> torch.Tensor:
        return (residual / scale * norm.weight) @ head.T

    assert_close(frozen(x), logits[0].double(), rtol=1e-3, atol=1e-4)
    for entry in range(int(reading.code.offsets[15])):
        row, latent = int(reading.code.rows()[entry]), int(reading.code.indices[entry])
        without = x.clone()
        without[row] -= reading.code.values[entry].double() * sae.W_dec[latent].double()
        change = (frozen(x) - frozen(without))[row]
        token = int(reading.following[row])
        assert float(reading.effects[entry]) == pytest.approx(
            float(change[token] - change.mean()), rel=1e-3, abs=1e-5
        )
    assert (reading.code.values < 0).any(), "negative values are among them"


def test_log_probabilities_are_the_model_s_own(reading: Reading, model: LanguageModel):
    text = [int(i) for i, own in zip(reading.ids, reading.is_text, strict=True) if own]
    for place_of_window, window in enumerate(windows(model)):
        expected = model.plain(window).logits[0].double().log_softmax(-1)
        for column in range(window.shape[1]):
            place = 16 * place_of_window + column
            token = 15 * place_of_window + column  # of the text: what follows
            if token == len(text):
                assert reading.log_probs[place].isnan()
                continue
            assert reading.following[place] == text[token]
            assert float(reading.log_probs[place]) == pytest.approx(
                float(expected[column, text[token]]), rel=1e-4
            )
    assert reading.following[-1] == -1


def test_a_token_s_surprise_is_told_by_the_position_before_it(reading: Reading):
    assert reading.surprise[1] == -reading.log_probs[0], "the first by the BOS"
    assert reading.surprise[17] == -reading.log_probs[15], "a window's first by the end of the window before"
    assert reading.surprise[9] == -reading.log_probs[8]
    assert torch.equal(reading.surprise.isnan(), ~reading.is_text)


def test_a_tokenizer_without_bos_begins_with_text_that_stands_in_for_it(model: LanguageModel, run: Run):
    reading = read(model, run.sae(), run.hook, TEXT, packing=PackingConfig(context=16, bos=False))
    assert reading.is_text.all()
    assert reading.excluded.nonzero()[:, 0].tolist() == [0, 16, 32]
    assert torch.equal(reading.surprise.isnan(), torch.arange(len(reading)) == 0)
    assert reading.surprise[16] == -reading.log_probs[15]


def test_windows_read_one_at_a_time_give_the_same(reading, model, run, features, monkeypatch):
    monkeypatch.setattr(reader, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(reader, "ENTRIES_AT_ONCE", 3)
    seen = []

    @contextmanager
    def noting(stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        yield lambda n, note="": seen.append((stage, n, total, unit))

    again = read(
        model, run.sae(), run.hook, TEXT, features, CONTEXT, run.store.mean(run.hook),
        progress=noting,
    )  # fmt: skip
    assert seen == [("read", n, len(reading), "tokens") for n in (16, 16, len(reading) - 32)]
    assert torch.equal(again.following, reading.following)
    for name in ("log_probs", "effects", "rarity", "error", "variance", "surprise"):
        assert_close(getattr(again, name), getattr(reading, name), rtol=1e-4, atol=1e-5, equal_nan=True)
    assert_close(again.code.dense(), reading.code.dense(), rtol=1e-4, atol=1e-5)


def test_rarity_is_strength_times_the_log_of_how_seldom(reading: Reading, features: FeatureStore):
    table = features.table.to_pylist()
    assert reading.rarity is not None
    for latent, value, rarity in zip(
        reading.code.indices.tolist(), reading.code.values.tolist(), reading.rarity.tolist(), strict=True
    ):
        row = table[latent]
        expected = abs(value) / max(abs(row["max"]), abs(row["min"])) * -math.log(row["density"])
        assert rarity == pytest.approx(expected, rel=1e-5)


def test_a_latent_that_is_always_there_has_no_rarity_and_a_new_one_the_most(reading: Reading):
    n = reading.code.n_latents
    density, top = torch.full((n,), 0.5), torch.ones(n)
    always, never = reading.code.indices[:2].tolist()
    density[always], density[never], top[never] = 1.0, 1e-4, torch.nan
    changed = replace(reading, density=density, observed_max=top)
    assert changed.rarity is not None
    assert (changed.rarity[reading.code.indices == always] == 0).all()
    found = changed.rarity[reading.code.indices == never]
    assert_close(found, torch.full_like(found, -math.log(1e-4)))


@pytest.mark.parametrize("by", ["value", "rarity", "effect"])
def test_latents_of_a_position_are_ranked_as_asked(reading: Reading, by):
    for position in (1, 7, 20):
        found = reading.at(position, by)
        dense = reading.code.dense()[position]
        assert {f.latent: f.value for f in found} == {
            i: float(dense[i]) for i in dense.nonzero()[:, 0].tolist()
        }
        heights = [abs(getattr(firing, by)) for firing in found]
        assert heights == sorted(heights, reverse=True)


def test_where_nothing_follows_latents_are_ranked_by_value(reading: Reading):
    found = reading.at(len(reading) - 1, "effect")
    assert all(firing.effect is None for firing in found)
    assert [f[:2] for f in found] == [f[:2] for f in reading.at(len(reading) - 1)]


@pytest.mark.parametrize("by", ["tokens", "value", "rarity", "effect"])
def test_latents_of_the_whole_text_against_brute_force(model: LanguageModel, run: Run, features, by):
    sae = trained(SMALL["abstopk"], run.store)
    features = None if by != "rarity" else features
    sae = run.sae() if by == "rarity" else sae
    reading = read(model, sae, run.hook, TEXT, features, CONTEXT)
    dense = reading.code.dense().masked_fill(reading.excluded[:, None], 0)
    found = reading.latents(by)
    assert sorted(p.latent for p in found) == dense.abs().sum(0).nonzero()[:, 0].tolist()
    rows, sums = reading.code.rows(), torch.zeros(dense.shape[1])
    kept = reading.counted[rows] & ~reading.effects.isnan()
    sums.index_add_(0, reading.code.indices[kept], reading.effects[kept])
    for one in found:
        values = dense[:, one.latent]
        assert one.tokens == int((values != 0).sum())
        assert one.position == int(values.abs().argmax())
        assert one.peak == float(values[one.position])
        assert one.mean == pytest.approx(float(values[values != 0].abs().mean()))
        assert one.effect == pytest.approx(float(sums[one.latent]), rel=1e-4, abs=1e-5)
    name = {"value": "peak"}.get(by, by)
    heights = [abs(getattr(one, name)) for one in found]
    assert heights == sorted(heights, reverse=True)


def test_values_of_a_latent_are_its_column(reading: Reading):
    dense = reading.code.dense()
    for latent in (0, 5, 31):
        assert torch.equal(reading.values_of(latent), dense[:, latent])
    with pytest.raises(ConfigError, match="0 to 31"):
        reading.values_of(32)


def test_without_features_there_is_no_ranking_by_rarity(model: LanguageModel, run: Run):
    reading = read(model, run.sae(), run.hook, TEXT)
    assert reading.at(3)[0].rarity is None
    for ask in (lambda: reading.at(3, "rarity"), lambda: reading.latents("rarity")):
        with pytest.raises(RunError, match="sae features"):
            ask()


def test_beside_the_residual_stream_there_is_no_effect(model: LanguageModel):
    hook = "blocks.1.mlp.hook_post"
    sae = build(SMALL["topk"], 32, seed=0)
    reading = read(model, sae, hook, TEXT, packing=CONTEXT)
    assert reading.effects is None
    assert reading.at(3)[0].effect is None
    assert reading.latents()[0].effect is None
    with pytest.raises(RunError, match="residual stream"):
        reading.at(3, "effect")


def test_one_token_is_a_text(model: LanguageModel, run: Run):
    reading = read(model, run.sae(), run.hook, "a", packing=CONTEXT)
    assert len(reading) == 2
    assert reading.fvu[1].isnan(), "around itself it does not vary"
    assert reading.latents()


def test_a_lone_surrogate_is_a_question_mark(model: LanguageModel, run: Run):
    assert read(model, run.sae(), run.hook, "a\ud800").tokens[1:] == ["a", "?"]


@pytest.mark.parametrize(("text", "said"), [("", "empty"), ("x" * 101, "101 tokens, at most 100")])
def test_a_text_that_cannot_be_read_is_one_line(model: LanguageModel, run: Run, text: str, said: str):
    with pytest.raises(TextError, match=said) as caught:
        read(model, run.sae(), run.hook, text, limit=100)
    assert "\n" not in str(caught.value)
    read(model, run.sae(), run.hook, "x" * 100, limit=100)


def test_features_of_another_size_and_positions_beyond_the_end_are_refused(reading, model, run, features):
    with pytest.raises(RunError, match="32 latents, this SAE has 24"):
        read(model, build(SMALL["topk"], WIDTH), run.hook, TEXT, features)
    for position in (-1, len(reading)):
        with pytest.raises(ConfigError, match=f"0 to {len(reading) - 1}"):
            reading.at(position)


def test_in_a_notebook_it_is_the_coloured_text_and_on_demand_a_token_s_latents(reading: Reading):
    whole = reading._repr_html_()
    assert "<style>" in whole and 'class="strip"' in whole
    assert whole.count("data-tip=") == len(reading)
    assert "&lt;eos&gt;" in "".join(re.findall(r">([^<>]*)</span>", whole)), "the text's own <eos>, as text"
    total = reading.total.masked_fill(reading.excluded, 0).tolist()
    assert re.findall(r'data-tip="([^"]*)"', whole) == [number(value) for value in total]

    latent = reading.at(7)[0].latent
    made = reading.html(latent=latent, position=7, by="rarity", most=3)
    values = reading.values_of(latent).masked_fill(reading.excluded, 0).tolist()
    assert re.findall(r'data-tip="([^"]*)"', made) == [number(value) for value in values]
    assert re.findall(r"<i></i><span>([^<]*)</span>", made) == [
        number(f.value) for f in reading.at(7, "rarity")[:3]
    ]
    assert "<button" not in made and "href" not in made
