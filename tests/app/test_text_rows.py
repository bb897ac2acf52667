"""What the Your text page shows agrees with the reading."""

import math
from pathlib import Path

import pytest
import torch

from activations.language_model import load
from activations.tokens import PackingConfig
from sae.features.feature import FeatureStore
from sae.reading.reader import read
from sae.reading.reading import Reading
from sae.report import text as text_report
from sae.report.numbers import number, percent
from sae.runs.run import Run

TEXT = "the cat sat on a mat"


@pytest.fixture(scope="module")
def run(runs: Path) -> Run:
    return Run(runs / "signed")


@pytest.fixture(scope="module")
def features(run: Run) -> FeatureStore:
    return FeatureStore(run.path / "features")


@pytest.fixture(scope="module")
def reading(world: Path, run: Run, features: FeatureStore) -> Reading:
    """Return a reading by signed latents, in two windows."""
    found = read(load(str(world / "model")), run.sae(), run.hook, TEXT, features, PackingConfig(context=16))
    assert (found.code.values < 0).any()
    return found


@pytest.mark.parametrize(
    ("by", "column"), [("total", "total"), ("l0", "l0"), ("error", "fvu"), ("surprise", "surprise")]
)
def test_tokens_are_coloured_by_a_measure_from_its_least_to_its_largest(
    reading: Reading, by: str, column: str
):
    values = getattr(reading, column).double()
    counts = reading.is_text if by == "surprise" else reading.counted
    counts = counts & ~values.isnan()
    shown = text_report.coloured(reading, by)
    low, high = values[counts].min(), values[counts].max()
    for place in range(len(reading)):
        expected = float((values[place] - low) / (high - low)) if counts[place] and high > low else 0.0
        assert shown.shades[place] == pytest.approx(expected, abs=1e-6)
        said = "–" if values[place].isnan() else number(float(values[place]))
        assert said in shown.tips[place]
    assert f"<span>{number(float(high))}</span>" in shown.legend


def test_tokens_are_coloured_by_a_feature_in_both_signs(reading: Reading):
    signs = set()
    for latent in reading.code.indices.unique().tolist():
        values = reading.values_of(latent).masked_fill(reading.excluded, 0)
        shown = text_report.coloured(reading, latent)
        assert [(s > 0) - (s < 0) for s in shown.shades] == values.sign().int().tolist()
        signs |= {*values.sign().int().tolist()}
    assert signs == {-1, 0, 1}


def test_the_text_s_numbers_are_the_reading_s(reading: Reading):
    found = {name: value for name, value, _ in text_report.about(reading)}
    assert found["tokens"] == "20"
    assert found["windows"] == "2"
    assert found["features"] == str(len(reading.code.indices[reading.counted[reading.code.rows()]].unique()))
    assert found["FVU"] == number(reading.text_fvu)
    assert found["L0"] == number(float(reading.l0[reading.counted].double().mean()))
    surprise = reading.surprise[reading.is_text].double().mean()
    assert found["perplexity"] == number(math.exp(surprise))


def test_a_token_s_numbers_are_the_reading_s(reading: Reading):
    for place in (0, 1, 5, 17, len(reading) - 1):
        found = {name: value for name, value, _ in text_report.token_numbers(reading, place)}
        assert found["L0"] == str(int(reading.l0[place]))
        assert found["activation"] == number(float(reading.total[place]))
        assert found["error"] == number(float(reading.fvu[place]))
        last = place == len(reading) - 1
        assert found["next token"] == ("–" if last else percent(math.exp(float(reading.log_probs[place]))))
        assert found["surprise"] == ("–" if place == 0 else number(float(reading.surprise[place])))


def test_what_follows_is_the_next_token_of_the_text(reading: Reading):
    assert "“t”" in text_report.followed_by(reading, 0)
    assert reading.tokens[15:18] == [" ", "<bos>", "a"]
    assert "“a”" in text_report.followed_by(reading, 15)
    assert "nothing follows" in text_report.followed_by(reading, len(reading) - 1)


@pytest.mark.parametrize("by", ["value", "rarity", "effect"])
def test_features_of_a_token_are_the_reading_s_and_dense_ones_are_counted(
    reading: Reading, features, by: str, monkeypatch
):
    def about(latent: int) -> tuple[str, list[str]]:
        return f"label {latent}", features.row(latent)["peak_tokens"]

    densities = torch.tensor(features.table["density"].to_pylist())
    limit = float(densities[reading.code.indices].median())
    for place in (1, 5, 18):
        found = reading.at(place, by)
        lines, hidden, of = text_report.at(reading, place, by, limit, about)
        kept = [one for one in found if densities[one.latent] <= limit * (1 + 1e-6)]
        assert [line.latent for line in lines] == [one.latent for one in kept]
        assert (hidden, of) == (len(found) - len(kept), len(found))
        for line, one in zip(lines, kept, strict=True):
            assert (line.value, line.effect, line.rarity) == (one.value, one.effect, one.rarity)
            assert line.density == pytest.approx(float(densities[line.latent]))
            assert line.label == f"label {one.latent}"
            assert set(line.tokens) <= set(features.row(line.latent)["peak_tokens"])
    monkeypatch.setattr(text_report, "MOST", 1)
    lines, hidden, of = text_report.at(reading, 5, by, 1.0, about)
    assert (len(lines), hidden, of) == (1, 0, len(reading.at(5, by)))
    assert text_report.listed_at(lines, 0, of, 0.1) == f"1 of {of} features"
    assert text_report.listed_at(lines, 0, 1, 0.1) == ""
    assert text_report.listed_at(lines, 2, 5, 0.1) == "1 of 5 features · 2 hidden: denser than 10 %"
    assert text_report.hidden(0, 0.1) == ""
    assert text_report.hidden(3, 0.1) == "3 hidden: denser than 10 %"


def test_features_of_the_whole_text_are_the_reading_s(reading: Reading, features):
    found = reading.latents("effect")
    about = None
    lines, hidden, of = text_report.over(reading, "effect", 1.0, about)
    assert (hidden, of) == (0, len(found))
    assert [(line.latent, line.value, line.times, line.position, line.effect) for line in lines] == [
        (p.latent, p.peak, p.tokens, p.position, p.effect) for p in found
    ]


def test_without_features_there_is_neither_rarity_nor_anything_hidden(world: Path, run: Run):
    reading = read(load(str(world / "model")), run.sae(), run.hook, TEXT)
    assert text_report.rankings(reading) == ["value", "effect"]
    lines, hidden, _ = text_report.at(reading, 3, "value", 0.0001, None)
    assert hidden == 0
    assert [line.latent for line in lines] == [one.latent for one in reading.at(3)]
    assert not lines[0].tokens
