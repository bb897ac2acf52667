"""What the Compare page shows agrees with the comparison; settings and measures stand side by side."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sae.features.feature import FeatureStore
from sae.report import compare as compare_report
from sae.report import runs as runs_report
from sae.report.render import columns
from sae.runs.run import Run
from sae.workflows.compare import match_runs

MEASURES = ("cosine", "activation")


@pytest.fixture(scope="module")
def found(runs: Path) -> dict:
    """Return the comparison of the toy run (32 latents) with the signed run (24 latents)."""
    return match_runs(Run(runs / "toy"), Run(runs / "signed"), near=0.4)


@pytest.mark.parametrize("measure", MEASURES)
def test_kinds_are_counted_as_the_comparison_names_them(found, measure):
    latents = found.by(measure).latents
    counts = compare_report.counts(found, measure)
    assert counts["shared"] + counts["merged"] + counts["lost"] == 32
    assert counts["shared"] + counts["split"] + counts["new"] == 24
    assert counts["lost"] == Counter(latents["first"].kind)["lost"]
    assert len([kind for kind, count in counts.items() if count]) >= 2


@pytest.mark.parametrize("measure", MEASURES)
def test_bars_hold_every_latent_of_either_run_once(found, measure):
    bars, edges = compare_report.histogram(found, measure), compare_report.bin_edges(found, measure)
    for side, size in (("first", 32), ("second", 24)):
        latents = found.by(measure).latents[side]
        assert sum(column.sum() for column in bars[side].values()) == size
        for kind, column in bars[side].items():
            chosen = [s for s, k in zip(latents.similarity, latents.kind, strict=True) if k == kind]
            assert column.tolist() == np.histogram(chosen, edges)[0].tolist()
    figure = compare_report.similarities(edges, bars, found.near)
    above = sum(sum(y for y in trace.y if y > 0) for trace in figure.data)
    below = sum(sum(y for y in trace.y if y < 0) for trace in figure.data)
    assert (above, below) == (32, -24)
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == list(dict.fromkeys(
        [*bars["first"], *bars["second"]]
    ))  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("kind", compare_report.KINDS)
def test_a_kind_s_latents_are_listed_with_what_is_known_of_both(found, measure, kind, runs):
    tables = [FeatureStore(runs / name / "features").table for name in ("toy", "signed")]
    table = compare_report.listing(found, measure, kind, *tables)
    side = compare_report.KINDS[kind][0]
    mine, theirs = tables if side == "first" else tables[::-1]
    latents = found.by(measure).latents[side]
    rows = table.to_pylist()
    assert sorted(row["feature"] for row in rows) == [i for i, k in enumerate(latents.kind) if k == kind]
    assert [row["similarity"] for row in rows] == sorted((row["similarity"] for row in rows), reverse=True)
    for place, row in enumerate(rows):
        latent = row["feature"]
        assert row["similarity"] == latents.similarity[latent]
        assert row["nearest"] == latents.nearest[latent]
        partner = latents.partner[latent]
        assert row["partner"] == (None if partner < 0 else partner)
        assert row["density"] == pytest.approx(100 * mine["density"][latent].as_py())
        assert row["nearest density"] == pytest.approx(100 * theirs["density"][row["nearest"]].as_py())
        assert set(row["nearest fires on"]) == set(theirs["peak_tokens"][row["nearest"]].as_py())
        pair = compare_report.pair(table, kind, place)
        assert pair == ((latent, row["nearest"]) if side == "first" else (row["nearest"], latent))
    labels = compare_report.labelled(table)["feature"].to_pylist()
    assert [int(label) for label in labels] == [row["feature"] for row in rows]


def test_runs_without_features_are_listed_without_them(found):
    table = compare_report.listing(found, "cosine", "lost", None, None)
    assert table.column_names == ["feature", "similarity", "nearest", "partner", "partner similarity"]


def test_the_similarity_of_a_pair_is_told_where_it_is_known(found):
    latents = found.cosine.latents["first"]
    said = compare_report.similarity(found, 5, latents.nearest[5])
    assert f"decoder cosine {latents.similarity[5]:.3g}".replace("-", "−") in said
    nothing = copy.deepcopy(found)
    for measure in MEASURES:
        for side in ("first", "second"):
            for who in ("nearest", "partner"):
                getattr(nothing.by(measure).latents[side], who)[:] = [-1] * len(latents.nearest)
    assert compare_report.similarity(nothing, 5, 6) == ""


@pytest.mark.parametrize("measure", MEASURES)
def test_numbers_are_the_summary_s(found, measure):
    summary = found.by(measure).summary
    said = {name: value for name, value, _ in compare_report.numbers(found, measure)}
    assert said["one to one"] == f"{summary.one_to_one['mean']:.3f}"
    assert said["nearest, other run"] == f"{summary.nearest['second']['mean']:.3f}"
    assert said["mutually nearest"] == str(summary.mutual["count"])
    assert "near: 0.4 or more · absolute similarities" in compare_report.basis(found)


def test_only_settings_that_differ_are_listed(runs):
    records = {name: Run(runs / name).record for name in ("toy", "signed", "bare")}
    rows = dict(runs_report.differing(records))
    assert rows["architecture"] == ["topk", "abstopk", "topk"]
    assert rows["d sae"] == ["32", "24", "32"]
    assert rows["k"] == ["4", "3", "4"]
    assert not {"lr", "steps", "store", "hook point"} & set(rows)
    assert runs_report.differing({"toy": records["toy"], "bare": records["bare"]}) == []
    other = copy.deepcopy(records["toy"])
    other.config["train"]["extra"] = 3
    assert dict(runs_report.differing({"toy": records["toy"], "other": other})) == {"extra": ["–", "3"]}


def test_measures_stand_side_by_side_with_a_dash_for_none(runs):
    found = [Run(runs / name).evaluation for name in ("toy", "signed")]
    rows = {label: values for label, _, values in runs_report.side_by_side([found[0], None, found[1]])}
    for label, values in rows.items():
        lines = [{e.label: e.value for e in runs_report.estimates(one)}[label] for one in found]
        assert values == [lines[0], "–", lines[1]]
    assert {"FVU", "L0", "dead"} <= set(rows)
    assert runs_report.side_by_side([None, None]) == []


def test_a_table_of_columns_shows_names_and_values_as_they_are():
    made = columns(["<i>run</i>", "b"], [("<b>k</b>", 'why "so"', ["1", "<script>"])])
    assert "<i>" not in made and "<b>" not in made and "<script" not in made
    assert "&lt;script&gt;" in made and "&lt;i&gt;run" in made
