"""An interrupted harvest resumes and ends like an undisturbed one; with other settings it refuses."""

from pathlib import Path

import pytest

from activations.capture import ShardBuffer
from activations.errors import HarvestError, StoreError
from activations.harvest import harvest
from activations.language_model import LanguageModel
from activations.tokens import PackingConfig
from tests import tiny
from tests.activations.harvests import HOOKS, config, contents, interrupted, line_of


def test_progress_adds_up_to_the_tokens_also_after_a_stop(llama: LanguageModel, tmp_path: Path, text: Path):
    interrupted(llama, tmp_path / "store", config(text), after=1000)
    told: list[int] = []
    made = harvest(llama, tmp_path / "store", config(text), told.append)
    assert sum(told) == made.tokens == 1600


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_stopped_harvest_ends_with_the_bytes_of_an_undisturbed_one(
    llama: LanguageModel, tmp_path: Path, text: Path, dtype: str
):
    settings = config(text, dtype=dtype, hooks=HOOKS)
    harvest(llama, tmp_path / "undisturbed", settings)
    for after in (1, 600, 1500, 1100):
        interrupted(llama, tmp_path / "store", settings, after)
    harvest(llama, tmp_path / "store", settings)
    assert contents(tmp_path / "store") == contents(tmp_path / "undisturbed")


def test_what_is_done_is_not_done_again(
    llama: LanguageModel, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    interrupted(llama, tmp_path / "store", config(text), after=1200)
    run: list[int] = []
    real = ShardBuffer.fill
    monkeypatch.setattr(
        ShardBuffer,
        "fill",
        lambda buffer, lm, block, *rest: run.append(len(block)) or real(buffer, lm, block, *rest),
    )
    harvest(llama, tmp_path / "store", config(text))
    assert run == [32, 4]  # windows of the third shard, and of the last


def test_the_same_harvest_again_touches_nothing(llama: LanguageModel, tmp_path: Path, text: Path):
    made = harvest(llama, tmp_path / "store", config(text))
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in made.path.iterdir()}
    again = harvest(llama, tmp_path / "store", config(text))
    assert again.fingerprint == made.fingerprint
    assert {
        path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in made.path.iterdir()
    } == before


@pytest.mark.parametrize("place", [0, -1])
def test_a_text_that_has_changed_since_is_refused_by_a_finished_store(
    llama: LanguageModel, tmp_path: Path, place: int
):
    """Wherever it has changed, in the tokens that were asked for."""
    text = tiny.text_file(tmp_path / "text.jsonl")
    settings = config(text, tokens=10**6)
    made = harvest(llama, tmp_path / "store", settings)
    before, lines = contents(made.path), text.read_text().splitlines(keepends=True)
    lines[place] = '{"text": "other words"}\n'
    text.write_text("".join(lines))
    line = line_of(llama, made.path, settings, HarvestError)
    assert f"{text} has changed since" in line and "delete it" in line
    assert contents(made.path) == before


OTHER_WORK = {
    "hooks": {"hooks": "blocks.0.hook_resid_post"},
    "dtype": {"dtype": "bfloat16"},
    "context": {"packing": PackingConfig(context=8)},
    "separator": {"packing": PackingConfig(context=16, separator="none")},
    "packing": {"packing": PackingConfig(context=16, packing="document")},
    "bos": {"packing": PackingConfig(context=16, bos=False)},
    "shard_tokens": {"shard_tokens": 256},
}
OTHER = {**OTHER_WORK, "fewer tokens": {"tokens": 800}, "more tokens": {"tokens": 3200}}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_other_settings_are_refused_by_a_finished_store(
    llama: LanguageModel, tmp_path: Path, text: Path, change: dict
):
    made = harvest(llama, tmp_path / "store", config(text))
    before = contents(made.path)
    assert str(made.path) in line_of(llama, made.path, config(text, **change), HarvestError)
    assert contents(made.path) == before


@pytest.mark.parametrize("change", OTHER_WORK.values(), ids=OTHER_WORK)
def test_other_settings_are_refused_by_an_unfinished_harvest(
    llama: LanguageModel, tmp_path: Path, text: Path, change: dict
):
    interrupted(llama, tmp_path / "store", config(text), after=1200)
    before = contents(tmp_path / "store")
    line = line_of(llama, tmp_path / "store", config(text, **change), StoreError)
    assert "other settings" in line
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize("tokens", [512, 800, 3200])  # a shard fewer than there are, half a shard fewer, more
def test_another_number_of_tokens_is_refused_or_ends_like_an_undisturbed_harvest(
    llama: LanguageModel, tmp_path: Path, text: Path, tokens: int
):
    interrupted(llama, tmp_path / "store", config(text), after=1200)
    before = contents(tmp_path / "store")
    refused = ""
    try:
        harvest(llama, tmp_path / "store", config(text, tokens=tokens))
    except StoreError as error:
        refused = str(error)
    if refused:
        assert f"tokens: 1600 there, {tokens} here" in refused
        assert contents(tmp_path / "store") == before
    else:
        undisturbed = harvest(llama, tmp_path / "undisturbed", config(text, tokens=tokens))
        assert contents(tmp_path / "store") == contents(undisturbed.path)


def test_another_model_is_refused_by_an_unfinished_harvest(
    llama: LanguageModel, gpt2: LanguageModel, tmp_path: Path, text: Path
):
    interrupted(llama, tmp_path / "store", config(text), after=1200)
    assert "weights_sha256" in line_of(gpt2, tmp_path / "store", config(text), StoreError)


def test_text_that_changed_between_runs_is_refused(llama: LanguageModel, tmp_path: Path, text: Path):
    interrupted(llama, tmp_path / "store", config(text), after=1200)
    before = contents(tmp_path / "store")
    rows = text.read_text(encoding="utf-8").splitlines()
    text.write_text("\n".join([rows[0], rows[2].replace("a", "b", 1), *rows[2:]]), encoding="utf-8")
    line = line_of(llama, tmp_path / "store", config(text), StoreError)
    assert "other text" in line
    assert "shard-00000.safetensors" in line
    assert contents(tmp_path / "store") == before
