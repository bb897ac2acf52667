"""Tables of runs and features: filters select what they say, numbers are the run's, texts stay texts."""

from dataclasses import replace

import pyarrow as pa
import pytest

from sae.report import features as features_report
from sae.report import runs as runs_report
from sae.report import search
from sae.runs.records import Estimate, Evaluation, RunRecord, Splice

COLUMNS = {
    "latent": pa.array([0, 1, 2, 3], pa.int32()),
    "fired": [0, 5, 50, 200],
    "density": [0.0, 0.005, 0.05, 0.2],
    "positive_share": [None, 1.0, 1.0, 1.0],
    "mean": [None, 1.0, 2.0, 3.0],
    "max": [None, 2.0, 4.0, 6.0],
    "min": [None, 0.5, 0.5, 0.5],
    "first_row": [-1, 7, 3, 0],
    "enc_dec_cosine": [0.5, 0.6, 0.7, 0.8],
    "b_enc": [0.0, 0.1, 0.2, 0.3],
    "peak_tokens": [[], [" Cat", " Cat", "\n"], ["<b>"], ["=1+1"]],
    "raised_tokens": [["dog"] * 7, ["a"] * 7, ["b"] * 7, ["Dog"] * 7],
    "neighbours": [[1, 2], [2, 3], [3, 0], [0, 1]],
    "neighbour_cosines": [[0.9, 0.1], [0.8, 0.1], [0.7, 0.1], [0.6, 0.1]],
}


@pytest.fixture
def table() -> pa.Table:
    return pa.table(COLUMNS)


TEXTS = pa.chunked_array([["the cat sat", "rain\nfell", "<b>İstanbul</b>", ""]])


def latents(table: pa.Table) -> list[int]:
    return table["feature"].to_pylist()


def wanted(table: pa.Table, texts: pa.ChunkedArray | None = None, **settings) -> pa.Table:
    return features_report.filtered(
        table, features_report.Wanted(**settings), features_report.haystack(table, texts)
    )


def test_the_table_shows_every_feature_in_order(table):
    shown = features_report.features(table)
    assert latents(shown) == [0, 1, 2, 3]
    assert shown["density"].to_pylist() == pytest.approx([0, 0.5, 5, 20])
    assert shown["fires most on"].to_pylist() == [[], [" Cat", "↵"], ["<b>"], ["=1+1"]]
    assert shown["raises"].to_pylist()[0] == ["dog"] * features_report.RAISED
    assert shown["nearest"].to_pylist() == [0.9, 0.8, 0.7, 0.6]
    assert shown["first fired"].to_pylist() == [None, 7, 3, 0]


def test_columns_that_say_nothing_are_left_out(table):
    assert not {"positive", "min"} & set(features_report.features(table).column_names)
    signed = table.set_column(
        table.schema.get_field_index("positive_share"), "positive_share", [[None, 0.5, 1.0, 1.0]]
    )
    assert features_report.features(signed)["positive"].to_pylist() == [None, 50.0, 100.0, 100.0]
    without = table.drop(["raised_tokens"]).set_column(
        table.drop(["raised_tokens"]).schema.get_field_index("neighbour_cosines"),
        "neighbour_cosines",
        pa.array([[]] * 4, pa.list_(pa.float64())),
    )
    assert not {"raises", "nearest"} & set(features_report.features(without).column_names)


def test_a_sliced_table_keeps_its_own_tokens(table):
    assert features_report.features(table.slice(2))["fires most on"].to_pylist() == [["<b>"], ["=1+1"]]


@pytest.mark.parametrize(
    ("state", "expected"), [("all", [0, 1, 2, 3]), ("live", [1, 2, 3]), ("dead", [0]), ("dense", [3])]
)
def test_states_are_filtered_and_counted_alike(table, state, expected):
    shown = features_report.features(table)
    assert latents(wanted(shown, state=state)) == expected
    assert features_report.counts(shown)[state] == len(expected)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cat", [1]),
        ("DOG", [0, 3]),
        ("<B", [2]),
        ("↵", [1]),
        ("=1+1", [3]),
        ("(", []),
        (".*", []),
        ("Cat\nCat", []),
    ],
)
def test_words_are_looked_for_as_they_are_in_any_case(table, words, expected):
    assert latents(wanted(features_report.features(table), words=words)) == expected


@pytest.mark.parametrize(
    ("words", "expected"), [("The Cat", [0]), ("FELL", [1]), ("mine", [3]), ("<i>", [1]), ("dog", [0, 3])]
)
def test_example_texts_and_labels_are_searched_too(table, words, expected):
    shown = features_report.with_labels(features_report.features(table), {1: "<I>", 3: "MINE"})
    assert shown["label"].to_pylist() == [None, "<I>", None, "MINE"]
    assert latents(wanted(shown, TEXTS, words=words)) == expected


def test_features_found_are_sorted_by_where_the_words_were_found(table):
    tokens = [[" Music"], ["only", "music"], ["of", "musical"], [" jaw"]]
    rows = table.set_column(table.schema.get_field_index("peak_tokens"), "peak_tokens", [tokens])
    rows = rows.set_column(
        rows.schema.get_field_index("raised_tokens"), "raised_tokens", [[[], [], [], ["music"]]]
    )
    texts = pa.chunked_array([["the music\nno", "my music\nmusic, sir", "a musical\nmusic", "rain"]])
    shown = features_report.features(rows)
    found = search.ranked(wanted(shown, texts, words="MUSIC"), "MUSIC", texts)
    assert latents(found) == [1, 0, 2, 3], "more of feature 1's examples have it than of feature 0's"
    assert found[search.WHERE].to_pylist() == [
        "fires on, 2 of 2 examples",
        "fires on, 1 of 2 examples",
        "fires on, 2 of 2 examples",
        "raises",
    ]
    named = features_report.with_labels(shown, {3: "church music"})
    found = search.ranked(wanted(named, texts, words="music"), "music", texts)
    assert latents(found) == [3, 1, 0, 2]
    buttons = [search.best_word(row, "music") for row in found.to_pylist()]
    assert buttons == ["church music", "music", "Music", "musical"]
    ruled = shown.append_column(
        features_report.EXPLANATION, [["", "", "tokens “7” or “music”", "word “music”"]]
    ).append_column(features_report.F1, [[0.9, 0.9, 0.6, 0.4]])
    found = search.ranked(wanted(ruled, texts, words="music"), "music", texts)
    assert latents(found) == [1, 0, 2, 3], "a rule comes after tokens that are the words, if it holds"
    assert latents(search.ranked(wanted(shown, texts, words="zebra"), "zebra", texts)) == []


def test_brushed_ranges_and_chosen_features_are_all_met(table):
    shown = features_report.features(table)
    assert latents(wanted(shown, ranges={"mean": (2.0, 3.0)})) == [2, 3], "a dead feature has no mean"
    assert latents(wanted(shown, ranges={"mean": (2.0, 3.0), "density": (0, 5)})) == [2]
    assert latents(wanted(shown, among=[3, 0, 17])) == [0, 3]
    assert latents(wanted(shown, among=[])) == []
    assert latents(wanted(shown, ranges={"nosuch": (0, 1)})) == [0, 1, 2, 3], "a column this run lacks"


def test_a_density_range_includes_its_ends(table):
    shown = features_report.features(table)
    assert latents(wanted(shown, density=(0.005, 0.05))) == [1, 2]
    assert latents(wanted(shown, density=(0.0, 0.005))) == [0, 1]
    assert features_report.DENSITIES[0] == 0.0
    assert features_report.DENSITIES[-1] == 1.0
    assert list(features_report.DENSITIES) == sorted(features_report.DENSITIES)


def test_labels_of_features_sort_as_their_numbers_do(table):
    many = features_report.features(
        pa.concat_tables([table] * 300).set_column(0, "latent", [list(range(1200))])
    )
    labels = features_report.labelled(many)["feature"].to_pylist()
    assert labels == sorted(labels)
    assert [int(label) for label in labels] == list(range(1200))


def evaluation(value: float) -> Evaluation:
    one = Estimate(value, value - 0.01, value + 0.01)
    splice = Splice(4, 60, {"recovered_zero": one}, documents=3)
    return Evaluation(1200, 12, {"l0": one, "fvu": one, "something new": one}, 0.25, 0.001, splice=splice)


def test_an_interval_over_a_single_document_is_shown_as_unknown():
    measured = evaluation(0.5)
    assert runs_report.interval(measured, "fvu", ".1f") == "0.5 to 0.5"
    assert measured.splice
    for one, unknown in (
        (replace(measured, documents=1), {"L0", "FVU", "something new"}),
        (replace(measured, splice=replace(measured.splice, documents=1)), {"CE recovered (zero)"}),
    ):
        lines = {line.label: line.interval for line in runs_report.estimates(one)}
        assert {label for label, shown in lines.items() if shown == "unknown: one document"} == unknown


def test_an_evaluation_is_shown_whole_even_what_is_not_known_here():
    lines = {line.label: (line.value, line.interval) for line in runs_report.estimates(evaluation(0.5))}
    assert list(lines)[:2] == ["FVU", "L0"], "in the order they are explained in"
    assert lines["FVU"] == lines["something new"] == ("0.5", "0.49 to 0.51")
    assert lines["CE recovered (zero)"][0] == "0.5"
    assert lines["dead"] == ("25 %", "")
    assert runs_report.basis(evaluation(0.5)) == "1,200 held-out tokens, 12 documents"


class Run:
    finished = False
    record = RunRecord(
        config={
            "architecture": "relu",
            "store": "stores/x",
            "arch": {"d_sae": 4096, "l1": 0.001},
            "train": {"steps": 100, "lr": 0.0003, "scale_inputs": True},
        },
        hook="blocks.0.hook_resid_post", d_model=768, input_scale=1.0, model="gpt2", model_revision=None,
        weights_sha256=None, store_fingerprint=None,
    )  # fmt: skip


def test_a_run_that_has_no_k_and_no_evaluation_has_gaps():
    (row,) = runs_report.runs({"a/b": Run()}, {}, {"a/b": 40}).to_pylist()
    assert (row["name"], row["state"], row["features"]) == ("a/b", "step 40 of 100", 4096)
    assert row["k"] is row["FVU"] is row["dead"] is row["CE recovered"] is None
    assert runs_report.summary(Run.record) == "relu · 4,096 features · gpt2 · blocks.0.hook_resid_post"


def test_settings_list_every_field_that_is_set():
    shown = dict(runs_report.settings(Run.record))
    assert (shown["steps"], shown["lr"], shown["scale inputs"], shown["l1"]) == (
        "100",
        "0.0003",
        "yes",
        "0.001",
    )
    assert "code version" not in shown


def test_the_frontier_has_only_evaluated_runs():
    assert runs_report.frontier({"a": Run(), "b": Run()}, {"b": evaluation(0.5)}) == [("b", "relu", 0.5, 0.5)]


def test_the_frontier_is_of_the_measure_asked_and_tells_sizes_apart():
    small, large = Run(), Run()
    large.record = replace(Run.record, config={**Run.record.config, "arch": {"d_sae": 8192}})
    splice = Splice(4, 60, {"recovered_zero": Estimate(0.9, 0.8, 1.0)})
    measured = {"a": replace(evaluation(0.5), splice=None), "b": replace(evaluation(0.25), splice=splice)}
    found = {"a": small, "b": large}
    assert runs_report.frontier(found, measured) == [
        ("a", "relu, 4,096", 0.5, 0.5),
        ("b", "relu, 8,192", 0.25, 0.25),
    ]
    assert runs_report.frontier(found, measured, "recovered_zero") == [("b", "relu, 8,192", 0.25, 0.9)]


def test_runs_of_other_hook_points_models_and_stores_lie_on_other_frontiers():
    changes = {
        **{"a": {}, "same": {}},
        "hook": {"hook": "blocks.1.hook_resid_post"},
        "model": {"model": "pythia"},
        "store": {"store_fingerprint": "1", "config": Run.record.config | {"store": "stores/y"}},
    }
    found = {name: Run() for name in changes}
    for name, change in changes.items():
        found[name].record = replace(Run.record, **change)
    points = runs_report.frontier(found, dict.fromkeys(found, evaluation(0.5)))
    assert [kind.removeprefix("relu, blocks.") for _, kind, *_ in points] == [
        *["0.hook_resid_post, gpt2, x"] * 2,
        *("1.hook_resid_post, gpt2, x", "0.hook_resid_post, pythia, x", "0.hook_resid_post, gpt2, y"),
    ]


def test_columns_that_say_the_same_of_all_runs_are_said_once():
    table = runs_report.runs({"a": Run(), "b": Run()}, {}, {"a": 1, "b": 2})
    kept, said = runs_report.common(table)
    assert said == ["blocks.0.hook_resid_post", "gpt2", "100 steps"]
    assert not {"hook", "model", "steps"} & set(kept.column_names)
    one = runs_report.runs({"a": Run()}, {}, {"a": 1})
    assert runs_report.common(one) == (one, [])


@pytest.mark.parametrize(
    ("quiet", "said"),
    [
        (3.0, "step 40 of 100 · 1,000 tokens/s · 60 s left"),
        (110.0, "step 40 of 100 · seems to have stopped: nothing logged for 110 s"),
        (7200.0, "step 40 of 100 · seems to have stopped: nothing logged for 2 h"),
    ],
)
def test_a_training_says_its_pace_and_time_left_or_that_it_rests(quiet, said):
    train = {"steps": 100, "batch": 1000, "log_every": 10}  # a second a step
    log = [
        {"step": step, "tokens_per_second": speed}
        for step, speed in ((10, 1.0), *((s, 1000.0) for s in range(15, 41, 5)))
    ]
    share, words = runs_report.progress(replace(Run.record, config={"train": train}), log, quiet)
    assert (share, words) == (0.4, said)


def test_a_training_that_has_logged_nothing_is_at_its_beginning():
    train = {"steps": 100, "batch": 1000, "log_every": 10}
    assert runs_report.progress(replace(Run.record, config={"train": train}), [], 0.0) == (
        0.0,
        "step 0 of 100",
    )
    assert runs_report.progress(replace(Run.record, config={"train": train}), [{"step": 100}], 0.0) == (
        1.0,
        "step 100 of 100",
    )


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a/b/x", "a/b/y"], ["x", "y"]),
        (["a/b/x", "a/c/x"], ["b/x", "c/x"]),
        (["a/x", "a/x/y"], ["x", "x/y"]),
        (["ab", "ac"], ["ab", "ac"]),
        (["a/b"], ["a/b"]),
        ([], []),
    ],
)
def test_folders_that_all_share_are_left_out_of_names(names, short):
    assert runs_report.short(names) == short


def test_the_hit_of_a_search_stands_out_in_its_passage():
    text = "first line\nthe civil War ended in 1865, they say\nlast"
    assert search.passage(text, "war") == "the civil ▸War◂ ended in 1865, they say"
    assert search.passage(text, "peace") is None
    assert search.passage("", "war") is None
