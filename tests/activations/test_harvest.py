"""Harvest: the store holds what the model computes for the text's windows, and a mistake leaves nothing behind."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from activations.disk import files
from activations.errors import HarvestError, HookError, StoreError, TextError, WorkbenchError
from activations.harvest import harvest
from activations.language_model import LanguageModel, load
from activations.store import INDEX, Store
from activations.text import TextConfig, documents
from activations.tokens import NOWHERE, PackingConfig, windows
from tests import tiny
from tests.activations.harvests import HOOKS, config, interrupted, line_of
from tests.activations.toys import assert_same_up_to_rounding, byte_ids


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_a_store_holds_the_models_activations_for_the_texts_windows(
    llama: LanguageModel, tmp_path: Path, text: Path, packing: str
):
    settings = config(text, hooks=HOOKS, packing=PackingConfig(context=16, packing=packing))
    made = harvest(llama, tmp_path / "store", settings)
    expected = list(windows(documents(settings.text), llama.tokenizer, settings.packing))[:100]
    shards = [made.read(number, tuple(made.spec.hooks)) for number in range(len(made.shards))]
    assert [entry.windows for entry in made.shards] == [32, 32, 32, 4]
    for column in ("tokens", "documents", "positions"):
        found = torch.cat([getattr(shard, column) for shard in shards])
        assert found.tolist() == [getattr(window, column).tolist() for window in expected]
    for hook, width in made.spec.hooks.items():
        found = torch.cat([shard.activations[hook] for shard in shards])
        assert found.shape == (100, 16, width)
        for number in range(0, 100, 7):
            alone = llama.capture(torch.tensor(expected[number].tokens)[None], [hook])[hook][0]
            alone[1:][torch.from_numpy(expected[number].documents[1:] == NOWHERE)] = 0  # padding
            assert_same_up_to_rounding(found[number], alone)


def test_every_row_traces_back_to_the_byte_it_stands_for(llama: LanguageModel, tmp_path: Path, text: Path):
    made = harvest(llama, tmp_path / "store", config(text))
    texts = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    for number in range(len(made.shards)):
        shard = made.read(number)
        for token, document, position in zip(
            *(column.flatten().tolist() for column in shard[:3]), strict=True
        ):
            if document >= 0:
                assert token == [*byte_ids(texts[document]), 1][position]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_activations_are_stored_in_the_type_asked_for(
    llama: LanguageModel, tmp_path: Path, text: Path, dtype: str
):
    made = harvest(llama, tmp_path / "store", config(text, dtype=dtype, tokens=160))
    found = made.read(0, (tiny.HOOK,))
    exact = llama.capture(found.tokens, [tiny.HOOK])[tiny.HOOK]
    assert found.activations[tiny.HOOK].dtype == getattr(torch, dtype)
    ulp = {"float32": 2e-6, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
    torch.testing.assert_close(found.activations[tiny.HOOK].float(), exact, rtol=ulp, atol=1e-5)


def test_several_hook_points_take_one_pass_over_the_text(
    llama: LanguageModel, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    passes: list[Tensor] = []
    capture = llama.capture
    monkeypatch.setattr(
        llama, "capture", lambda tokens, hooks: passes.append(tokens) or capture(tokens, hooks)
    )
    together = harvest(llama, tmp_path / "together", config(text, hooks=HOOKS))
    read = [tokens for tokens in passes if tokens.shape[1] == 16]  # the others probe for widths
    assert sum(len(tokens) for tokens in read) == 100
    assert {len(tokens) for tokens in read} <= {4, 8}  # batch_tokens = 128
    for hook in HOOKS.split(","):
        alone = harvest(llama, tmp_path / hook, config(text, hooks=hook))
        shard, own = together.read(1, (hook,)), alone.read(1, (hook,))
        assert_same_up_to_rounding(shard.activations[hook], own.activations[hook])


def test_more_tokens_than_there_is_text_end_with_the_text(llama: LanguageModel, tmp_path: Path, text: Path):
    settings = config(text, tokens=10**6)
    every = list(windows(documents(settings.text), llama.tokenizer, settings.packing))
    made = harvest(llama, tmp_path / "store", settings)
    assert made.text_ended
    assert made.windows == len(every)
    assert harvest(llama, tmp_path / "store", config(text, tokens=10**7)).fingerprint == made.fingerprint
    exact = harvest(llama, tmp_path / "exact", config(text, tokens=len(every) * 16))
    assert not exact.text_ended
    assert exact.windows == len(every)


def test_tokens_that_fill_no_whole_window_are_left_out(llama: LanguageModel, tmp_path: Path, text: Path):
    made = harvest(llama, tmp_path / "store", config(text, tokens=100 + 15))
    assert made.tokens == 112
    assert not made.text_ended


def test_how_many_windows_the_model_reads_at_once_changes_nothing_but_rounding(
    llama: LanguageModel, tmp_path: Path, text: Path
):
    one, all_at_once = (harvest(llama, tmp_path / str(n), config(text, batch_tokens=n)) for n in (1, 10**6))
    for number in range(4):
        first, second = (made.read(number, (tiny.HOOK,)) for made in (one, all_at_once))
        assert torch.equal(first.tokens, second.tokens)
        assert_same_up_to_rounding(first.activations[tiny.HOOK], second.activations[tiny.HOOK])


def test_the_store_says_how_to_make_it_again(llama: LanguageModel, tmp_path: Path, text: Path):
    settings = config(text)
    about = Store(harvest(llama, tmp_path / "store", settings).path).spec
    assert (about.model, about.weights_sha256) == (llama.name, llama.weights_hash)
    assert about.bos_token == 0
    assert about.packing == settings.packing
    assert TextConfig(**about.dataset) == settings.text
    again = dataclasses.replace(
        settings, text=TextConfig(**about.dataset), packing=about.packing, dtype=about.dtype
    )
    assert harvest(llama, tmp_path / "again", again).fingerprint == Store(tmp_path / "store").fingerprint


def test_the_precision_of_the_model_is_part_of_the_store_where_it_is_not_float32(
    world: Path, llama: LanguageModel, tmp_path: Path, text: Path
):
    half = load(str(world / "model"), dtype=torch.bfloat16)
    made = harvest(half, tmp_path / "half", config(text, tokens=160))
    assert Store(made.path).spec.model_dtype == "bfloat16"
    found = made.read(0, (tiny.HOOK,))
    assert torch.equal(
        found.activations[tiny.HOOK], half.capture(found.tokens, [tiny.HOOK])[tiny.HOOK].float()
    )
    plain = harvest(llama, tmp_path / "plain", config(text, tokens=160))
    assert Store(plain.path).spec.model_dtype == "float32"
    assert "model_dtype" not in (plain.path / INDEX).read_text()
    interrupted(llama, tmp_path / "begun", config(text), after=600)
    line = line_of(half, tmp_path / "begun", config(text), StoreError)
    assert "model_dtype: float32 there, bfloat16 here" in line


def test_windows_run_together_do_not_change_one_another_and_hold_no_padding(
    llama: LanguageModel, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    """With document packing the model reads only the text's tokens, apart from padding to a batch's longest window."""
    shapes: list[torch.Size] = []
    capture = llama.capture
    monkeypatch.setattr(
        llama, "capture", lambda tokens, hooks: shapes.append(tokens.shape) or capture(tokens, hooks)
    )
    settings = config(text, tokens=1600, packing=PackingConfig(context=100, packing="document"))
    made = harvest(llama, tmp_path / "store", settings)
    needed = sum(int((w.documents >= 0).sum()) + 1 for n in range(len(made.shards)) for w in [made.read(n)])
    read = sum(shape.numel() for shape in shapes[1:])  # the first is the probe for widths
    assert needed <= read < 1600


MISTAKES = {
    "no hook point": ({"hooks": " , "}, HarvestError, "no hook point"),
    "an unknown hook point": ({"hooks": "blocks.1.hook_resid"}, HookError, "hook_resid_post"),
    "an unknown column": ({"column": "txt"}, TextError, "--column text"),
    "no text": ({"text": None}, TextError, "gone.jsonl"),
    "empty text": ({"text": ""}, HarvestError, "text.jsonl"),
    "less than a window of text": ({"text": "abc"}, HarvestError, "16 tokens"),
}


@pytest.mark.parametrize(("change", "kind", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_folder_behind(
    llama: LanguageModel, tmp_path: Path, text: Path, change: dict, kind: type[WorkbenchError], says: str
):
    change = dict(change)
    if "text" in change:
        words = change.pop("text")
        text = text.with_name("gone.jsonl") if words is None else text
        if words is not None:
            text.write_text(json.dumps({"text": words}))
    column = change.pop("column", "text")
    settings = dataclasses.replace(config(text, **change), text=TextConfig(str(text), column=column))
    assert says in line_of(llama, tmp_path / "store", settings, kind)
    assert not (tmp_path / "store").exists()


def test_a_text_of_which_no_row_would_count_is_refused(llama: LanguageModel, tmp_path: Path, text: Path):
    text.write_text('{"text": "a"}')
    lonely = PackingConfig(
        context=2, bos=False, separator="none", packing="document"
    )  # one token a window: its first
    line_of(llama, tmp_path / "store", config(text, packing=lonely), WorkbenchError)
    assert not (tmp_path / "store" / INDEX).exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": 15}, "tokens = 15 does not fill one window of 16"),
        ({"hooks": "a,b, a"}, "twice"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_anything_is_loaded(
    text: Path, change: dict, says: str
):
    with pytest.raises(HarvestError, match=says):
        config(text, **change)


def test_windows_longer_than_the_model_can_read_are_refused(gpt2: LanguageModel, tmp_path: Path, text: Path):
    settings = config(text, packing=PackingConfig(context=33))
    line = line_of(gpt2, tmp_path / "store", settings, HarvestError)
    assert "33" in line
    assert "32" in line
    assert not (tmp_path / "store").exists()


def test_a_store_larger_than_the_disk_is_refused_with_both_sizes(
    llama: LanguageModel, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "free_bytes", lambda path: 10**8)
    line = line_of(llama, tmp_path / "store", config(text, tokens=10**7), HarvestError)
    assert "0.6 GB" in line
    assert "0.1 GB free" in line
    assert not (tmp_path / "store").exists()


def test_activations_too_large_for_float16_are_refused_with_a_type_that_can_hold_them(
    world: Path, tmp_path: Path, text: Path
):
    lm = load(str(world / "model"))
    lm.plain.model.embed_tokens.weight.data.mul_(1e5)
    settings = config(text, hooks="blocks.0.hook_resid_pre", dtype="float16")
    line = line_of(lm, tmp_path / "store", settings, StoreError)
    assert "float16 holds up to" in line
    assert "--dtype bfloat16, int8 or float32" in line
    assert not list((tmp_path / "store").glob("shard-*"))
