"""`sae trust` on the toy world: controls against their formulas, the files that it writes, and what it refuses."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import normalize

from activations.errors import ConfigError, RunError
from sae.evaluation.held_out import reconstruction
from sae.evaluation.splicing import splice
from sae.features.feature import FeatureStore
from sae.report import features as features_report
from sae.report import trust as trust_report
from sae.runs.records import Estimate
from sae.runs.run import Run, find_runs
from sae.runs.trust import Trust, trust_of
from sae.trust import controls
from sae.trust.plan import TrustConfig, plan_trust
from sae.workflows import trust as workflow
from sae.workflows.train import train
from sae.workflows.trust import trust
from tests import tiny

CFG = TrustConfig(windows=4)
FROZEN = ("frozen-decoder", "soft-frozen-decoder", "frozen-encoder")


@pytest.fixture(scope="module")
def trusted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Trust:
    """A copy of the toy run beside its controls; not to be changed."""
    run = Run(shutil.copytree(world / "runs" / "toy", tmp_path_factory.mktemp("trust") / "toy"))
    return trust(run, CFG, run.language_model())


@pytest.fixture
def copied(trusted: Trust, tmp_path: Path) -> Run:
    """A copy of it, to be damaged."""
    return Run(shutil.copytree(trusted.run.path, tmp_path / "toy"))


def of(trusted: Trust, name: str) -> Run:
    return Run(trusted.path / name)


def test_controls_are_runs_with_the_settings_of_the_run_but_for_what_they_control(trusted: Trust):
    own = trusted.run.config
    for name in FROZEN:
        changed = of(trusted, name).config
        assert changed == dataclasses.replace(
            own, train=dataclasses.replace(own.train, frozen=controls.FROZEN[name])
        )
    for seed in (1, 2):
        changed = of(trusted, f"seed-{seed}").config
        assert changed == dataclasses.replace(own, train=dataclasses.replace(own.train, seed=seed))
    assert list(trusted.record.controls) == [*FROZEN, "seed-1", "seed-2", "pca", "random-dictionary"]


def test_a_seed_has_the_bits_that_training_alone_gives_it(trusted: Trust, tmp_path: Path):
    seed = of(trusted, "seed-1")
    alone = train(seed.config, tmp_path / "alone")
    for name, tensor in alone.sae().state_dict().items():
        assert torch.equal(tensor, seed.sae().state_dict()[name]), name


@pytest.mark.parametrize("name", [*FROZEN, "seed-2", "pca", "random-dictionary"])
def test_each_control_has_the_numbers_that_it_has_alone(trusted: Trust, name: str):
    run, record = trusted.run, trusted.record
    alone = reconstruction(of(trusted, name).sae(), run.store, run.hook)["estimates"]
    spliced = splice(run.language_model(), of(trusted, name).sae(), run.store, run.hook, CFG.windows)[
        "estimates"
    ]
    assert vars(record.controls[name].l0) == pytest.approx(alone["l0"])
    for measure, known in {"fvu": alone, "cosine": alone, "kl": spliced, "recovered_zero": spliced}.items():
        beside = record.measures[measure]
        value = beside.seeds[name] if name in beside.seeds else beside.controls[name].value
        assert vars(value) == pytest.approx(known[measure], rel=1e-5), measure


def test_stability_is_the_mean_largest_cosine_over_the_other_seeds_in_float64(trusted: Trust):
    rows = normalize(trusted.run.sae().W_dec.double(), dim=1)
    others = [normalize(of(trusted, f"seed-{seed}").sae().W_dec.double(), dim=1) for seed in (1, 2)]
    expected = torch.stack([(rows @ other.T).abs().max(1).values for other in others]).mean(0).numpy()
    np.testing.assert_allclose(trusted.stability, expected, rtol=1e-5)
    assert trusted.record.stability.mean == pytest.approx(expected.mean(), rel=1e-5)
    assert trusted.record.stability.stable == (expected >= 0.7).mean()


def test_the_covariance_is_its_formula_in_float64():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) + 50
    mean, covariance = controls.covariance(x.split(64))
    np.testing.assert_allclose(mean, x.double().mean(0), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(x.double().numpy().T, bias=True), rtol=1e-4, atol=1e-5)


def test_pca_keeps_the_k_components_of_a_row_that_are_largest_in_size():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 4, 3, 2, 1, 0.5])
    mean, covariance = controls.covariance([x])
    sae = controls.principal_components(mean, covariance, 2)
    _, vectors = np.linalg.eigh(np.cov(x.double().numpy().T, bias=True))
    scores = (x.double().numpy() - mean.numpy()) @ vectors
    smallest = np.argsort(np.abs(scores), axis=1)[:, :-2]
    np.put_along_axis(scores, smallest, 0.0, axis=1)
    np.testing.assert_allclose(sae(x), scores @ vectors.T + mean.numpy(), atol=1e-4)


def test_a_random_dictionary_has_the_gain_with_the_least_error():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    sae = controls.random_dictionary(x, x.mean(0), 24, 3, seed=0)

    def error(gain: float) -> float:
        return (x - sae.b_dec - gain * (sae(x) - sae.b_dec)).square().sum().item()

    assert error(1.0) < min(error(0.97), error(1.03))
    assert sae.encode(x).l0().eq(3).all()


def test_a_batch_of_more_rows_than_a_covariance_needs_is_read_once(
    copied: Run, monkeypatch: pytest.MonkeyPatch
):
    assert copied.config.train.batch > 10
    monkeypatch.setattr(workflow, "MOST_ROWS", 10)
    shutil.rmtree(copied.path / "trust" / "pca")
    told = tiny.Told()
    workflow._make_untrained(copied, copied.path / "trust", 4.0, told)
    assert told.totals["covariance"] == 1
    assert Run(copied.path / "trust" / "pca").finished


def test_controls_are_not_listed_as_runs_of_the_folder_but_of_their_own(trusted: Trust):
    assert [run.path for run in find_runs(trusted.run.path.parent)] == [trusted.run.path]
    assert [run.name for run in find_runs(trusted.path)] == sorted(trusted.record.controls)


def test_called_again_it_trains_nothing(trusted: Trust):
    told = tiny.Told()
    assert plan_trust(trusted.run, CFG).missing == []
    again = trust(trusted.run, CFG, trusted.run.language_model(), told)
    assert sum(told.steps["train"]) == told.totals["train"] == told.steps["train"][0] == 5 * 30
    assert "covariance" not in told.steps
    assert again.record == trusted.record


def test_interrupted_it_goes_on(world: Path, tmp_path: Path, trusted: Trust):
    run = Run(shutil.copytree(world / "runs" / "toy", tmp_path / "toy"))
    with pytest.raises(KeyboardInterrupt):
        trust(run, CFG, None, tiny.Told(end_at=0.7))
    missing = plan_trust(run, CFG).missing
    assert 0 < len(missing) < 5
    assert trust_of(run) is None
    finished = trust(run, CFG, run.language_model())
    assert finished.record.measures == trusted.record.measures


def test_the_plan_says_what_it_costs(world: Path, tmp_path: Path):
    run = Run(shutil.copytree(world / "runs" / "toy", tmp_path / "toy"))
    plan = plan_trust(run, TrustConfig(seeds=4))
    assert plan.missing == [*FROZEN, "seed-1", "seed-2", "seed-3"]
    speed = np.median([row["tokens_per_second"] for row in run.log])
    assert plan.seconds == pytest.approx(6 * 30 * 64 / speed)
    assert plan.bytes > 6 * (run.path / "sae.safetensors").stat().st_size


def test_what_is_damaged_or_of_other_weights_is_not_taken(copied: Run):
    path = copied.path / "trust" / "stability.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    known = trust_of(copied)
    assert known is not None
    with pytest.raises(RunError, match=r"stability\.safetensors is damaged") as error:
        _ = known.stability
    assert error.value.fix == f"sae trust {copied.path}"
    index = copied.path / "trust" / "trust.json"
    about = json.loads(index.read_text())
    del about["checksum"]
    index.write_text(json.dumps({**about, "sae_sha256": "0" * 64}))
    assert trust_of(copied) is None
    index.write_text(json.dumps({**about, "format": 0}))
    assert trust_of(copied) is None
    index.write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        trust_of(copied)


def test_a_run_that_was_not_trained_on_a_store_from_its_own_start_is_refused(trusted: Trust, copied: Run):
    with pytest.raises(RunError, match="was imported: its controls need the store"):
        plan_trust(of(trusted, "pca"), CFG)
    about = json.loads((copied.path / "run.json").read_text())
    about.pop("checksum", None)
    about["config"]["start_from"] = "runs/other"
    (copied.path / "run.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match="started from another SAE"):
        plan_trust(Run(copied.path), CFG)


def test_fewer_than_three_seeds_do_not_tell_how_much_equal_runs_differ():
    with pytest.raises(ConfigError, match="seeds = 2 must be at least 3"):
        TrustConfig(seeds=2)


def test_the_table_of_features_has_the_stability_and_lists_the_stable(trusted: Trust):
    table = features_report.features(FeatureStore(trusted.run.path / "features").table)
    with_it = features_report.with_stability(table, trusted.stability)
    np.testing.assert_array_equal(with_it["stability"].to_numpy(), trusted.stability)
    assert features_report.counts(with_it)["stable"] == (trusted.stability >= 0.7).sum()
    assert "stable" not in features_report.counts(table)
    nothing = features_report.haystack(with_it, None)
    stable = features_report.filtered(with_it, features_report.Wanted(state="stable"), nothing)
    assert stable["feature"].to_pylist() == np.flatnonzero(trusted.stability >= 0.7).tolist()
    assert b'"stability"' in features_report.csv(stable).splitlines()[0]
    assert isinstance(with_it, pa.Table)


def test_exported_labels_have_the_stability_and_are_read_back(copied: Run, tmp_path: Path, trusted: Trust):
    labels = FeatureStore(copied.path / "features").labels
    labels.set(5, "a cat")
    for suffix in ("csv", "json"):
        path = tmp_path / f"labels.{suffix}"
        labels.export(path, trusted.stability.round(4).tolist())
        assert f"{trusted.stability[5]:.4f}".rstrip("0") in path.read_text()
        labels.set(5, "")
        assert labels.load(path) == 1
        assert labels.get(5).label == "a cat"


def test_conclusions_name_the_control_that_comes_closest(trusted: Trust):
    record = trusted.record
    texts = trust_report.conclusions(record)
    assert texts[0].startswith("FVU: the run falls short of PCA by 0.1"), "k = 4 of 16 dimensions"
    assert texts[-1].startswith("Stability over 3 seeds: ")
    assert any("Only 2 held-out documents" in text for text in trust_report.cautions(record))
    better = dataclasses.replace(record.measures["fvu"], controls={"pca": dataclasses.replace(
        record.measures["fvu"].controls["pca"], verdict="too small")})  # fmt: skip
    few = dataclasses.replace(record, measures={"fvu": better})
    assert "smaller than the smallest reliable difference (0.0" in trust_report.conclusion(few, "fvu")


def test_an_interval_over_one_document_is_not_known(trusted: Trust):
    record, flat = trusted.record, Estimate(0.5, 0.5, 0.5)
    assert record.windows_documents == 2
    measures = {
        name: dataclasses.replace(record.measures[name], value=flat) for name in ("fvu", "recovered_zero")
    }

    def shown(**documents: int) -> list[str]:
        changed = dataclasses.replace(record, measures=measures, **documents)
        own = [next(trust_report.lines(changed, name)) for name in measures]
        return [trust_report.interval(line.value, line.documents) for line in own]

    assert shown(documents=2, windows_documents=2) == ["0.5 to 0.5", "0.5 to 0.5"]
    assert shown(documents=2, windows_documents=1) == ["0.5 to 0.5", "–"]
    assert shown(documents=1, windows_documents=1) == ["–", "–"]
    assert shown(documents=2, windows_documents=0) == ["0.5 to 0.5", "–"], "of an older file"
    one = dataclasses.replace(record, documents=1)
    assert "Only 1 held-out document was measured" in " ".join(trust_report.cautions(one))
    few = dataclasses.replace(record, documents=90, windows_documents=1)
    assert "only 1 held-out document was measured" in " ".join(trust_report.cautions(few))


def test_controls_of_another_l0_are_told_in_one_line_and_nothing_is_said_of_them(trusted: Trust):
    record = trusted.record
    busy = dataclasses.replace(record.controls["frozen-encoder"], l0=Estimate(40.0, 39.0, 41.0))
    against = dataclasses.replace(record.measures["fvu"].controls["frozen-encoder"], verdict="other sparsity")
    fvu = dataclasses.replace(record.measures["fvu"], controls={"frozen-encoder": against})
    other = dataclasses.replace(
        record, controls={**record.controls, "frozen-encoder": busy}, measures={"fvu": fvu}
    )
    (said,) = [line for line in trust_report.cautions(other) if "frozen encoder" in line]
    assert "The run has L0 4, but frozen encoder 40:" in said
    assert trust_report.conclusion(other, "fvu").startswith(
        "FVU: nothing is said of frozen encoder, which fires 40 latents a row where the run fires 4"
    )
    assert "not compared: another L0" in trust_report.page(other, "run")


def test_a_seed_that_diverged_is_not_counted(trusted: Trust):
    record = trusted.record
    assert trust_report.basis(record).endswith("3 seeds")
    kept = {name: control for name, control in record.controls.items() if name != "seed-2"}
    fewer = dataclasses.replace(record, controls=kept, left_out={"seed-2": "the loss is nan at step 3"})
    assert trust_report.basis(fewer).endswith("2 seeds")
    assert trust_report.stability(fewer).startswith("Stability over 2 seeds:")
    assert "seed 2 is missing: the loss is nan at step 3" in trust_report.cautions(fewer)


def test_the_page_is_whole_escaped_and_fetches_nothing(trusted: Trust):
    page = trust_report.page(trusted.record, "<i>run</i>")
    assert "&lt;i&gt;run&lt;/i&gt;" in page
    assert "<i>run" not in page
    for name in trusted.record.controls:
        assert trust_report.title(name) in page
    assert "default-src 'none'" in page
