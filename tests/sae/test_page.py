"""A feature's HTML file and notebook card hold everything known about it, fetch nothing and run nothing."""

import re
import shutil
from html.parser import HTMLParser

import pytest

from activations.errors import RunError
from activations.language_model import load
from sae.features.effects import EffectConfig, measure_effect, save_effect
from sae.features.feature import FeatureStore, export_html
from sae.report.numbers import number
from sae.runs.run import Run
from tests import tiny
from tests.app import worlds
from tests.app.worlds import DEAD, HOSTILE, HOSTILE_RUN, NEGATIVE

VOID = {"meta", "br", "img", "link"}


class Elements(HTMLParser):
    """The tags of an HTML page, their attributes, and its text."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    return worlds.make(tmp_path_factory.mktemp("page") / "runs", world / "runs" / "toy")


@pytest.fixture(scope="module")
def features(world, runs) -> FeatureStore:
    """Return the hostile run's features with a hostile label and a measured effect."""
    features = FeatureStore(runs / HOSTILE_RUN / "features")
    features.labels.set(7, HOSTILE["e"], HOSTILE["l"])
    run = Run(world / "runs/toy")
    model = load(str(world / "model"))
    save_effect(features, measure_effect(model, run.sae(), features, run.hook, 7, EffectConfig(3, 3)))
    return features


def test_a_file_holds_what_is_known_about_each_feature(features, tmp_path):
    path = export_html(features, [7, NEGATIVE, DEAD], tmp_path / "f.html", HOSTILE_RUN)
    page = Elements(path.read_text())
    assert not page.open, "every element is closed"
    for latent in (7, NEGATIVE, DEAD):
        assert f"Feature {latent} " in page.text
    row, effect = features.row(7), features.feature(7).effect
    assert f"firings{row['fired']:,}" in page.text
    assert number(row["max"]) in page.text
    assert f"{number(effect.positive.kl[0])} nats" in page.text
    assert number(features.row(NEGATIVE)["min"]) in page.text
    assert "Never fired" in page.text
    assert page.tags.count("svg") == 2
    assert len(re.findall(r"<article", path.read_text())) == 3


def test_nothing_in_it_is_fetched_or_run(features, tmp_path):
    source = export_html(features, [7, NEGATIVE, DEAD], tmp_path / "f.html", HOSTILE_RUN).read_text()
    page = Elements(source)
    assert not {"script", "img", "link", "iframe", "b onerror", "i"} & set(page.tags) - {"i"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert not re.search(r"url\(|@import|https?://", page.text.replace(HOSTILE["t"], ""))
    assert "default-src 'none'" in source
    for text in (HOSTILE["e"], HOSTILE["l"], HOSTILE_RUN):
        assert text in page.text, "shown as it is"
        assert text not in source


def test_a_file_without_such_a_feature_is_not_written(features, tmp_path):
    with pytest.raises(RunError, match="feature 32 does not exist"):
        export_html(features, [7, 32], tmp_path / "f.html", "toy")
    assert not list(tmp_path.iterdir())


def test_a_notebook_shows_a_feature_and_its_parts_are_at_hand(features):
    feature = features.feature(7)
    page = Elements(feature._repr_html_())
    assert not page.open
    assert "Feature 7 " in page.text
    assert HOSTILE["e"] in page.text
    assert feature.row == features.row(7)
    assert [e.position for e in feature.strongest] == [e.position for e in features.strongest(7)]
    assert feature.histogram.counts.sum() == feature.row["fired"]
    assert len(feature.bands) == len(features.bands(7))
    assert features.feature(NEGATIVE).most_negative
    assert repr(feature).endswith(", 7)")


def test_a_folder_from_before_the_map_and_the_partners_can_still_be_read(world, tmp_path):
    import json

    import pyarrow.parquet as pq

    shutil.copytree(world / "runs/toy/features", tmp_path / "features")
    table = pq.read_table(tmp_path / "features/features.parquet")
    new = ["map_x", "map_y", "cluster", "cofiring", "cofiring_counts", "cofiring_pmi"]
    pq.write_table(table.drop_columns(new), tmp_path / "features/features.parquet")
    about = json.loads((tmp_path / "features/features.json").read_text())
    del about["sha256"]["texts.parquet"], about["clusters"], about["map"]
    (tmp_path / "features/features.json").write_text(json.dumps(about))
    tiny.sealed_again(tmp_path / "features")
    old = FeatureStore(tmp_path / "features")
    assert old.partners(7) == []
    assert old.texts is None
    assert old.clusters == []
    assert "Fires together" not in old.feature(7)._repr_html_()


def test_texts_are_what_stands_around_the_strongest_peaks(world):
    features = FeatureStore(world / "runs/toy/features")
    for latent in range(len(features)):
        lines = [
            "".join(e.tokens[max(e.peak - 10, 0) : e.peak + 11]).lower()
            for sign in (1, -1)
            for e in features.strongest(latent, sign)[:5]
        ]
        assert features.texts[latent].as_py() == "\n".join(lines)
