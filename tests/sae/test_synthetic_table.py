"""The table over methods: it goes on where it stopped, refuses other settings, and finds the price of an L0."""

import dataclasses
import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from activations.disk import files
from activations.errors import ConfigError
from sae.config import TrainConfig
from sae.evaluation.structured import Structured
from sae.evaluation.synthetic import Independent, Tree
from sae.report.synthetic import Shown, cells, columns, conclusions
from sae.workflows import synthetic_table as tables
from sae.workflows.synthetic_table import FROZEN_TOPK, INDEX, TableConfig, method, next_price, synthetic_table

SETTINGS = TrainConfig(steps=10, batch=32, lr=1e-2, warmup_steps=0)
WORLD = Tree()


class Stop(Exception):
    pass


class Counted:
    """A progress that counts the steps of each note, and stops after so many reports."""

    def __init__(self, stop_at: str | None = None):
        self.total = self.done = 0
        self.stop_at, self.notes = stop_at, set()

    @contextmanager
    def __call__(self, stage: str, total: int, unit: str, done: int = 0):
        self.total, self.done = total, done

        def advance(n: int, note: str = "") -> None:
            self.done += n
            self.notes.add(note)
            if note == self.stop_at:
                raise Stop

        yield advance


def test_a_table_goes_on_where_it_stopped_and_ends_as_one_that_was_not_stopped(tmp_path: Path):
    cfg = TableConfig(methods=("topk", "relu", "batchtopk"))
    with pytest.raises(Stop):
        synthetic_table(WORLD, SETTINGS, cfg, tmp_path / "a", Counted("relu"))
    kept = json.loads((tmp_path / "a" / INDEX).read_text())
    assert [*kept["lines"]] == ["topk"], "relu was interrupted"
    resumed = Counted()
    record = synthetic_table(WORLD, SETTINGS, cfg, tmp_path / "a", resumed)
    assert resumed.done == resumed.total, "trials that were not needed count as done"
    assert "topk" not in resumed.notes
    whole = synthetic_table(WORLD, SETTINGS, cfg)
    assert [*record.lines] == ["topk", "batchtopk", "relu"], "in the order of the table of methods"
    assert {name: line.measures for name, line in record.lines.items()} == {
        name: line.measures for name, line in whole.lines.items()
    }
    again = Counted()
    assert synthetic_table(WORLD, SETTINGS, cfg, tmp_path / "a", again) == record
    assert not again.notes


def test_a_folder_of_another_world_or_other_settings_is_refused(tmp_path: Path):
    cfg = TableConfig(methods=("topk",))
    synthetic_table(WORLD, SETTINGS, cfg, tmp_path)
    for world, settings, changed in [
        (Tree(seed=1), SETTINGS, "world"),
        (WORLD, dataclasses.replace(SETTINGS, steps=11), "train"),
    ]:
        with pytest.raises(ConfigError, match=changed):
            synthetic_table(world, settings, cfg, tmp_path)
    more = synthetic_table(WORLD, SETTINGS, TableConfig(methods=("batchtopk",)), tmp_path)
    assert [*more.lines] == ["topk", "batchtopk"]


def test_a_table_of_an_older_format_does_not_count(tmp_path: Path):
    world, settings = Independent(d_model=8, n_features=8, least=1, most=1), TrainConfig(steps=2, batch=32)
    synthetic_table(world, settings, TableConfig(methods=("topk",)), tmp_path)
    path = tmp_path / INDEX
    files.write_sealed(path, files.read_json(path) | {"format": 1, "config": {}})
    table = synthetic_table(world, settings, TableConfig(methods=("batchtopk",)), tmp_path)
    assert "topk" not in table.lines
    assert files.read_json(path)["format"] == 2


def test_controls_are_measured_and_own_ones_trained_where_asked_for():
    record = synthetic_table(WORLD, SETTINGS, TableConfig(methods=("topk",)))
    assert [*record.controls] == ["random dictionary", FROZEN_TOPK]
    assert [*record.lines["topk"].better_by] == ["random-dictionary"]
    own = synthetic_table(WORLD, SETTINGS, TableConfig(methods=("topk",), controls=True)).lines["topk"]
    assert {*own.better_by} == {
        "random-dictionary",
        "frozen-decoder",
        "soft-frozen-decoder",
        "frozen-encoder",
    }


def test_a_method_that_these_sizes_rule_out_is_left_out_with_the_reason():
    record = synthetic_table(Independent(n_features=63), SETTINGS, TableConfig(methods=("kron",)))
    assert not record.lines
    assert "63" in record.left_out["kron"]


@pytest.mark.parametrize(("power", "factor"), [(-1.5, 3.0), (-0.6, 40.0)])
def test_the_price_of_an_l0_is_found_where_l0_is_a_power_of_it(power: float, factor: float):
    tried: list[tuple[float, float]] = []
    price = 1.0
    for _ in range(6):
        tried.append((price, factor * price**power))
        if abs(tried[-1][1] / 2.0 - 1) < 0.05:
            break
        price = next_price(tried, 2.0)
    assert tried[-1][1] == pytest.approx(2.0, rel=0.05)


def test_methods_are_set_to_the_l0_as_exactly_as_they_can_be():
    assert method("topk", 48, 2.4).expected_l0().value == 2
    assert method("batchtopk", 48, 2.4).expected_l0().value == 2.4
    assert method("gba", 48, 2.4).expected_l0().value == pytest.approx(2.4)


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(ConfigError, match="unknown method 'topkk'"):
        TableConfig(methods=("topkk",))


def test_the_table_says_who_recovers_who_absorbs_and_who_does_neither():
    measures: dict[str, float | None] = dict.fromkeys(
        ("l0", "nmse", "f1", "mcc", "uniqueness", "parents_found", "parent_recall", "absorption"), 0.5
    )
    lines = {
        "a": Shown(measures, 0.9, "recovered", "recovered"),
        "b": Shown(measures | {"absorption": None}, 0.7, "recovered", "absorbed"),
        "c": Shown(measures, 0.1, "not recovered", "not recovered"),
    }
    assert len(columns([*lines.values()])) == len(cells("a", lines["a"])) == 11
    assert cells("b", lines["b"])[-2:] == ["–", "not: absorbed"]
    said = conclusions(lines)
    assert said[0] == "the hierarchy is recovered by a"
    assert said[1].startswith("the hierarchy is not recovered but absorbed by b: ")
    assert said[2] == "the hierarchy is not recovered by c"
    flat = {name: line._replace(hierarchy=None) for name, line in lines.items()}
    assert len(columns([*flat.values()])) == len(cells("a", flat["a"])) == 8
    assert conclusions(flat) == ["the features are recovered by a, b", "the features are not recovered by c"]


@pytest.mark.parametrize("name", [*tables.ARCHITECTURES])
def test_every_method_can_be_had_in_the_default_world(name: str):
    assert method(name, Structured().n_features, 1.98).d_sae == 48
