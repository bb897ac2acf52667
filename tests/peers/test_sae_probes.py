"""sae-probes itself draws, ranks and fits on the labels of its own tasks, with the same activations that ours reads."""

import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from activations import labelled_texts
from activations.labelled_texts import LabelledTexts, packaged
from sae.probing import probes
from sae.probing.splits import points, split

pytest.importorskip(
    "sae_probes", reason="sae-probes is needed, in an environment of its own: make test-peers"
)
# By name: the package has functions that are called like its modules
constants, theirs, their_data, their_fits = (
    import_module(f"sae_probes.{name}")
    for name in ("constants", "run_sae_evals", "utils_data", "utils_training")
)

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

NAMES = their_data.get_numbered_binary_tags()[::6] + their_data.get_numbered_binary_tags()[-1:]
D, F = 24, 96
NEAR = 0.005


@pytest.fixture(scope="module", autouse=True)
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tasks, extracted from the files of the installed package instead of from a wheel that would have to be fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        wheel = tmp_path_factory.mktemp("wheel") / "tasks.whl"
        _zip(wheel)
        patch.setattr(labelled_texts, "fetch", lambda *args: wheel)
        yield


def _zip(path: Path) -> None:
    folder = constants.DATA_PATH
    with zipfile.ZipFile(path, "w") as archive:
        for file in [folder / "probing_datasets_MASTER.csv.zst", *(folder / "cleaned_data").glob("*.zst")]:
            archive.write(file, f"sae_probes/data/{file.relative_to(folder)}")


@pytest.fixture(scope="module")
def tasks() -> dict[str, LabelledTexts]:
    return {task.name: task for task in packaged(NAMES)}


def rows(task: LabelledTexts, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """Activations [n, D] in which one direction of the class is hidden, and a sparse code [n, F] of them, some latents signed."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(task.texts), D)) * np.geomspace(20, 0.5, D)
    x += task.labels[:, None] * rng.normal(size=D) * rng.uniform(0.3, 2) + 3
    z = torch.from_numpy((x - x.mean(0)) @ rng.normal(size=(D, F)) / 10)
    z = z * (z.abs() >= z.abs().topk(8, dim=1).values[:, -1:])
    z[:, : F // 2].relu_()
    return x.astype(np.float32), z.float()


def test_the_tasks_are_theirs():
    assert len(NAMES) == 20
    for name in NAMES:
        (task,) = packaged([name])
        frame = their_data.read_numbered_dataset_df(name)
        assert task.texts == [*frame["prompt"]]
        assert task.labels.tolist() == their_data.get_yvals(name).astype(bool).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_each_task_scores_as_it_does_with_them(tasks: dict[str, LabelledTexts], name: str):
    task = tasks[name]
    x, z = rows(task, seed=int(name.partition("_")[0]))
    (point,) = points(task.labels, ["normal"])
    train, test, y = split(task.labels, point, seed=42)
    their_train, their_test = their_data.get_train_test_indices(
        task.labels.astype(int),
        min(len(task.texts) - 100, 1024),
        len(x) - min(len(x) - 100, 1024) - 1,
        0.5,
        42,
    )
    assert np.array_equal(train, their_train)
    assert np.array_equal(test, their_test)
    truth = task.labels[test]

    order = theirs.get_sorted_indices(
        z[train], torch.from_numpy(y.astype(int)), theirs.mean_act_normalization
    )
    chosen = probes.strongest(z[train].numpy(), y, 16)
    assert chosen.tolist() == order[:16].tolist()
    for penalty, k in (("l2", 1), ("l2", 5), ("l2", 16), ("l1", 2)):
        some = order[:k]
        wanted = their_fits.find_best_reg(
            z[train][:, some].numpy(),
            y.astype(int),
            z[test][:, some].numpy(),
            truth.astype(int),
            penalty=penalty,
            seed=42,
        ).metrics.test_auc
        score = probes.logistic(
            z[train].numpy()[:, chosen[:k]], y, z[test].numpy()[:, chosen[:k]], 42, penalty
        )
        assert abs(probes.auc(truth, score) - wanted) < NEAR

    arrays = x[train], y.astype(int), x[test], truth.astype(int)
    wanted = their_fits.find_best_reg(*arrays, seed=42).metrics.test_auc
    assert abs(probes.auc(truth, probes.logistic(x[train], y, x[test], 42)) - wanted) < NEAR
    wanted = their_fits.find_best_pcareg(*arrays, seed=42).metrics.test_auc
    assert abs(probes.auc(truth, probes.principal_components(x[train], y, x[test], 42)) - wanted) < NEAR


def test_imbalanced_draws_and_label_noise_are_theirs(tasks: dict[str, LabelledTexts]):
    for task in list(tasks.values())[:6]:
        for point in points(task.labels, ["imbalanced", "noise"]):
            train, test, y = split(task.labels, point, seed=7)
            sizes = point.n_train, point.n_test
            if point.setting == "imbalanced":
                assert sizes == their_data.get_classimabalance_num_train(task.name)
            their_train, their_test = their_data.get_train_test_indices(
                task.labels.astype(int), *sizes, point.positive, 7
            )
            assert np.array_equal(train, their_train)
            assert np.array_equal(test, their_test)
            noisy = their_data.corrupt_ytrain(task.labels[train].astype(int), point.flipped, seed=7)
            assert y.tolist() == noisy.astype(bool).tolist()
