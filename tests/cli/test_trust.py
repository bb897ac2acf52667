"""`sae trust`: what it prints and writes, that it goes on after a signal, and what it refuses in one line."""

import json
import re
import signal
from pathlib import Path

from sae.runs.run import Run
from sae.runs.trust import Trust
from tests.cli.commands import Server, contents


def test_it_tells_the_cost_stops_at_a_signal_goes_on_and_says_what_it_found(
    sae: Server, run: Path, tmp_path: Path
):
    page = tmp_path / "evidence.html"
    planned = sae("trust", run, "--plan")
    assert re.search(
        r"5 SAEs to train \(.*for about \d+ \w+ at the speed of the run itself, into", planned.out
    )
    assert not (run / "trust").exists()
    begun = sae.start("trust", run, "--windows", "2")
    begun.when(lambda: (run / "trust" / "seed-1" / "run.json").exists())
    begun.kill(signal.SIGTERM)
    stopped = begun.wait()
    assert stopped.code == 143, stopped.err
    assert "stopped; run the same command to continue from here" in stopped.err
    kept = contents(run / "trust" / "frozen-decoder")
    assert "sae.json" in kept
    ended = sae("trust", run, "--windows", "2", "--html", page)
    assert ended.code == 0, ended.err
    assert "frozen-decoder" not in ended.out.splitlines()[0], "what is finished is not trained again"
    assert contents(run / "trust" / "frozen-decoder") == kept
    told = " ".join(ended.out.split())
    for text in ("fraction of variance unexplained", "KL(unchanged", "soft-frozen decoder", "smallest reliable difference",
                 "FVU: the run falls short of PCA by", "Stability over 3 seeds:", "Only 2 held-out documents"):  # fmt: skip
        assert text in told, text
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads((run / "trust" / "trust.json").read_text())["windows"] == 2
    assert len(Trust(Run(run)).stability) == 32
    assert "all controls are trained already" in sae("trust", run, "--plan").out
    saved = sae("labels", run, "--save", tmp_path / "labels.csv")
    assert saved.code == 0, saved.err
    assert (tmp_path / "labels.csv").read_text().splitlines()[0] == "feature,label,note,stability"


def test_mistakes_are_one_line(sae: Server, run: Path, tmp_path: Path):
    assert "seeds = 2 must be at least 3" in sae("trust", run, "--seeds", "2").complaint
    assert "is a folder: name a file" in sae("trust", run, "--html", tmp_path).complaint
    (run / "sae.json").unlink()
    assert "is not finished" in sae("trust", run).complaint
    assert not (run / "trust").exists()


def test_planted_features_are_judged_beside_controls(sae: Server, tmp_path: Path):
    ended = sae(
        "synthetic", "topk", "--arch.d-sae", "12", "--train.steps", "5", "--train.batch", "16", "--controls"
    )
    assert ended.code == 0, ended.err
    told = " ".join(ended.out.split())
    assert "not recovered: it has found" in told
    for name in ("frozen decoder", "soft frozen decoder", "frozen encoder", "random dictionary"):
        assert name in told
