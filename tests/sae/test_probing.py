"""Probes and latents found from examples: planted concepts, shuffled labels, formulas written out in float64."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.stats import mannwhitneyu
from torch import Tensor

from activations import example_activations
from activations.errors import ConfigError, LabelError, RunError, StoreError
from activations.labelled_texts import labelled
from activations.language_model import load
from sae.architectures import TopK
from sae.probing import latents, probes, score
from sae.probing.splits import points, split
from sae.runs.run import Run
from sae.workflows.find import (
    FindConfig,
    LatentPooling,
    _pool,
    find,
    load_monitor,
    monitor_texts,
    pooled,
    save_monitor,
)
from sae.workflows.probe import ProbeConfig, examples_of, probe, read_probes
from tests import tiny
from tests.sae.codes import from_dense

F = 300


def toy(seed: int, concept: float = 2.0, n: int = 120) -> tuple[csr_array, np.ndarray, int]:
    """A sparse code [n, F] in which one latent says whether a text is of the first set, more or less clearly."""
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=(n, F)) * (rng.random((n, F)) < 0.1)
    first = np.arange(n) % 2 == 0
    planted = int(rng.integers(F))
    values[:, planted] = np.maximum(rng.normal(size=n) + concept * first, 0)
    return csr_array(values), first, planted


def test_a_planted_concept_is_at_rank_one():
    hits = 0
    for seed in range(20):
        values, first, planted = toy(seed)
        best = latents.find(values, first, seed).latents[0]
        hits += best.latent == planted and best.sign == 1 and best.q < 0.05
    assert hits >= 19


def test_shuffled_labels_give_chance_and_no_latent():
    aucs, kept = [], 0
    for seed in range(20):
        values, first, _ = toy(seed)
        found = latents.find(values, np.random.default_rng(seed).permutation(first), seed)
        aucs += [each.auc for each in found.latents]
        kept += bool(found.kept(0.05))
    assert abs(np.mean(aucs) - 0.5) < 0.03
    assert (
        kept <= 2
    )  # the rate is 5 % of 20 searches, so that one is expected and 3 come in one of 13 such tests


def test_probes_on_shuffled_labels_score_as_chance():
    values, first, _ = toy(1, n=600)
    labels = np.random.default_rng(2).permutation(first)
    (point,) = points(labels, ["normal"])
    cells = [cell for cell in score.cells([point], range(6)) if cell.method == "sae"]
    aucs = [auc for cell in cells for _, auc, _ in score.cell_scores(cell, values, labels, (1, 5), "l2")]
    assert abs(np.mean(aucs) - 0.5) < 0.03


def test_the_auc_of_each_latent_is_that_of_mann_whitney():
    values, first, _ = toy(3)
    dense = values.toarray()
    wanted = mannwhitneyu(dense[first], dense[~first], axis=0).statistic / (first.sum() * (~first).sum())
    assert np.allclose(latents.auc_of_each(values, first), wanted, atol=1e-12)


def test_p_is_the_share_of_all_shufflings_that_score_as_high():
    """With 3 against 3 rows all 20 labellings can be written out."""
    from itertools import combinations

    x = np.array([[3.0], [2.0], [0.0], [1.0], [0.0], [0.0]])
    first = np.array([1, 1, 0, 0, 1, 0], bool)

    def auc(rows: tuple[int, ...]) -> float:
        others = [i for i in range(6) if i not in rows]
        pairs = [(x[a, 0] > x[b, 0]) + (x[a, 0] == x[b, 0]) / 2 for a in rows for b in others]
        return sum(map(float, pairs)) / 9

    wanted = np.mean([auc(rows) >= auc((0, 1, 4)) - 1e-12 for rows in combinations(range(6), 3)])
    found, p = latents._tested(x, first, np.random.default_rng(0))
    assert found[0] == pytest.approx(auc((0, 1, 4)))
    assert p[0] == pytest.approx(wanted, abs=0.02)


def test_the_probe_loss_is_the_minimum_over_latents_and_lines():
    sae = TopK(d_model=6, d_sae=20, k=3)
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    y = (x @ sae.W_dec[4].detach() + 0.5 * x[:, 0]) > 0.2
    found = latents.probe_loss(sae, x[:200], y[:200], x[200:], y[200:])
    u = ((x.double() - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()).detach().numpy()
    t = y.double().numpy()

    def loss(line: np.ndarray, z: np.ndarray, truth: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-(line[0] * z + line[1])))
        return float(-np.mean(truth * np.log(p) + (1 - truth) * np.log(1 - p)))

    fits = [minimize(loss, [0.0, 0.0], (u[:200, j], t[:200])) for j in range(20)]
    best = min(range(20), key=lambda j: fits[j].fun)
    assert found.latent == best
    assert found.fitted == pytest.approx(fits[best].fun, abs=1e-6)
    assert found.held_out == pytest.approx(loss(fits[best].x, u[200:, best], t[200:]), abs=1e-4)


def test_the_ranking_is_of_normalised_mean_differences():
    values, first, _ = toy(4)
    z = values.toarray()
    size = np.array([z[z[:, j] != 0, j].mean() if z[:, j].any() else 1 for j in range(F)])
    difference = (z[first].mean(0) - z[~first].mean(0)) / size
    wanted = np.argsort(-abs(difference))[:8]
    assert probes.strongest(values, first, 8).tolist() == wanted.tolist()
    assert probes.strongest(z, first, 8).tolist() == wanted.tolist()


def test_the_interval_over_reseeds_is_the_corrected_t():
    from scipy.stats import t

    values = [0.7, 0.74, 0.69]
    found = score.over_reseeds(values, n_train=100, n_test=50)
    s2 = sum((v - sum(values) / 3) ** 2 for v in values) / 2
    half = t.ppf(0.975, 2) * math.sqrt(s2 * (1 / 3 + 0.5))
    assert (found.low, found.high) == (pytest.approx(0.71 - half), pytest.approx(0.71 + half))
    assert score.over_reseeds([0.7], 100, 50).low is None


def test_draws_never_share_rows_and_noise_changes_training_labels_alone():
    labels = np.random.default_rng(0).random(700) < 0.4
    for point in points(labels, ["normal", "scarce", "imbalanced", "noise"]):
        train, test, y = split(labels, point, seed=3)
        assert not {*train} & {*test}
        assert (len(train), len(test)) == (point.n_train, point.n_test)
        assert (y != labels[train]).sum() == int(point.flipped * len(train))
        assert labels[train].sum() == math.ceil(point.positive * point.n_train)


def test_a_text_that_comes_twice_is_used_once_and_one_with_both_labels_never():
    task = labelled("toy", ["a", "b", "a", "c", "c", " "], ["x", "y", "x", "x", "y", "y"])
    assert task.without_repeats().texts == ["a", "b"]
    assert task.classes == ("x", "y")
    with pytest.raises(LabelError, match="3 different labels"):
        labelled("toy", ["a", "b", "c"], ["1", "2", "3"])


def sentences(word: str, n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join([*rng.choice(tiny.WORDS, 4), word, str(i)]) for i in range(n)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Run:
    import shutil

    return Run(Path(shutil.copytree(world / "runs" / "toy", tmp_path / "run")))


def test_cached_activations_are_the_models_own_at_the_last_token(world: Path, tmp_path: Path):
    model = load(str(world / "model"))
    texts = ["a cat", "the mat sat on a cat", "x", "a cat"]
    for pooling in ("last", "mean"):
        about = example_activations.Examples("m", "w", "float32", tiny.HOOK, [0], 8, pooling)
        kept = example_activations.ExampleActivations(about, tmp_path / pooling)
        kept.fill(model, texts)
        again = example_activations.ExampleActivations(about, tmp_path / pooling)
        assert not again.missing(texts)
        for text, row in zip(texts, again.of(texts), strict=True):
            ids = torch.tensor([[0, *model.vocabulary.encode(text)[-7:]]])
            x = model.capture(ids, [tiny.HOOK])[tiny.HOOK][0].double()
            wanted = x[-1] if pooling == "last" else x[1:].mean(0)
            assert torch.allclose(row.double(), wanted, atol=1e-5)


def test_the_mean_behind_the_first_token_is_kept_apart_and_leaves_it_out(world: Path, cache: Path):
    model = load(str(world / "model"))
    texts = ["the mat sat on a cat", "x"]
    poolings = ("mean", "mean behind the first")
    about = [example_activations.Examples("m", "w", "float32", tiny.HOOK, [], 8, each) for each in poolings]
    kept = [example_activations.ExampleActivations(each) for each in about]
    for each in kept:
        assert each.missing(texts) == texts
        each.fill(model, texts)
    for row, text in enumerate(texts):
        ids = torch.tensor([model.vocabulary.encode(text)[-8:]])
        x = model.capture(ids, [tiny.HOOK])[tiny.HOOK][0]
        rest = x[1:] if len(x) > 1 else x
        assert torch.allclose(kept[0].of(texts)[row], x.mean(0), atol=1e-5)
        assert torch.allclose(kept[1].of(texts)[row], rest.mean(0), atol=1e-5)
    assert len(model.vocabulary.encode(texts[1])) == 1


def test_a_damaged_cache_is_refused_by_name(world: Path, tmp_path: Path):
    about = example_activations.Examples("m", "w", "float32", tiny.HOOK, [0])
    kept = example_activations.ExampleActivations(about, tmp_path / "kept")
    kept.fill(load(str(world / "model")), ["a cat"])
    shard = tmp_path / "kept" / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="shard-00000"):
        example_activations.ExampleActivations(about, tmp_path / "kept").of(["a cat"])


def test_a_task_is_probed_once_and_the_model_reads_each_text_once(run: Run, cache: Path):
    task = labelled(
        "birds", sentences("birds", 120, 0) + sentences("rain", 120, 1), ["b"] * 120 + ["r"] * 120
    )
    cfg = ProbeConfig(settings=("normal", "noise"), ks=(1, 4), seeds=2, context=64)
    told = tiny.Told()
    record = probe(run, [task], cfg, progress=told)
    (probed,) = record.tasks
    methods = {(s.method, s.k) for s in probed.scores if s.setting == "normal"}
    assert methods == {
        *((name, k) for name in ("sae", "random sae", "neurons") for k in (1, 4)),
        *((name, None) for name in ("logistic", "difference", "pca", "tokens")),
    }
    tokens = probed.best("tokens")
    assert tokens is not None
    assert tokens.auc.value is not None
    assert tokens.auc.value > 0.8  # the letters of the words differ
    again = tiny.Told()
    assert probe(run, [task], cfg, progress=again) == record == read_probes(run)
    assert not again.totals
    probe(run, [task], ProbeConfig(ks=(1,), seeds=1, context=64), progress=again)
    assert "examples" not in again.totals


def test_probes_on_more_columns_than_there_are_are_left_out(run: Run, cache: Path, caplog):
    """The toy has 32 latents and 16 neurons."""
    task = labelled("few", sentences("birds", 40, 0) + sentences("rain", 40, 1), ["b"] * 40 + ["r"] * 40)
    (probed,) = probe(run, [task], ProbeConfig(ks=(16, 20, 33), seeds=1, context=64)).tasks
    found = {(score.method, score.k) for score in probed.scores if score.k is not None}
    assert found == {("neurons", 16), *((name, k) for name in ("sae", "random sae") for k in (16, 20))}
    assert "no probe on 33 latents: there are 32" in caplog.text
    assert "no probe on 20 or 33 neurons: there are 16" in caplog.text


def test_the_probe_loss_is_that_of_balanced_examples_whatever_is_asked_for(run: Run, cache: Path):
    """A class of 40 texts has no imbalanced setting, and a scarce one has eight examples."""
    task = labelled("few", sentences("birds", 40, 0) + sentences("rain", 40, 1), ["b"] * 40 + ["r"] * 40)
    found = {
        settings: probe(run, [task], ProbeConfig(settings=settings, ks=(1,), seeds=1, context=64)).tasks[0]
        for settings in (("normal",), ("scarce",), ("imbalanced",))
    }
    assert len({task.probe_loss for task in found.values()}) == 1
    assert found["imbalanced",].scores == []


@pytest.mark.parametrize("twice", [{"ks": (1, 1)}, {"settings": ("normal", "normal")}])
def test_what_is_named_twice_is_refused(twice: dict[str, Any]):
    """It would count twice among the draws that an interval is taken over."""
    with pytest.raises(ConfigError, match="names one twice"):
        ProbeConfig(**twice)


def test_a_latent_of_either_sign_is_pooled_by_size():
    """An entry that is not there is a 0, which would be larger than every negative value."""
    code = from_dense(torch.tensor([[0.0, 2, -5, 0], [0, 1, 3, 0], [0, 0, 0, -1]]))
    assert _pool(code, "max").tolist() == [0, 2, -5, -1]


def test_a_search_finds_what_is_there_and_its_monitor_fires_on_it(run: Run):
    first, second = sentences("birds", 40, 0), sentences("rain", 40, 1)
    search = find(run, [*first, first[0], ""], second)
    assert search.repeated == 1
    best = search.found.latents[0]
    monitor = save_monitor(run, "birds", search, best.latent, rate=0.1)
    assert load_monitor(run, "birds") == monitor
    scores = monitor_texts(run, "birds", [*first, *second]).numpy()
    held_out = ~search.found.chosen_on
    wanted = [(scores[held_out & side] > monitor.threshold).mean() for side in (search.first, ~search.first)]
    assert [monitor.true_positive_rate, monitor.false_positive_rate] == pytest.approx(wanted)
    others = scores[search.found.chosen_on & ~search.first]
    assert (others > monitor.threshold).mean() <= 0.1
    with pytest.raises(RunError, match="no monitor 'rain'; it has: birds"):
        load_monitor(run, "rain")


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_a_monitor_reads_texts_as_the_search_did(run: Run, pooling: LatentPooling):
    first, second = ([f"{word} {n}" for n in range(40)] for word in ("cat", "rain"))
    untidy = [f" {text}\n" for text in (*first, *second)]
    search = find(run, untidy[:40], untidy[40:], FindConfig(pooling=pooling))
    for found in search.found.latents[:3]:
        monitor = save_monitor(run, f"{pooling}-{found.latent}", search, found.latent)
        own = search.values.toarray()[:, found.latent] * found.sign
        assert monitor_texts(run, monitor, untidy).numpy() == pytest.approx(own, abs=1e-6)


def test_without_a_bos_the_first_token_of_a_text_counts_nowhere(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Run, "first_tokens", [])
    model, sae = run.language_model(), run.sae()
    texts = ["the mat sat on a cat", "rain", "x"]
    codes = []
    for text in texts:
        x = model.capture(torch.tensor([model.vocabulary.encode(text)]), [run.hook])[run.hook][0]
        codes.append(sae.encode(x[1:] if len(x) > 1 else x).dense().double())
    reductions: dict[LatentPooling, Callable[[Tensor], Tensor]] = {
        "max": lambda code: code.amax(0),
        "mean": lambda code: code.mean(0),
        "last": lambda code: code[-1],
    }
    for pooling, reduced in reductions.items():
        own = torch.from_numpy(pooled(run, texts, pooling, 64, model, sae).toarray())
        torch.testing.assert_close(
            own.double(), torch.stack([reduced(code) for code in codes]), rtol=1e-4, atol=1e-5
        )
    assert examples_of(run, model, ProbeConfig(pooling="mean")).pooling == "mean behind the first"
