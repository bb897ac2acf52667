"""The mean Jacobian equals autograd's, is exact for a linear model, resumes to the same bits, and works for other families."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from activations import jacobian
from activations.errors import ConfigError, StoreError
from activations.jacobian import JacobianConfig, mean_jacobian, read_jacobian
from activations.jacobian_sums import Sums
from activations.language_model import LanguageModel, load
from activations.store import Store
from tests import tiny
from tests.families.models import ROWS, Family

D = 16
FEW = JacobianConfig(rows=300)
SMALL = 3e-3  # size of a change: RMSNorm computes in float32, whatever the model's precision, so that a smaller one is lost in rounding


@pytest.fixture(scope="module")
def model(world: Path) -> LanguageModel:
    return load(str(world / "model"), dtype=torch.float64)


def linear(folder: Path) -> tuple[LanguageModel, torch.Tensor]:
    """Return a model whose last block is x + M x, without attention and norms, and 1 + M."""
    made = load(str(tiny.model_folder(folder / "model")), dtype=torch.float64)
    plain, block = made.plain.model, made.plain.model.layers[1]
    matrix = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 4
    plain.norm.forward = block.post_attention_layernorm.forward = lambda x: x
    block.mlp.forward = lambda x: x @ matrix.T
    block.self_attn.o_proj.weight.data.zero_()
    return made, matrix + torch.eye(D)


def test_the_jacobian_of_a_linear_model_is_exact(tmp_path: Path):
    model, matrix = linear(tmp_path)
    store = tiny.store(tmp_path, model, dtype="float32")
    found = mean_jacobian(model, store, tiny.HOOK, FEW)
    torch.testing.assert_close(found.matrix, matrix.float(), rtol=1e-6, atol=1e-6)
    assert found.record.explained == pytest.approx(1, abs=1e-9)
    assert found.record.measured_share == pytest.approx(1, abs=1e-9)
    assert found.record.rows >= 300


@pytest.mark.parametrize("hook", [tiny.HOOK, "blocks.0.hook_attn_out", "blocks.1.hook_resid_post"])
def test_a_response_is_autograd_s_jacobian_times_the_change(model: LanguageModel, hook: str):
    """One row of each window is changed, so that no other row's change is in the response."""
    tokens = torch.arange(20).view(2, 10) * 7 % 250 + 2
    change = torch.zeros(2, 10, D, dtype=torch.float64)
    rows = (torch.tensor([0, 1]), torch.tensor([4, 9]))
    change[rows] = torch.randn(2, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    response, x, read = jacobian._run(model, tokens, hook, change, SMALL)
    readout = model.readout
    assert readout is not None

    def read_at(one: torch.Tensor) -> torch.Tensor:
        kept = []

        def put(activation):
            out = activation.clone()
            out[rows] = one
            return out

        def keep(residual):
            kept.append(residual)
            return residual

        last = model.last_residual
        edits = {hook: lambda a: keep(put(a))} if hook == last else {hook: put, last: keep}
        model.differentiable_logits(tokens, edits)
        return readout.normed(kept[0][rows])

    by_autograd: Any = torch.autograd.functional.jacobian(read_at, x[rows])
    for place in (0, 1):
        expected = by_autograd[place, :, place] @ change[rows][place]
        difference = (response[rows][place].double() - expected).norm()
        assert difference < 1e-3 * expected.norm()
    clean = read_at(x[rows]).detach()
    assert (read[rows] - clean).norm() < 1e-3 * clean.norm()


def test_shrinking_comes_nearer_than_either_estimate():
    """Responses are a planted map's with forty times its size as noise; the tuned lens sees another map, near the planted one."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    true = normal(12, 8) @ torch.diag(torch.linspace(2, 0.2, 8).double())
    wrong = true + 0.5 * normal(12, 8)
    change, x = normal(600, 8), normal(600, 8) + 3
    sums = Sums(8, 12)
    sums.add(change, change @ true.T + 40 * normal(600, 12), x, x @ wrong.T + 7)
    found = sums.solve()
    measured = torch.linalg.solve(sums.changes, sums.products.T).T
    tuned = sums._tuned()

    def apart(matrix: torch.Tensor) -> float:
        """Return 1 less the cosine with the planted map: a lens has no scale."""
        return 1 - float((matrix * true).sum() / matrix.norm() / true.norm())

    torch.testing.assert_close(tuned, wrong, rtol=0.02, atol=0.02)
    assert 0 < found.measured_share < 0.5
    assert apart(found.matrix) < min(apart(measured), apart(tuned) + 0.02)
    silent = Sums(8, 12)
    silent.add(change, change @ true.T, x, x @ wrong.T)
    torch.testing.assert_close(silent.solve().matrix, true, rtol=1e-9, atol=1e-9)


def test_rows_that_do_not_respond_are_left_out():
    random = torch.Generator().manual_seed(0)
    true, change = (
        torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((12, 8), (600, 8))
    )
    response = change @ true.T
    response[::50] = 1e-9 * torch.randn(
        12, 12, generator=random, dtype=torch.float64
    )  # rounding, and no more
    response[7] = 0
    sums = Sums(8, 12)
    sums.add(change, response, change, response)
    assert int(sums.rows) == 600 - 12 - 1
    torch.testing.assert_close(sums.solve().matrix, true, rtol=1e-9, atol=1e-9)


def test_an_interrupted_measurement_goes_on_to_the_same_bytes(world: Path, tmp_path: Path, monkeypatch):
    model = load(str(world / "model"))
    whole = tiny.store(tmp_path, model)
    stores = whole, Store(shutil.copytree(whole.path, tmp_path / "copy"))
    cfg = JacobianConfig(rows=400, windows=2)
    mean_jacobian(model, stores[0], tiny.HOOK, cfg)
    monkeypatch.setattr(jacobian, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        mean_jacobian(model, stores[1], tiny.HOOK, cfg, tiny.Told(end_at=0.5))
    assert read_jacobian(stores[1], tiny.HOOK) is None
    again = tiny.Told()
    found = mean_jacobian(model, stores[1], tiny.HOOK, cfg, again)
    assert 0 < again.steps["jacobian"][0] < 400
    names = [f"{tiny.HOOK}.json", f"{tiny.HOOK}.safetensors"]
    folders = [store.path / jacobian.FOLDER for store in stores]
    assert sorted(path.name for path in folders[1].iterdir()) == names
    assert [(folders[0] / name).read_bytes() for name in names] == [
        (folders[1] / name).read_bytes() for name in names
    ]
    told = tiny.Told()
    kept = mean_jacobian(model, stores[1], tiny.HOOK, cfg, told)
    assert torch.equal(kept.matrix, found.matrix) and kept.record == found.record and not told.totals


def test_damage_and_what_does_not_fit_is_one_line(world: Path, tmp_path: Path):
    model = load(str(world / "model"))
    store = tiny.store(tmp_path, model)
    mean_jacobian(model, store, tiny.HOOK, FEW)
    path = store.path / jacobian.FOLDER / f"{tiny.HOOK}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreError, match="other bytes") as caught:
        read_jacobian(store, tiny.HOOK)
    assert caught.value.fix and "rm" in caught.value.fix
    path.write_bytes(content)
    index = path.with_suffix(".json")
    about = json.loads(index.read_text())
    index.write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(StoreError, match="format 2"):
        read_jacobian(store, tiny.HOOK)
    index.write_text(json.dumps(about | {"store_fingerprint": "another"}))
    assert read_jacobian(store, tiny.HOOK) is None
    wrong: dict[str, Any]
    for wrong in ({"rows": 0}, {"windows": 0}, {"size": 0.0}, {"size": 2.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            JacobianConfig(**wrong)
    other, _ = linear(tmp_path / "other")
    with pytest.raises(StoreError, match="other weights"):
        mean_jacobian(other, store, tiny.HOOK, FEW)


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name) for row in ROWS if row.quick and not row.refused]
)
def test_the_response_of_any_family_changes_its_logits_as_two_edited_passes_do(row: Family, tmp_path: Path):
    row.folder(tmp_path)
    model = load(str(tmp_path))  # experts run in float32 alone
    hook, width = "blocks.1.hook_resid_pre", model.width
    tokens = torch.arange(9)[None] * 7 % 250 + 2
    change = torch.zeros(1, 9, width)
    change[0, 6] = torch.randn(width, generator=torch.Generator().manual_seed(0))
    response, x, _ = jacobian._run(model, tokens, hook, change, SMALL)
    step = SMALL * float(x[0, 6].norm()) / width**0.5
    up, down = (
        model.logits(tokens, {hook: lambda a, sign=sign: a + sign * step * change})[0, 6] for sign in (1, -1)
    )
    assert model.readout is not None
    zero = torch.zeros(1, width)
    predicted = model.readout.scores(response[0, 6][None].float()) - model.readout.scores(zero)
    expected = (up - down) / (2 * step)
    assert (predicted[0] - expected).norm() < 0.02 * expected.norm()
