"""The measured effect equals that of a hand-written hook, for both signs, and is zero where the latent writes nothing."""

import json
import math
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy import stats

from activations.errors import RunError
from activations.language_model import LanguageModel, load
from activations.progress import part_of
from sae.features.effects import EffectConfig, load_effect, measure_effect, save_effect
from sae.features.feature import FeatureStore
from sae.runs.run import Run
from tests.app import worlds
from tests.sae.small import architectures

CFG = EffectConfig(strongest=3, sampled=4, following=2, words=4)
LATENT = 7


@pytest.fixture(scope="module")
def run(world) -> Run:
    return Run(world / "runs/toy")


@pytest.fixture(scope="module")
def features(run) -> FeatureStore:
    return FeatureStore(run.path / "features")


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return load(str(world / "model"), dtype=torch.float64)


def by_hand(model, sae, features, example, latent):
    """Return log-probabilities [T, V] of the whole window, clean and ablated by a hook on the plain model, and f."""
    tokens = torch.from_numpy(example.ids).long()[None]
    value = []

    def ablate(module, args, kwargs):
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        f = sae.encode(x[0, example.peak]).dense()[0, latent]
        value.append(float(f))
        x[0, example.peak] = x[0, example.peak] - f * sae.W_dec[latent]
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    block = model.plain.model.layers[1]
    with torch.no_grad():
        clean = model.plain(tokens).logits[0].log_softmax(-1)
        handle = block.register_forward_pre_hook(ablate, with_kwargs=True)
        ablated = model.plain(tokens).logits[0].log_softmax(-1)
        handle.remove()
    return clean, ablated, value[0]


def chosen(features, latent, sign=1):
    strongest = features.strongest(latent, sign)[: CFG.strongest]
    seen = {(e.document, e.position) for e in strongest}
    others = [
        e
        for e in features.sampled(latent)
        if sign * e.values[e.peak] > 0 and (e.document, e.position) not in seen
    ]
    step = max(len(others) / CFG.sampled, 1)
    return strongest + [others[int(i * step)] for i in range(min(CFG.sampled, len(others)))]


def test_the_effect_equals_a_hand_written_hook_in_float64(run, model, features):
    sae = run.sae().double()
    stages, advances = [], []

    @contextmanager
    def progress(stage, total, unit, done=0):
        stages.append((stage, total, unit))
        yield lambda n, note="": advances.append(n)

    side = measure_effect(model, sae, features, run.hook, LATENT, CFG, progress).positive
    assert side is not None
    examples = chosen(features, LATENT)
    assert len(side.examples) == len(examples) == 7
    assert stages == [("effect", 7, "examples")]
    assert sum(advances) == 7
    found = {(e.document, e.position): e for e in side.examples}
    changes, divergences, presence = [], [], []
    for example in examples:
        clean, ablated, value = by_hand(model, sae, features, example, LATENT)
        kl, change = [], []
        for place in range(example.peak, min(example.peak + 3, 16)):
            kl.append(float((clean[place].exp() * (clean[place] - ablated[place])).sum()))
        for place in range(example.peak, min(example.peak + 3, 15)):
            if example.owners[place + 1] != example.document:
                break
            target = example.ids[place + 1]
            change.append(float(clean[place, target] - ablated[place, target]))
        one = found[example.document, example.position]
        assert one.value == pytest.approx(value, rel=1e-9)
        assert one.kl == pytest.approx(kl, abs=1e-9)
        assert one.loss_change[one.peak + 1 :] == pytest.approx(change, abs=1e-9)
        assert one.loss_change[: one.peak + 1] == [0.0] * (one.peak + 1)
        assert one.tokens[one.peak] == example.tokens[example.peak]
        changes.append(change)
        divergences.append(kl)
        presence.append(clean[example.peak] - ablated[example.peak])
    for step in range(3):
        there = [change[step] for change in changes if len(change) > step]
        assert side.counted[step] == len(there)
        assert side.loss_change[step] == pytest.approx(np.mean(there), abs=1e-9)
        assert side.kl[step] == pytest.approx(
            np.mean([kl[step] for kl in divergences if len(kl) > step]), abs=1e-9
        )
    by = torch.stack(presence).mean(0)
    assert [word.by for word in side.up] == pytest.approx(by.topk(4).values.tolist())
    assert [word.text for word in side.down] == [features.vocabulary[i] for i in (-by).topk(4).indices]
    lens = model.vocabulary_effect(sae.W_dec[LATENT][None])[0].double()
    assert side.pearson == pytest.approx(stats.pearsonr(by, lens).statistic, abs=1e-6)
    assert side.spearman == pytest.approx(stats.spearmanr(by, lens).statistic, abs=1e-6)


def test_a_latent_whose_decoder_row_is_zero_has_no_effect(run, model, features):
    sae = run.sae().double()
    sae.W_dec.data[LATENT] = 0
    side = measure_effect(model, sae, features, run.hook, LATENT, CFG).positive
    assert side is not None
    assert side.loss_change == [0.0] * 3 == side.kl
    assert {word.by for word in side.up + side.down} == {0.0}
    assert (side.pearson, side.spearman) == (None, None)
    assert any(example.value for example in side.examples), "it does fire"


def test_negative_values_are_measured_on_their_own(world, model, tmp_path):
    """Feature 5 of the hostile run is the toy's with all values negated; its encoder and decoder are negated here too."""
    runs = worlds.make(tmp_path / "runs", world / "runs" / "toy")
    negative = FeatureStore(runs / worlds.HOSTILE_RUN / "features")
    run = Run(world / "runs/toy")
    plain = measure_effect(
        model, run.sae().double(), FeatureStore(run.path / "features"), run.hook, worlds.NEGATIVE, CFG
    )
    turned = run.sae().double()
    real = turned.encode

    def encode(x):
        code = real(x)
        return code._replace(values=torch.where(code.indices == worlds.NEGATIVE, -code.values, code.values))

    turned.encode = encode  # type: ignore[method-assign]
    turned.W_dec.data[worlds.NEGATIVE] *= -1
    found = measure_effect(model, turned, negative, run.hook, worlds.NEGATIVE, CFG)
    assert found.positive is None
    assert found.negative is not None and plain.positive is not None
    assert all(example.value < 0 for example in found.negative.examples)
    assert found.negative.loss_change == pytest.approx(plain.positive.loss_change, abs=1e-12)
    assert found.negative.kl == pytest.approx(plain.positive.kl, abs=1e-12)
    assert found.negative.pearson == pytest.approx(plain.positive.pearson, abs=1e-9)


def test_a_dead_latent_has_no_effect_to_measure(world, model, run, tmp_path):
    runs = worlds.make(tmp_path / "runs", world / "runs" / "toy")
    hostile = FeatureStore(runs / worlds.HOSTILE_RUN / "features")
    effect = measure_effect(model, run.sae().double(), hostile, run.hook, worlds.DEAD, CFG)
    assert (effect.positive, effect.negative) == (None, None)


def test_what_progress_raises_ends_the_measurement(run, model, features):
    def stop(n, note=""):
        if n:  # 0 as the stage begins
            raise KeyboardInterrupt

    stopping = part_of(stop, "effect", "")

    with pytest.raises(KeyboardInterrupt):
        measure_effect(model, run.sae().double(), features, run.hook, LATENT, CFG, stopping)
    assert not model.plain.model.layers[1]._forward_pre_hooks, "no hook is left behind"


@architectures()
def test_any_architecture_s_value_at_the_peak_is_what_is_taken_out(cfg, run, model, features):
    """x - f d at the peak equals decoding the code without the latent and adding the SAE's error."""
    from dataclasses import replace

    from sae.architectures import build
    from sae.features.effects import _ablation

    torch.manual_seed(0)
    sae = build(replace(cfg, d_sae=24), 16).double()
    sae.initialise(torch.randn(64, 16).double(), torch.zeros(16).double(), torch.Generator().manual_seed(0))
    sae.eval()
    x = torch.randn(3, 5, 16).double()
    peaks = torch.tensor([1, 4, 2])
    code = sae.encode(x[torch.arange(3), peaks])
    latent = int(code.indices[code.values.abs().argmax()]) if len(code.indices) else 0
    values = torch.zeros(3).double()
    out = _ablation(sae, latent, peaks, values)(x.clone())
    dense = code.dense()
    assert values.tolist() == pytest.approx(dense[:, latent].tolist())
    without = code._replace(values=torch.where(code.indices == latent, 0.0, code.values))
    error = x[torch.arange(3), peaks] - sae.decode(code)
    torch.testing.assert_close(out[torch.arange(3), peaks], sae.decode(without) + error)
    rest = torch.ones(3, 5, dtype=torch.bool)
    rest[torch.arange(3), peaks] = False
    assert torch.equal(out[rest], x[rest])


def test_an_effect_is_kept_and_belongs_to_its_features(run, model, features, tmp_path):
    shutil.copytree(run.path / "features", tmp_path / "features")
    mine = FeatureStore(tmp_path / "features")
    assert load_effect(mine, LATENT) is None
    effect = measure_effect(model, run.sae().double(), mine, run.hook, LATENT, CFG)
    path = save_effect(mine, effect)
    assert load_effect(mine, LATENT) == effect
    assert mine.feature(LATENT).effect == effect
    index = (mine.path / "features.json").read_text()
    (mine.path / "features.json").write_text(json.dumps(json.loads(index) | {"tokens": 1}))
    assert load_effect(FeatureStore(mine.path), LATENT) is None, "other features, another effect"
    (mine.path / "features.json").write_text(index)
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"format": 0}))
    assert load_effect(mine, LATENT) is None, "another format, another effect"
    path.write_text(whole)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"positive": {"up": []}}))
    with pytest.raises(RunError, match=r"7\.json is damaged"):
        load_effect(FeatureStore(mine.path), LATENT)


def test_numbers_are_finite_on_the_model_as_it_is_used(run, world, features):
    side = measure_effect(load(str(world / "model")), run.sae(), features, run.hook, LATENT).positive
    assert side is not None
    assert all(map(math.isfinite, [*side.loss_change, *side.kl]))
