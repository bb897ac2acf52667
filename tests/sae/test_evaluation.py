"""Metrics against their formulas written out in numpy float64, and against cases whose answer is known."""

from itertools import groupby

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import binomtest

from activations.errors import ConfigError, RunError
from activations.language_model import LanguageModel, load
from activations.rows import is_held_out
from activations.store import Store
from sae.architectures import TopKConfig, build
from sae.evaluation.bootstrap import difference, ratio, wilson
from sae.evaluation.held_out import latents_by_density, reconstruction
from sae.evaluation.splicing import (
    counted_predictions,
    held_out_passages,
    held_out_windows,
    splice,
    splice_sums,
)
from sae.runs.run import Run
from tests import tiny


@pytest.fixture(scope="module")
def run(world) -> Run:
    return Run(world / "runs/toy")


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return load(str(world / "model"))


def held_out(store: Store, hook: str) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and their documents, gathered one by one."""
    rows, documents = [], []
    for number in range(len(store.shards)):
        shard = store.read(number, (hook,))
        for window in range(len(shard.tokens)):
            for position in range(1, store.context):
                document = shard.documents[window, position]
                if is_held_out(document[None])[0]:
                    rows.append(shard.activations[hook][window, position].double().numpy())
                    documents.append(int(document))
    return np.stack(rows), np.array(documents)


def test_reconstruction_metrics_are_their_formulas_in_float64(run):
    sae, (x, documents) = run.sae(), held_out(run.store, run.hook)
    found = reconstruction(sae, run.store, run.hook, batch=17)
    codes = sae.encode(torch.from_numpy(x).float()).dense().numpy()
    x_hat = codes.astype(np.float64) @ sae.W_dec.double().numpy() + sae.b_dec.double().numpy()
    fvu = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    norms = np.linalg.norm(x, axis=1), np.linalg.norm(x_hat, axis=1)
    expected = {
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "cosine": ((x * x_hat).sum(1) / norms[0] / norms[1]).mean(),
        "l0": (codes != 0).sum(1).mean(),
        "norm_ratio": (norms[1] / norms[0]).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found["estimates"][name]["value"], value, rtol=1e-5, err_msg=name)
    fired = (codes != 0).mean(0)
    assert found["dead"] == (fired == 0).mean()
    assert found["dense"] == (fired > 0.1).mean()
    assert sum(found["density_histogram"]["latents"]) == (fired > 0).sum()
    assert (found["tokens"], found["documents"]) == (len(x), len(set(documents)))
    assert found["encoder"] == {"parameters": 16 * 32 + 32, "flops": 2 * 16 * 32}


def test_latents_that_fire_more_rarely_than_the_first_edge_are_counted_too():
    density = torch.tensor([0.0, 1e-9, 9e-8, 1e-7, 0.3, 1.0], dtype=torch.float64)
    counts = latents_by_density(density)
    assert (counts[0], counts[-3], counts[-1], sum(counts)) == (3, 1, 1, 5)


def test_the_batch_size_changes_nothing(run):
    one, other = (reconstruction(run.sae(), run.store, run.hook, batch=batch) for batch in (7, 1000))
    for name, estimate in one["estimates"].items():
        np.testing.assert_allclose(
            list(estimate.values()), list(other["estimates"][name].values()), rtol=1e-6
        )


def test_variance_is_about_the_mean_not_about_zero(world, run):
    """Predicting the mean explains no variance, however far the mean is from zero."""
    sae = run.sae()
    x, _ = held_out(run.store, run.hook)
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.b_dec.copy_(torch.from_numpy(x.mean(0)))
    found = reconstruction(sae, run.store, run.hook)
    np.testing.assert_allclose(found["estimates"]["fvu"]["value"], 1.0, rtol=1e-5)


def test_a_store_without_held_out_text_says_so(tmp_path, world):
    text = tmp_path / "one.jsonl"
    text.write_text('{"text": "' + "a cat sat " * 60 + '"}\n')
    store = tiny.harvest(load(str(world / "model")), tmp_path / "s", tiny.harvest_config(text, tokens=160))
    sae = build(TopKConfig(d_sae=8, k=2), 16)
    with pytest.raises(RunError, match="no held-out tokens.*more documents"):
        reconstruction(sae, store, tiny.HOOK)


@pytest.mark.parametrize("windows", [0, -1])
def test_no_windows_are_refused_before_the_model_runs(run, model, windows: int):
    with pytest.raises(ConfigError, match=f"windows = {windows} must be at least 1"):
        splice(model, run.sae(), run.store, run.hook, windows=windows)


def test_resamples_without_a_finite_value_are_left_out():
    """Of two documents, one has nothing in the denominator: a quarter of the resamples draw it alone, and are x / 0."""
    found = ratio([1.0, 2.0], [0.0, 4.0])
    assert found == (0.75, 0.5, 0.75)  # 2 / 4 of the one, and 3 / 4 of both
    both = difference(([1.0, 2.0], [0.0, 4.0]), ([0.0, 0.0], [1.0, 1.0]))
    assert both == found
    assert np.isnan(ratio([1.0], [0.0])[1:]).all()


def test_a_ratio_is_of_sums_and_its_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        size = rng.integers(1, 50, 60)
        found = ratio(rng.normal(2.0, 0.5, 60) * size, size, seed=trial)
        hits += found.low <= 2.0 <= found.high
        assert found.low <= found.value <= found.high
    assert 0.88 <= hits / 200 <= 0.99
    assert ratio([1.0, 3.0], [1.0, 1.0]).value == 2.0


def test_the_interval_of_a_difference_is_paired_by_document():
    """What two SAEs have in common, such as hard documents, does not widen it, and equal ones do not differ at all."""
    rng = np.random.default_rng(1)
    hard, size = rng.normal(2.0, 1.0, 80), np.ones(80)
    better = hard - 0.1 - rng.normal(0, 0.01, 80)
    paired = difference((hard, size), (better, size))
    alone = ratio(hard, size)
    np.testing.assert_allclose(paired.value, (hard - better).mean())
    assert paired.high - paired.low < 0.05 * (alone.high - alone.low)
    assert difference((hard, size), (hard, size)) == (0.0, 0.0, 0.0)


def test_several_saes_are_spliced_in_on_the_same_windows(run, model):
    """Each has the numbers that it has alone."""
    saes = {"own": run.sae(), "other": build(TopKConfig(d_sae=8, k=2), 16)}
    sums = splice_sums(model, saes, run.store, run.hook, windows=6, batch=4)
    for name, sae in saes.items():
        alone = splice(model, sae, run.store, run.hook, windows=6, batch=4)["estimates"]
        np.testing.assert_allclose(
            ratio(*sums.recovered(name, "mean")), list(alone["recovered_mean"].values())
        )
        np.testing.assert_allclose(ratio(sums.kl[name], sums.tokens), list(alone["kl"].values()))


def test_one_document_has_no_spread():
    assert ratio([3.0], [2.0]) == (1.5, 1.5, 1.5)


def test_splice_metrics_equal_a_hand_written_hook(run, model):
    """Recompute cross-entropies and KL in numpy from logits of the plain model with a PyTorch hook."""
    sae, store = run.sae(), run.store
    found = splice(model, sae, store, run.hook, windows=10**6, batch=3)
    mean = store.mean(run.hook).float()
    edits = {
        "clean": lambda x: x,
        "spliced": lambda x: sae(x),
        "zero": torch.zeros_like,
        "mean": lambda x: mean.expand_as(x),
    }
    sums = dict.fromkeys([*edits, "kl", "count"], 0.0)
    for number in range(len(store.shards)):
        shard = store.read(number)
        for tokens, documents in zip(shard.tokens.long(), shard.documents, strict=True):
            logs = {name: _log_probabilities(model, tokens, edit) for name, edit in edits.items()}
            for t in range(1, store.context - 1):
                if documents[t] == documents[t + 1] and is_held_out(documents[t][None])[0]:
                    for name in edits:
                        sums[name] -= logs[name][t, tokens[t + 1]]
                    p = np.exp(logs["clean"][t])
                    sums["kl"] += (p * (logs["clean"][t] - logs["spliced"][t])).sum()
                    sums["count"] += 1
    values = {name: estimate["value"] for name, estimate in found["estimates"].items()}
    assert found["tokens"] == sums["count"] > 50
    ce = {name: sums[name] / sums["count"] for name in edits}
    for name in edits:
        np.testing.assert_allclose(values[f"ce_{name}"], ce[name], rtol=1e-5)
    np.testing.assert_allclose(values["kl"], sums["kl"] / sums["count"], rtol=1e-4)
    for name in ("zero", "mean"):
        expected = (ce[name] - ce["spliced"]) / (ce[name] - ce["clean"])
        np.testing.assert_allclose(values[f"recovered_{name}"], expected, rtol=1e-3)


def _log_probabilities(model: LanguageModel, tokens: torch.Tensor, edit) -> np.ndarray:
    """Return logits [T, V] with `edit` applied after block 0, except at the first position."""

    def hook(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = torch.cat([hidden[:, :1], edit(hidden[:, 1:])], 1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.plain.model.layers[0].register_forward_hook(hook)
    try:
        with torch.no_grad():
            logits = model.plain(tokens[None]).logits[0]
    finally:
        handle.remove()
    return log_softmax(logits.double().numpy(), axis=-1)


def test_a_perfect_sae_recovers_everything_and_zero_ablation_nothing(run, model):
    sae = build(TopKConfig(d_sae=32, k=32), 16)
    with torch.no_grad():  # identity: +e_i and -e_i as latents
        eye = torch.eye(16)
        sae.W_dec.copy_(torch.cat([eye, -eye]))
        sae.W_enc.copy_(sae.W_dec.T)
    values = splice(model, sae, run.store, run.hook, windows=8)["estimates"]
    np.testing.assert_allclose(values["recovered_zero"]["value"], 1.0, atol=1e-4)
    np.testing.assert_allclose(values["kl"]["value"], 0.0, atol=1e-5)
    with torch.no_grad():
        sae.W_dec.zero_()
    values = splice(model, sae, run.store, run.hook, windows=8)["estimates"]
    np.testing.assert_allclose(values["recovered_zero"]["value"], 0.0, atol=1e-5)


def test_the_model_reads_windows_at_equal_distances_among_those_with_held_out_text(run, model):
    documents = torch.cat([run.store.read(number).documents for number in range(len(run.store.shards))])
    counts = counted_predictions(documents, run.store.spec.excluded).sum(1)
    every = [window for window, count in enumerate(counts.tolist()) if count]
    assert len(every) > 8 and len(set(counts.tolist())) > 2
    few, all_ = (splice(model, run.sae(), run.store, run.hook, windows=n) for n in (3, 10**6))
    assert (few["windows"], all_["windows"]) == (3, len(every))
    assert all_["tokens"] == counts.sum()
    sixths = [every[len(every) * place // 6] for place in (1, 3, 5)]
    assert few["tokens"] == counts[sixths].sum()
    assert torch.equal(held_out_windows(run.store, 3)[1], documents[sixths])


@pytest.mark.parametrize(("limit", "length"), [(4, 3), (4, 10**6), (2, 5), (10**6, 4)])
def test_held_out_passages_are_each_of_one_held_out_document(run, limit, length):
    """Compared with a search over all runs of equal document numbers in plain Python."""
    excluded, stored = (
        run.store.spec.excluded,
        [run.store.read(number) for number in range(len(run.store.shards))],
    )
    longest = []  # of each window: the tokens of its longest run of one held-out document
    for shard in stored:
        for tokens, documents in zip(shard.tokens.tolist(), shard.documents, strict=True):
            rows = list(zip(tokens, documents.tolist(), is_held_out(documents).tolist(), strict=True))[
                excluded:
            ]
            runs = [
                [token for token, _, _ in own] for key, own in groupby(rows, lambda row: row[1:]) if key[1]
            ]
            longest.append(max(runs, key=len, default=[]))
    by_length = sorted((len(own) for own in longest if len(own) >= 2), reverse=True)
    reached = min(length, by_length[:limit][-1])
    among = [own[:reached] for own in longest if len(own) >= reached]
    n = min(limit, len(among))
    found = held_out_passages(run.store, limit, length)
    assert found.tolist() == [among[(2 * i + 1) * len(among) // (2 * n)] for i in range(n)]


@pytest.mark.parametrize("windows", [3, 10**6])
def test_progress_counts_the_windows_that_are_read_not_those_that_were_asked_for(run, model, windows):
    told = tiny.Told()
    read = splice(model, run.sae(), run.store, run.hook, windows, progress=told)["windows"]
    assert told.totals == {"splice": read}
    assert sum(told.steps["splice"]) == read


def test_the_interval_of_a_share_is_scipy_s_wilson():
    for successes, trials in ((0, 5), (3, 20), (20, 20), (90, 100)):
        expected = binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson(successes / trials, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(1.0, 0) == (0, 1), "nothing is known of no trials"
