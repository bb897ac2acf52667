"""An architecture and a file format that an installed package adds are like those of the workbench; broken ones are refused."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import plugin, tiny
from tests.cli.commands import ROOT, Server

OPTIONS = ("--train.steps", 30, "--train.batch", 64, "--train.log-every", 5)
SMALL = ("--arch.d-sae", 32, "--arch.k", 4)
PAGE = """
import sys
from tests.app import pages
sys.argv = [str(pages.MAIN), sys.argv[1]]
at = pages.opened(sys.argv[2] if len(sys.argv) > 2 else "runs", {"run": "plain"})
table = at.dataframe[0].value
print(table.set_index("name").loc["plain", "architecture"])
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it, as site-packages is."""
    return plugin.install(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def plugged(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs `sae` commands where the package is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(packages))
        server = Server(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def runs(plugged: Server, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the package's architecture, trained, evaluated, described and diagnosed."""
    folder = tmp_path_factory.mktemp("plugged") / "runs"
    run = folder / "plain"
    for command in (
        ("train", "plaink", "--store", world / "store", "--out", run, *SMALL, *OPTIONS),
        ("evaluate", run),
        ("features", run),
        ("dead", run, "--rows", 400, "--off-tokens", 60, "--batch", 128),
    ):
        ended = plugged(*command)
        assert ended.code == 0, ended.err
    return folder


def test_commands_take_an_architecture_of_an_installed_package(plugged: Server, runs: Path, world: Path):
    assert (runs / "plain" / "dead").is_dir()
    assert "plaink" in plugged("train", "--help").out
    ended = plugged("plan", "train", "plaink", "--store", world / "store", *SMALL, "--device", "h200")
    assert ended.code == 0, ended.err
    assert "train plaink" in ended.out


def test_an_architecture_of_a_package_is_exported_as_the_simpler_one_it_equals(
    plugged: Server, runs: Path, tmp_path: Path
):
    for form in ("sparsify", "plain_files"):
        ended = plugged("export", form, runs / "plain", "--out", tmp_path / form)
        assert ended.code == 0, ended.err
        imported = plugged(
            "import",
            tmp_path / form,
            "--out",
            tmp_path / f"from-{form}",
            "--model",
            "embedded",
            "--hook",
            tiny.HOOK,
        )
        assert imported.code == 0, imported.err


def test_the_app_shows_a_run_of_a_packages_architecture(packages: Path, runs: Path):
    env = {**os.environ, "PYTHONPATH": str(packages)}
    command = [sys.executable, "-c", PAGE, str(runs)]
    ended = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert "plaink" in ended.stdout


@pytest.mark.parametrize(
    ("entry_points", "facts"),
    [
        (
            "[sae.architectures]\nplaink = nosuch:PlainK\n",
            ["'plaink'", "sae-plain", "nosuch", "ModuleNotFoundError"],
        ),
        ("[sae.architectures]\ntopk = plaink:PlainK\n", ["'topk'", "sae-plain", "of that name"]),
        ("[sae.architectures]\nother = plaink:PlainK\n", ["'other'", "'plaink'"]),
        ("[sae.architectures]\nplaink = plaink:PlainKConfig\n", ["'plaink'", "not a subclass of sae.SAE"]),
        ("[sae.formats]\nplain = plaink\n", ["'plain'", "TITLE", "recognises"]),
    ],
)
def test_a_package_that_is_broken_or_in_the_way_is_refused_by_name(
    tmp_path: Path, entry_points: str, facts: list[str]
):
    env = {**os.environ, "PYTHONPATH": str(plugin.install(tmp_path, entry_points))}
    group = "sae.foreign.FORMATS" if "formats" in entry_points else "sae.architectures.ARCHITECTURES"
    code = f"""
import sae.foreign, sae.architectures
from activations.errors import WorkbenchError
assert sae.architectures.ARCHITECTURES["topk"] is sae.TopK
try:
    print(dict({group}))
except WorkbenchError as error:
    print(error.message, error.fix, sep="; ")
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT, check=True
    ).stdout
    assert "pip uninstall sae-plain" in out
    for fact in facts:
        assert fact in out
