"""All pages over real run folders: what they show, what they say when there is nothing, where their links lead."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from streamlit.testing.v1 import AppTest

from sae.features.effects import Effect, MeasuredExample, SideEffect, Word, save_effect
from sae.features.latent_labels import Label
from sae.report.numbers import number
from tests import tiny
from tests.app.pages import button, features, metrics, of_other_weights, source, store, text
from tests.app.worlds import DEAD, HOSTILE, HOSTILE_RUN, NEGATIVE, RUNS


def test_runs_lists_every_run_below_the_folder(show):
    table = show().dataframe[0].value
    assert sorted(table["name"]) == RUNS
    state = dict(zip(table["name"], table["state"], strict=True))
    assert (state["toy"], state["sweep/unfinished"]) == ("finished", "step 15 of 30")


def test_runs_shows_a_run_s_own_evaluation(show, runs):
    found = json.loads((runs / "toy" / "eval.json").read_text())
    at = show(run="toy")
    row = at.dataframe[0].value.set_index("name").loc["toy"]
    assert row["FVU"] == pytest.approx(found["estimates"]["fvu"]["value"])
    assert row["CE recovered"] == pytest.approx(100 * found["splice"]["estimates"]["recovered_zero"]["value"])
    assert f"{found['tokens']:,} held-out tokens" in text(at)
    assert len(at.get("plotly_chart")) == 3, "curves, norms of the codes, and all runs' FVU against L0"


def test_a_run_without_evaluation_or_features_says_what_to_run(show, runs):
    assert f"sae evaluate {runs / 'bare'}" in [code.value for code in show(run="bare").code]
    at = show("features", run="bare")
    assert at.code[0].value == f"sae features {runs / 'bare'}"
    assert "No features yet" in text(at)
    assert (
        show("feature", run="sweep/unfinished").code[0].value == f"sae resume {runs / 'sweep' / 'unfinished'}"
    )


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
    button(at, "Next").click().run()
    assert (at.query_params["feature"], "Feature 8" in text(at)) == ("8", True)
    button(at, "Previous").click().run()
    assert at.query_params["feature"] == "7"
    at.number_input[0].set_value(31).run()
    assert (at.query_params["feature"], button(at, "Next").disabled) == ("31", True)
    button(at, "Random").click().run()
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
    tiny.sealed_again(path)
    at.run()
    assert metrics(at)["firings"] == "4,321"


def test_a_feature_s_partners_and_effect_are_the_library_s(show, runs, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(runs / "toy", folder / "toy")
    features = store(folder)
    latent = next(latent for latent in range(32) if features.partners(latent))
    word = Word(HOSTILE["e"], 0.25)
    example = MeasuredExample(1, 2, -3.5, [0.5], ["a", HOSTILE["l"], "c"], 1, [0.0, 0.0, -0.75])
    side = SideEffect([-0.1234], [1], [0.5], [word], [word], 0.4321, -0.21, [example])
    save_effect(features, Effect(latent, None, side))
    at = show("feature", folder=folder, run="toy", feature=str(latent))
    for partner in features.partners(latent):
        assert f"{partner.count:,}" in text(at)
        assert number(partner.pmi) in text(at)
        assert f'href="feature?run=toy&amp;feature={partner.latent}"' in source(at)
    assert "negative values" in text(at)
    for shown in ("−0.123 nats", "0.5 nats", "Pearson +0.432, Spearman −0.210", HOSTILE["e"], HOSTILE["l"]):
        assert shown in text(at)
    assert 'data-tip="−0.75"' in source(at)
    for poison in ("<img", "<script"):
        assert poison not in source(at)
    assert "Measure" not in [button.label for button in at.button]


@pytest.mark.parametrize("page", ["features", "feature", "steering"])
def test_features_of_other_weights_are_not_shown(show, runs, tmp_path, page):
    folder = tmp_path / "runs"
    shutil.copytree(runs / "toy", folder / "toy")
    of_other_weights(folder / "toy")
    at = show(page, folder=folder, run="toy")
    assert "is of other weights than" in at.error[0].value and not at.metric
    assert at.code[0].value == f"sae features {folder / 'toy'}"


def name_it(at: AppTest, label: str, note: str) -> None:
    """Fill the form for a label and a note."""
    next(box for box in at.text_input if box.label == "Label").set_value(label)
    next(box for box in at.text_area if box.label == "Note").set_value(note)


def test_a_form_drawn_before_another_visitor_saved_a_label_does_not_replace_it(show, runs, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(runs / "toy", folder / "toy")
    at, labels = show("feature", folder=folder, run="toy", feature="7"), store(folder).labels
    labels.set(7, "theirs", "seen by another")
    button(at, "Save").click().run()
    assert labels.get(7) == Label("theirs", "seen by another")
    assert "meanwhile: it is 'theirs' now" in at.warning[0].value.replace("\\", "")
    name_it(at, "mine", "")
    labels.set(7, "theirs again", "")
    button(at, "Save").click().run()
    assert labels.get(7) == Label("theirs again") and "'mine'" in at.warning[0].value.replace("\\", "")
    assert next(box for box in at.text_input if box.label == "Label").value == "theirs again"
    name_it(at, "ours", "")
    button(at, "Save").click().run()
    assert labels.get(7) == Label("ours") and not at.warning


def test_a_label_is_kept_beside_the_features_and_shown_everywhere(show, runs, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(runs / "toy", folder / "toy")
    neighbour = store(folder).row(7)["neighbours"][0]
    at = show("feature", folder=folder, run="toy", feature=str(neighbour))
    name_it(at, HOSTILE["e"], HOSTILE["l"])
    button(at, "Save").click().run()
    assert store(folder).labels.get(neighbour) == Label(HOSTILE["e"], HOSTILE["l"])
    assert HOSTILE["e"] in text(at) and HOSTILE["l"] in text(at)
    assert HOSTILE["e"] in text(show("feature", folder=folder, run="toy", feature="7"))
    at = show("features", folder=folder, run="toy")
    assert at.dataframe[0].value["label"][neighbour] == HOSTILE["e"]
    at.text_input(key="features find").set_value("ONERROR").run()
    assert features(at) == [neighbour]


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
    assert "features.parquet is damaged" in at.error[0].value.replace("\\", "")


def test_another_run_can_be_chosen_on_every_page_about_one(show):
    for page in ("features", "feature"):
        at = show(page, run="toy")
        box = at.sidebar.selectbox[0]
        assert sorted(box.options) == RUNS
        box.set_value(HOSTILE_RUN).run()
        assert at.query_params == {"run": HOSTILE_RUN}
        assert HOSTILE_RUN in text(at)


def test_links_to_pages_keep_the_choice(show):
    at = show("feature", run="toy", feature="7")
    links = {link.value: link.proto.query_string for link in at.sidebar.get("page_link")}
    others = dict.fromkeys(
        ("Runs", "Features", "Your text", "Find", "Dead latents", "Evidence", "Compare", "Activations"),
        "run=toy",
    )
    assert links.pop("Tour") == "run=toy&tour=1"
    assert links == {**others, **dict.fromkeys(("Feature", "Steering"), "run=toy&feature=7")}
