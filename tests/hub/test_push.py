"""`sae push`: what is sent comes back the same and tells nothing about this machine."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from activations.errors import HubError
from sae.features.explanations import explanations_of
from sae.features.feature import FeatureStore
from sae.features.judgements import judgements_of, save_judgements
from sae.features.meaning import WORDS, kept_meanings, save_meanings
from sae.hub import HubName
from sae.hub.push import stage, without_paths
from sae.report import model_card
from sae.rules.explaining import ExplainConfig
from sae.runs.run import Run
from sae.workflows.explain import explain
from tests.hub.conftest import contents
from tests.hub.fake_hub import TOKEN


@pytest.fixture
def run(world, tmp_path):
    """Return the toy run with a list of features."""
    run = Path(shutil.copytree(world / "runs/toy", tmp_path / "runs/toy"))
    FeatureStore(run / "features").lists.add("mine", {1: "", 2: "odd"})
    (run / ".env").write_text("HF_TOKEN=hf_secret")
    return run


def make(folder):
    folder.mkdir()
    return folder


def test_a_run_that_was_sent_comes_back_the_same_with_its_card(hub, asking, world, run, tmp_path):
    ended = asking("push", run, "hf:me/mine", "--features", "--yes", token=TOKEN)
    assert ended.code == 0, ended.err
    assert not hub.stray
    sent = hub.models["me/mine"].files
    size = sum(len(data) for name, data in sent.items() if name != ".gitattributes")
    assert f"{len(sent) - 1} files, {size / 1e3:.1f} kB" in ended.out
    assert {
        "run.json",
        "sae.json",
        "sae.safetensors",
        "eval.json",
        "README.md",
        "densities.svg",
    } <= sent.keys()
    assert not [name for name in sent if "checkpoint" in name or ".env" in name or "log" in name]
    back = asking("import", "hf:me/mine", "--out", "back")
    assert back.code == 0, back.err
    there, here = Run(run), Run(tmp_path / "back")
    assert here.evaluation == there.evaluation
    assert contents(tmp_path / "back")["sae.safetensors"] == contents(run)["sae.safetensors"]
    assert contents(tmp_path / "back")["lists.json"] == contents(run)["lists.json"]
    assert contents(tmp_path / "back/features").keys() == contents(run / "features").keys()


def test_no_path_of_this_machine_is_sent(hub, asking, world, run, tmp_path):
    """Paths are neither in settings, nor in the record of an import, nor in the card."""
    about = json.loads((run / "run.json").read_text())
    about.pop("checksum")
    about["imported"] = {
        "path": "C:\\Users\\me\\sae", "facts": {"dataset_path": "/home/me/secret/text.jsonl"}, "format": "x",
        "notes": ["trained on windows of 8 tokens, those of /home/me/my secret/stores/x have 16"],
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(about))
    assert str(world) in about["config"]["store"] and str(world) in about["model"]
    assert asking("push", run, "hf:me/mine/deep/er", "--features", "--yes", token=TOKEN).code == 0
    sent = hub.models["me/mine"].files
    assert "deep/er/sae.safetensors" in sent
    for name, data in sent.items():
        for secret in (str(world), str(tmp_path), "/home/me", "C:\\\\Users", "hf_secret", TOKEN):
            assert secret.encode() not in data, name
    told = json.loads(sent["deep/er/run.json"])
    assert told["model"] == "model"
    assert told["config"]["store"] == ""
    assert told["imported"]["facts"]["dataset_path"] == "text.jsonl"
    assert told["imported"]["notes"] == ["trained on windows of 8 tokens, those of x have 16"]


def test_paths_that_do_not_look_like_one_are_not_sent_either(run, tmp_path, monkeypatch):
    """Names of the hub, which look alike, stay."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clients/acme/model").mkdir(parents=True)
    (tmp_path / "clients/acme/text").mkdir()
    about = json.loads((run / "run.json").read_text())
    del about["checksum"]
    about["imported"] = {"path": "clients/acme/secret-sae", "format": "x", "notes": []}
    text = {"dataset": "clients/acme/text"}
    about["config"] |= {
        "start_from": "clients/acme/run",
        "stream": {"model": "clients/acme/model", "text": text},
    }
    about["model"] = "clients/acme/model"
    (run / "run.json").write_text(json.dumps(about))
    stage(Run(run), HubName("me/mine"), make(tmp_path / "sent"), features=False)
    sent = contents(tmp_path / "sent")
    assert not [name for name, data in sent.items() if b"acme" in data]
    told = json.loads(sent["run.json"])
    assert (told["imported"]["path"], told["config"]["start_from"]) == ("secret-sae", "run")
    about["imported"]["path"] = "hf:me/sae"
    about["config"]["stream"] = {"model": "me/model", "text": {"dataset": "me/text"}}
    about["model"] = "me/model"
    (run / "run.json").write_text(json.dumps(about))
    stage(Run(run), HubName("me/mine"), make(tmp_path / "named"), features=False)
    told = json.loads(contents(tmp_path / "named")["run.json"])
    assert (told["imported"]["path"], told["model"]) == ("hf:me/sae", "me/model")
    assert told["config"]["stream"] == {"model": "me/model", "text": {"dataset": "me/text"}}


@pytest.mark.parametrize("name", ["labels.json", "features/notes.txt", "features/more"])
def test_what_a_link_leads_to_outside_of_the_run_is_not_sent(run, tmp_path, name):
    (tmp_path / "private").mkdir()
    (tmp_path / "private/key").write_text("secret")
    linked = run / name
    linked.symlink_to(tmp_path / "private" if name.endswith("more") else tmp_path / "private/key")
    with pytest.raises(HubError, match="link that leads out") as caught:
        stage(Run(run), HubName("me/mine"), make(tmp_path / "sent"), features=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("/home/me/my sae", "my sae"), ("~/sae", "sae"), ("../me/sae", "sae"), ("file:///home/me/sae", "sae"),
        ("files:/home/me/rows", "rows"), ("\\\\host\\me\\sae", "sae"), ("runs/a, /home/me/runs/b", "runs/a, b"),
        ("hf:me/sae/deep", "hf:me/sae/deep"), ("/", "/"),
        ("https://huggingface.co/me", "https://huggingface.co/me"), ("half / half of a/b", "half / half of a/b"),
    ],
)  # fmt: skip
def test_paths_are_replaced_by_their_last_part_wherever_they_stand(text, sent):
    assert without_paths({"a": [text]}) == {"a": [sent]}


def test_what_was_measured_on_features_still_belongs_to_them_when_they_are_sent(run, tmp_path):
    """The model of the toy run is a path, so that features.json is sent with other bytes."""
    there = FeatureStore(run / "features")
    explained = explain(Run(run), ExplainConfig(controls=2, least_firings=3))
    judged = {
        "sae_sha256": Run(run).digest, "model": "m", "config": {}, "too_few": [], "scores": {}, "answers": 0, "unread": 0,
        "tokens_in": 0, "tokens_out": 0,
    }  # fmt: skip
    save_judgements(there, [], judged)
    words = np.full((len(there), WORDS), -1, np.int32)
    words[3, 0] = 0
    save_meanings(there, ["cat"], np.full((1, 4), 0.3, np.float32), words)
    (tmp_path / "sent").mkdir()
    stage(Run(run), HubName("me/mine"), tmp_path / "sent", features=True)
    here = FeatureStore(tmp_path / "sent/features")
    assert here.record.model == "model" and here.digest != there.digest
    found, said, meanings = explanations_of(here), judgements_of(here), kept_meanings(here)
    assert found is not None and found.texts == explained.texts
    assert said is not None and said.record.model == "m"
    assert meanings is not None and meanings.words == ["cat"] and meanings.of_latent[3, 0] == 0


def test_features_of_a_model_of_the_hub_are_sent_as_they_are(run, tmp_path):
    """Names of clusters are tokens, which may look like a path."""
    about = json.loads((run / "features/features.json").read_text())
    about.pop("checksum")
    (run / "features/features.json").write_text(
        json.dumps(about | {"model": "me/model", "clusters": [["/usr/bin"]]})
    )
    (tmp_path / "sent").mkdir()
    stage(Run(run), HubName("me/mine"), tmp_path / "sent", features=True)
    assert contents(tmp_path / "sent/features") == contents(run / "features")


def test_the_card_has_the_numbers_and_its_front_matter_is_yaml(hub, asking, run):
    assert asking("push", run, "hf:me/mine", "--yes", "--private", token=TOKEN).code == 0
    assert hub.models["me/mine"].private
    text = hub.models["me/mine"].files["README.md"].decode()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "sae-workbench"
    assert {"sae", "topk"} <= {*front["tags"]}
    assert "base_model" not in front
    estimates = Run(run).evaluation.estimates
    assert f"| {estimates['fvu'].value:.4g} | {estimates['fvu'].low:.4g} to" in text
    assert "sae import hf:me/mine --out" in text
    assert "![Histogram of densities](densities.svg)" in text
    assert hub.models["me/mine"].files["densities.svg"].startswith(b"<svg")


REFUSED = {
    "no token": (["RUN", "hf:me/mine", "--yes"], None, "hf auth login"),
    "nobody asked": (["RUN", "hf:me/mine"], TOKEN, "give --yes"),
    "somebody's": (["RUN", "hf:other/mine", "--yes"], TOKEN, "may not use other/mine (status 403)"),
    "no name": (["RUN", "me/mine", "--yes"], TOKEN, "is not a place to send to"),
    "revision": (["RUN", "hf:me/mine@main", "--yes"], TOKEN, "is not a place to send to"),
    "no run": (["nowhere", "hf:me/mine", "--yes"], TOKEN, "no run at nowhere"),
    "no features": (["BARE", "hf:me/mine", "--yes", "--features"], TOKEN, "has no features to send"),
    "unfinished": (["UNFINISHED", "hf:me/mine", "--yes"], TOKEN, "is not finished"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_sent_is_one_line_and_nothing_is_sent(hub, asking, run, case):
    args, token, said = REFUSED[case]
    if "BARE" in args:
        shutil.rmtree(run / "features")
    if "UNFINISHED" in args:
        (run / "sae.json").unlink()
    args = [str(run) if arg in ("RUN", "BARE", "UNFINISHED") else arg for arg in args]
    assert said in asking("push", *args, token=token).complaint
    assert not hub.models


def test_a_silent_hub_is_told(asking, run):
    line = asking("push", run, "hf:me/mine", "--yes", token=TOKEN, url="http://127.0.0.1:9").complaint
    assert "does not answer" in line


def test_what_broke_off_is_sent_again_by_the_same_command(hub, asking, run):
    hub.faults["upload"] = [("status", 403)]
    assert asking("push", run, "hf:me/mine", "--yes", token=TOKEN).code == 2
    assert "sae.safetensors" not in hub.models["me/mine"].files
    assert asking("push", run, "hf:me/mine", "--yes", token=TOKEN).code == 0
    assert "sae.safetensors" in hub.models["me/mine"].files


def test_the_card_quotes_what_would_be_markup():
    made = model_card.Card(
        "hf:me/x", "topk", "a`b", "evil: [x]\n- y", "h|`", 8, {"k": 3, "aux": None}, [("a|b", "1", "<b>")], "on 3", None, False,
    )  # fmt: skip
    text = model_card.markdown(made)
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "evil: [x]\n- y"
    assert "| a\\|b | 1 | \\<b\\> |" in text
    assert "aux" not in text


def test_the_histogram_counts_every_latent_once():
    import re

    made = model_card.densities([0.0, 0.0, 1.0, 0.5, 1e-3, 1.1e-3], 10_000)
    assert sum(int(n) for n in re.findall(r"<title>([\d,]+) latents", made)) == 4
    assert "2 of 6 latents never fired" in made
    assert model_card.densities([], 0).startswith("<svg")
