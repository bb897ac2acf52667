"""`sae demo` from end to end, with the toy model and text in the place of the embedded ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from activations import demo_assets, embeddings
from activations.errors import ConfigError, ModelError
from sae.architectures import AbsTopKConfig
from sae.cli.evaluate import demo_main
from sae.diagnosis.report import DeadReport
from sae.features.explanations import explanations_of
from sae.features.feature import FeatureStore
from sae.features.meaning import kept_meanings
from sae.runs.run import Run
from sae.workflows import demo, training
from sae.workflows.compare import kept
from sae.workflows.demo import Demo, _run_paths
from sae.workflows.train import train
from tests import letters, tiny

SMALL = [
    "--tokens",
    "4000",
    "--steps",
    "20",
    "--width",
    "32",
    "--k",
    "4",
    "--second",
    "16",
    "--hook",
    tiny.HOOK,
    "--windows",
    "4",
]


@pytest.fixture(autouse=True)
def toy(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched; work goes on in an empty folder."""
    texts = [
        json.loads(line)["text"] for line in (world / "text.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    monkeypatch.setattr(demo_assets, "model_folder", lambda: world / "model")
    monkeypatch.setattr(demo_assets, "documents", lambda: iter(texts))
    letters.in_place_of_words(monkeypatch)
    monkeypatch.chdir(tmp_path)


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_it_ends_with_a_finished_run_its_results_and_how_to_open_the_app(capsys: pytest.CaptureFixture[str]):
    assert demo_main([*SMALL, "--name", "toy"]) == 0
    run = Run("runs/toy")
    assert run.finished
    assert run.evaluation is not None
    assert {"fvu", "l0"} <= run.evaluation.estimates.keys()
    assert run.evaluation.splice is not None
    assert "recovered_zero" in run.evaluation.splice.estimates
    assert len(FeatureStore("runs/toy/features")) == 32
    assert explanations_of(FeatureStore("runs/toy/features")) is not None
    assert kept_meanings(FeatureStore("runs/toy/features")) is not None
    assert DeadReport("runs/toy/dead").record.d_sae == 32
    out = capsys.readouterr().out
    assert "fraction of variance unexplained" in out
    assert "fraction of variance unexplained" in out
    assert out.startswith("stages: harvest, ") and out.rstrip().endswith("sae app runs")


def test_a_second_smaller_sae_with_signed_latents_is_there_to_compare(capsys: pytest.CaptureFixture[str]):
    assert demo_main([*SMALL, "--name", "toy"]) == 0
    run, second = Run("runs/toy"), Run("runs/toy-signed")
    assert isinstance(second.config.arch, AbsTopKConfig) and second.config.arch.d_sae == 16
    assert (run.config.train.steps, second.config.train.steps) == (20, 7)
    assert second.finished and second.evaluation is not None and second.evaluation.splice is not None
    assert len(FeatureStore("runs/toy-signed/features")) == 16
    assert DeadReport("runs/toy-signed/dead").record.d_sae == 16
    comparison = kept(run, second)
    assert comparison is not None and len(comparison.cosine.latents["second"].kind) == 16
    assert "/compare?run=toy&other=toy-signed" in capsys.readouterr().out
    alone = train(run.config, "runs/alone")
    assert alone.sae().state_dict().keys() == run.sae().state_dict().keys()
    assert all(
        torch.equal(alone.sae().state_dict()[name], tensor) for name, tensor in run.sae().state_dict().items()
    )


def test_more_windows_are_measured_in_a_demo_that_is_finished():
    assert demo_main([*SMALL, "--second", "0", "--name", "toy", "--windows", "2"]) == 0
    few = Run("runs/toy").evaluation
    assert demo_main([*SMALL, "--second", "0", "--name", "toy", "--windows", "3"]) == 0
    more = Run("runs/toy").evaluation
    assert few and more and few.splice and more.splice
    assert (few.splice.windows, more.splice.windows) == (2, 3)
    assert demo_main([*SMALL, "--second", "0", "--name", "toy", "--windows", "2"]) == 0
    assert Run("runs/toy").evaluation == more, "fewer are not measured again"
    assert demo_main([*SMALL, "--second", "0", "--name", "toy", "--windows", "100000"]) == 0
    measured = Path("runs/toy/eval.json").stat().st_mtime_ns
    assert demo_main([*SMALL, "--second", "0", "--name", "toy", "--windows", "100000"]) == 0
    assert Path("runs/toy/eval.json").stat().st_mtime_ns == measured, "no more windows are to be had"


def test_without_a_second_there_is_one_run(capsys: pytest.CaptureFixture[str]):
    assert demo_main([*SMALL, "--second", "0", "--name", "toy"]) == 0
    assert [path.name for path in Path("runs").iterdir()] == ["toy"]
    assert "/compare" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tries/toy", "./toy", "toy/"])
def test_a_name_with_a_slash_names_two_folders(name: str):
    cfg = Demo(name=name)
    first, second = _run_paths(cfg)
    assert first == Path("runs") / name
    assert second == first.with_name("toy-signed")


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"k": 3000}, "--second at least 3000"),
        ({"second": 16}, "k = 32 is above second = 16"),
        ({"second": -1}, "second = -1"),
        ({"width": 16}, "width = 16"),
        ({"k": 0}, "k = 0"),
        ({"name": ".."}, "name"),
        ({"windows": 0}, "windows = 0 must be at least 1"),
        ({"windows": -1}, "windows = -1 must be at least 1"),
        ({"steps": 0}, "steps = 0 must be at least 1"),
        ({"tokens": 0}, "tokens = 0 must be at least 1"),
    ],
)
def test_what_a_demo_cannot_do_is_refused_before_it_harvests(options: dict[str, Any], fact: str):
    with pytest.raises(ConfigError, match=re.escape(fact)):
        Demo(**options)
    assert Demo(k=3000, second=0).k == 3000


@pytest.mark.parametrize(
    ("module", "stage"),
    [
        (demo, "harvest_store"), (training.checkpoints, "save"), (demo, "evaluate"), (demo, "collect_features"),
        (demo, "explain"), (demo, "diagnose_run"), (demo, "keep"),
    ],
)  # fmt: skip
def test_interrupted_in_any_stage_it_goes_on(module: Any, stage: str, monkeypatch: pytest.MonkeyPatch):
    """Each stage is interrupted at its end; the second call does the rest."""
    whole = getattr(module, stage)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        whole(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, stage, interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo_main([*SMALL, "--name", "toy"])
    assert demo_main([*SMALL, "--name", "toy"]) == 0
    assert kept(Run("runs/toy"), Run("runs/toy-signed")) is not None


def test_again_it_does_nothing_anew(tmp_path: Path):
    demo_main([*SMALL, "--name", "toy"])
    before = stamps(tmp_path)
    assert demo_main([*SMALL, "--name", "toy"]) == 0
    assert stamps(tmp_path) == before


def test_other_settings_get_a_name_of_their_own_and_share_what_they_can(tmp_path: Path):
    demo_main(SMALL)
    (store,) = Path("stores").iterdir()
    before = stamps(store)
    changed = [*SMALL, "--width", "48"]
    assert demo_main(changed) == 0
    assert [path.name for path in Path("stores").iterdir()] == [store.name]
    assert stamps(store) == before
    assert sorted(Run(path).config.arch.d_sae for path in Path("runs").iterdir()) == [16, 32, 48]


def test_without_the_embeddings_it_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def unreachable(texts: object) -> None:
        raise ModelError("word embeddings could not be fetched")

    monkeypatch.setattr(embeddings, "of_texts", unreachable)
    assert demo_main([*SMALL, "--name", "toy"]) == 0
    assert "word embeddings could not be fetched" in caplog.text
    assert DeadReport("runs/toy/dead").record.d_sae == 32
