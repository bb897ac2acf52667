"""The norm of the code and eps_LBO against numpy in float64, and on dictionaries whose angles are planted."""

import json
import shutil

import numpy as np
import pytest
import torch

from activations.disk import files
from sae.architectures import TopKConfig, build
from sae.evaluation.held_out import reconstruction
from sae.evaluation.measures import QuasiOrthogonality
from sae.evaluation.quasi_orthogonality import code_norm, eps_lbo, summary
from sae.report import run_charts
from sae.report import runs as runs_report
from sae.runs.run import Run
from sae.workflows.evaluate import evaluate
from tests.sae.codes import from_dense
from tests.sae.test_evaluation import held_out


def planted(decoder: torch.Tensor):
    sae = build(TopKConfig(d_sae=len(decoder), k=2), d_model=decoder.shape[1])
    with torch.no_grad():
        sae.W_dec.copy_(decoder)
        sae.b_dec.zero_()
    return sae


def eps(sae, z: torch.Tensor) -> torch.Tensor:
    x = z.double() @ sae.W_dec.detach().double()
    return eps_lbo(x.norm(dim=1), code_norm(sae, from_dense(z)).detach(), len(sae.W_dec))


def test_orthogonal_rows_of_any_norm_need_no_epsilon():
    sae = planted(torch.eye(6) * torch.arange(1.0, 7)[:, None])
    z = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    assert eps(sae, z).max() < 1e-12


def test_a_pair_of_duplicates_needs_the_epsilon_of_its_cosine():
    decoder = torch.eye(6)
    decoder[1] = decoder[0]
    # |x|^2 = 4 and |f|^2 = 2 where both fire: the excess is 1, shared among the five other rows
    z = torch.tensor([[1.0, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0]])
    assert eps(planted(decoder), z).tolist() == pytest.approx([1 / 5, 0])


def test_a_code_of_zero_has_no_finite_epsilon_unless_the_input_is_zero():
    assert eps_lbo(torch.tensor([1.0, 0.0]), torch.zeros(2), 4).tolist() == [np.inf, 0]


@pytest.mark.parametrize("batch", [7, 2048])
def test_norms_of_a_run_are_those_of_numpy_in_float64(world, batch):
    run = Run(world / "runs/toy")
    sae, store = run.sae(), run.store
    rows, _ = held_out(store, run.hook)
    found = reconstruction(sae, store, run.hook, batch=batch)["quasi_orthogonality"]
    with torch.no_grad():
        z = sae.encode(torch.tensor(rows, dtype=torch.float32)).dense().double().numpy()
    lengths = np.linalg.norm(sae.W_dec.detach().double().numpy(), axis=1)
    bias = sae.b_dec.detach().double().numpy()
    inputs = np.linalg.norm(rows, axis=1)
    codes = np.sqrt(((z * lengths) ** 2).sum(1) + bias @ bias)
    eps = np.abs(inputs**2 - codes**2) / ((sae.d_sae - 1) * codes**2)
    assert found["rows"] == len(rows)
    for name, value in found["eps_lbo"].items():
        assert value == pytest.approx(np.quantile(eps, float(name)), rel=1e-4)
    nearest = np.abs(inputs[None] - np.array(found["input_norms"])[:, None]).argmin(1)
    np.testing.assert_allclose(found["code_norms"], codes[nearest], rtol=1e-5)


def test_the_page_says_and_draws_it():
    quasi = QuasiOrthogonality(20, 0, {"0.05": 0.001, "0.5": 0.02, "0.95": 0.3}, [1.0, 2.0], [1.5, 4.0])
    text = runs_report.eps_lbo(quasi)
    assert all(number in text for number in ("0.02", "0.001", "0.3", "20"))
    diagonal, points = run_charts.norms(quasi).data
    assert (list(diagonal.x), list(diagonal.y)) == ([1.0, 4.0], [1.0, 4.0])
    assert (list(points.x), list(points.y)) == ([1.0, 2.0], [1.5, 4.0])
    assert "0" in runs_report.eps_lbo(QuasiOrthogonality(20, 20, {}, [1.0], [0.0]))


def test_a_summary_has_quantiles_of_what_is_finite_and_a_sample():
    rng = np.random.default_rng(0)
    x, f = rng.uniform(1, 2, 1000), rng.uniform(1, 2, 1000)
    f[:10] = 0
    found = summary(torch.from_numpy(x), torch.from_numpy(f), 11)
    eps = np.abs(x[10:] ** 2 - f[10:] ** 2) / (10 * f[10:] ** 2)
    assert (found["rows"], found["silent"]) == (1000, 10)
    for quantile, value in found["eps_lbo"].items():
        assert value == pytest.approx(np.quantile(eps, float(quantile)))
    points = set(zip(x, f, strict=True))
    assert len(set(zip(found["input_norms"], found["code_norms"], strict=True)) & points) == 300


def test_eval_json_has_it_and_one_of_an_older_release_opens_without_it(world, tmp_path):
    shutil.copytree(world / "runs/toy", tmp_path / "toy")
    run = Run(tmp_path / "toy")
    evaluation = evaluate(run, run.sae(), None, 0)
    assert evaluation.quasi_orthogonality is not None
    assert evaluation.quasi_orthogonality.rows == evaluation.tokens
    content = json.loads((run.path / "eval.json").read_text())
    del content["quasi_orthogonality"]
    files.write_sealed(run.path / "eval.json", content)
    older = Run(run.path).evaluation
    assert older is not None and older.quasi_orthogonality is None and older.tokens == evaluation.tokens
