"""Every notebook runs from top to bottom on a toy run, and ends in a picture; what is committed shows one too."""

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {"application/vnd.plotly.v1+json", "text/html"}


def parameters(world: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What each notebook works on here: the toy world, read-only, and a folder of its own."""
    store, out = str(world / "store"), str(folder / "run")
    feature = {"RUN": str(world / "runs" / "toy"), "FEATURE": 7}
    return {
        "01_train": {
            "MODEL": str(world / "model"),
            "TEXT": str(world / "text.jsonl"),
            "HOOK": "blocks.1.hook_resid_pre",
            "TOKENS": 4000,
            "WIDTH": 32,
            "K": 4,
            "STEPS": 20,
            "STORE": str(folder / "store"),
            "RUN": out,
        },
        "02_features": {**feature, "WORD": "cat", "TEXT": "the cat sat on a mat"},
        "03_dead_latents": {"STORE": store, "RUN": out, "WIDTH": 64, "K": 2, "STEPS": 20, "ROWS": 500},
        "04_steering": {**feature, "PROMPT": "the cat", "NEW_TOKENS": 6, "DOSES": (0.0, 1.0)},
        "05_compare_methods": {"STORE": store, "OUT": out, "WIDTH": 32, "STEPS": 10, "SPARSITIES": (2, 4)},
    }


def opened(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_all_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == list(parameters(Path(), Path()))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_ends_in_a_picture(path, world, tmp_path, monkeypatch):
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = opened(path)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    settings = parameters(world, tmp_path)[path.stem]
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert PICTURES & set(notebook.cells[-1].outputs[-1]["data"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_was_run_from_top_to_bottom_and_shows_its_pictures(path):
    cells = [cell for cell in opened(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {"image/png", "text/html"} & set(cells[-1].outputs[-1]["data"])
    assert path.stat().st_size < 2_000_000
    assert str(Path.home()) + os.sep not in path.read_text(encoding="utf-8"), "a path of somebody's machine"
