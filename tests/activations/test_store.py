"""The store: every row that was written is read back, and its moments are those of its rows."""

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activations.errors import StoreError
from activations.int8 import dequantise, quantise
from activations.rows import expand, is_held_out, segments_of
from activations.shard import shard_name
from activations.store import Store
from activations.store_writer import StoreWriter
from activations.tokens import NOWHERE, Window
from tests.activations.toys import LAWS, rows_that_count, spec, window, window_lists, write

FINE = np.iinfo(np.int32).max
MASK = 2**64 - 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """Return a function that makes a new empty folder at each call."""
    return lambda: tmp_path_factory.mktemp("store") / "store"


def numbered(windows: list[Window], width: int = 2) -> torch.Tensor:
    """Return activations that identify their row: (row, -row, 0, …)."""
    rows = torch.arange(len(windows) * len(windows[0].tokens), dtype=torch.float32)
    x = torch.zeros(len(rows), width)
    x[:, 0], x[:, 1] = rows, -rows
    return x.view(len(windows), -1, width)


def held_out_by_hand(document: int) -> bool:
    """Apply FORMAT.md's rule in Python integers."""
    mixed = document // 10
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & MASK
    return document % 10 == (1 + (mixed ^ (mixed >> 31))) % 10


@LAWS
@given(window_lists())
def test_segments_give_back_the_documents_and_positions_they_were_made_of(windows: list[Window]):
    segments = torch.from_numpy(segments_of(windows))
    documents, positions = expand(segments, torch.Size((len(windows), len(windows[0].tokens))))
    assert documents.dtype == positions.dtype == torch.int32
    assert documents.tolist() == [window.documents.tolist() for window in windows]
    assert positions.tolist() == [window.positions.tolist() for window in windows]


@LAWS
@given(window_lists())
def test_segments_are_the_longest_runs_of_one_document(windows: list[Window]):
    segments = segments_of(windows).tolist()
    assert all(
        length > 0 and document >= 0 and position >= 0 for _, _, length, document, position in segments
    )
    for one, other in pairwise(segments):
        assert one[:2] < other[:2]
        together = one[0] == other[0] and one[1] + one[2] == other[1]
        assert not together or one[3] != other[3]


@LAWS
@given(window_lists(), st.integers(1, 4))
def test_a_store_gives_back_every_window_and_activation_it_was_given(
    folders, windows: list[Window], per_shard: int
):
    x = numbered(windows)
    made = write(
        folders(), spec({"h": 2}, len(windows[0].tokens), windows_per_shard=per_shard), windows, {"h": x}
    )
    shards = [made.read(number, ("h",)) for number in range(len(made.shards))]
    for column, name in enumerate(("tokens", "documents", "positions")):
        found = torch.cat([shard[column] for shard in shards])
        assert found.tolist() == [getattr(window, name).tolist() for window in windows]
    assert torch.equal(torch.cat([shard.activations["h"] for shard in shards]), x)
    assert [shard.tokens.shape[0] for shard in shards[:-1]] == [per_shard] * (len(shards) - 1)
    assert made.windows == len(windows)
    assert made.tokens == x.shape[0] * x.shape[1]
    assert made.first_windows == list(range(0, len(windows), per_shard))


@LAWS
@given(window_lists(), st.integers(1, 4))
def test_the_index_counts_rows_that_are_neither_padding_nor_first_in_their_window(
    folders, windows: list[Window], per_shard: int
):
    made = write(
        folders(),
        spec({"h": 2}, len(windows[0].tokens), windows_per_shard=per_shard),
        windows,
        {"h": numbered(windows)},
    )
    counted = [0] * len(made.shards)
    for number, _ in rows_that_count(windows):
        counted[number // per_shard] += 1
    assert [entry.rows for entry in made.shards] == counted


@LAWS
@given(window_lists(), st.integers(1, 4), st.booleans())
def test_splits_are_disjoint_by_document_and_together_complete(
    folders, windows: list[Window], per_shard: int, with_bos: bool
):
    context = len(windows[0].tokens)
    made = write(
        folders(), spec({"h": 2}, context, windows_per_shard=per_shard), windows, {"h": numbered(windows)}
    )
    wanted = {"train": [], "held-out": [], "all": []}
    for number, column in rows_that_count(windows, excluded=0 if with_bos else 1):
        document = int(windows[number].documents[column])
        split = "held-out" if document != NOWHERE and held_out_by_hand(document) else "train"
        wanted[split].append(number * context + column)
        wanted["all"].append(number * context + column)
    for split, rows in wanted.items():
        found = []
        for number, first in enumerate(made.first_windows):
            shard = made.read(number)
            flat = made.rows(shard, split, with_bos).flatten().nonzero()[:, 0]
            found += (flat + first * context).tolist()
        assert found == rows


@LAWS
@given(window_lists(), st.integers(1, 4), st.integers(1, 9), st.sampled_from(["train", "held-out", "all"]))
def test_batches_give_each_row_of_a_split_once_in_order(
    folders, windows: list[Window], per_shard: int, size: int, split: str
):
    context = len(windows[0].tokens)
    made = write(
        folders(), spec({"h": 2}, context, windows_per_shard=per_shard), windows, {"h": numbered(windows)}
    )
    seen = []
    for x, chosen, shard, number in made.batches("h", size, split):
        assert 0 < len(x) == len(chosen) <= size
        assert x.dtype == torch.float32
        assert torch.equal(shard.tokens, made.read(number).tokens)
        assert x[:, 0].tolist() == (chosen + made.first_windows[number] * context).tolist()
        seen += x[:, 0].long().tolist()
    wanted = [
        number * context + column
        for number, column in rows_that_count(windows)
        if split == "all" or held_out_by_hand(int(windows[number].documents[column])) == (split == "held-out")
    ]
    assert seen == wanted


@LAWS
@given(window_lists(), st.sampled_from(["float32", "float16", "bfloat16", "int8"]), st.integers(0, 1000))
def test_moments_are_those_of_the_stored_rows_in_float64(
    folders, windows: list[Window], dtype: str, seed: int
):
    shape = (len(windows), len(windows[0].tokens), 5)
    x = (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3 + 100
    )  # large, so that float32 sums would lose digits
    made = write(folders(), spec({"h": 5}, shape[1], dtype), windows, {"h": x})
    stored = (dequantise(*quantise(x)) if dtype == "int8" else x.to(getattr(torch, dtype))).double().numpy()
    rows = np.array([stored[place] for place in rows_that_count(windows)])
    np.testing.assert_allclose(made.mean("h").numpy(), rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(made.mean_square_norm("h"), (rows**2).sum(1).mean(), rtol=1e-13)


def test_the_order_in_which_shards_were_written_leaves_no_trace(folders):
    windows = [window([NOWHERE, n, n, n], [NOWHERE, 0, 1, 2]) for n in range(7)]
    x = {"h": torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0))}
    about = spec({"h": 3}, 4)
    forwards, backwards = (write(folders(), about, windows, x, backwards=b) for b in (False, True))
    assert forwards.fingerprint == backwards.fingerprint
    assert forwards.fingerprint != write(folders(), about, windows, {"h": x["h"] + 1}).fingerprint


@given(st.lists(st.integers(0, FINE), min_size=1, max_size=50))
@LAWS
def test_which_documents_are_held_out_is_the_rule_of_the_format(documents: list[int]):
    found = is_held_out(torch.tensor(documents, dtype=torch.int32))
    assert found.dtype == torch.bool
    assert found.tolist() == [held_out_by_hand(document) for document in documents]


@given(st.integers(0, FINE // 10 - 1))
@LAWS
def test_one_of_every_ten_documents_in_a_row_is_held_out(ten: int):
    documents = torch.arange(10 * ten, 10 * ten + 10, dtype=torch.int32)
    assert int(is_held_out(documents).sum()) == 1
    assert is_held_out(documents.view(2, 5)).shape == (2, 5)


def test_document_1_is_held_out_and_padding_never_is():
    assert is_held_out(torch.tensor([0, 1, 2, NOWHERE], dtype=torch.int32)).tolist() == [
        False,
        True,
        False,
        False,
    ]


def test_held_out_places_within_ten_are_spread_evenly():
    places = is_held_out(torch.arange(100_000, dtype=torch.int32)).view(-1, 10).double().mean(0)
    assert (places - 0.1).abs().max() < 4 * (0.1 * 0.9 / 10_000) ** 0.5  # four standard errors


@pytest.fixture
def small(tmp_path: Path) -> Store:
    windows = [window([NOWHERE, 3, 3, 4], [NOWHERE, 5, 6, 0])]
    x = torch.arange(12.0).view(1, 4, 3)
    return write(tmp_path / "store", spec({"a": 3, "b": 2}, 4), windows, {"a": x, "b": x[..., :2]})


def test_a_store_knows_its_hook_points_and_names_them_when_asked_for_another(small: Store):
    assert (small.width("a"), small.width("b")) == (3, 2)
    for ask in (small.width, small.mean, small.mean_square_norm):
        with pytest.raises(StoreError, match="holds no 'c': it has a, b"):
            ask("c")
    with pytest.raises(StoreError, match="several hook points: choose one with --hook: a, b"):
        small.only_hook()
    assert list(small.read(0, ("b",)).activations) == ["b"]


def test_an_unfinished_harvest_is_not_a_store(tmp_path: Path):
    StoreWriter(tmp_path / "store", spec({"h": 1}, 4))
    with pytest.raises(StoreError, match=r"unfinished harvest.*; sae harvest … --out "):
        Store(tmp_path / "store")


def test_no_folder_is_no_store(tmp_path: Path):
    with pytest.raises(StoreError, match=r"gone is not a store: it has no index\.json; sae harvest"):
        Store(tmp_path / "gone")


def test_a_writer_goes_on_only_with_the_settings_it_began_with(tmp_path: Path):
    StoreWriter(tmp_path / "store", spec({"h": 1}, 4))
    StoreWriter(tmp_path / "store", spec({"h": 1}, 4))
    with pytest.raises(StoreError, match="other settings") as caught:
        StoreWriter(tmp_path / "store", spec({"h": 1}, 4, "float16"))
    assert "dtype: float32 there, float16 here" in str(caught.value)
    assert "model" not in str(caught.value).split("(", 1)[1].split(")")[0]


def test_a_writer_leaves_folders_alone_that_are_not_its_own(tmp_path: Path, small: Store):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for taken in (tmp_path / "mine", small.path):
        before = sorted(path.name for path in taken.iterdir())
        with pytest.raises(StoreError, match="choose another --out"):
            StoreWriter(taken, spec({"h": 1}, 4))
        assert sorted(path.name for path in taken.iterdir()) == before


def test_a_writer_starts_in_an_empty_folder(tmp_path: Path):
    (tmp_path / "store").mkdir()
    StoreWriter(tmp_path / "store", spec({"h": 1}, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_nan_and_infinity_are_refused_and_nothing_is_written(tmp_path: Path, dtype: str, bad: float):
    x = torch.zeros(1, 4, 1)
    x[0, 2] = bad
    refused(tmp_path, dtype, x, "h of toy is NaN or infinite")


def test_what_float16_cannot_hold_is_refused_with_a_type_that_can(tmp_path: Path):
    x = torch.zeros(1, 4, 1)
    x[0, 2] = -70_000.0
    refused(
        tmp_path,
        "float16",
        x,
        r"reaches 7e\+04 and float16 holds up to 6\.55e\+04: .*--dtype bfloat16, int8 or float32",
    )


def refused(folder: Path, dtype: str, x: torch.Tensor, reason: str) -> None:
    writer = StoreWriter(folder / "store", spec({"h": 1}, 4, dtype))
    before = sorted(path.name for path in (folder / "store").iterdir())
    with pytest.raises(StoreError, match=reason):
        writer.write(0, [window([NOWHERE, 0, 0, 0], [NOWHERE, 0, 1, 2])], {"h": x})
    assert sorted(path.name for path in (folder / "store").iterdir()) == before
    assert not writer.has(0)


def test_a_shard_without_its_note_or_with_other_bytes_than_it_notes_counts_as_missing(tmp_path: Path):
    writer = StoreWriter(tmp_path / "store", spec({"h": 1}, 4))
    shard = tmp_path / "store" / shard_name(0)
    writer.write(0, [window([NOWHERE, 0, 0, 0], [NOWHERE, 0, 1, 2])], {"h": torch.zeros(1, 4, 1)})
    assert writer.has(0)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-4])
    assert not writer.has(0)
    shard.unlink()
    assert not writer.has(0)
    shard.write_bytes(whole)
    assert writer.has(0)
    shard.with_suffix(".json").unlink()
    assert not writer.has(0)


@settings(LAWS, max_examples=15)
@given(window_lists())
def test_rows_are_counted_without_reading_them(folders, windows: list):
    x = torch.zeros(len(windows), len(windows[0].tokens), 1)
    made = write(folders(), spec({"h": 1}, len(windows[0].tokens)), windows, {"h": x})
    for number, choice in product(
        range(len(made.shards)), product(["all", "train", "held-out"], [False, True], ["all", "last"])
    ):
        assert made.count(number, *choice) == int(made.rows(made.read(number), *choice).sum())
