"""CONTRIBUTING's recipe for an architecture, followed to the letter in a copy of the tree: a file, a line, a page."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pictures

ROOT = Path(__file__).parent.parent
TREE = ("activations", "app", "benchmarks", "docs", "notebooks", "sae", "tests")
LINE = "from sae.architectures.plaink import PlainK as PlainK, PlainKConfig as PlainKConfig\n"
PAGE = """# PlainK

Keeps the k largest latents. Code: `sae/architectures/plaink.py`, after [a paper](https://arxiv.org/abs/2406.04093).

| field | default | what it does |
| --- | --- | --- |
| `d_sae` | `8192` | latents in the dictionary |
| `k` | `32` | latents kept per token |

Set k.

![FVU and L0 in training](plaink.svg)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with one more architecture."""
    tree = tmp_path_factory.mktemp("tree")
    for name in TREE:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*.yml"), ROOT / "pyproject.toml"):
        shutil.copy(path, tree)
    shutil.copy(ROOT / "tests" / "plugin" / "plaink.py", tree / "sae" / "architectures")
    table = tree / "sae" / "architectures" / "__init__.py"
    table.write_text(table.read_text().replace("# isort: on\n", f"{LINE}# isort: on\n"))
    methods = tree / "docs" / "methods"
    (methods / "plaink.md").write_text(PAGE)
    index = methods / "README.md"
    row = "| [plaink](plaink.md) | the k largest of each token | L0 | you test the recipe |\n"
    index.write_text(index.read_text().replace("| [mfr](mfr.md)", f"{row}| [mfr](mfr.md)"))
    site = tree / "mkdocs.yml"
    entry = "      - MFR: methods/mfr.md\n"
    site.write_text(site.read_text().replace(entry, f"{entry}      - PlainK: methods/plaink.md\n"))
    shutil.copy(methods / "topk.svg", methods / "plaink.svg")  # drawing one takes a browser
    return tree


@pytest.mark.parametrize(
    "tests",
    [
        ["tests/sae/test_laws.py", "tests/sae/test_firing.py", "tests/sae/test_starts.py", "-k", "plaink"],
        ["tests/sae/test_plan.py", "tests/cli/test_sweep.py", "-k", "plaink"],
        ["tests/docs/test_pages.py", "-k", "plaink or index or pictures or every_page"],
        ["tests/docs/test_pictures.py", "-k", "plaink or every_method"],
    ],
    ids=["laws", "plan", "pages", "pictures"],
)
def test_one_file_one_line_and_one_page_make_an_architecture(tree: Path, tests: list[str]):
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *tests]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tree)
    assert ended.returncode == 0, ended.stdout
    assert " passed" in ended.stdout


def test_every_method_without_a_picture_of_its_own_gets_the_usual_one():
    figure = pictures.learning("topk", steps=10)
    assert [trace.name for trace in figure.data] == ["topk", "topk"]
