"""The Evidence page: it shows what trust.json holds, the Features and Feature pages show stability, and without it says what to do."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from activations.disk import files
from activations.errors import RunError
from activations.streaming.folder import StreamConfig
from sae.probing.absorption import ABSORPTION, AbsorptionRecord, LetterAbsorption, Whose
from sae.report import trust as trust_report
from sae.runs.run import Run
from sae.runs.trust import Trust
from sae.trust.plan import TrustConfig, plan_trust
from sae.workflows.trust import trust
from tests.app import pages
from tests.app.pages import metrics, source


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run with evidence, `toy`, and one without, `bare`."""
    made = tmp_path_factory.mktemp("evidence")
    for name in ("toy", "bare"):
        shutil.copytree(world / "runs" / "toy", made / name)
    trust(Run(made / "toy"), TrustConfig(windows=0))
    return made


@pytest.fixture
def show(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def show(page: str = "evidence", run: str = "toy", **query: str) -> AppTest:
        monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(folder)])
        return pages.opened(page, {"run": run, **query})

    return show


def test_it_shows_every_measure_beside_its_controls_and_what_can_be_said(show, folder: Path):
    record, at = Trust(Run(folder / "toy")).record, show()
    html, told = source(at), metrics(at)
    assert list(record.measures) == ["fvu", "cosine"]
    for text in trust_report.conclusions(record):
        assert text.replace("'", "&#x27;") in html
    for name in record.controls:
        assert trust_report.title(name) in html
    beaten = sum(against.verdict == "beats" for against in record.measures["fvu"].controls.values())
    assert told["FVU: beats"] == f"{beaten} of 5"
    assert any("Only 2 held-out documents" in warning.value.replace("\\", "") for warning in at.warning)


@pytest.mark.parametrize("run", ["toy", "bare"])
def test_absorption_is_shown_with_and_without_controls(show, folder: Path, run: str):
    assert "Absorption of first letters" not in source(show(run=run))
    own = LetterAbsorption("q", 40, 30, 0.9, [7, 11], 0.8, 0.25, 0.125)
    control = replace(own, fraction=0.0625, full=0.03125)
    letters: dict[Whose, list[LetterAbsorption]] = {"sae": [own], "random sae": [control]}
    record = AbsorptionRecord(1, Run(folder / run).digest, "hook", {}, 400, letters, complete=True)
    files.write_sealed(folder / run / ABSORPTION, asdict(record))
    at = show(run=run)
    html = source(at)
    assert any("absorbed" in caption.value and "random SAE" in caption.value for caption in at.caption)
    for text in (
        "Absorption of first letters",
        "0.250",
        "0.125",
        "0.062",
        "7 11",
    ):
        assert text in html
    assert html.index("Evidence") < html.index("Absorption of first letters") < html.index("By letter")
    (folder / run / ABSORPTION).write_text("{")
    assert any("rm " in code.value for code in show(run=run).code)
    (folder / run / ABSORPTION).unlink()


def test_controls_are_not_among_the_runs(show):
    assert set(show().selectbox(key="run box").options) == {"toy", "bare"}


def test_without_evidence_it_says_which_command_finds_some(show):
    at = show(run="bare")
    assert "No evidence yet" in source(at)
    assert any("sae trust" in code.value for code in at.code)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"start_from": "runs/other"}, "started from another SAE"),
        ({"stream": asdict(StreamConfig()), "store": ""}, "was trained on a stream"),
    ],
)
def test_a_run_whose_controls_cannot_be_trained_says_why_and_names_no_command(
    show, folder, tmp_path, monkeypatch, config, why
):
    run = shutil.copytree(folder / "bare", tmp_path / "bare")
    pages.resealed(run, config=config)
    monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(tmp_path)])
    at = pages.opened("evidence", {"run": "bare"})
    assert f"{why}" in pages.text(at) and "its controls would need" in pages.text(at)
    assert not at.code
    with pytest.raises(RunError, match=why):
        plan_trust(Run(run), TrustConfig())


def test_the_features_page_has_stability_as_column_filter_and_histogram(show, folder: Path):
    stability = Trust(Run(folder / "toy")).stability
    at = show("features")
    assert list(at.dataframe[0].value["stability"]) == pytest.approx(stability.tolist())
    assert "Stability" in source(at)
    stable = show("features", state="stable").dataframe[0].value
    assert [int(latent) for latent in stable["feature"]] == [
        i for i, value in enumerate(stability) if value >= 0.7
    ]
    without = show("features", run="bare", state="stable").dataframe[0].value
    assert "stability" not in without
    assert len(without) == 32, "a choice that means nothing for a run is left aside"


def test_the_feature_page_has_a_badge(show, folder: Path):
    value = float(Trust(Run(folder / "toy")).stability[3])
    word = "stable" if value >= 0.7 else "not stable"
    assert f"{word} over seeds: {value:.2f}" in source(show("feature", feature="3"))
    assert "over seeds" not in source(show("feature", run="bare", feature="3"))


def test_damage_is_told_with_the_command_that_mends_it(folder: Path, show, tmp_path: Path, monkeypatch):
    broken = shutil.copytree(folder, tmp_path / "runs")
    (broken / "toy" / "trust" / "trust.json").write_text("{")
    monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(broken)])
    at = pages.opened("evidence", {"run": "toy"})
    assert "cannot be read" in at.error[0].value.replace("\\", "")
    assert any("sae trust" in code.value for code in at.code)
    at = pages.opened("features", {"run": "toy"})
    assert "cannot be read" in at.error[0].value.replace("\\", "")
    assert len(at.dataframe[0].value) == 32, "the table is shown all the same"
