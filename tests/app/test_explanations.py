"""Rules in the app: columns, filter and histogram of the Features page, the head of the Feature page, names where no label is."""

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from sae.features.explanations import Explanation, Explanations
from sae.features.feature import FeatureStore
from sae.judging.config import JudgeConfig
from sae.report.explanations import TITLES, automatic, head
from sae.report.render import escaped, visible
from sae.rules.explaining import ExplainConfig
from sae.runs.records import Estimate
from sae.runs.run import Run
from sae.workflows.explain import explain
from sae.workflows.judge import judge
from tests import fake_judge
from tests.app import pages
from tests.app.pages import source


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run with explanations, `toy`, and one without, `bare`."""
    made = tmp_path_factory.mktemp("explained")
    for name in ("toy", "bare"):
        shutil.copytree(world / "runs" / "toy", made / name)
    explain(Run(made / "toy"), ExplainConfig(least_firings=3, controls=4))
    return made


@pytest.fixture
def explained(folder: Path) -> Explanations:
    return Explanations(FeatureStore(folder / "toy" / "features"))


@pytest.fixture
def show(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def show(page: str, run: str = "toy", **query: str) -> AppTest:
        monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(folder)])
        return pages.opened(page, {"run": run, **query})

    return show


def test_the_features_page_has_rules_as_column_filter_and_histogram(show, explained: Explanations):
    at = show("features")
    table = at.dataframe[0].value
    texts = {int(latent): text for latent, text in zip(table["feature"], table["explanation"], strict=True)}
    assert {latent: text for latent, text in texts.items() if isinstance(text, str)} == {
        latent: visible(text) for latent, text in explained.texts.items()
    }
    assert list(table["F1"]) == pytest.approx(explained.f1.tolist(), nan_ok=True)
    assert "of the rules" in source(at)
    good = show("features", state="explained").dataframe[0].value
    assert [int(latent) for latent in good["feature"]] == [
        i for i, f1 in enumerate(explained.f1) if f1 >= 0.5
    ]
    without = show("features", run="bare", state="explained").dataframe[0].value
    assert "explanation" not in without and len(without) == 32


def test_a_feature_without_rules_names_the_command_that_finds_them(show, folder: Path):
    command = f"<code>sae explain {folder / 'bare'}</code>"
    assert command in source(show("feature", run="bare", feature="7"))
    assert "No rule yet" not in source(show("feature", feature="7"))


def test_rules_are_searched_and_named_as_the_place_of_a_find(show, explained: Explanations):
    latent = max(explained.by_latent, key=lambda latent: explained.f1[latent])
    table = show("features", find=explained.texts[latent]).dataframe[0].value
    assert int(table["feature"].iloc[0]) == latent
    assert "rule" in table["found in"].iloc[0]


def test_the_feature_page_has_the_rule_with_its_scores_at_its_head(show, explained: Explanations):
    latent, (one, *_) = next(iter(explained.by_latent.items()))
    html = source(show("feature", feature=str(latent)))
    assert escaped(visible(one.text)) in html
    for score, (title, _) in TITLES.items():
        assert title in html or getattr(one, score).value is None
    assert "Mean of random directions" in html
    assert "Rule:" not in source(show("feature", run="bare", feature=str(latent)))


def test_what_a_model_said_stands_below_the_rule_with_both_scores(
    show, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    few = {"judge_latents": 3, "judge_tokens": 6, "judge_texts": 8, "judge_model": "a <b>model</b>"}
    with fake_judge.running() as fake:
        (one, *_) = judge(Run(folder / "toy"), JudgeConfig(judge=fake.url, **few)).record.judged
    html = source(show("feature", feature=str(one.latent)))
    assert html.index("Rule:") < html.index("a &lt;b&gt;model&lt;/b&gt;:")
    for text in (
        escaped(visible(one.explanation)),
        "detection with this",
        "detection with the rule",
        "intruder",
    ):
        assert text in html, text
    assert f"the explanation of feature {one.control_latent}" in html
    copy = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(copy)])
    at = pages.opened("feature", {"run": "toy", "feature": str(one.latent)})
    assert source(at).count('class="sae explained"') == html.count('class="sae explained"') > 1
    pages.features_anew(copy / "toy" / "features")
    assert not at.run().exception
    anew = source(at)
    assert "Rule:" not in anew and "a &lt;b&gt;model&lt;/b&gt;:" not in anew, (
        "what was said is of other features"
    )
    index = folder / "toy" / "features" / "judgements.json"
    index.write_text("{")
    at = show("feature", feature=str(one.latent))
    assert "cannot be read" in at.error[0].value.replace("\\", "") and "Rule:" in source(at)
    index.unlink()


def test_a_rule_stands_for_a_label_only_where_there_is_none(show, folder: Path, explained: Explanations):
    store = FeatureStore(folder / "toy" / "features")
    names = explained.names
    assert names, "the toy run has latents with a good rule"
    page = next(latent for latent in range(len(store)) if names.keys() & set(store.row(latent)["neighbours"]))
    named = next(other for other in store.row(page)["neighbours"] if other in names)
    assert automatic("tokens “ the” or “The”") == "rule: “ the” or “The”"
    assert automatic("word beginning with cul-") == "rule: word beginning with cul-"
    rule = escaped(visible(automatic(names[named])))
    assert rule in source(show("feature", feature=str(page)))
    store.labels.set(named, "what somebody called it")
    html = source(show("feature", feature=str(page)))
    assert "what somebody called it" in html and rule not in html
    store.labels.set(named, "")


def test_damage_is_told_and_the_page_is_shown_all_the_same(folder: Path, tmp_path: Path, monkeypatch):
    broken = shutil.copytree(folder, tmp_path / "runs")
    (broken / "toy" / "features" / "explanations.json").write_text("{")
    monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(broken)])
    for page in ("features", "feature"):
        at = pages.opened(page, {"run": "toy"})
        assert "cannot be read" in at.error[0].value.replace("\\", "")
        assert any("sae explain" in code.value for code in at.code)


def test_damaged_rules_are_told_once_on_each_page(show, folder: Path):
    index = folder / "toy" / "features" / "explanations.json"
    whole = index.read_text()
    index.write_text("{")
    try:
        for page, query in (
            ("features", {}),
            ("features", {"view": "clusters"}),
            ("feature", {"feature": "1"}),
        ):
            at = show(page, **query)
            assert len(at.error) == 1, page
    finally:
        index.write_text(whole)


@pytest.mark.parametrize(("discrimination", "told"), [(0.0, True), (0.5, True), (0.95, False), (None, False)])
def test_a_rule_that_fits_another_feature_as_well_or_better_says_so(discrimination: float | None, told: bool):
    score = Estimate(0.5, 0.4, 0.6)
    fits = Estimate(discrimination, None, None)
    one = Explanation(
        1, 1, "a rule", "token", 9, 9, 0.1, 0.5, 4, score, score, score, fits, score, score, score
    )
    assert ("fits feature 4 too" in head([one], {})) == told
