"""Fixtures of the `activations` tests: two language models of different families, a cache and a package registry."""

from pathlib import Path

import pytest

from activations.language_model import LanguageModel, load
from tests import tiny
from tests.activations import toys


@pytest.fixture(scope="session")
def llama(world: Path) -> LanguageModel:
    """The toy world's model, which a test must not change."""
    return load(str(world / "model"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A model that shares no design decision with the toy Llama, which a test must not change."""
    return load(str(toys.gpt2_folder(tmp_path_factory.mktemp("gpt2"))))


@pytest.fixture(params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    """Each of the two models in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Forty documents of about 5,000 tokens in all."""
    return tiny.text_file(tmp_path / "text.jsonl")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip uses as its only package registry."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder
