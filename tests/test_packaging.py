"""What is published: a wheel with every file of the packages and no other, which works away from the source tree."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGES = ("activations", "sae", "app")
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "*.egg-info", "build", "dist")
MADE_BY_USERS = {"runs", "stores"}  # at the root; packages of these names belong to the code


def left_behind(folder: str, names: list[str]) -> set[str]:
    """Names in a folder of the checkout that are not part of the source."""
    return LEFT_BEHIND(folder, names) | (MADE_BY_USERS if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel made from it."""
    source, out = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, source, ignore=left_behind)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    return out


def files_of_packages() -> set[str]:
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    return {
        str(path.relative_to(ROOT)) for path in found if path.is_file() and path.parent.name != "__pycache__"
    }


def test_the_wheel_holds_the_packages_and_nothing_else(built: Path):
    [wheel] = built.glob("*.whl")
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files_of_packages()


def test_the_citation_is_of_this_release():
    released = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (released["version"], released["license"])
    assert f"## {citation['version']} ({citation['date-released']})" in (ROOT / "CHANGELOG.md").read_text()


def test_the_sdist_holds_what_testing_it_takes(built: Path):
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "FORMAT.md",
        "Makefile",
        "constraints.txt",
        "docs/metrics.md",
        "examples/train.py",
        "mkdocs.yml",
        "benchmarks/step.py",
        "tests/tiny.py",
    }
    assert wanted | files_of_packages() <= names


def test_the_wheel_works_where_there_is_no_source(built: Path, tmp_path: Path):
    [wheel] = built.glob("*.whl")
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(installed), str(wheel)], check=True)
    elsewhere.mkdir()

    def run(*command: str) -> str:
        environment = {
            **os.environ,
            "PYTHONPATH": str(installed),
            "SAE_KERNELS": "reference",
        }  # compiles nothing
        done = subprocess.run(
            command, cwd=elsewhere, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout

    where = run(
        sys.executable,
        "-c",
        "import sae, app, activations; print(sae.__file__, app.__file__, activations.__file__)",
    )
    assert all(path.startswith(str(installed)) for path in where.split())
    assert "sae train topk" in run(sys.executable, str(installed / "bin" / "sae"), "--help")
    small = "--arch.d-sae 8 --train.steps 5 independent --n-features 8"
    assert "recovered" in run(
        sys.executable, str(installed / "bin" / "sae"), "synthetic", "topk", *small.split()
    )
