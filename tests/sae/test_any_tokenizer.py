"""The whole workflow with tokenizers unlike the toy's: they stay unchanged, ids may lack a token, and examples read as the text does."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from activations.errors import ModelError, TextError
from activations.generation import Sampling, prompt_ids
from activations.harvest import harvest
from activations.language_model import LanguageModel, load
from activations.store import Store
from activations.tokens import PackingConfig
from sae.architectures import TopKConfig
from sae.config import RunConfig, TrainConfig
from sae.features.collect import FeaturesConfig
from sae.features.effects import measure_effect
from sae.features.feature import FeatureStore
from sae.reading.reader import read
from sae.runs.run import Run
from sae.steering.interventions import Calibration, Intervention
from sae.steering.measure import compare
from sae.steering.steering import Steering
from sae.workflows.features import collect_features
from sae.workflows.train import train
from tests import tiny, tokenizers
from tests.tokenizers import CORPUS

EXTRA = 9  # rows of the embedding that the tokenizer has no token for
KINDS = {
    "qwen": ("byte-bpe", {"bos_token": None}),
    "neither": ("byte-bpe", {"bos_token": None, "eos_token": None}),
    "llama2": ("llama2", {}),
    "gemma": ("gemma", {}),
    "unigram": ("unigram", {}),
}
EMOJI = "👩‍👩‍👧‍👦 and ☂ in 東京"


def model_folder(path: Path, tokenizer: PreTrainedTokenizerFast, rows: int) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=None, eos_token_id=None, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory) -> tuple[str, LanguageModel, Run, list[str]]:
    """Return the kind of tokenizer, its model, a run with features, and the documents."""
    kind, settings = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = tokenizers.tokenizer(kind, **settings)
    model = load(str(model_folder(folder / "model", tokenizer, len(tokenizer) + EXTRA)))
    texts = [text.strip() for text in (*CORPUS, EMOJI)] * 5
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    separator = "none" if tokenizer.eos_token is None else "eos"
    config = tiny.harvest_config(
        folder / "text.jsonl", packing=PackingConfig(context=24, separator=separator, packing="document"), tokens=3000
    )  # fmt: skip
    harvest(model, folder / "store", config)
    cfg = RunConfig(
        store=str(folder / "store"), arch=TopKConfig(d_sae=48, k=4), train=TrainConfig(steps=20, batch=64)
    )
    run = train(cfg, folder / "run")
    collect_features(run, model, FeaturesConfig(strongest=4, sampled=4, neighbours=3, logits=5, batch=64))
    return request.param, model, run, texts


def test_booting_and_running_leave_the_tokenizer_as_it_was(made):
    name, model, _, _ = made
    kind, settings = KINDS[name]
    fresh = tokenizers.tokenizer(kind, **settings)
    assert model.bridge is not None
    assert model.tokenizer.special_tokens_map == fresh.special_tokens_map
    assert len(model.tokenizer) == len(fresh)
    assert model.tokenizer.backend_tokenizer.to_str() == fresh.backend_tokenizer.to_str()
    assert (model.vocabulary.bos, model.vocabulary.eos) == (fresh.bos_token_id, fresh.eos_token_id)


def test_windows_begin_with_the_tokenizer_s_own_bos_or_with_text(made):
    name, model, run, texts = made
    store: Store = run.store
    first = model.vocabulary.encode(texts[0])[0]
    has_bos = name in ("llama2", "gemma", "unigram")
    assert store.spec.bos_token == (model.tokenizer.bos_token_id if has_bos else None)
    assert int(store.read(0).tokens[0, 0]) == (model.tokenizer.bos_token_id if has_bos else first)
    assert int(store.read(0).tokens.max()) < len(model.tokenizer)
    prompt = prompt_ids(model, texts[0])
    assert prompt[: len(prompt) - len(model.vocabulary.encode(texts[0]))] == (
        [store.spec.bos_token] if has_bos else []
    )


def test_prompts_and_readings_begin_as_the_store_s_windows_do(made, tmp_path):
    _, model, run, texts = made
    text = texts[0][:20]
    ids, bos = model.vocabulary.encode(text), run.store.spec.bos_token
    assert run.first_tokens == ([] if bos is None else [bos])
    config = tiny.harvest_config(run.path.parent / "text.jsonl", packing=PackingConfig(bos=False, context=16, separator="none"))  # fmt: skip
    harvest(model, tmp_path / "store", config)
    cfg = RunConfig(
        store=str(tmp_path / "store"), arch=TopKConfig(d_sae=8, k=2), train=TrainConfig(steps=1, batch=64)
    )
    other = train(cfg, tmp_path / "run")
    assert other.first_tokens == []
    for begins in (run.first_tokens, other.first_tokens, [5]):
        assert prompt_ids(model, text, first=begins) == [*begins, *ids]
        reading = read(model, run.sae(), run.hook, text, first=begins)
        assert reading.ids.tolist() == [*begins, *ids]


def test_examples_and_what_is_searched_read_as_the_documents_do(made):
    name, _, run, texts = made
    features = FeatureStore(run.path / "features")
    looked_at = 0
    for latent in range(len(features)):
        for example in features.strongest(latent):
            inside = example.owners == example.document
            shown = "".join(piece for piece, is_in in zip(example.tokens, inside, strict=True) if is_in)
            shown = shown.removesuffix("</s>")
            if shown.startswith("<0x") or "<0x" in shown[-12:]:
                continue  # the window cuts a character
            document = texts[example.document]
            normal = tokenizers.tokenizer("unigram").backend_tokenizer.normalizer
            assert shown in (normal.normalize_str(document) if name == "unigram" else document)
            looked_at += 1
    assert looked_at > 20
    searched = features.texts.to_pylist()
    assert any("cat sat on" in text for text in searched)
    if name == "unigram":  # every character of Chinese is a token there, and few are a feature's peak
        return
    pairs = [CORPUS[3][place : place + 2] for place in range(len(CORPUS[3]) - 1)]
    assert any(pair in text for text in searched for pair in pairs), "no space between characters of Chinese"


def test_lens_effects_and_peaks_name_only_tokens_that_there_are(made):
    _, model, run, _ = made
    features = FeatureStore(run.path / "features")
    names = features.vocabulary
    assert len(names) == len({*names}) == len(model.tokenizer) + EXTRA
    there = {names[token] for token in model.vocabulary.text.known.tolist()}
    assert len(there) == len(model.tokenizer)
    for column in ("raised_tokens", "lowered_tokens", "peak_tokens"):
        assert {token for row in features.table[column].to_pylist() for token in row} <= there
    fired = next(row["latent"] for row in features.table.to_pylist() if row["fired"])
    effect = measure_effect(model, run.sae(), features, run.hook, fired)
    assert effect.positive
    assert {word.text for word in (*effect.positive.up, *effect.positive.down)} <= there
    example = features.strongest(fired)[0]
    assert example.ids[example.peak] in Calibration.of(features).peaks[fired]


def test_a_text_is_read_and_steered_whole(made):
    _, model, run, _ = made
    features = FeatureStore(run.path / "features")
    spec = run.store.spec
    reading = read(model, run.sae(), run.hook, EMOJI, features, spec.packing)
    own = [piece for piece, is_text in zip(reading.tokens, reading.is_text.tolist(), strict=True) if is_text]
    assert "".join(own) == EMOJI
    assert [features.token_text.ids[name] for name in reading.names] == reading.ids.tolist()
    steering = Steering(run.sae(), run.hook, (Intervention(0, "add", 1.0, "norm"),), Calibration.of(features))
    found = compare(model, steering, prompt_ids(model, EMOJI), Sampling(tokens=4), [0])
    assert len(found[0].steered.tokens) <= 4


def test_text_that_the_tokenizer_cannot_spell_is_refused_with_its_share(tmp_path):
    tokenizer = tokenizers.tokenizer("wordpiece")
    model = load(str(model_folder(tmp_path / "model", tokenizer, len(tokenizer))))
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "ᚠᚢᚦ the " * 400}) + "\n")
    with pytest.raises(TextError, match=r"50%.*unknown"):
        harvest(model, tmp_path / "store", tiny.harvest_config(tmp_path / "text.jsonl", tokens=64))
    assert not (tmp_path / "store").exists()
    silent = Tokenizer(models.BPE({piece: number for number, piece in enumerate(["</s>", "x", "y"])}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=silent, eos_token="</s>")  # drops every other letter
    model = load(str(model_folder(tmp_path / "silent", tokenizer, 3)))
    lines = "".join(json.dumps({"text": "words and words"}) + "\n" for _ in range(400))
    (tmp_path / "text.jsonl").write_text(lines)
    with pytest.raises(TextError, match=r"100%"):
        harvest(model, tmp_path / "store", tiny.harvest_config(tmp_path / "text.jsonl", tokens=64))
    assert not (tmp_path / "store").exists()


def test_a_model_folder_without_tokenizer_files_is_refused(tmp_path):
    folder = model_folder(tmp_path / "model", tokenizers.tokenizer("byte-bpe"), 700)
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"tokenizer"):
        load(str(folder))
    tokenizers.tokenizer("byte-bpe").save_pretrained(folder)
    assert load(str(folder)).vocabulary.rows == 700
    model_folder(folder, tokenizers.tokenizer("byte-bpe"), 100)
    with pytest.raises(ModelError, match=r"100 rows"):
        load(str(folder))
