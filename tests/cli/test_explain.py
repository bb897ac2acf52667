"""`sae explain`: what it prints and writes, that it goes on after a signal, and what it refuses in one line."""

import json
import shutil
import signal
from pathlib import Path

from sae.features.explanations import Explanations
from sae.features.feature import FeatureStore
from sae.features.judgements import judgements_of
from tests import fake_judge
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


def test_a_model_is_asked_after_its_cost_is_told_and_stands_beside_the_rules(sae: Server, run: Path):
    few = ("--judge-model", "fake", "--judge-latents", "3", "--judge-tokens", "6", "--judge-texts", "8")
    with fake_judge.running() as fake:
        told = sae("plan", "explain", run, *few, "--price-in", "2", "--price-out", "8")
        assert told.code == 0, told.err
        assert "tokens in" in told.out and "money" in told.out and "nothing has been sent" in told.out
        assert sae("explain", run, *FEW).code == 0 and fake.requests == 0
        asked = sae("explain", run, *FEW, "--judge", fake.url, *few)
        assert asked.code == 0, asked.err
        out = " ".join(asked.out.split())
        for text in ("fake explained 3 of 3 latents", "another latent's", "intruder", "could not be read"):
            assert text in out, text
        calls = fake.requests
        assert calls and sae("explain", run, *FEW, "--judge", fake.url, *few).code == 0
        assert fake.requests == calls
        again = json.loads(sae("plan", "explain", run, *few, "--json").out)
        assert again["tokens_in"] == 0 and again["calls"] == again["kept"] == calls
        found = judgements_of(FeatureStore(run / "features"))
        assert found is not None and len(found.record.judged) == 3
        fake.key = "secret"
        refused = sae("explain", run, *FEW, "--judge", fake.url, *few, "--judge-seed", "7").complaint
        assert "refuses with status 401" in refused and "--judge-key-env" in refused
    assert "--judge-model NAME" in sae("explain", run, "--judge", "http://localhost:1/v1").complaint


def test_mistakes_are_one_line(sae: Server, run: Path):
    assert "above = 1.5 must be at least 0 and below 1" in sae("explain", run, "--above", "1.5").complaint
    assert "--judge-seed has no effect without --judge" in sae("explain", run, "--judge-seed", "1").complaint
    assert "no latent fires 9999 times" in sae("explain", run, "--least-firings", "9999").complaint
    shutil.rmtree(run / "features")
    complaint = sae("explain", run).complaint
    assert "no finished features" in complaint and f"sae features {run}" in complaint
