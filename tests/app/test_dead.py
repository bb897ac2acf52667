"""The Dead latents page: its numbers are the report's, causes filter its table, and without a report it says what to do."""

import re
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.dead import controls
from app.session.jobs import Job, Report
from sae.diagnosis.report import DeadReport
from sae.report import dead as dead_report
from sae.report.numbers import number
from sae.runs.run import Run
from tests.app import pages, wounded
from tests.app.pages import metrics, source
from tests.app.worlds import HOSTILE_RUN
from tests.app.wounded import ALWAYS, LOW, TINY


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wounded.make(tmp_path_factory.mktemp("dead") / "runs", world / "runs" / "toy")


@pytest.fixture
def show(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def show(run: str = "wounded", page: str = "dead", **query: str) -> AppTest:
        monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(folder)])
        return pages.opened(page, {"run": run, **query})

    return show


@pytest.fixture
def report(folder: Path) -> DeadReport:
    return wounded.report(folder)


def listed(at: AppTest) -> list[int]:
    return [int(label) for label in at.dataframe[0].value["feature"]]


def test_the_header_s_numbers_are_the_report_s(show, report):
    found, kinds = metrics(show()), report.record.kinds
    assert kinds["dead"] >= 3
    assert {name: found[name] for name in ("dead", "rare", "dense")} == {
        name: f"{kinds[name]:,}" for name in ("dead", "rare", "dense")
    }
    assert found["training text only"] == f"{kinds['training only']:,}"
    lost = [row for row in report.rows("dead") if row["training"] == "revived and lost"]
    assert found["revived and lost"] == str(len(lost))


def test_the_table_lists_the_dead_with_their_evidence(show, report):
    at = show()
    dead = report.rows("dead")
    assert listed(at) == [row["latent"] for row in dead]
    table = at.dataframe[0].value
    assert list(table["cause"]) == [row["cause"] for row in dead]
    assert list(table["margin"]) == pytest.approx([row["margin"] for row in dead])
    assert list(table["positive on"]) == pytest.approx([100 * row["positive_share"] for row in dead])
    assert dict(zip(listed(at), table["cause"], strict=True))[TINY] == "encoder collapsed"


def test_the_first_one_s_evidence_is_told_in_words_and_numbers(show, report):
    at, first = show(), report.rows("dead")[0]
    html = source(at)
    assert first["evidence"][:30] in html.replace("&#x27;", "'")
    assert "nearest to firing" in html
    assert f"{first['latent']}: {first['cause']}" in html


def test_a_cause_lists_its_own_alone_and_another_click_all(show, report):
    at = show()
    at.pills(key="dead cause").set_value("bias too low").run()
    assert set(LOW) <= set(listed(at))
    assert listed(at) == [row["latent"] for row in report.rows("dead") if row["cause"] == "bias too low"]
    at.pills(key="dead cause").set_value(None).run()
    assert len(listed(at)) == report.record.kinds["dead"]


def test_dense_latents_have_a_table_of_their_own(show, report):
    at = show()
    dense = at.dataframe[-1].value
    assert ALWAYS in [int(label) for label in dense["feature"]]
    assert len(dense) == report.record.kinds["dense"]
    assert list(dense["density"]) == pytest.approx([100 * row["density"] for row in report.rows("dense")])


def test_a_run_not_looked_into_says_what_to_run_and_can_be_looked_into_on_the_spot(show, folder):
    at = show(run="new")
    assert at.code[0].value == f"sae dead {folder / 'new'}"
    assert not at.metric
    pages.button(at, "Run it now").click().run()
    pages.settled(at)
    made = DeadReport(folder / "new" / "dead")
    assert metrics(at)["dead"] == f"{made.record.kinds['dead']:,}"
    assert made.record.off_distribution, "the page has the language model read strange text too"
    assert made.record.features_rows == 0
    made_row = made.row(LOW[0])
    assert made_row is not None
    assert made_row["cause"] == "bias too low"


def test_a_run_still_training_says_so(show, folder):
    ignored = shutil.ignore_patterns("sae.*", "dead")
    shutil.copytree(folder / "new", folder / "unfinished", ignore=ignored)
    at = show(run="unfinished")
    assert "has not finished training" in source(at)
    assert at.code[0].value == f"sae resume {folder / 'unfinished'}"


def test_a_dead_feature_s_page_says_why(show, report, folder):
    at = show(page="feature", feature=str(LOW[0]))
    row = report.row(LOW[0])
    assert row is not None
    said = [caption.value.replace("\\", "") for caption in at.caption]
    assert f"bias too low: {row['evidence']}" in said
    shutil.copytree(folder / "wounded/features", folder / "new/features", dirs_exist_ok=True)
    shutil.rmtree(folder / "new/dead", ignore_errors=True)
    at = show(run="new", page="feature", feature=str(LOW[0]))
    said = [caption.value.replace("\\", "") for caption in at.caption]
    assert f"Why: sae dead {folder / 'new'}" in said
    shutil.rmtree(folder / "new/features")


def test_a_run_s_name_is_text_and_nothing_else(show):
    html = source(show(run=HOSTILE_RUN))
    assert "<i>run</i>" not in html
    assert "&lt;i&gt;run&lt;/i&gt; **x** :red[y]" in html


def test_a_report_in_the_making_can_be_stopped_and_leaves_nothing(folder, monkeypatch):
    job: Job[DeadReport]

    def work(report: Report) -> DeadReport:
        class Stopping(Report):
            def __call__(self, share: float, note: str = "") -> None:
                if share > 0:
                    self.job.stop()
                super().__call__(share, note)

        return controls._make(Run(folder / "new"), Stopping(report.job))

    job = Job(work)
    job.thread.join()
    assert job.stopped and job.result is None
    assert not (folder / "new/dead/dead.json").exists()


def test_a_damaged_report_is_one_line(show, folder):
    index = folder / "wounded/dead/dead.json"
    whole = index.read_text()
    index.write_text(whole[:50])
    try:
        at = show()
        assert len(at.error) == 1
        assert "dead" in at.error[0].value and "json" in at.error[0].value
        at = show(page="feature", feature=str(TINY))
        assert len(at.error) == 1, "it is told once, and the rest of the page is there"
        assert f"Feature {TINY}" in pages.text(at) and "Nearest features" in pages.text(at)
    finally:
        index.write_text(whole)


def test_a_report_of_other_weights_is_not_shown_and_can_be_made_anew(show, folder):
    shutil.copytree(folder / "wounded", folder / "other")
    pages.of_other_weights(folder / "other")
    at = show(run="other")
    assert "dead is of other weights than" in at.warning[0].value.replace("\\", "")
    assert not at.metric and at.code[0].value == f"sae dead {folder / 'other'}"
    shutil.rmtree(folder / "other")


def test_bars_and_curves_hold_the_report_s_numbers(report, folder):
    record = report.record
    bars = dead_report.silent(record)
    assert [count for _, count, _ in bars] == list(record.silent.values())
    drawn = dead_report.counts(bars, record.d_sae)
    most = max(record.silent.values())
    assert re.findall(r"--w:([\d.]+)", drawn) == [f"{count / most:.3f}" for count in record.silent.values()]
    assert re.findall(r"<span>([\d,]+)", drawn) == [f"{count:,}" for count in record.silent.values()]
    causes = dead_report.tally(record.dead_by.cause)
    figure = dead_report.bars(causes, record.kinds["dead"])
    assert list(figure.data[0].x) == [count for _, count, _ in causes]
    curves = {curve.title: curve for curve in dead_report.changes(record.changes)}
    assert curves["Bias moved, one latent at a time"].fire == record.changes.bias.fire
    k = record.changes.k
    assert curves[f"k larger than {k.k}"].x == [k.k + extra for extra in k.extra]
    resample = record.changes.resample
    shown = dead_report.what_if(curves["All resampled"], record.kinds["dead"])
    assert re.findall(r"<span>([\d,]+)", shown) == [f"{count:,}" for count in resample.fire]
    some = dead_report.WhatIf("k larger than 2", "k", [3.0, 4.0, 8.0], [1, 5, 5])
    assert re.findall(r"<span>([\d,]+)", dead_report.what_if(some, 5)) == ["1", "5"], "from there on all fire"
    assert len(re.findall("<span>", dead_report.what_if(some, 6))) == 3
    numbers = re.findall(r'<td class="n">([^<]+)', shown)
    assert numbers[0::2] == [number(scale) for scale in resample.scale]
    assert numbers[1::2] == [f"{count:,}" for count in resample.dense]
    log = Run(folder / "wounded").log
    deaths = dead_report.deaths(log, 30)
    lines = {line.name: list(line.y) for line in deaths.data}
    assert lines == {
        "dead now": [row["dead"] for row in log],
        "deaths so far": [row["died"] for row in log],
        "revivals so far": [row["revived"] for row in log],
    }
    older = [{key: row[key] for key in ("step", "dead")} for row in log]
    assert [line.name for line in dead_report.deaths(older, 30).data] == ["dead now"]


def test_bars_are_ordered_and_the_chosen_one_stands_out():
    rows = dead_report.tally({"a": 1, "b": 5, "c": 0}, {"b": "why"})
    assert rows == [("b", 5, "why"), ("a", 1, ""), ("c", 0, "")]
    colors = dead_report.bars(rows, 6, chosen="a").data[0].marker.color
    assert colors[1] != colors[0] == colors[2]


def test_a_remark_is_the_cause_and_its_evidence_or_nothing(report):
    row = report.row(TINY)
    assert row is not None
    assert dead_report.remark(row) == f"encoder collapsed: {row['evidence']}"
    assert dead_report.remark(None) == ""
    assert report.row(ALWAYS)["cause"] is None
    assert dead_report.remark(report.row(ALWAYS)) == ""


def test_a_run_on_files_has_its_report_made_without_a_language_model(world, tmp_path, monkeypatch):
    run = shutil.copytree(world / "runs" / "toy", tmp_path / "toy", ignore=shutil.ignore_patterns("features"))
    pages.resealed(run, source="files")
    monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(tmp_path)])
    at = pages.opened("dead", {"run": "toy"})
    pages.button(at, "Run it now").click().run()
    at = pages.settled(at)
    assert not at.error
    assert not DeadReport(run / "dead").record.off_distribution
