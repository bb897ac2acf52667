"""Absorption: SAEBench's formulas rewritten in float64, planted trees, and `sae absorption` on a toy model with words."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import normalize
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from activations.errors import ConfigError, LabelError, RunError
from activations.language_model import LanguageModel, load
from activations.vocabulary import Vocabulary
from sae.architectures import AbsTopK, AbsTopKConfig, ReLU, ReLUConfig, TopKConfig
from sae.evaluation.absorption import absorbed, tree_absorption
from sae.evaluation.synthetic import Tree
from sae.probing.absorption import AbsorptionRecord, LetterAbsorption
from sae.probing.letters import LETTERS, letter_probe, ranked_latents, split_latents, words_of
from sae.probing.score import turned
from sae.report import absorption as report
from sae.runs.run import Run
from sae.workflows.absorption import AbsorptionConfig, absorption, read_absorption
from tests import tiny

CFG = AbsorptionConfig(words=260)
TREE = Tree()


def as_saebench_says(
    x: Tensor, values: Tensor, decoder: Tensor, feature: Tensor, main: list[int]
) -> tuple[float, bool]:
    """Return the absorbed fraction and full absorption of one row, as feature_absorption_calculator.py of sae-bench 0.6 defines them."""
    direction = (feature / feature.norm()).double()
    cosines = [float(row.double() @ direction / row.double().norm()) for row in decoder]
    contributed = [float(v) * c for v, c in zip(values, cosines, strict=True)]  # rows of norm 1
    total, own = float(x.double() @ direction), sum(contributed[j] for j in main)
    others = sorted(
        (p for j, p in enumerate(contributed) if j not in main and cosines[j] >= 0.1 and p > 0), reverse=True
    )
    absorbing = sum(others[:3])
    if own >= total or absorbing / total < 0.4:
        fraction = 0.0
    elif own <= 0:
        fraction = 1.0
    else:
        part = min(absorbing, total - own)
        fraction = part / (part + own)
    top = max(range(len(cosines)), key=lambda j: contributed[j])
    full = (
        all(abs(float(values[j])) < 1e-8 for j in main)
        and cosines[top] >= 0.025
        and total >= 0
        and contributed[top] / total >= 0.4
    )
    return fraction, full


def test_fractions_and_full_absorption_are_those_of_saebench():
    generator = torch.Generator().manual_seed(0)
    D, F, n = 6, 30, 400
    decoder = normalize(torch.randn(F, D, generator=generator, dtype=torch.float64), dim=1)
    feature = torch.randn(D, generator=generator, dtype=torch.float64)
    values = torch.randn(n, F, generator=generator).relu() * (torch.rand(n, F, generator=generator) < 0.2)
    x = values.double() @ decoder + 0.3 * torch.randn(n, D, generator=generator)
    by_cosine = (decoder @ feature).argsort(descending=True).tolist()
    seen = set()
    for main in ([by_cosine[0]], by_cosine[:3], [by_cosine[-1]]):
        found = absorbed(x, values, decoder, feature, main)
        for row in range(n):
            fraction, full = as_saebench_says(x[row], values[row], decoder, feature, main)
            assert float(found.fraction[row]) == pytest.approx(fraction, abs=1e-9)
            assert bool(found.full[row]) == full
            seen.add((0 if fraction == 0 else 1 if fraction == 1 else 0.5, full))
    assert seen >= {(0, False), (0.5, False), (1, False), (1, True)}


def dictionary(rows: Tensor, reads: Tensor) -> ReLU:
    sae = ReLU(rows.shape[1], ReLUConfig(d_sae=len(rows)), seed=None).requires_grad_(False)
    sae.W_dec.copy_(rows)
    sae.W_enc.copy_(reads.T)
    return sae


def test_a_dictionary_that_absorbs_scores_1_and_the_true_one_0():
    parent, children, rest = TREE.features[:1], TREE.features[1:5], TREE.features[5:]
    absorbing = dictionary(
        torch.cat([parent, normalize(parent + children, dim=1), rest]),
        torch.cat([parent - 1.1 * children.sum(0, keepdim=True), math.sqrt(2) * children, rest]),
    )
    x, _ = TREE.draw(500, torch.Generator().manual_seed(1))
    torch.testing.assert_close(absorbing(x), x, atol=1e-5, rtol=0)  # it reconstructs as well as the true one
    found = tree_absorption(absorbing, TREE)
    assert (found.fraction, found.full, found.gap) == pytest.approx((1, 1, 1), abs=1e-3)
    true = tree_absorption(dictionary(TREE.features, TREE.features), TREE)
    assert (true.fraction, true.full, true.gap) == pytest.approx((0, 0, 0), abs=1e-3)


def test_half_an_absorption_is_measured_as_half():
    parent, children, rest = TREE.features[:1], TREE.features[1:5], TREE.features[5:]
    # With a child the parent's latent falls to half, and the child's latent writes the other half of the parent
    rows = torch.cat([parent, children + 0.5 * parent, rest])
    norms = rows.norm(dim=1, keepdim=True)
    reads = torch.cat([parent - 0.5 * children.sum(0, keepdim=True), children, rest])
    found = tree_absorption(dictionary(rows / norms, reads * norms), TREE)
    assert found.fraction == pytest.approx(0.5, abs=1e-3)
    assert (found.full, found.gap) == (0, 0)


def signed(mirrored: list[int], per: Literal["token", "batch"]) -> AbsTopK:
    """Return a signed SAE whose latent for the parent falls silent beside a child, with some latents' values and rows negated."""
    parent, children, rest = TREE.features[:1], TREE.features[1:5], TREE.features[5:]
    rows = torch.cat([parent, normalize(parent + children, dim=1), rest])
    reads = torch.cat([parent - 1.1 * children.sum(0, keepdim=True), math.sqrt(2) * children, rest])
    rows[mirrored], reads[mirrored] = -rows[mirrored], -reads[mirrored]
    sae = AbsTopK(rows.shape[1], AbsTopKConfig(d_sae=len(rows), k=2, per=per), seed=None).requires_grad_(
        False
    )
    sae.W_dec.copy_(rows)
    sae.W_enc.copy_(reads.T)
    sae.threshold.fill_(0.2)
    return sae


@pytest.mark.parametrize("per", ["token", "batch"])
def test_the_sign_of_a_signed_latent_changes_nothing(per: Literal["token", "batch"]):
    plain = tree_absorption(signed([], per), TREE)
    assert plain.fraction > 0.5, "it absorbs"
    for mirrored in ([0], [1, 2], [0, 1, 4]):
        assert tree_absorption(signed(mirrored, per), TREE) == pytest.approx(plain)


def test_the_probe_minimises_the_balanced_loss():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5))
    y = x[:, 0] + 0.5 * rng.normal(size=300) > 1.0
    probe = letter_probe(x, y)

    def loss(weights: np.ndarray, bias: float) -> float:
        logits = x @ weights + bias
        each = np.logaddexp(0, logits) - y * logits
        weight = np.where(y, (~y).sum() / y.sum(), 1.0)
        return float((weight * each).mean() + 26e-4 / 2 * weights @ weights)

    best = loss(probe.weights, probe.bias)
    for step in rng.normal(size=(20, 6)) * 0.05:
        assert loss(probe.weights + step[:5], probe.bias + step[5]) > best - 1e-6
    with pytest.raises(LabelError, match="3 words of 300"):
        letter_probe(x, np.arange(300) < 3)


def test_latents_that_raise_the_f1_are_those_of_the_letter():
    from scipy.sparse import csr_array

    rng = np.random.default_rng(0)
    y = rng.random(800) < 0.3
    half = rng.random(800) < 0.5
    values = rng.random((800, 20)) * (rng.random((800, 20)) < 0.1)
    values[:, 7], values[:, 11] = y & half, 0.9 * (y & ~half)  # a feature split in two
    sparse = csr_array(values)
    assert {*ranked_latents(sparse, y, 2)} == {7, 11}
    split = split_latents(sparse[:500], y[:500], sparse[500:], y[500:], 10, 0.03)
    assert {*split.latents} == {7, 11}
    assert split.f1 > 0.95


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random model with 208 tokens of two letters beside those of bytes."""
    folder = tmp_path_factory.mktemp("words")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, LETTERS[(i + j) % 26]) for i, a in enumerate(LETTERS) for j in range(8)]
    pieces = ["<bos>", "<eos>", *alphabet, *(a + b for a, b in pairs)]
    made = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(pieces), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", eos_token="<eos>").save_pretrained(
        folder / "model"
    )
    return load(str(folder / "model"))


@pytest.fixture
def run(model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    tiny.store(tmp_path, model)
    from sae.config import RunConfig, TrainConfig
    from sae.workflows.train import train

    cfg = TrainConfig(steps=10, batch=64, lr=3e-3, checkpoint_minutes=1)
    return train(
        RunConfig(str(tmp_path / "store"), arch=TopKConfig(d_sae=64, k=6), train=cfg), tmp_path / "run"
    )


def test_words_are_tokens_of_letters_that_end_their_prompts(model: LanguageModel):
    words = words_of(model.vocabulary, 260, seed=0)
    assert len(words.texts) == len({*words.texts}) > 200
    ids = model.vocabulary.text.ids
    for word, letter, prompt in zip(words.texts, words.letters, words.prompts, strict=True):
        assert word.strip().isalpha() and LETTERS[letter] == word.strip()[0].lower()
        *lines, last = prompt.split("\n")
        assert last == word and len(lines) == 10
        assert all(line.endswith(f"has the first letter: {line.strip()[0].upper()}") for line in lines)
        assert model.vocabulary.encode(prompt)[-1] == ids[word]
    test = {*words.texts[words.n_train :]}
    assert not any(
        line.split(" has")[0] in test
        for prompt in words.prompts[: words.n_train]
        for line in prompt.split("\n")
    )
    assert words.prompts == words_of(model.vocabulary, 260, seed=0).prompts


@pytest.mark.parametrize(("lost", "which"), [(0, "training"), (1, "test")])
def test_a_part_without_usable_words_is_one_line(model: LanguageModel, lost: int, which: str, monkeypatch):
    """As where a tokenizer joins a line's end with the words of one part."""
    words = words_of(model.vocabulary, 260, seed=0)
    parts = {*words.prompts[: words.n_train]}, {*words.prompts[words.n_train :]}
    encode = Vocabulary.encode
    monkeypatch.setattr(
        Vocabulary, "encode", lambda own, text: [] if text in parts[lost] else encode(own, text)
    )
    with pytest.raises(LabelError, match=f"none of the {which} words comes back"):
        words_of(model.vocabulary, 260, seed=0)


def test_a_run_is_measured_letter_by_letter_beside_a_random_sae(run: Run, model: LanguageModel):
    record = absorption(run, CFG, model)
    assert record.complete and record.words > 200
    own, control = record.letters["sae"], record.letters["random sae"]
    assert [each.letter for each in own] == [each.letter for each in control]
    assert {each.letter for each in own} | record.left_out.keys() == {*LETTERS}
    assert own and own != control
    for each in (*own, *control):
        assert 0 <= each.fraction <= 1 and 0 <= each.full <= 1
        assert 1 <= each.true_positives <= each.words and 1 <= len(each.latents) <= 10
    mean = record.mean("sae", "fraction")
    assert mean.value == pytest.approx(np.mean([each.fraction for each in own]))
    assert mean.value is not None and mean.low is not None and mean.high is not None
    assert mean.low <= mean.value <= mean.high
    assert read_absorption(run) == record
    assert len(report.by_letter(record)) == len(own)
    assert report.tables(record).count("<table") == 2


def test_a_signed_sae_is_measured_the_same_with_any_signs(
    run: Run, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    plain = run.sae()
    sae, other = (AbsTopK(plain.d_model, AbsTopKConfig(d_sae=64, k=6), seed=None) for _ in range(2))
    signs = torch.ones(64)
    signs[::3] = -1
    for one, sign in ((sae, torch.ones(64)), (other, signs)):
        one.requires_grad_(False).b_dec.copy_(plain.b_dec)
        one.W_dec.copy_(plain.W_dec * sign[:, None])
        one.W_enc.copy_(plain.W_enc * sign)
        one.b_enc.copy_(plain.b_enc * sign)
    records = []
    for one in (sae, other):
        monkeypatch.setattr(Run, "sae", lambda self, one=one: one)
        records.append(absorption(run, CFG, model))
        (run.path / "absorption.json").unlink()
    for whose in ("sae", "random sae"):
        assert records[0].letters[whose]
        for a, b in zip(*(record.letters[whose] for record in records), strict=True):
            assert a.latents == b.latents and max(a.latents) < 64
            assert (a.fraction, a.full, a.f1) == pytest.approx((b.fraction, b.full, b.f1), abs=1e-6)


def test_what_is_finished_is_not_done_again(run: Run, model: LanguageModel, tmp_path: Path):
    absorption(run, AbsorptionConfig(words=260, jump=0.2), model)  # reads the words
    with pytest.raises(KeyboardInterrupt):
        absorption(run, CFG, model, tiny.Told(end_at=0.5))
    told = tiny.Told()
    record = absorption(run, CFG, model, told)
    assert told.steps["letters"][0] >= 1 and sum(told.steps["letters"]) == len(LETTERS)
    again = tiny.Told()
    assert absorption(run, CFG, model, again) == record
    assert not again.totals
    (run.path / "absorption.json").unlink()
    assert absorption(run, CFG, model) == record
    other = absorption(run, AbsorptionConfig(words=260, seed=1), model)
    assert other.config["seed"] == 1 and other != record


def test_a_damaged_file_is_named_and_one_of_other_weights_does_not_count(run: Run, model: LanguageModel):
    absorption(run, CFG, model)
    path = run.path / "absorption.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps({**content, "sae_sha256": "0"}))
    assert read_absorption(run) is None
    path.write_text("{")
    with pytest.raises(RunError, match=r"absorption\.json"):
        read_absorption(run)


def test_settings_out_of_range_are_refused():
    wrongs: list[dict[str, Any]] = [
        {"words": 20}, {"most_latents": 0}, {"jump": 2.0}, {"seed": -1}, {"seed": 2**32},
    ]  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} = "):
            AbsorptionConfig(**wrong)


def test_the_random_sae_reconstructs_turned_rows_as_well_in_their_own_space(run: Run):
    sae = run.sae()
    x = torch.randn(50, sae.d_model, generator=torch.Generator().manual_seed(0))
    turn, turned_x = turned(sae, x, 0)
    code = sae.encode(turned_x)
    back = code.dense() @ (sae.W_dec @ turn.T) + sae.b_dec
    expected = (sae.decode(code) - sae.b_dec) @ turn.T + sae.b_dec
    torch.testing.assert_close(back, expected, rtol=1e-4, atol=1e-5)


def test_means_over_no_letter_are_unknown():
    record = AbsorptionRecord(1, "0", "h", {}, 0, {"sae": [], "random sae": []})
    assert record.mean("sae", "full").value is None
    assert report.conclusion(record) == "No letter could be measured."


def test_one_letter_has_no_interval_and_no_verdict():
    sides = {
        whose: [LetterAbsorption("a", 40, 20, 0.9, [1], 0.8, fraction, 0.0)]
        for whose, fraction in (("sae", 0.2), ("random sae", 0.05))
    }
    record = AbsorptionRecord(2, "0", "h", {}, 40, sides)  # pyright: ignore[reportArgumentType]
    beyond = record.beyond_control("fraction")
    assert (beyond.value, beyond.low, beyond.high) == (pytest.approx(0.15), None, None)
    assert "One letter does not tell" in report.conclusion(record)
    assert "unknown: one letter" in report.means(record)[0]
