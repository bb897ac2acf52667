"""`sae export html`, `sae labels` and `sae features --effects`: what they write, what they say of mistakes."""

import shutil
from pathlib import Path

import pytest

from sae.cli.main import main
from sae.features.effects import load_effect
from sae.features.feature import FeatureStore
from sae.features.latent_labels import Label


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Path:
    shutil.copytree(world / "runs/toy", tmp_path / "toy")
    return tmp_path / "toy"


def test_features_become_one_file(run, tmp_path, capsys):
    out = tmp_path / "out" / "f.html"
    assert main(["export", "html", str(run), "--features", "7", "3", "--out", str(out)]) == 0
    assert out.read_text().count("<article") == 2
    assert "2 of 32 features" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--features", "32", "--out", "x.html"], "feature 32 does not exist"),
        (["--features", "1", "--out", "."], "name a file"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, tmp_path, capsys, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "html", str(run), *args]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "x.html").exists()
    assert main(["export", "nosuch"]) == 2


def test_labels_go_to_a_file_and_back(run, tmp_path, capsys):
    labels = FeatureStore(run / "features").labels
    labels.set(7, "cats", "and dogs")
    assert main(["labels", str(run), "--save", str(tmp_path / "l.csv")]) == 0
    labels.set(7, "")
    assert main(["labels", str(run), "--load", str(tmp_path / "l.csv")]) == 0
    assert labels.all() == {7: Label("cats", "and dogs")}
    assert main(["labels", str(run)]) == 2
    assert "--save" in capsys.readouterr().err


def test_effects_are_measured_once_and_kept(run, capsys):
    settings = ["--strongest", "4", "--sampled", "10", "--neighbours", "3", "--logits", "3", "--batch", "64"]
    assert main(["features", str(run), "--effects", "7", "3", *settings]) == 0
    features = FeatureStore(run / "features")
    kept = features.path / "effects" / "7.json"
    stamp = kept.stat().st_mtime_ns
    assert load_effect(features, 3) is not None
    assert main(["features", str(run), "--effects", "7", *settings]) == 0
    assert kept.stat().st_mtime_ns == stamp
