"""The pass over a store equals a dense brute force, whatever the batches and order, and resumes after any interruption."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from activations.errors import RunError
from activations.language_model import LanguageModel, load
from sae.features import collect as collecting
from sae.features.collect import FeaturesConfig, collect
from sae.features.examples import Selection, gather, traces, wanted_pairs
from sae.features.feature import FeatureStore
from sae.features.firings import BINS_PER_OCTAVE, QUANTILES, Firings, Statistics, by_latent
from sae.features.logit_lens import logit_lens
from sae.features.neighbours import encoder_decoder_cosine
from sae.runs.run import Run
from sae.workflows.features import describe
from tests import tiny
from tests.hostile.repairs import rewrite

CONTEXT = 16
CFG = FeaturesConfig(strongest=4, sampled=10, neighbours=3, logits=3, batch=64)


@pytest.fixture(scope="module")
def run(world) -> Run:
    return Run(world / "runs/toy")


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return load(str(world / "model"))


@pytest.fixture(scope="module")
def dense(run) -> np.ndarray:
    """Return all latents on all rows, [windows, T, F]; NaN where a row does not count."""
    out = np.full((run.store.windows, CONTEXT, 32), np.nan)
    for number, first in enumerate(run.store.first_windows):
        shard = run.store.read(number, (run.hook,))
        for window in range(len(shard.tokens)):
            for position in range(1, CONTEXT):
                code = run.sae().encode(shard.activations[run.hook][window, position])
                out[first + window, position] = code.dense()[0].numpy()
    return out


def firings(dense: np.ndarray, latent: int) -> np.ndarray:
    values = dense[..., latent]
    return values[(values != 0) & ~np.isnan(values)]


def test_statistics_equal_a_dense_brute_force(run, dense):
    features = FeatureStore(run.path / "features")
    n_rows = (~np.isnan(dense[..., 0])).sum()
    assert features.record.tokens == n_rows
    fired_somewhere = 0
    for latent in range(32):
        row, values = features.row(latent), firings(dense, latent)
        assert row["fired"] == len(values)
        assert row["density"] == pytest.approx(len(values) / n_rows)
        if not len(values):
            assert row["mean"] is None and row["max"] is None and row["first_row"] == -1
            continue
        fired_somewhere += 1
        expected = {
            "mean": values.mean(),
            "std": values.std(),
            "max": values.max(),
            "min": values.min(),
            "positive_share": (values > 0).mean(),
        }
        if len(values) > 2:
            expected |= {"skew": stats.skew(values), "kurtosis": stats.kurtosis(values, fisher=False)}
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (latent, name)
        rows = np.flatnonzero(np.nan_to_num(dense[..., latent]).ravel())
        assert (row["first_row"], row["last_row"]) == (rows[0], rows[-1])
        bin_width = 2 ** (1 / BINS_PER_OCTAVE)
        for q in QUANTILES:
            exact = np.quantile(values, q, method="inverted_cdf")
            assert exact / bin_width <= row[f"q{round(q * 100):02d}"] <= exact * bin_width
        histogram = features.histogram(latent)
        counted, _ = np.histogram(values, histogram.edges)
        assert np.abs(counted - histogram.counts).sum() <= 2  # a value on an edge may fall to either side
        assert histogram.counts.sum() == len(values)
    assert fired_somewhere > 20


def test_strongest_examples_are_those_a_brute_force_finds_with_their_values(run, dense):
    features = FeatureStore(run.path / "features")
    tokens = torch.cat([run.store.read(n).tokens for n in range(len(run.store.shards))])
    peaks = np.nanmax(dense[:, 1:], axis=1)
    for latent in range(32):
        best = [w for w in np.argsort(-peaks[:, latent], kind="stable") if peaks[w, latent] > 0][:4]
        found = features.strongest(latent)
        assert len(found) == len(best)
        for window, example in zip(best, found, strict=True):
            np.testing.assert_allclose(example.values, np.nan_to_num(dense[window, :, latent]), rtol=1e-4)
            assert example.ids.tolist() == tokens[window].tolist()
            assert example.peak == np.argmax(example.values)
        assert features.strongest(latent, sign=-1) == []


def test_sampled_examples_are_windows_it_fires_in_by_falling_peak(run, dense):
    features = FeatureStore(run.path / "features")
    for latent in range(32):
        windows = (np.nan_to_num(dense[..., latent]) != 0).any(1).sum()
        examples = [example for band in features.bands(latent) for example in band.examples]
        assert len(examples) == min(10, windows)
        peaks = [example.values[example.peak] for example in examples]
        assert peaks == sorted(peaks, reverse=True)
        assert all(np.any(example.values) for example in examples)


def test_examples_lead_back_to_their_document(run):
    features = FeatureStore(run.path / "features")
    lines = (run.path.parent.parent / "text.jsonl").read_text().splitlines()
    example = next(e for latent in range(32) for e in features.strongest(latent))
    text = tiny.tokenizer()(json.loads(lines[example.document])["text"]).input_ids
    assert [*text, 1][example.position] == example.ids[example.peak]


def test_the_pass_does_not_depend_on_the_batch_size_or_the_order_of_shards(run, tmp_path, monkeypatch):
    sae, store, hook = run.sae(), run.store, run.hook
    one = collect(sae, store, hook, CFG, tmp_path / "one", {})
    monkeypatch.setattr(collecting, "_shards", lambda store, tokens: [*reversed(range(len(store.shards)))])
    other = collect(sae, store, hook, FeaturesConfig(**{**vars(CFG), "batch": 7}), tmp_path / "other", {})
    for name in ("fired", "positive", "first", "last", "histogram"):
        assert torch.equal(getattr(one.statistics, name), getattr(other.statistics, name)), name
    torch.testing.assert_close(one.statistics.powers, other.statistics.powers, rtol=1e-6, atol=1e-9)
    for kind, windows in one.chosen.items():
        assert torch.equal(windows, other.chosen[kind]), kind
    torch.testing.assert_close(one.traces.values, other.traces.values)
    assert torch.equal(one.traces.positions, other.traces.positions)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_adding_in_pieces_and_in_any_order_gives_the_same_state(seed, pieces):
    rng = np.random.default_rng(seed)
    n, windows = 200, 12
    rows, _ = torch.from_numpy(rng.choice(windows * CONTEXT, n)).sort()
    latents = torch.from_numpy(rng.integers(0, 5, n))
    values = torch.from_numpy(rng.choice([-2.0, -1.0, 0.5, 1.0, 2.0], n)).float()  # many ties
    whole = Selection(range(5), 3, 4)
    whole.add(by_latent(rows, latents, values, 5), CONTEXT)
    parts = Selection(range(5), 3, 4)
    owner = torch.from_numpy(rng.integers(0, pieces, windows))[rows // CONTEXT]  # windows stay whole
    for piece in rng.permutation(pieces):
        mine = owner == int(piece)
        parts.add(by_latent(rows[mine], latents[mine], values[mine], 5), CONTEXT)
    for kind, found in whole.windows().items():
        assert torch.equal(found, parts.windows()[kind]), kind


def test_negative_values_have_their_own_examples_and_side_of_the_histogram():
    statistics, selection = Statistics(2, unit=1.0), Selection(range(2), 2, 4)
    rows = torch.tensor([3, 20, 40, 41])
    latents, values = torch.tensor([0, 0, 0, 1]), torch.tensor([-5.0, -1.0, 2.0, -3.0])
    firings = by_latent(rows, latents, values, 2)
    statistics.add(firings)
    selection.add(firings, CONTEXT)
    windows = selection.windows()
    assert windows["negative"].tolist() == [[0, 1], [2, -1]]
    assert windows["positive"].tolist() == [[2, -1], [-1, -1]]
    table = statistics.table(100)
    assert table["positive_share"].tolist() == [pytest.approx(1 / 3), 0]
    assert (table["min"].tolist(), table["max"].tolist()) == ([-5, -3], [2, -3])
    assert statistics.histogram[:, 0].sum(1).tolist() == [2, 1]
    assert table["q50"][0] == pytest.approx(-1.0, rel=0.19)
    assert -5 <= table["q05"][0] <= -4


def test_the_shape_of_values_that_are_equal_is_unknown():
    """Rounding of the sums of powers would otherwise be divided by a variance of nearly 0."""
    values = torch.tensor([0.3, 0.7, 0.7, 0.7000001, 1.0, 2.0, 4.0])
    latents = torch.tensor([0, 1, 1, 1, 2, 2, 2])
    statistics = Statistics(3, unit=1.0)
    statistics.add(by_latent(torch.arange(7), latents, values, 3))
    table = statistics.table(100)
    for name, expected in (
        ("skew", stats.skew([1, 2, 4])),
        ("kurtosis", stats.kurtosis([1, 2, 4], fisher=False)),
    ):
        assert table[name][:2].isnan().all(), name
        assert table[name][2].item() == pytest.approx(expected)


def test_the_sample_is_uniform_over_windows():
    """40 of 1000 windows are drawn for each of 2000 latents; each tenth of the windows gets its share (chi-square)."""
    windows = torch.arange(1000).repeat(2000)
    selection = Selection(range(2000), 1, 40)
    selection.add(Firings(torch.arange(2001) * 1000, windows.int(), torch.ones(len(windows))), context=1)
    drawn = selection.windows()["sampled"]
    assert (drawn >= 0).all()
    counts = np.bincount(drawn.flatten().numpy() // 100, minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_a_planted_feature_is_found_where_it_was_planted():
    """A latent that fires on positions 4 and 5 of windows 7 and 9 shows exactly that."""
    rows = torch.tensor([7 * 16 + 4, 7 * 16 + 5, 9 * 16 + 4, 9 * 16 + 5])
    firings = by_latent(rows, torch.zeros(4), torch.tensor([1.0, 3.0, 2.0, 1.5]), 1)
    selection = Selection(range(1), 2, 2)
    selection.add(firings, 16)
    chosen = selection.windows()
    assert chosen["positive"].tolist() == [[7, 9]]
    assert sorted(chosen["sampled"][0].tolist()) == [7, 9]
    wanted = wanted_pairs(chosen)
    found = traces(wanted, [gather(wanted, firings, 16)])
    assert found.windows.tolist() == [7, 9]
    assert (found.positions.tolist(), found.values.tolist()) == ([4, 5, 4, 5], [1.0, 3.0, 2.0, 1.5])


def test_interrupted_after_any_shard_it_goes_on_and_ends_with_the_same_bytes(
    run, model, tmp_path, monkeypatch
):
    def go(out):
        return describe(run.sae(), run.store, run.hook, model, out, CFG, "digest")

    whole = go(tmp_path / "whole")
    encoded = []
    real = collecting.encode_shard

    def failing(sae, store, hook, number, *rest):
        if number == 3 and not encoded:
            encoded.append(number)
            raise KeyboardInterrupt
        return real(sae, store, hook, number, *rest)

    monkeypatch.setattr(collecting, "encode_shard", failing)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "stopped")
    with pytest.raises(RunError, match="no finished features"):
        FeatureStore(tmp_path / "stopped")
    calls = []
    monkeypatch.setattr(type(run.sae()), "encode", _counting(type(run.sae()).encode, calls))
    again = go(tmp_path / "stopped")
    assert sum(calls) == sum(entry.rows for entry in run.store.shards[3:])
    assert sorted(p.name for p in again.path.iterdir()) == sorted(p.name for p in whole.path.iterdir())
    for path in whole.path.iterdir():
        assert (again.path / path.name).read_bytes() == path.read_bytes(), path.name


def _counting(real, calls):
    def encode(self, x):
        calls.append(len(x))
        return real(self, x)

    return encode


def test_finished_features_are_left_alone_and_made_again_for_another_sae(run, model, tmp_path):
    args = (run.sae(), run.store, run.hook, model, tmp_path / "f", CFG)
    first = describe(*args, "one")
    stamp = (first.path / "features.json").stat().st_mtime_ns
    describe(*args, "one")
    assert (first.path / "features.json").stat().st_mtime_ns == stamp
    assert describe(*args, "two").record.sae_sha256 == "two"


def test_every_stage_tells_how_far_it_is_and_ends_at_its_total(run, model, tmp_path):
    stages = []

    @contextmanager
    def watch(stage, total, unit):
        told = []
        yield told.append
        stages.append((stage, unit, total, sum(told)))

    describe(run.sae(), run.store, run.hook, model, tmp_path / "f", CFG, "digest", watch)
    rows, latents = sum(entry.rows for entry in run.store.shards), run.sae().d_sae
    assert stages[0] == ("features", "tokens", rows, rows)
    assert [stage for stage, *_ in stages[1:4]] == ["co-firing", "logit lens", "neighbours"]
    assert {stage[1:] for stage in stages[1:4]} == {("latents", latents, latents)}
    assert all(told == total for *_, total, told in stages[4:])


def test_tokens_limits_the_pass_to_whole_shards(run, tmp_path):
    found = collect(run.sae(), run.store, run.hook, FeaturesConfig(tokens=600, batch=64), tmp_path, {})
    assert found.shards == 2
    assert found.rows == sum(entry.rows for entry in run.store.shards[:2])


def test_encoder_and_decoder_cosine_is_per_latent(run):
    sae = run.sae()
    enc, dec = sae.W_enc.double().numpy(), sae.W_dec.double().numpy()
    expected = [enc[:, j] @ dec[j] / np.linalg.norm(enc[:, j]) / np.linalg.norm(dec[j]) for j in range(32)]
    np.testing.assert_allclose(encoder_decoder_cosine(sae).numpy(), expected, rtol=1e-5)


def test_the_logit_lens_is_norm_then_unembedding_less_the_mean(run, model):
    lens = logit_lens(model, run.sae().W_dec, 3, block=5)
    norm, unembed = model.plain.model.norm.weight, model.plain.lm_head.weight
    rows = run.sae().W_dec.double()
    scaled = rows / rows.square().mean(1, keepdim=True).sqrt() * norm.double()
    logits = scaled @ unembed.double().T
    logits -= logits.mean(1, keepdim=True)
    assert torch.equal(lens.raised, logits.topk(3).indices)
    torch.testing.assert_close(lens.raised_by.double(), logits.topk(3).values, rtol=1e-4, atol=1e-4)
    assert torch.equal(lens.lowered, (-logits).topk(3).indices)


def test_a_hook_of_another_width_than_the_residual_has_no_lens(model):
    assert logit_lens(model, torch.randn(4, 32), 3) is None


def test_a_feature_that_does_not_exist_is_named(run):
    with pytest.raises(RunError, match="feature 32 does not exist.*0 to 31"):
        FeatureStore(run.path / "features").row(32)


def test_a_damaged_folder_is_named(run, model, tmp_path):
    made = describe(run.sae(), run.store, run.hook, model, tmp_path / "f", CFG, "x")
    path = made.path / "examples.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=r"examples\.safetensors is damaged"):
        FeatureStore(made.path).strongest(0)
    rewrite(made.path / "features.json", lambda about: about.update(d_sae=-5))
    with pytest.raises(RunError, match="d_sae = -5, must be at least 1"):
        FeatureStore(made.path)
