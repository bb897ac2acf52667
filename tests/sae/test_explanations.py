"""Rule explanations: planted latents get their rule, latents without one score at chance, and scores are those of plain Python."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from activations.disk import files
from activations.errors import ConfigError, RunError
from sae.evaluation import bootstrap
from sae.features import collect
from sae.features.explanations import Explanations, explanations_of
from sae.features.feature import FeatureStore
from sae.report import explanations as report
from sae.rules import properties, similar
from sae.rules.controls import moved_rows, shuffled_rows
from sae.rules.explaining import ExplainConfig
from sae.rules.families import families
from sae.rules.targets import read_firings
from sae.runs.run import Run
from sae.workflows.explain import explain
from tests import tiny
from tests.sae import explained as world


def test_planted_latents_get_their_rule():
    planted = world.planted()
    rows = world.explained([latent.rows for latent in planted])
    kinds = Counter(latent.kind for latent in planted)
    right = [
        latent.text in row["explanation"] and row["f1"] >= 0.95
        for latent, row in zip(planted, rows, strict=True)
    ]
    assert {"token", "bigram", "skip-gram", "previous", "ending", "property", "position"} <= kinds.keys()
    assert np.mean(right) >= 0.95, [
        (latent.text, row["explanation"], row["f1"])
        for latent, row, fine in zip(planted, rows, right, strict=True)
        if not fine
    ]


def test_firings_of_a_latent_without_a_largest_value_count_and_are_not_strong(run: Run, tmp_path: Path):
    """So it is where features were collected on less text than is explained, and the latent fired in the rest alone."""
    collect.encode_shard(run.sae(), run.store, run.hook, 0, 64, tmp_path, lambda _: None)
    every = read_firings(tmp_path, run.store, 1, 32)
    fired = [len(every.rows(latent)) for latent in range(32)]
    latent = int(np.argmax(fired))
    largest = np.full(32, 1e9), np.full(32, 1e9)
    largest[0][latent], largest[1][latent] = np.nan, -1.0
    for above in (0.0, 0.5):
        found = read_firings(tmp_path, run.store, 1, 32, largest, above)
        assert [len(found.rows(each)) for each in range(32)] == [
            fired[each] if not above or each == latent else 0 for each in range(32)
        ]
        assert not len(found.rows(latent, strong=True))


def test_a_rule_of_two_conditions_is_found():
    names = np.array(world.VOCABULARY, object)[world.text().tokens]
    inside = properties.places(world.VOCABULARY, world.text().tokens, world.text().positions)[
        "inside brackets"
    ]
    both = np.flatnonzero((names == " walk").ravel() & inside.ravel() & world.counted())
    (row,) = world.explained([both])
    assert row["f1"] >= 0.95
    assert {"token “ walk”", "inside brackets"} == set(row["explanation"].split(", "))


def test_random_and_shuffled_latents_score_at_chance():
    goes = shuffled_rows(world.text(), 0)
    shuffled = [moved_rows(latent.rows, goes) for latent in world.planted() if latent.kind != "dense"]
    for rows in (world.fires_at_random(100), shuffled):
        found = world.explained(rows)
        held = [row["f1_low"] <= row["chance"] <= row["f1_high"] for row in found]
        assert np.mean(held) >= 0.95
        assert np.mean([row["f1"] for row in found]) == pytest.approx(
            np.mean([row["chance"] for row in found]), abs=0.005
        )
        near = [
            row["sensitivity"] - row["fired"] / world.text().scoring.sum()
            for row in found
            if row["near"] > 50
        ]
        assert abs(np.mean(near)) < 0.01


def test_scores_are_those_of_plain_python():
    """A rule that is right half of the time, with a neighbour that it fits too, counted row by row."""
    rng = random.Random(3)
    corpus, tokens = world.text(), world.text().tokens.ravel().tolist()
    counted = [row for row in range(corpus.n_rows) if corpus.choosing[row] or corpus.scoring[row]]
    walk, talk = world.VOCABULARY.index(" walk"), world.VOCABULARY.index(" talk")
    fires = [row for row in counted if (tokens[row] == walk and rng.random() < 0.7) or rng.random() < 0.002]
    other = [row for row in counted if tokens[row] == talk or (tokens[row] == walk and rng.random() < 0.1)]
    (row,) = world.explained([np.array(fires)], lambda target: [(7, np.array(other))])
    assert row["explanation"] == "token “ walk”"

    scored = [row for row in counted if corpus.scoring[row]]
    own, theirs = set(fires), set(other) - set(fires)
    matched = [row for row in scored if tokens[row] == walk]
    hits = sum(row in own for row in matched)
    fired = sum(row in own for row in scored)
    foreign = [row for row in scored if row in theirs]
    fitted = sum(tokens[row] == walk for row in foreign)
    assert (row["matched"], row["fired"]) == (len(matched), fired)
    assert row["precision"] == pytest.approx(hits / len(matched), abs=1e-12)
    assert row["recall"] == pytest.approx(hits / fired, abs=1e-12)
    assert row["f1"] == pytest.approx(2 * hits / (len(matched) + fired), abs=1e-12)
    assert row["chance"] == pytest.approx(
        2 * len(matched) * fired / len(scored) / (len(matched) + fired), abs=1e-12
    )
    share = fitted / len(foreign)
    assert row["discrimination"] == pytest.approx(hits / fired / (hits / fired + share), abs=1e-12)
    assert row["confused_with"] == 7
    for score in ("precision", "recall", "f1", "discrimination", "sensitivity"):
        assert row[f"{score}_low"] < row[score] < row[f"{score}_high"]

    def pair(row: int) -> tuple[int, int] | None:
        return (tokens[row - 1], tokens[row]) if row % world.CONTEXT else None

    chosen = [row for row in counted if corpus.choosing[row]]
    above = below = 0.0
    firing, there = Counter(pair(row) for row in scored if row in own), Counter(map(pair, scored))
    for example in chosen:
        if example in own and pair(example) and there[pair(example)]:
            above, below = above + firing[pair(example)] / there[pair(example)], below + 1
    assert row["sensitivity"] == pytest.approx(above / below, abs=1e-12)
    assert row["near"] == below


def test_intervals_are_those_of_the_bootstrap_of_one_ratio():
    corpus = world.text()
    fires = world.fires_at_random(1)[0]
    (row,) = world.explained([fires])
    groups = corpus.groups[corpus.scoring]
    n = np.bincount(groups, minlength=corpus.n_groups)
    fired = np.bincount(corpus.groups[fires[corpus.scoring[fires]]], minlength=corpus.n_groups)
    expected = bootstrap.ratio(2 * fired, n + fired)
    assert row["rule_kind"] == "none"
    assert (row["f1"], row["f1_low"], row["f1_high"]) == pytest.approx(tuple(expected), abs=1e-12)


def test_a_neighbour_that_fires_alike_cannot_be_told_apart():
    token = world.planted()[0].rows
    half, rest = token[::2], token[1::2]
    (row,) = world.explained([half], lambda target: [(3, rest)])
    assert row["discrimination"] == pytest.approx(0.5, abs=0.05)
    (row,) = world.explained([half], lambda target: [(3, world.planted()[1].rows)])
    assert row["discrimination"] == 1.0


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("1984", {"a year", "a number of several digits"}), ("3.14", {"a decimal or grouped number"}), ("21st", {"an ordinal number"}),
        ("XIV", {"a Roman numeral"}), ("U.S.", {"an acronym with points"}), ("well-known", {"a hyphenated word"}),
        ("https://a.b", {"a web address"}), ("a@b.c", {"an e-mail address"}), ("camelCase", {"camelCase"}), ("snake_case", {"snake_case"}),
        ("0xFF", {"hexadecimal"}), ("walk", set()), ("I", set()),
    ],
)  # fmt: skip
def test_properties_of_words(text: str, holds: set[str]):
    assert {name for name, test in properties.WORDS.items() if test(text)} == holds


def test_scripts_languages_and_places():
    found = properties.scripts([" да", "猫", "cat", "1"])
    assert {name: rows.tolist().index(True) for name, rows in found.items()} == {
        "Cyrillic script": 0,
        "Cjk script": 1,
        "Latin script": 2,
    }
    words = ["der", "und", "die", "ist", "the", "of", "and", "to", ""]
    of = properties.languages(words, np.array([[0, 1, 2, 3, 8], [4, 5, 6, 7, 8], [0, 4, 8, 8, 8]]))
    assert of["German text"].tolist() == [True, False, False]
    assert of["English text"].tolist() == [False, True, False]
    pieces = ["a", "\n", " (", ")", ".", '"']
    tokens = np.array([[0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 5, 0]], np.int32)
    places = properties.places(pieces, tokens, np.arange(13, dtype=np.int32)[None])
    at = {name: np.flatnonzero(rows[0]).tolist() for name, rows in places.items()}
    assert at["at the start of a line"] == [2]
    assert at["at the start of a sentence"] == [2, 8]
    assert at["inside brackets"] == [4, 5]
    assert at["inside quotation marks"] == [10, 11]
    assert at["the first 2 tokens of a document"] == [0, 1]


def test_keys_of_families_are_what_stands_there():
    by_kind = {
        family.kind: family for family in families(world.text()) if family.kind not in ("ending", "beginning")
    }
    names = [world.VOCABULARY[token] for token in world.text().tokens.ravel().tolist()]
    rng = np.random.default_rng(0)
    for kind, back in (("token", 0), ("previous", 1), ("two before", 2)):
        family = by_kind[kind]
        for row in rng.choice(np.flatnonzero(np.diff(family.matrix.indptr)), 30).tolist():
            assert family.spell(int(family.matrix[row].indices[0])) == (names[row - back],)
    trigrams = by_kind["trigram"]
    for row in rng.choice(np.flatnonzero(np.diff(trigrams.matrix.indptr)), 30).tolist():
        assert trigrams.spell(int(trigrams.matrix[row].indices[0])) == (*names[row - 2 : row + 1],)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A toy run with features; the random model's latents fire on single letters."""
    return tiny.run(tmp_path_factory.mktemp("explained"))


def test_a_run_is_explained_beside_its_controls_and_labels_stay(run: Run):
    features = FeatureStore(run.path / "features")
    features.labels.set(3, "mine", "a note")
    told = tiny.Told()
    cfg = ExplainConfig(controls=8, least_firings=3)
    found = explain(run, cfg, told)
    assert told.totals.keys() == {"encode", "explain"}
    assert sum(told.steps["explain"]) == told.totals["explain"]
    kinds = Counter(found.table["kind"].to_pylist())
    assert kinds["shuffled"] == kinds["random direction"] == 8
    assert kinds["latent"] + found.record.too_rare == (features.table["fired"].to_numpy() > 0).sum()
    assert found.record.tokens.choosing + found.record.tokens.scoring == features.record.tokens
    scores = found.record.scores["f1"]
    latents, shuffled = (scores[kind].mean.value for kind in ("latent", "shuffled"))
    assert latents is not None and shuffled is not None and latents > shuffled
    assert not (features.path / "explaining").exists()
    assert features.labels.get(3) == ("mine", "a note")
    before = (features.path / "explanations.json").read_bytes()
    assert explain(run, cfg, told).record == found.record
    assert (features.path / "explanations.json").read_bytes() == before
    latent = next(iter(found.by_latent))
    assert (
        report.head(found.of(latent), report.beside(found.record)) in features.feature(latent)._repr_html_()
    )


def test_interrupted_it_goes_on_to_the_same_bytes(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sae.workflows.explain.AT_ONCE", 8)
    cfg = ExplainConfig(controls=4, least_firings=3, seed=1)
    features = run.path / "features"
    whole = explain(run, cfg)
    expected = {path.name: path.read_bytes() for path in features.glob("explanations.*")}
    (features / "explanations.json").unlink()
    for share in (0.3, 0.9):
        with pytest.raises(KeyboardInterrupt):
            explain(run, cfg, tiny.Told(end_at=share))
        assert explanations_of(FeatureStore(features)) is None
    told = tiny.Told()
    assert explain(run, cfg, told).record == whole.record
    assert {path.name: path.read_bytes() for path in features.glob("explanations.*")} == expected


def test_explanations_of_other_features_do_not_count_and_damage_is_named(run: Run):
    explain(run, ExplainConfig(controls=2, least_firings=3))
    features = FeatureStore(run.path / "features")
    kept = {path: path.read_bytes() for path in features.path.glob("explanations.*")}
    index, table = features.path / "explanations.json", features.path / "explanations.parquet"
    content = files.read_json(index)
    files.write_sealed(index, {**content, "features_sha256": "0" * 64})
    assert explanations_of(features) is None
    with pytest.raises(RunError, match="of other features"):
        Explanations(features)
    files.write_sealed(index, {**content, "format": 5})
    with pytest.raises(RunError, match="format 5, this release reads up to 4"):
        explanations_of(features)
    index.write_bytes(kept[index])
    table.write_bytes(kept[table][:-1])
    found = explanations_of(features)
    assert found is not None
    with pytest.raises(RunError, match="its bytes are not the ones explanations.json describes") as error:
        _ = found.table
    assert error.value.fix == f"sae explain {run.path}"
    explain(run, ExplainConfig(controls=2, least_firings=3))  # makes them again
    assert {path: path.read_bytes() for path in kept} == kept
    index.write_text("{")
    explain(run, ExplainConfig(controls=2, least_firings=3))
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"above": 1.0}, {"controls": 0}, {"least_firings": 0}])
def test_settings_without_meaning_are_refused(wrong: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ExplainConfig(**wrong)  # pyright: ignore[reportArgumentType]


def test_latents_that_all_fire_too_rarely_are_one_line(run: Run):
    with pytest.raises(RunError, match="no latent fires 100000 times in either half"):
        explain(run, ExplainConfig(least_firings=100_000))


def test_only_strong_firings_count_where_asked(run: Run):
    every = explain(run, ExplainConfig(controls=2, least_firings=3)).by_latent
    strong = explain(run, ExplainConfig(controls=2, least_firings=3, above=0.5))
    for latent, (one, *_) in strong.by_latent.items():
        assert one.fired < every[latent][0].fired
        assert one.strong_recall == pytest.approx(one.recall.value)


def test_contexts_that_mean_the_same_are_told_by_embeddings_and_others_are_not():
    """Tokens of a stem mean the same, and a latent fires where most of the last eight tokens have its stem."""
    rng = np.random.default_rng(0)
    meanings = rng.standard_normal((len(world.VOCABULARY), 16)).astype(np.float32)
    meanings[:5] = meanings[0]
    of_stem = (world.text().tokens < 5).astype(int)
    running = np.pad(of_stem.cumsum(1), ((0, 0), (similar.CONTEXT, 0)))
    many = running[:, similar.CONTEXT :] - running[:, : -similar.CONTEXT] >= 4
    about = np.flatnonzero(many.ravel() & world.counted())
    (row,) = world.explained([about], embeddings=meanings)
    assert row["examples_low"] > 0.9
    assert row["intruder_low"] > 0.6
    found = world.explained(world.fires_at_random(60), embeddings=meanings)
    for score, chance in (("intruder", 0.2), ("examples", 0.5)):
        values = [row[score] for row in found]
        assert abs(np.mean(values) - chance) < 3 * np.std(values) / np.sqrt(len(values)) + 1e-9
        assert np.mean([row[f"{score}_low"] <= chance <= row[f"{score}_high"] for row in found]) >= 0.85
    rare = np.concatenate([about[world.text().choosing[about]], about[world.text().scoring[about]][:3]])
    (row,) = world.explained([np.sort(rare)], embeddings=meanings)
    assert row["intruder"] is None and row["examples"] is not None, "three contexts make no trial"
    (row,) = world.explained([about])
    assert row["intruder"] is None and row["examples"] is None


def test_an_embedding_of_a_context_is_that_of_plain_python():
    corpus = world.text()
    table = np.random.default_rng(1).standard_normal((len(world.VOCABULARY), 4)).astype(np.float32)
    rows = np.array([3, world.CONTEXT + 20, 5 * world.CONTEXT])
    made = similar.embedded(rows, table, corpus)
    for row, vector in zip(rows.tolist(), made.tolist(), strict=True):
        window, column = divmod(row, world.CONTEXT)
        last = corpus.tokens[window].tolist()[max(column - 7, 0) : column + 1]
        total = [sum(float(table[token, axis]) for token in last) for axis in range(4)]
        length = sum(value**2 for value in total) ** 0.5
        assert vector == pytest.approx([value / length for value in total], rel=1e-5)
