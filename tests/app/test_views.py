"""Each page over real run folders: what it shows, what it says when there is nothing, where its links go."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import streamlit
from streamlit.testing.v1 import AppTest

import app
from sae.features.store import FeatureStore
from tests.app.worlds import DEAD, HOSTILE, HOSTILE_RUN, NEGATIVE

MAIN = Path(app.__file__).with_name("main.py")


@pytest.fixture
def show(runs: Path, monkeypatch: pytest.MonkeyPatch):
    """Open a page: show("features", run="toy"); of another folder with `folder=`."""

    def show(page: str = "runs", folder: Path = runs, **query: str) -> AppTest:
        streamlit.cache_resource.clear()
        monkeypatch.setattr("sys.argv", [str(MAIN), str(folder)])
        at = AppTest.from_file(MAIN, default_timeout=60).run()
        if page != "runs":
            at.switch_page(f"views/{page}.py")
        at.query_params.update(query)
        at.run()
        assert not at.exception, at.exception[0].value
        return at

    return show


class Text(HTMLParser):
    def __init__(self, source: str):
        super().__init__()
        self.parts: list[str] = []
        self.feed(source)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def source(at: AppTest) -> str:
    """All HTML of the page itself."""
    return "\n".join(element.value for element in at.main.get("html"))


def text(at: AppTest) -> str:
    """What that HTML says."""
    return " ".join(Text(source(at)).parts)


def metrics(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def features(at: AppTest) -> list[int]:
    """Numbers of the features in the table."""
    return [int(label) for label in at.dataframe[0].value["feature"]]


def store(runs: Path, run: str = "toy") -> FeatureStore:
    return FeatureStore(runs / run / "features")


def test_runs_lists_every_run_below_the_folder(show):
    table = show().dataframe[0].value
    assert sorted(table["name"]) == sorted([HOSTILE_RUN, "bare", "sweep/unfinished", "toy"])
    state = dict(zip(table["name"], table["state"], strict=True))
    assert (state["toy"], state["sweep/unfinished"]) == ("finished", "step 15 of 30")


def test_runs_shows_a_run_s_own_evaluation(show, runs):
    found = json.loads((runs / "toy" / "eval.json").read_text())
    at = show(run="toy")
    row = at.dataframe[0].value.set_index("name").loc["toy"]
    assert row["FVU"] == pytest.approx(found["estimates"]["fvu"]["value"])
    assert row["CE recovered"] == pytest.approx(100 * found["splice"]["estimates"]["recovered_zero"]["value"])
    assert f"{found['tokens']:,} held-out tokens" in text(at)
    assert len(at.get("plotly_chart")) == 2, "curves, and all runs' FVU against L0"


def test_a_run_without_evaluation_or_features_says_what_to_run(show, runs):
    assert f"sae evaluate {runs / 'bare'}" in [code.value for code in show(run="bare").code]
    at = show("features", run="bare")
    assert at.code[0].value == f"sae features {runs / 'bare'}"
    assert "No features yet" in text(at)
    assert show("feature", run="sweep/unfinished").code[0].value.startswith("sae train … --out")


def test_an_empty_folder_says_what_to_run_on_every_page(show, tmp_path):
    for page in ("runs", "features", "feature"):
        at = show(page, folder=tmp_path)
        assert "No runs yet" in text(at)
        assert at.code[0].value == "sae demo"
        assert not at.error


def test_a_single_run_can_be_shown_by_its_own_folder(show, runs):
    assert list(show(folder=runs / "toy").dataframe[0].value["name"]) == ["toy"]


@pytest.mark.parametrize("page", ["runs", "features", "feature"])
@pytest.mark.parametrize("run", ["nosuch", "../toy", "/etc", "toy/../toy", "**x** <b>:red[y]"])
def test_a_run_that_is_not_there_is_one_line_of_error(show, page, run):
    at = show(page, run=run)
    assert len(at.error) == 1
    plain = at.error[0].value.replace("\\", "")
    assert plain.startswith(f"there is no run '{run}' in")
    assert not at.code


@pytest.mark.parametrize("feature", ["32", "-1", "abc", "1.5", "²", "9" * 5000])
def test_a_feature_that_is_not_there_is_one_line_of_error(show, feature):
    at = show("feature", run="toy", feature=feature)
    assert len(at.error) == 1
    plain = at.error[0].value.replace("\\", "")
    assert plain == f"feature {feature[:40]} does not exist: this run has 0 to 31"
    assert not at.metric


def test_without_a_choice_in_the_url_the_first_of_each_is_shown(show):
    at = show("feature", run="toy")
    assert "Feature 0" in text(at)
    assert show("features").sidebar.selectbox[0].value == HOSTILE_RUN, "the first that has features"


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
    tokens = {row["latent"]: "\n".join(row["peak_tokens"] + row["raised_tokens"]).lower() for row in table}
    having = {letter: [i for i, shown in tokens.items() if letter in shown] for letter in "abcdefghijklmnop"}
    letter = min(having, key=lambda letter: abs(len(having[letter]) - 16))
    assert 0 < len(having[letter]) < 32, "a letter that some features have and others have not"
    at.text_input(key="words").set_value(letter).run()
    assert features(at) == having[letter]

    at.text_input(key="words").set_value("").run()
    at.select_slider(key="density").set_value((0.0, 0.1)).run()
    assert features(at) == [r["latent"] for r in table if r["density"] <= 0.1]

    at.segmented_control(key="state").set_value("dead").run()
    assert not at.dataframe
    assert "No feature is like that" in text(at)


def test_dead_features_are_found_by_their_state(show):
    at = show("features", run=HOSTILE_RUN)
    at.segmented_control(key="state").set_value("dead").run()
    assert features(at) == [DEAD]


def test_a_deep_link_opens_its_feature(show, runs):
    row = store(runs).row(7)
    at = show("feature", run="toy", feature="7")
    assert "Feature 7" in text(at)
    assert metrics(at)["firings"] == f"{row['fired']:,}"
    assert metrics(at)["max"] == f"{row['max']:.3g}"
    assert f"doc {store(runs).strongest(7)[0].document}" in text(at)


def test_neighbours_are_deep_links(show, runs):
    page = source(show("feature", run="toy", feature="7"))
    for neighbour in store(runs).row(7)["neighbours"]:
        assert f'href="feature?run=toy&amp;feature={neighbour}"' in page


def test_one_can_step_through_features(show):
    at = show("feature", run="toy", feature="7")
    following, at_random = at.button[1], at.button[2]
    following.click().run()
    assert (at.query_params["feature"], "Feature 8" in text(at)) == ("8", True)
    at.button[0].click().run()
    assert at.query_params["feature"] == "7"
    at.number_input[0].set_value(31).run()
    assert (at.query_params["feature"], at.button[1].disabled) == ("31", True)
    at_random.click().run()
    assert 0 <= int(at.query_params["feature"]) < 32
    assert not at.error


def test_the_number_of_tokens_around_the_peak_can_be_chosen(show):
    at = show("feature", run="toy", feature="7")
    at.segmented_control(key="around").set_value(0).run()
    whole = source(at).count('<span class="t')
    at.segmented_control(key="around").set_value(16).run()
    assert whole >= source(at).count('<span class="t') > 0


def test_a_dead_feature_has_its_own_page(show):
    at = show("feature", run=HOSTILE_RUN, feature=str(DEAD))
    assert "Never fired" in text(at)
    assert metrics(at)["firings"] == "0"
    assert "Logit lens" in text(at)
    assert "strip" not in source(at)
    assert not at.get("plotly_chart")


def test_a_negative_feature_shows_its_negative_side(show, runs):
    at = show("feature", run=HOSTILE_RUN, feature=str(NEGATIVE))
    assert metrics(at)["positive"] == "0 %"
    assert metrics(at)["min"] == f"−{store(runs).row(NEGATIVE)['max']:.3g}"
    assert "Most negative" in text(at)
    assert 'class="t down peak"' in source(at)
    assert "t up" not in source(at)


def test_hostile_texts_stay_texts(show):
    seen = ""
    for feature in range(8):
        at = show("feature", run=HOSTILE_RUN, feature=str(feature))
        seen += text(at)
        for poison in ("<b>bold", "<img", "<script", "<i>run"):
            assert poison not in source(at)
    assert HOSTILE_RUN in seen
    assert HOSTILE["a"] in seen
    assert HOSTILE["e"] in seen


def test_features_collected_again_show_at_once(show, runs, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(runs / "toy", folder / "toy")
    at = show("feature", folder=folder, run="toy", feature="1")
    path = folder / "toy" / "features"
    table = pq.read_table(path / "features.parquet")
    fired = table.schema.get_field_index("fired")
    pq.write_table(
        table.set_column(fired, table.schema.field(fired), [[4321] * 32]), path / "features.parquet"
    )
    (path / "features.json").write_text((path / "features.json").read_text() + "\n")
    at.run()
    assert metrics(at)["firings"] == "4,321"


def test_damage_is_one_line_of_error_and_only_where_it_is(show, runs, tmp_path):
    folder = tmp_path / "runs"
    for name in ("good", "torn"):
        shutil.copytree(runs / "toy", folder / name)
    (folder / "torn" / "eval.json").write_text("{")
    (folder / "torn" / "features" / "features.parquet").write_bytes(b"no parquet")
    at = show(folder=folder, run="good")
    assert len(at.error) == 1
    assert "eval.json" in at.error[0].value.replace("\\", "")
    assert len(at.dataframe[0].value) == 2
    assert not show("features", folder=folder, run="good").error
    at = show("features", folder=folder, run="torn")
    assert "features.parquet cannot be read" in at.error[0].value.replace("\\", "")


def test_another_run_can_be_chosen_on_every_page_about_one(show):
    for page in ("features", "feature"):
        at = show(page, run="toy")
        box = at.sidebar.selectbox[0]
        assert sorted(box.options) == sorted([HOSTILE_RUN, "bare", "sweep/unfinished", "toy"])
        box.set_value(HOSTILE_RUN).run()
        assert at.query_params == {"run": HOSTILE_RUN}
        assert HOSTILE_RUN in text(at)


def test_links_to_pages_keep_the_choice(show):
    at = show("feature", run="toy", feature="7")
    links = {link.value: link.proto.query_string for link in at.sidebar.get("page_link")}
    assert links == {
        "Runs": "run=toy",
        "Features": "run=toy",
        "Feature": "run=toy&feature=7",
        "Dead latents": "run=toy",
    }
