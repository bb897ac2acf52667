"""`sae explain`: what it prints and writes, that it goes on after a signal, and what it refuses in one line."""

import shutil
import signal
from pathlib import Path

from sae.features.explanations import Explanations
from sae.features.feature import FeatureStore
from tests.cli.commands import Server, contents

FEW = ("--least-firings", "3", "--controls", "8")


def test_it_stops_at_a_signal_goes_on_and_says_what_it_found(sae: Server, run: Path):
    begun = sae.start("explain", run, *FEW)
    begun.when(lambda: list((run / "features" / "explaining").glob("*/*.safetensors")))
    begun.kill(signal.SIGTERM)
    stopped = begun.wait()
    assert stopped.code in (0, 143), stopped.err
    before = {
        name: data for name, data in contents(run).items() if "expla" not in name and ".lock" not in name
    }
    ended = sae("explain", run, *FEW, "--show", "3")
    assert ended.code == 0, ended.err
    told = " ".join(ended.out.split())
    for text in ("latents", "random directions", "shuffled firings", "F1", "discrimination", "sensitivity", "Kinds of rules:",
                 "The explanations with the largest F1", "have an F1 of at least .5", "fire too rarely"):  # fmt: skip
        assert text in told, text
    assert {name: data for name, data in contents(run).items() if "expla" not in name} == before
    found = Explanations(FeatureStore(run / "features"))
    assert found.record.config["controls"] == 8
    again = sae("explain", run, *FEW, "--show", "0")
    assert again.code == 0 and "largest F1" not in again.out and "encode" not in again.err


def test_mistakes_are_one_line(sae: Server, run: Path):
    assert "above = 1.5 must be at least 0 and below 1" in sae("explain", run, "--above", "1.5").complaint
    assert "no latent fires 9999 times" in sae("explain", run, "--least-firings", "9999").complaint
    shutil.rmtree(run / "features")
    complaint = sae("explain", run).complaint
    assert "no finished features" in complaint and f"sae features {run}" in complaint
