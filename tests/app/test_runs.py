"""The Runs page: several runs side by side, the measure plotted against L0, and an unfinished training."""

import gc
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from activations.disk import files
from app.session import runs as session
from sae.report import run_charts
from sae.runs.run import Run
from tests.app.pages import source, text
from tests.app.worlds import HOSTILE_RUN


def figures(at) -> list[dict]:
    return [json.loads(element.proto.spec) for element in at.get("plotly_chart")]


def test_several_runs_are_set_side_by_side_as_the_url_says(show, runs):
    at = show(**{"run": "toy", "with": ["toy", "signed"]})
    page = text(at)
    assert "Settings that differ" in page and "abstopk" in page
    found = [
        json.loads((runs / name / "eval.json").read_text())["estimates"]["l0"]["value"]
        for name in ("signed", "toy")
    ]
    lines = page.split("L0")[-1].split()
    assert lines[:2] == [f"{value:.3g}" for value in found]
    logs = [[json.loads(line) for line in (runs / name / "log.jsonl").open()] for name in ("signed", "toy")]
    fvu = figures(at)[0]["data"][:2]
    assert [line["name"] for line in fvu] == ["signed", "toy"]
    assert [line["y"] for line in fvu] == [[row["fvu"] for row in log] for log in logs]


def test_the_switch_leads_there_and_back(show):
    at = show(run="toy")
    at.toggle(key="together").set_value(True).run()
    assert "No runs chosen" in text(at)
    assert "with" in at.query_params
    at.toggle(key="together").set_value(False).run()
    assert "with" not in at.query_params
    assert "Evaluation" in text(at)


def test_a_run_put_beside_others_that_is_not_there_is_one_line(show):
    at = show(**{"with": ["toy", "<b>nosuch"]})
    (warning,) = at.warning
    assert "There is no run '<b>nosuch' in" in warning.value.replace("\\", "") and not at.error
    assert "toy" in text(at)


@pytest.mark.parametrize("measure", run_charts.HEIGHTS)
def test_the_points_are_the_runs_own_evaluations(show, runs, measure):
    at = show(run="toy")
    at.segmented_control(key="height").set_value(measure).run()
    points = {
        name: (x, y)
        for trace in figures(at)[-1]["data"]
        for name, x, y in zip(trace["customdata"], trace["x"], trace["y"], strict=True)
    }
    assert {*points} == {"toy", "signed", HOSTILE_RUN}
    for name, point in points.items():
        found = json.loads((runs / name / "eval.json").read_text())
        both = {**found["estimates"], **found["splice"]["estimates"]}
        assert point == pytest.approx((both["l0"]["value"], both[measure]["value"]))


def test_a_training_under_way_says_how_far_it_is_and_one_that_rests_that_it_does(show, runs, tmp_path):
    folder = Path(shutil.copytree(runs / "sweep" / "unfinished", tmp_path / "runs" / "going")).parent
    log = folder / "going" / "log.jsonl"
    for age, said in ((0, "left"), (1000, "seems to have stopped: nothing logged for 17 min")):
        os.utime(log, (time.time() - age,) * 2)
        at = show(folder=folder)
        bar = at.get("progress")[0].proto
        assert bar.value == 50
        assert "step 15 of 30" in bar.text
        assert said in bar.text


def test_names_of_runs_stay_text_side_by_side(show):
    at = show(**{"with": [HOSTILE_RUN, "signed"]})
    assert "<i>run" not in source(at)
    assert HOSTILE_RUN in text(at)
    assert all("<i>" not in (trace.get("name") or "") for figure in figures(at) for trace in figure["data"])


def test_of_a_log_that_grows_one_reading_is_kept(runs: Path, tmp_path: Path):
    """Watching a training for a day must not fill the memory with old readings of its log."""
    shutil.copytree(runs / "toy", tmp_path / "watched")
    run, path = Run(tmp_path / "watched"), tmp_path / "watched" / "log.jsonl"
    for step in range(10_000, 10_005):
        with path.open("a") as log:
            log.write(json.dumps({"step": step}) + "\n")
        assert session.log(run)[-1] == {"step": step}
    assert session.log(run) is session.log(run)
    gc.collect()
    # other lists hold objects of other tests whose comparison fails
    read = [
        found
        for found in gc.get_objects()
        if type(found) is list and any(type(row) is dict and row == {"step": 10_000} for row in found)
    ]
    assert len(read) == 1


@pytest.mark.parametrize("page", ["runs", "features", "feature"])
def test_a_run_that_diverged_says_so_on_its_pages(show, runs, tmp_path, page):
    bad = shutil.copytree(runs / "toy", tmp_path / "runs" / "bad")
    rows = [json.loads(line) for line in (bad / "log.jsonl").open()]
    rows[-1]["fvu"] = 6e15
    (bad / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    at = show(page, tmp_path / "runs", run="bad")
    assert len(at.warning) == 1
    assert "6e+15" in at.warning[0].value.replace("\\", "") and "0.003" in at.warning[0].value.replace(
        "\\", ""
    )
    assert not show(page, run="toy").warning


def test_the_scaling_laws_of_a_run_s_sweep_are_shown_and_a_damaged_file_is_one_line(show, runs, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(runs / "toy", folder / "grid" / "toy")
    digest = json.loads((folder / "grid" / "toy" / "sae.json").read_text())["weights_file_sha256"]
    law = {
        "constants": {
            name: {"value": -0.5, "low": -0.6, "high": -0.4}
            for name in ("alpha", "beta_k", "beta_n", "gamma", "zeta", "eta")
        },
        "resampled": [[-0.5] * 6] * 3,
        "spread": 0.01,
        "runs": 1,
    }
    run = {
        "run": "toy", "sae_sha256": digest, "width": 32, "l0": 4.0, "fvu": 0.3, "tokens": 1920, "flops": 1e7,
        "converged": False, "joint": True, "frontier": False,
    }  # fmt: skip
    fit = {
        "architecture": "topk", "hook": "blocks.1.<b>", "d_model": 16, "runs": [run], "joint": law, "compute": [],
        "left_out": ["L(C): all runs are of one length"],
    }  # fmt: skip
    path = folder / "grid" / "scaling.json"
    files.write_sealed(path, {"format": 1, "fits": [fit]})
    at = show(folder=folder)
    page = text(at)
    assert "Scaling laws of topk, blocks.1.<b>" in page.replace("\\", "").replace("&lt;", "<").replace(
        "&gt;", ">"
    )
    assert any("1 of 1 runs had not converged" in caption.value.replace("\\", "") for caption in at.caption)
    assert figures(at)[-1]["data"][-1]["y"] == [0.3]
    assert not at.warning
    files.write_sealed(path, {"format": 1, "fits": [{**fit, "runs": [{**run, "sae_sha256": "0" * 64}]}]})
    assert "other weights than toy now has" in show(folder=folder).warning[0].value
    files.write_sealed(path, {"format": 1, "fits": [{**fit, "joint": {**law, "resampled": []}}]})
    at = show(folder=folder)
    assert len(at.error) == 1
    assert "a law lacks constants or resamples" in at.error[0].value.replace("\\", "")
    assert "Scaling laws" not in text(at)


def test_the_sparsity_of_effects_is_shown_with_the_evaluation(show, runs, tmp_path):
    folder = tmp_path / "runs"
    run = Path(shutil.copytree(runs / "toy", folder / "toy"))
    assert "Sparsity of effects" not in text(show(folder=folder))
    group = {
        "sparsity": {"value": 0.2, "low": 0.1, "high": 0.3}, "quantiles": {"0.5": 0.2}, "size": {"value": 1e-3, "low": 0, "high": 1},
        "values": [0.1, 0.3], "less_than": None,
    }  # fmt: skip
    control = {**group, "values": [0.5, 0.4], "less_than": {"value": 0.25, "low": 0.2, "high": 0.3}}
    effects = {
        "latents": [3, 5], "live": 30, "firings": 4, "positions": 16, "vocabulary": 258, "windows": 2,
        "groups": {"latents": group, "random-directions": control},
    }  # fmt: skip
    evaluation = files.read_json(run / "eval.json")
    files.write_sealed(run / "eval.json", {**evaluation, "effects": effects})
    at = show(folder=folder)
    assert "Sparsity of effects" in text(at)
    assert "2 of 30 live latents at 4 places" in text(at)
    said = [caption.value.replace("\\", "") for caption in at.caption]
    assert (
        "Effects of latents are sparser than those of the random directions, by 25 % of all logits (20 % to 30 %)."
        in said
    )
    assert [line["x"] for line in figures(at)[1]["data"]] == [[0.1, 0.3], [0.4, 0.5]]


def test_a_damaged_log_is_reported_and_takes_nothing_but_its_steps_and_curves(show, runs, tmp_path):
    for name in ("toy", "signed"):
        shutil.copytree(runs / name, tmp_path / name)
    shutil.copytree(runs / "sweep" / "unfinished", tmp_path / "unfinished")
    for name in ("toy", "unfinished"):
        (tmp_path / name / "log.jsonl").write_text('{"step": 1}\n{\n')
    at = show(folder=tmp_path, run="toy")
    assert len(at.error) == 2 and "line 2 of" in at.error[0].value.replace("\\", "")
    assert list(at.dataframe[0].value["state"]) == ["finished", "finished", "unfinished"]
    assert "its log is damaged" in text(at) and "Evaluation" in text(at)
    at = show(folder=tmp_path, **{"run": "toy", "with": ["toy", "signed"]})
    assert {line["name"] for line in figures(at)[0]["data"]} == {"signed"}
    assert "Silent on" not in text(show("dead", tmp_path, run="toy")), (
        "there is no report, and no fault of the log's"
    )
    assert not show("feature", tmp_path, run="toy").error
