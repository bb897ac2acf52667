"""The Features page over real run folders: its table, search, comparison and map."""

import shutil
from urllib.parse import parse_qsl

import pyarrow.parquet as pq
import pytest
import torch

from sae.report.numbers import number
from sae.runs.run import Run
from tests import tiny
from tests.app.pages import features, source, store, text
from tests.app.worlds import DEAD, HOSTILE_RUN


def test_features_shows_all_of_them_with_their_numbers(show, runs):
    at = show("features", run="toy")
    shown, table = at.dataframe[0].value, store(runs).table
    assert features(at) == list(range(32))
    assert list(shown["density"]) == pytest.approx([100 * d for d in table["density"].to_pylist()])
    assert list(shown["max"]) == table["max"].to_pylist()
    assert "32 of 32 features" in at.caption[0].value


def test_features_can_be_filtered_by_token_state_and_density(show, runs):
    at = show("features", run="toy")
    table = store(runs).table.to_pylist()
    texts = store(runs).texts.to_pylist()
    word = next(
        w for text in texts for w in text.split("\n")[0].split() if 1 <= sum(w in t for t in texts) < 32
    )
    at.text_input(key="features find").set_value(word.upper()).run()
    assert sorted(features(at)) == [latent for latent, text in enumerate(texts) if word in text]
    assert all("examples" in where for where in at.dataframe[0].value["found in"])

    at.text_input(key="features find").set_value("").run()
    at.select_slider(key="features density").set_value((0.0, 0.1)).run()
    assert features(at) == [r["latent"] for r in table if r["density"] <= 0.1]

    at.segmented_control(key="features state").set_value("dead").run()
    assert not at.dataframe
    assert "No features match" in text(at)


def test_what_is_looked_for_is_in_the_address_and_comes_back_from_it(show, runs):
    at = show("features", run="toy", compare="1")
    at.text_input(key="features find").set_value("a & b").run()
    at.segmented_control(key="features state").set_value("live").run()
    at.select_slider(key="features density").set_value((2e-6, 0.1)).run()
    at.segmented_control(key="features view").set_value("clusters").run()
    asked = {"find": "a & b", "state": "live", "density": "2e-06,0.1", "view": "clusters"}
    assert dict(at.query_params) == {"run": "toy", "compare": "1", **asked}
    at.sidebar.selectbox[0].set_value(HOSTILE_RUN).run()
    assert dict(at.query_params) == {"run": HOSTILE_RUN, **asked}
    at.switch_page("runs/page.py").run()
    links = [link.proto.query_string for link in at.get("page_link") if link.value == "Features"]
    assert [dict(parse_qsl(link)) for link in links] == [{"run": HOSTILE_RUN, **asked}] * 2
    at = show("features", run="toy", **asked)
    assert at.text_input(key="features find").value == "a & b"
    assert at.segmented_control(key="features state").value == "live"
    assert at.select_slider(key="features density").value == (2e-6, 0.1)
    assert at.segmented_control(key="features view").value == "clusters"
    at.query_params.clear()  # as the browser's button back does
    at.query_params.update(run="toy")
    at.run()
    assert at.text_input(key="features find").value == ""
    assert features(at) == list(range(32))


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"state": "**x**"}, "state = '**x**' must be one of all, live"),
        ({"view": "<b>"}, "view = '<b>' must be one of histograms, clusters"),
        ({"density": "1,0.1"}, "density = '1,0.1' must be two of 0, 1e-06"),
        ({"density": "0.3,1"}, "density = '0.3,1' must be two of 0, 1e-06"),
        ({"density": "0.1"}, "density = '0.1' must be two of 0, 1e-06"),
    ],
)
def test_filters_that_cannot_be_are_one_line_of_error(show, query, says):
    at = show("features", run="toy", **query)
    assert len(at.error) == 1
    assert at.error[0].value.replace("\\", "").startswith(says)
    assert not at.dataframe


def test_dead_features_are_found_by_their_state(show):
    at = show("features", run=HOSTILE_RUN)
    at.segmented_control(key="features state").set_value("dead").run()
    assert features(at) == [DEAD]


def test_features_compared_show_their_numbers_and_what_they_share(show, runs):
    features = store(runs)
    one = next(latent for latent in range(32) if features.partners(latent))
    partner = features.partners(one)[0]
    at = show("features", run="toy", compare=f"{one},{partner.latent},99,x")
    rows = Run(runs / "toy").sae().W_dec[[one, partner.latent]]
    cosine = float(torch.cosine_similarity(rows[0], rows[1], dim=0))
    assert source(at).count('class="sae card"') == 2
    for latent in (one, partner.latent):
        assert f"{features.row(latent)['fired']:,}" in text(at)
    assert f"{cosine:.3f}".replace("-", "−") in text(at)
    assert f"{partner.count:,}" in text(at) and number(partner.pmi) in text(at)


def test_the_map_has_a_point_for_every_feature_in_it_and_a_run_without_one_has_histograms(
    show, runs, tmp_path
):
    at = show("features", run="toy")
    assert at.segmented_control(key="features view").options == [
        "Histograms",
        "Map by cluster",
        "Map by density",
    ]
    assert len(at.get("plotly_chart")) == 3
    at.segmented_control(key="features view").set_value("densities").run()
    assert len(at.get("plotly_chart")) == 1
    folder = tmp_path / "runs"
    shutil.copytree(runs / "toy", folder / "toy")
    path = folder / "toy" / "features" / "features.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["map_x", "map_y", "cluster"]), path)
    tiny.sealed_again(path.parent)
    at = show("features", folder=folder, run="toy")
    assert at.segmented_control(key="features view").options == ["Histograms"]
