"""Every file of examples/ runs on the toy world, with smaller numbers, and prints what it promises."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from sae.cli import main as command
from tests.docs.pages import ROOT
from tests.docs.stand_ins import furnish

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SMALLER: dict[str, dict[str, Any]] = {
    "train": {"d_sae": 32, "k": 4, "steps": 10, "batch": 64, "windows": 4},
    "read_features": {"text": "the cat sat on a mat"},
    "steer": {"latent": 7, "prompt": "the cat", "tokens": 4},
    "import_sae": {"rows": 64},
    "dead_latents": {"rows": 256, "off_tokens": 64},
}
PRINTED = {
    "train": "runs/example: FVU 0.",
    "read_features": "fires on",
    "steer": "steered:",
    "import_sae": "32 latents, L0 4.0, FVU 0.",
    "dead_latents": "'dead':",
}


def test_every_example_is_tried():
    assert {path.stem for path in EXAMPLES} == SMALLER.keys()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    path: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(furnish(tmp_path, world))
    if path.stem == "import_sae":
        assert command.main(["export", "saelens", "runs/demo", "--out", "exports/demo"]) == 0
    runpy.run_path(str(path))["main"](**SMALLER[path.stem])
    assert PRINTED[path.stem] in capsys.readouterr().out
