"""Parts of the Steering page: links that hold its settings, suggestions, percentages, curves with bands."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activations.errors import ConfigError
from app.steering import state
from app.steering.link import MOST_STRENGTH, Settings, read, write
from sae.report import steering as steering_report
from sae.steering.interventions import Intervention
from sae.steering.measure import Measures

MODES = st.sampled_from(["add", "set", "scale", "ablate", "project"])
STRENGTHS = st.integers(-3000, 3000).map(lambda n: n / 1000)


@given(
    st.dictionaries(st.integers(0, 31), st.tuples(MODES, STRENGTHS), min_size=1, max_size=8),
    st.builds(
        dict,
        prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        chat=st.booleans(),
        tokens=st.integers(1, 200),
        temperature=st.integers(0, 20).map(lambda n: n / 10),
        seed=st.integers(0, 10**9 - 1),
        texts=st.integers(1, 4),
        positions=st.one_of(
            st.sampled_from(["all", "after prompt"]),
            st.lists(st.integers(0, 999), min_size=1, max_size=4).map(tuple),
        ),
        first_token=st.booleans(),
        keep_error=st.booleans(),
    ),
    st.sampled_from(["max", "norm"]),
)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_a_link_reproduces_the_settings_it_was_made_of(pushes, others, unit):
    interventions = tuple(Intervention(n, mode, strength, unit) for n, (mode, strength) in pushes.items())
    chosen = Settings(interventions, **others)
    query = write("toy", chosen)
    assert query.pop("run") == "toy"
    assert read(query, 32, 0) == chosen


def test_a_link_names_only_what_is_not_as_usual():
    assert write("a b", Settings((Intervention(17, "add", 1.5),))) == {"run": "a b", "steer": "17:add:1.5"}
    assert read({}, 32, 9) == Settings((Intervention(9),))
    assert read({"feature": "3"}, 32, 9) == Settings((Intervention(3),))


BAD = {
    "steer": ["", "1", "1:add", "1:push:1", "x:add:1", "-1:add:1", "32:add:1", "1:add:nan", "1:add:1e3", "1:add:2,1:ablate:1",
              "1:clamp:-1", "1:add:²", f"1:add:{MOST_STRENGTH + 1}", ",".join(f"{n}:add:1" for n in range(9))],
    "feature": ["32", "abc", "-1"],
    "unit": ["volts"], "chat": ["yes"], "tokens": ["0", "201", "4.5", "x"], "temperature": ["-1", "3", "inf"],
    "seed": ["-1", "1.5"], "texts": ["0", "5"], "positions": ["some", "1,-2", ""], "first": ["2"], "error": ["no"],
    "prompt": ["x" * 4001],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_bad_part_of_a_link_is_refused_in_one_line(name, value):
    with pytest.raises(ConfigError) as caught:
        read({name: value}, 32, 0)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_suggested_features_are_clean_and_the_strongest_of_those():
    word = [" Deity"] * 4 + [" god"]
    rows = [
        (0.001, 40.0, 0.0, word), (0.001, 50.0, 0.0, [" deity"] * 5), (0.2, 45.0, 0.0, [" dense"] * 5),
        (0.001, 90.0, 0.0, [" drowns"] * 5), (0.001, 0.0, -30.0, [" negative"] * 5), (0.0, None, None, []),
        (0.001, 20.0, 0.0, ["a", "b", "c", "d", "e"]), (0.00001, 30.0, 0.0, [" rarely"] * 5),
        (0.004, 20.0, 0.0, [" often"] * 5), (0.001, 55.0, 0.0, ["ending"] * 5),
    ]  # fmt: skip
    columns = zip(*rows, strict=True)
    table = pa.table(dict(zip(("density", "max", "min", "peak_tokens"), map(list, columns), strict=True)))
    assert steering_report.suggestions(table, 150.0, 3) == [(1, "deity"), (8, "often"), (4, "negative")]
    assert steering_report.suggestions(table, 150.0, 4)[3] == (2, " dense")
    assert len(steering_report.suggestions(table.slice(5, 1), 150.0, 3)) == 1


def test_shares_are_shown_as_per_cent_and_signed():
    assert steering_report.shown("concept", 0.123) == "12.3 %"
    assert steering_report.shown("concept", -0.123) == "−12.3 %"
    assert steering_report.shown("kl", 0.5) == "0.5"
    assert steering_report.shown("peak_gain", None) == "–"
    assert set(steering_report.MEASURES) == set(Measures._fields)


class Made:
    """Stand in for a point of a curve."""

    def __init__(self, dose: float, mean: float | None, spread: float | None):
        self.dose, self._mean, self._spread = dose, mean, spread

    def mean(self, name: str) -> float | None:
        return None if name == "peak_gain" else self._mean

    def spread(self, name: str) -> float | None:
        return None if name == "peak_gain" else self._spread


def test_curves_are_means_and_bands_are_a_spread_either_side():
    curve = [Made(-1.0, 2.0, 0.5), Made(0.0, 3.0, 0.0), Made(1.0, 5.0, 4.5)]
    figure = steering_report.dose_response({"latent": curve, "random": curve[:2]}, "strength")
    shown = [title.text for title in figure.layout.annotations]
    assert shown == [steering_report.PANELS[name] for name in ("concept", "kl", "perplexity")]
    band, line = figure.data[:2]
    assert (list(line.x), list(line.y)) == ([-1, 0, 1], [2, 3, 5])
    np.testing.assert_allclose(band.y, [2.5, 3, 9.5, 0.5, 3, 1.5])
    assert [trace.name for trace in figure.data if trace.showlegend] == ["the features", "random directions"]
    perplexity = [trace for trace in figure.data if trace.yaxis == "y3"]
    assert figure.layout.yaxis3.type == "log"
    assert min(perplexity[0].y) == 1.0


def chosen(*told: tuple[str, float], unit: str = "max") -> Settings:
    """Return settings that steer latents 1, 2, … in these modes and strengths."""
    return Settings(tuple(Intervention(n, mode, s, unit) for n, (mode, s) in enumerate(told, 1)))  # type: ignore[arg-type]


def test_a_factor_is_not_told_or_dosed_in_units():
    one, mixed = chosen(("ablate", 1), unit="norm"), chosen(("add", -2), ("scale", 0.5))
    assert steering_report.about(one, False) == "feature 1: ablate 1 (factor)"
    assert steering_report.axis(one) == "strength, factor"
    assert tuple(state.doses(one)) == state.DOSES
    assert (
        steering_report.about(mixed, False)
        == "feature 1: add −2 (multiples of the maximum), feature 2: multiply by 0.5 (factor)"
    )
    assert steering_report.axis(mixed) == "strongest feature's strength, multiples of its maximum"
    shares = chosen(("add", 0.2), ("set", 0.1), unit="norm")
    assert steering_report.about(shares, False, dosed=True).endswith(
        "set to (shares of the activations' norm)"
    )
    assert max(state.doses(shares)) == pytest.approx(state.NORM_SHARE * max(state.DOSES))


def test_a_dose_beside_a_limit_is_the_size_of_the_strongest_strength():
    limited, free = chosen(("add", -2), ("clamp", 1)), chosen(("add", -2), ("set", 1))
    assert [i.strength for i in state.of_unit_strength(limited)] == [-1, 0.5]
    assert min(state.doses(limited)) == 0
    assert steering_report.axis(limited).startswith("size of the strongest feature's strength, ")
    assert [i.strength for i in state.of_unit_strength(free)] == [1, -0.5]
    assert steering_report.axis(free).startswith("strongest feature's strength, ")
