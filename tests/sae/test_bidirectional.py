"""Latents that fire with both signs, in a toy run of AbsTopK, are those that a brute force counts."""

import numpy as np
import pytest

from activations.errors import ConfigError
from activations.language_model import load
from sae.architectures import AbsTopKConfig
from sae.cli.features import bidirectional_main
from sae.config import RunConfig, TrainConfig
from sae.features.collect import FeaturesConfig
from sae.features.feature import FeatureStore
from sae.features.folder import Bidirectional, bidirectional
from sae.runs.run import Run
from sae.workflows.features import collect_features
from sae.workflows.train import train


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Run:
    """Return a run of AbsTopK on the toy store, with features."""
    cfg = TrainConfig(steps=30, batch=64, lr=3e-3)
    arch = AbsTopKConfig(d_sae=32, k=4)
    out = tmp_path_factory.mktemp("signed") / "run"
    made = train(RunConfig(store=str(world / "store"), arch=arch, train=cfg), out)
    collect_features(
        made, load(str(world / "model")), FeaturesConfig(strongest=6, sampled=10, neighbours=3, batch=64)
    )
    return made


@pytest.fixture(scope="module")
def features(run) -> FeatureStore:
    return FeatureStore(run.path / "features")


@pytest.fixture(scope="module")
def dense(run) -> np.ndarray:
    """Return all latents on all rows, [windows, T, F]; 0 at position 0, which does not count."""
    shards = [run.store.read(number, (run.hook,)) for number in range(len(run.store.shards))]
    codes = [run.sae().encode(s.activations[run.hook]).dense().view(*s.tokens.shape, 32) for s in shards]
    found = np.concatenate([code.numpy() for code in codes])
    found[:, 0] = 0
    return found


@pytest.mark.parametrize(("share", "firings"), [(0.0, 1), (0.1, 10), (0.3, 40), (0.5, 10)])
def test_the_latents_are_those_a_brute_force_finds_most_balanced_first(features, dense, share, firings):
    expected = []
    for latent in range(32):
        values = dense[..., latent]
        one = Bidirectional(latent, int((values > 0).sum()), int((values < 0).sum()))
        rarer = min(one.positive, one.negative)
        if rarer >= firings and rarer >= share * (one.positive + one.negative):
            expected.append(one)
    found = bidirectional(features, share, firings)
    assert sorted(found) == expected
    assert len(found) > 3 or share == 0.5
    shares = [one.rarer_share for one in found]
    assert shares == sorted(shares, reverse=True)


def test_either_sign_has_its_own_strongest_examples_with_peaks_of_that_sign(features, dense):
    elsewhere = 0
    for latent, *_ in bidirectional(features):
        for sign in (1, -1):
            examples = features.strongest(latent, sign)
            peaks = [sign * example.values[example.peak] for example in examples]
            best = np.sort((sign * dense[..., latent]).max(1))[::-1][: len(examples)]
            np.testing.assert_allclose(peaks, best, rtol=1e-4)
            assert min(peaks) > 0
            elsewhere += sum(example.peak != np.abs(example.values).argmax() for example in examples)
    assert elsewhere  # windows where the latent is stronger in the other sign are among them


def test_the_table_s_peak_tokens_are_of_the_stronger_sign(features):
    for one in bidirectional(features):
        row = features.row(one.latent)
        examples = features.strongest(one.latent, 1 if row["max"] > -row["min"] else -1)
        assert row["peak_tokens"] == [
            features.vocabulary[example.ids[example.peak]] for example in examples[:5]
        ]


def test_a_run_without_negative_codes_has_none(world):
    assert bidirectional(FeatureStore(world / "runs/toy/features"), least_share=0.0, least_firings=0) == []


def test_the_command_lists_latents_with_shares_and_the_tokens_of_either_sign(
    run, features, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    assert bidirectional_main([str(run.path), "--show", "2"]) == 0
    out = capsys.readouterr().out
    found = bidirectional(features)
    assert f"{len(found)} of 32 latents" in " ".join(out.split())
    lines = [line for line in out.splitlines() if "%" in line and "│" in line]
    assert len(lines) == 2
    for line, one in zip(lines, found, strict=False):
        latent, positive, negative, up, down = (cell.strip() for cell in line.strip("│").split("│"))
        assert int(latent) == one.latent
        assert positive == f"{one.positive / (one.positive + one.negative):.1%}"
        assert float(positive[:-1]) + float(negative[:-1]) == pytest.approx(100, abs=0.11)
        for cell, sign in ((up, 1), (down, -1)):
            example = features.strongest(one.latent, sign)[0]
            assert cell.startswith(example.tokens[example.peak].strip())


@pytest.mark.parametrize(
    ("flags", "named"),
    [(("--least-share", "0.6"), "least_share = 0.6"), (("--least-firings", "0"), "least_firings = 0")],
)
def test_bounds_out_of_range_are_named(run, flags, named):
    with pytest.raises(ConfigError, match=named):
        bidirectional_main([str(run.path), *flags])
