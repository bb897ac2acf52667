"""Lenses beside measured effects: agreement is NumPy's, a planted effect is predicted, work resumes, damage is one line."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from activations.errors import ConfigError, RunError
from activations.jacobian import FOLDER, JacobianConfig, read_jacobian
from activations.language_model import LanguageModel
from sae.features.effects import EffectConfig, effect_on_tokens, measure_effect
from sae.features.feature import FeatureStore
from sae.features.lenses import INDEX, TABLE, lenses_of
from sae.features.logit_lens import jacobian_effect, logit_lens
from sae.report import lens as report
from sae.report import render
from sae.runs.run import Run
from sae.workflows.lens import SCRATCH, Cost, LensConfig, cost, lens
from tests import tiny

CFG = LensConfig(latents=5, strongest=2, sampled=2, words=4, jacobian=JacobianConfig(rows=600))


def copied(world: Path, folder: Path) -> Run:
    """Return the toy run with a store of its own, in which a Jacobian can be kept."""
    shutil.copytree(world / "store", folder / "store")
    run = shutil.copytree(world / "runs" / "toy", folder / "toy")
    about = json.loads((run / "run.json").read_text())
    about["config"]["store"] = str(folder / "store")
    (run / "run.json").write_text(json.dumps(about))
    return Run(run)


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    return pearson(rankdata(one), rankdata(other))


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return copied(world, tmp_path_factory.mktemp("lens"))


@pytest.fixture(scope="module")
def model(run: Run) -> LanguageModel:
    return run.language_model()


@pytest.fixture(scope="module")
def found(run: Run, model: LanguageModel):
    return lens(run, CFG, model)


def test_agreement_is_numpy_s_between_effects_and_lenses(run: Run, model: LanguageModel, found):
    features, sae, record = FeatureStore(run.path / "features"), run.sae(), found.record
    known = read_jacobian(run.store, run.hook)
    assert known is not None and known.record.sha256 == record.jacobian_sha256
    rows = sae.W_dec[record.latents]
    by_lens = {"logit": model.vocabulary_effect(rows), "jacobian": jacobian_effect(model, rows, known.matrix)}
    effects = [
        effect_on_tokens(model, sae, features, run.hook, latent, EffectConfig(2, 2, following=0))
        for latent in record.latents
    ]
    for name, predicted in by_lens.items():
        pairs = [
            (e.numpy(), p.double().numpy()) for e, p in zip(effects, predicted, strict=True) if e is not None
        ]
        agreement = record.agreement[name]
        assert agreement.spearman.value == pytest.approx(
            np.mean([spearman(*pair) for pair in pairs]), abs=1e-5
        )
        assert agreement.pearson.value == pytest.approx(np.mean([pearson(*pair) for pair in pairs]), abs=1e-5)
        shared = [len({*e.argsort()[-10:]} & {*p.argsort()[-10:]}) / 10 for e, p in pairs]
        assert agreement.listed.value == pytest.approx(np.mean(shared))
        others = [spearman(pairs[i][0], pairs[i - 1][1]) for i in range(5)]
        assert agreement.of_another.value == pytest.approx(np.mean(others), abs=1e-5)
        assert agreement.spearman.low <= agreement.spearman.value <= agreement.spearman.high
    better = record.better_by
    assert better.value == pytest.approx(
        record.agreement["jacobian"].spearman.value - record.agreement["logit"].spearman.value
    )


def test_an_effect_on_tokens_is_the_measured_effect_of_the_stronger_sign(run: Run, model: LanguageModel):
    features, sae = FeatureStore(run.path / "features"), run.sae()
    cfg = EffectConfig(2, 2, following=0, words=258)
    effect = effect_on_tokens(model, sae, features, run.hook, 7, cfg)
    known = read_jacobian(run.store, run.hook)
    side = measure_effect(model, sae, features, run.hook, 7, cfg, jacobian=known and known.matrix).positive
    assert effect is not None and side is not None
    assert sorted(effect[features.token_text.known].tolist()) == pytest.approx(
        sorted(word.by for word in side.up), abs=1e-6
    )
    assert side.jacobian_spearman is not None and -1 <= side.jacobian_spearman <= 1


def test_tokens_of_the_jacobian_lens_are_those_of_the_matrix(run: Run, model: LanguageModel, found):
    known = read_jacobian(run.store, run.hook)
    assert known is not None
    features, row = FeatureStore(run.path / "features"), run.sae().W_dec[3]
    read = (known.matrix.double() @ row.double()).float()
    logits = model.plain.lm_head(read[None])[0]
    ids = features.token_text.known
    logits = logits[ids] - logits[ids].mean()
    best = logits.topk(4)
    assert found.of(3).raised_tokens == [features.vocabulary[ids[i]] for i in best.indices]
    assert found.of(3).raised_logits == pytest.approx(best.values.tolist(), abs=1e-5)
    assert found.of(3).lowered_logits == pytest.approx((-logits).topk(4).values.neg().tolist(), abs=1e-5)


def test_a_hook_point_of_another_width_has_a_jacobian_lens_alone(model: LanguageModel):
    narrow = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert logit_lens(model, narrow, 3) is None
    through = logit_lens(model, narrow, 3, jacobian=torch.randn(model.width, 5))
    assert through is not None and through.raised.shape == (6, 3)


def test_an_interrupted_measurement_goes_on_to_the_same_result(world: Path, tmp_path: Path, model, found):
    run = copied(world, tmp_path)
    shutil.copytree(found.path.parents[1] / "store" / FOLDER, tmp_path / "store" / FOLDER)

    def stop(stage: str, total: int, unit: str, done: int = 0):
        return tiny.Told(end_at=0.5 if stage == "effects" else 2)(stage, total, unit, done)

    with pytest.raises(KeyboardInterrupt):
        lens(run, CFG, model, stop)
    assert lenses_of(FeatureStore(run.path / "features")) is None
    told = tiny.Told()
    again = lens(run, CFG, model, told)
    assert told.steps["effects"][0] > 0, "what was measured before counts"
    assert (again.path / TABLE).read_bytes() == (found.path / TABLE).read_bytes()
    assert replace(again.record, agreement={}, better_by=None) == replace(
        found.record, agreement={}, better_by=None
    )
    for name, agreement in asdict(found.record)[
        "agreement"
    ].items():  # a matrix read from a file may be aligned otherwise
        for score, estimate in asdict(again.record)["agreement"][name].items():
            assert estimate == pytest.approx(agreement[score], abs=1e-6)
    assert not (again.path / SCRATCH).exists()
    silent = tiny.Told()
    lens(run, CFG, model, silent)
    assert not silent.totals, "it is done"


def test_the_cost_is_told_before_and_counts_what_is_there(run: Run, model: LanguageModel, found):
    told = cost(run, CFG, model)
    assert isinstance(told, Cost)
    assert told.jacobian == 0 and told.effects == 2 * 5 * 4 * 16 and told.seconds > 0
    more = LensConfig(jacobian=JacobianConfig(rows=5000))
    assert cost(run, more, model).jacobian >= 10_000


def test_what_the_report_says(run: Run, found):
    features = FeatureStore(run.path / "features")
    shown = report.sections(features.row(3), found.of(3), found.record)
    assert {one.title for one in shown} == {"Jacobian lens", "Logit lens"}
    assert shown[0].title == report.TITLES[found.record.best][0]
    assert "measured effects of 5 latents" in shown[0].agreement
    assert [line.title for line in report.lines(found.record)] == [one.title for one in shown]
    assert len(report.conclusions(found.record)) == 2
    below = features.row(3) | {"max": -0.5, "min": -2.0, "positive_share": 0.0}
    for row, turned in ((features.row(3), False), (below, True)):
        by_title = {one.title: one for one in report.sections(row, found.of(3), found.record)}
        for title, table in (("Jacobian lens", vars(found.of(3))), ("Logit lens", row)):
            first = render.escaped(table["lowered_tokens" if turned else "raised_tokens"][0])
            assert by_title[title].lists[0].index(f">{first}<") < by_title[title].lists[0].index("</tr>")
            assert 'class="bar up"' in by_title[title].lists[0]
        assert "at its most negative value, −2" in by_title["Jacobian lens"].remark or not turned
        assert "change of the logits at its" in by_title["Jacobian lens"].remark
        assert "relative size" in by_title["Logit lens"].remark
        assert ("sides as at its most negative value" in by_title["Logit lens"].remark) == turned
    (alone,) = report.sections(features.row(3), None, None)
    assert alone.title == "Logit lens" and "sae lens" in alone.agreement
    assert "Jacobian lens" in features.feature(3)._repr_html_()


def test_damage_is_one_line_and_other_features_have_no_lenses(world: Path, tmp_path: Path, found):
    folder = shutil.copytree(found.path, tmp_path / "features")
    table = (folder / TABLE).read_bytes()
    (folder / TABLE).write_bytes(table[:-9])
    opened = lenses_of(FeatureStore(folder))
    assert opened is not None
    with pytest.raises(RunError, match=r"lens\.parquet is damaged"):
        opened.of(3)
    about = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(about | {"agreement": {}}))
    with pytest.raises(RunError, match="does not name a lens"):
        lenses_of(FeatureStore(folder))
    (folder / INDEX).write_text(json.dumps(about | {"features_sha256": "other"}))
    assert lenses_of(FeatureStore(folder)) is None
    (folder / INDEX).write_text(json.dumps(about | {"format": 0}))
    assert lenses_of(FeatureStore(folder)) is None
    wrong: dict[str, Any]
    for wrong in ({"latents": 1}, {"strongest": 0}, {"sampled": -1}, {"words": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            LensConfig(**wrong)


def test_features_of_other_weights_and_too_few_firings_are_refused(world: Path, tmp_path: Path, model):
    run = copied(world, tmp_path)
    index = run.path / "features" / "features.json"
    about = json.loads(index.read_text())
    index.write_text(json.dumps(about | {"sae_sha256": "other"}))
    with pytest.raises(RunError, match="other weights") as caught:
        lens(run, CFG, model)
    assert caught.value.fix and "sae features" in caught.value.fix
