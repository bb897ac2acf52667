"""Labels come from a column, a formula or the user's function; each row has its document's label, or NaN."""

import importlib
import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from activations.document_labels import SAMPLE, Labels, complexity
from activations.errors import HarvestError, LabelError, StoreError
from activations.harvest import HarvestConfig, harvest
from activations.language_model import LanguageModel
from activations.rows import ends_a_run
from activations.shuffle import ShuffledReader, sample
from activations.store import Store
from activations.store_writer import StoreWriter
from activations.text import TextConfig
from activations.tokens import NOWHERE, PackingConfig
from tests import tiny
from tests.activations.harvests import config, contents, interrupted, line_of
from tests.activations.toys import LAWS, spec, window, window_lists, write

WORLD = """
import collections
calls = collections.Counter()

def length(text):
    calls[text] += 1
    if "\\u0021" in text:
        raise RuntimeError("the judge\\nis out")
    return float("nan") if "?" in text else float("inf") if ";" in text else len(text)

def words(text):
    return "many"

constant = 3
"""


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a user's module into the current folder and return its name."""
    name = f"judge_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(WORLD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def data(path: Path, labels: list[object], words: int = 30) -> Path:
    """Write documents "d0 d0 …", "d1 d1 …", each with its label in the column `level`."""
    rows = [{"text": f"d{n} " * words, "level": label} for n, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(path: Path, labels: str | None, **changes: object) -> HarvestConfig:
    return config(path, tokens=10**5, labels=labels, **changes)


def rows_and_labels(store: Store) -> list[tuple[int, float]]:
    """Return (document, label) of every row."""
    found = []
    for number in range(len(store.shards)):
        shard = store.read(number)
        assert shard.labels.shape == shard.tokens.shape
        assert shard.labels.dtype == torch.float32
        found += zip(shard.documents.flatten().tolist(), shard.labels.flatten().tolist(), strict=True)
    return found


def assert_rows_have(store: Store, wanted: list[float]) -> None:
    """Assert that every row has its document's label, and that BOS and padding have none."""
    seen = rows_and_labels(store)
    assert {document for document, _ in seen} == {NOWHERE, *range(len(wanted))}
    for document, label in seen:
        expected = math.nan if document == NOWHERE else wanted[document]
        assert label == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_a_column_labels_every_row_of_its_document(llama: LanguageModel, tmp_path: Path, packing: str):
    labels = [0.5, 7, None, 3.25, -2, 10]
    text = data(tmp_path / "a.jsonl", labels)
    how = PackingConfig(context=16, packing=packing)
    made = harvest(llama, tmp_path / "store", settings(text, "column:level", packing=how))
    assert made.spec.labels == Store(made.path).spec.labels == "column:level"
    if packing == "document":
        assert_rows_have(made, [math.nan if label is None else float(label) for label in labels])
    else:
        assert all(
            label
            == pytest.approx(labels[document] if labels[document] is not None else math.nan, nan_ok=True)
            for document, label in rows_and_labels(made)
            if document != NOWHERE
        )


def test_the_builtin_score_labels_every_row_of_its_document(llama: LanguageModel, tmp_path: Path):
    text = data(tmp_path / "a.jsonl", [0, 0, 0])
    how = PackingConfig(context=16, packing="document")
    made = harvest(llama, tmp_path / "store", settings(text, "builtin", packing=how))
    assert_rows_have(made, [complexity(f"d{n} " * 30) for n in range(3)])


def test_a_function_that_fails_or_gives_no_number_leaves_its_document_without(
    llama: LanguageModel, tmp_path: Path, judge: str, caplog: pytest.LogCaptureFixture
):
    texts = ["plain " * 10, "shout! " * 10, "ask? " * 10, "boundless; " * 10, "plain again " * 10]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    how = PackingConfig(context=16, packing="document")
    made = harvest(llama, tmp_path / "store", settings(tmp_path / "a.jsonl", f"{judge}:length", packing=how))
    assert_rows_have(made, [len(texts[0]), math.nan, math.nan, math.nan, len(texts[4])])
    (line,) = [record.getMessage() for record in caplog.records if "no label" in record.getMessage()]
    assert "RuntimeError: the judge" in line
    assert "\n" not in line


def test_a_store_without_labels_has_nan_and_the_bytes_of_before(
    llama: LanguageModel, tmp_path: Path, text: Path
):
    plain = harvest(llama, tmp_path / "plain", config(text))
    labelled = harvest(llama, tmp_path / "labelled", config(text, labels="builtin"))
    assert plain.spec.labels is None
    assert "labels" not in json.loads((plain.path / "index.json").read_text())
    assert all(math.isnan(label) for _, label in rows_and_labels(plain))
    more = len(plain.read(0).labels.flatten())
    for number in range(len(plain.shards)):
        one, other = plain.read(number, (tiny.HOOK,)), labelled.read(number, (tiny.HOOK,))
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.activations[tiny.HOOK], other.activations[tiny.HOOK])
        assert labelled.shards[number].bytes < plain.shards[number].bytes + 4 * more  # a number a segment


@LAWS
@given(window_lists(), st.integers(1, 4))
def test_labels_come_back_row_by_row_however_windows_are_cut(tmp_path_factory, windows, per_shard: int):
    about = spec({"h": 1}, len(windows[0].tokens), windows_per_shard=per_shard)
    about = type(about)(**{**vars(about), "labels": "made up"})
    numbers = {int(n) for one in windows for n in one.documents if n != NOWHERE}
    labels = {number: math.nan if number % 5 == 0 else number / 2 for number in numbers}
    path = tmp_path_factory.mktemp("labels") / "store"
    writer = StoreWriter(path, about)
    for number, start in enumerate(range(0, len(windows), per_shard)):
        part = windows[start : start + per_shard]
        writer.write(number, part, {"h": torch.zeros(len(part), len(part[0].tokens), 1)}, labels)
    writer.finish(-(-len(windows) // per_shard), text_ended=True)
    wanted = [labels.get(int(n), math.nan) for one in windows for n in one.documents]
    assert [label for _, label in rows_and_labels(Store(path))] == pytest.approx(wanted, nan_ok=True)


def test_a_stopped_harvest_ends_with_the_same_labels_and_scores_nothing_stored_again(
    llama: LanguageModel, tmp_path: Path, judge: str
):
    how = config(data(tmp_path / "a.jsonl", list(range(60))), labels=f"{judge}:length")
    whole = harvest(llama, tmp_path / "whole", how)
    interrupted(llama, tmp_path / "store", how, after=1200)  # in the third of four shards
    calls: Counter = importlib.import_module(judge).calls
    calls.clear()
    made = harvest(llama, tmp_path / "store", how)
    assert contents(made.path) == contents(whole.path)
    missing = torch.cat([whole.read(number).documents.flatten() for number in (2, 3)]).unique()
    tries = {SAMPLE: 1, "d0 " * 30: 1}  # the trial call, and the first document before a folder is made
    assert calls == tries | {f"d{n} " * 30: 1 for n in missing.tolist() if n > 0}


@pytest.mark.parametrize("other", [None, "column:level"])
def test_other_labels_are_refused(llama: LanguageModel, tmp_path: Path, other: str | None):
    text = data(tmp_path / "a.jsonl", list(range(40)))
    how, changed = config(text, labels="builtin"), config(text, labels=other)
    interrupted(llama, tmp_path / "store", how, after=1200)
    line = line_of(llama, tmp_path / "store", changed, StoreError)
    assert f"labels: builtin there, {other} here" in line
    harvest(llama, tmp_path / "store", how)
    assert "other settings" in line_of(llama, tmp_path / "store", changed, HarvestError)


MISTAKES = {
    "an unknown source": ("nosuch", "'nosuch'.*builtin, column:NAME or module:function"),
    "a column that is not there": ("column:lvl", "no column 'lvl'.*text, level"),
    "a column of text": ("column:text", "'text' holds str"),
    "a module that is not there": ("nosuch:f", "no function nosuch:f.*ModuleNotFoundError"),
    "a function that is not there": ("JUDGE:nosuch", "AttributeError"),
    "a thing that is no function": ("JUDGE:constant", "constant is not a function"),
    "a function that gives no number": ("JUDGE:words", "fails on 'A plain sentence.*ValueError"),
}


@pytest.mark.parametrize(("source", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_makes_no_folder(
    llama: LanguageModel, tmp_path: Path, judge: str, source: str, says: str
):
    text = data(tmp_path / "a.jsonl", [1, 2])
    how = settings(text, source.replace("JUDGE", judge))
    with pytest.raises(LabelError, match=says):
        harvest(llama, tmp_path / "store", how)
    line_of(llama, tmp_path / "store", how, LabelError)
    assert not (tmp_path / "store").exists()


def test_labels_of_a_table_without_types_are_its_numbers(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("text,level\na,1\nb,2.5\nc,\nd,NA\ne,nan\nf,-3e2\ng,high\n")
    labels = Labels("column:level", TextConfig(str(path)))
    for _ in labels.documents():
        pass
    found = labels.of([window([0, 1, 2, 3, 4, 5], [0] * 6)])
    assert found == pytest.approx(
        {0: 1.0, 1: 2.5, 2: math.nan, 3: math.nan, 4: math.nan, 5: -300.0}, nan_ok=True
    )
    with pytest.raises(LabelError, match="document 6 of .*'level' holds str, a label must be a number"):
        labels.of([window([6], [0])])


def test_no_more_text_is_kept_than_a_shards(tmp_path: Path):
    text = data(tmp_path / "a.jsonl", list(range(50)))
    labels = Labels("column:level", TextConfig(str(text)))
    stream = labels.documents()
    for number in range(50):
        next(stream)
        one = window([NOWHERE, number, number], [NOWHERE, 0, 1])
        if number % 2:
            assert labels.of([one]) == {number: float(number)}
        else:
            labels.skip([one])
        assert len(labels._waiting) <= 1
        assert len(labels._known) <= 2


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Write a store of documents 0 to 59 with 3 to 7 rows each; labels are their numbers, activations (document, position)."""
    about = spec({"h": 2}, 8, windows_per_shard=4)
    about = type(about)(**{**vars(about), "labels": "made up"})
    path = tmp_path_factory.mktemp("labelled") / "store"
    writer, windows = StoreWriter(path, about), []
    for n in range(60):
        length = 3 + n % 5
        padding = [NOWHERE] * (7 - length)
        windows.append(window([NOWHERE] + [n] * length + padding, [NOWHERE, *range(length), *padding]))
    x = torch.tensor([list(zip(w.documents, w.positions, strict=True)) for w in windows]).float()
    for number in range(15):
        part = slice(4 * number, 4 * number + 4)
        writer.write(number, windows[part], {"h": x[part]}, dict(enumerate(map(float, range(60)))))
    writer.finish(15, text_ended=True)
    return Store(path)


@pytest.mark.parametrize("memory", [1, 4 << 30])
def test_a_batch_brings_the_labels_of_its_rows(labelled: Store, memory: int):
    reader = ShuffledReader(labelled, "h", 32, labels=True, memory=memory)
    for batch in islice(iter(reader), 30):
        assert torch.equal(batch.labels, batch.x[:, 0])
        assert batch.x is batch.y
    found = sample(reader, 100)
    assert torch.equal(found.labels, found.x[:, 0])
    plain = ShuffledReader(labelled, "h", 32, memory=memory)
    again = ShuffledReader(labelled, "h", 32, labels=True, memory=memory)
    for one, other in zip(islice(iter(plain), 10), islice(iter(again), 10), strict=True):
        assert torch.equal(one.x, other.x)
        assert one.labels is None


def test_last_positions_are_one_row_a_document_and_window(labelled: Store):
    reader = ShuffledReader(labelled, "h", 6, labels=True, positions="last")
    one_pass = torch.cat([batch.x for batch in islice(iter(reader), reader.rows // 6)])
    assert reader.rows == 54  # of 60 documents one in ten is held out
    assert len(one_pass[:, 0].unique()) == 54
    assert torch.equal(one_pass[:, 1], 2 + one_pass[:, 0] % 5)


def test_a_row_ends_a_run_when_the_next_is_of_no_or_another_document():
    documents = torch.tensor([[-1, 4, 4, 5], [-1, 5, -1, -1], [5, 5, 5, 6]], dtype=torch.int32)
    assert ends_a_run(documents).tolist() == [
        [False, False, True, True],
        [False, True, False, False],
        [False, False, True, True],
    ]


def test_a_reader_of_labels_there_are_not_says_how_to_make_them(tmp_path: Path):
    made = write(
        tmp_path / "store",
        spec({"h": 1}, 4),
        [window([NOWHERE, 0, 0, 0], [NOWHERE, 0, 1, 2])],
        {"h": torch.zeros(1, 4, 1)},
    )
    with pytest.raises(StoreError, match="holds no labels.*--labels builtin, column:NAME or module:function"):
        ShuffledReader(made, "h", 2, labels=True)


CHILD = "The cat sat. The dog ran to the cat. The cat ran up a tree. The dog sat by the tree. He was sad."
NEWS = (
    "The government said on Tuesday that it would spend more on schools next year, after months of pressure "
    "from teachers. Parents in the capital welcomed the plan. Some asked where the money would come from."
)
LAW = (
    "Notwithstanding any provision to the contrary contained herein, the indemnifying party shall, subject to "
    "the limitations enumerated in Section 12(b), reimburse the indemnified party for reasonable expenditures; "
    "provided, however, that such obligation terminates upon expiration."
)


def test_a_childs_story_a_report_and_a_contract_are_in_this_order():
    assert 0 <= complexity(CHILD) < complexity(NEWS) - 1 < complexity(LAW) - 2 <= 8


@LAWS
@given(st.text("aB1 .,;-_’é鳥\n", max_size=200))
def test_the_score_lies_between_0_and_10_or_is_nan_without_a_word(text: str):
    score = complexity(text)
    assert 0 <= score <= 10 or math.isnan(score)
    assert math.isnan(score) == (not any(letter.isalnum() or letter == "_" for letter in text))
    assert complexity(text) == pytest.approx(score, nan_ok=True)


def test_the_score_is_the_formulas_by_hand():
    """The text has 8 words (7 distinct, 2 of 7 letters or more, 35 letters, 1 with a digit), 2 sentences and 1 comma."""
    text = "Plain words, plain GPT-4 answers. Nothing more here."
    words = ["Plain", "words", "plain", "GPT-4", "answers", "Nothing", "more", "here"]
    assert len(words) == 8
    letters = sum(map(len, words)) / 8
    wanted = (
        0.20 * (7 / 8 - 0.5) / 0.45
        + 0.20 * (2 / 8) / 0.45
        + 0.15 * (letters - 3.5) / 2.5
        + 0.20 * 0  # 4 words a sentence
        + 0.10 * (1 / 8) / 0.2
        + 0.15 * (1 / 8) / 0.15
    )
    assert complexity(text) == pytest.approx(10 * wanted)


def test_repeating_a_long_text_changes_little():
    assert complexity(LAW * 40) == pytest.approx(complexity(LAW * 20), abs=0.2)
