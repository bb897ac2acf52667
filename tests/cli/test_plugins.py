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
    ("entry_points", "name", "facts"),
    [
        (
            "[sae.architectures]\nplaink = nosuch:PlainK\n",
            "plaink",
            ["nosuch", "ModuleNotFoundError", "pip install -U sae-plain"],
        ),
        ("[sae.architectures]\ntopk = plaink:PlainK\n", "topk", ["of that name", "pip uninstall sae-plain"]),
        ("[sae.architectures]\nother = plaink:PlainK\n", "other", ["'plaink'", "pip install -U sae-plain"]),
        ("[sae.architectures]\nplaink = plaink:PlainKConfig\n", "plaink", ["not a subclass of sae.SAE"]),
        ("[sae.formats]\nplain = plaink\n", "plain", ["TITLE", "recognises"]),
    ],
)
def test_a_package_that_is_broken_or_in_the_way_is_skipped_with_one_line(
    tmp_path: Path, entry_points: str, name: str, facts: list[str]
):
    env = {**os.environ, "PYTHONPATH": str(plugin.install(tmp_path, entry_points))}
    group = "sae.foreign.FORMATS" if "formats" in entry_points else "sae.architectures.ARCHITECTURES"
    code = f"""
import sae.foreign, sae.architectures
from activations.errors import ConfigError
assert sae.architectures.ARCHITECTURES["topk"] is sae.TopK
table = {group}
assert dict(table) == table._built_in and len(table) == len(list(table)) == len(table._built_in)
assert {name!r} in table
try:
    table[{name!r}]
except ConfigError as error:
    print(error.message, error.fix, sep="; ")
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT, check=True
    )
    assert len(ended.stderr.splitlines()) == 1
    for fact in (f"{name!r}", "sae-plain", *facts):
        assert fact in ended.stderr
        assert fact in ended.stdout or name == "topk"


def test_two_packages_with_one_name_are_both_skipped(tmp_path: Path):
    for package, module in (("sae-plain", "plaink"), ("sae-twin", "twin.plaink")):
        plugin.install(tmp_path, f"[sae.architectures]\nplaink = {module}:PlainK\n", package)
    code = "from sae.architectures import ARCHITECTURES; print('plaink' in [*ARCHITECTURES])"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT, check=True
    )
    assert ended.stdout == "False\n"
    assert "sae-plain" in ended.stderr
    assert "sae-twin" in ended.stderr


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs `sae` commands where a package is installed whose modules cannot be imported."""
    entry_points = "[sae.architectures]\nplaink = nosuch:PlainK\n\n[sae.formats]\nplain_files = nosuch\n"
    packages = plugin.install(tmp_path_factory.mktemp("broken"), entry_points)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(packages))
        server = Server(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


def test_commands_go_on_without_a_broken_package(broken: Server, world: Path, tmp_path: Path):
    train = ("--store", world / "store", "--out", tmp_path / "run", *SMALL, *OPTIONS)
    ended = broken("train", "topk", *train)
    assert ended.code == 0, ended.err
    (warning,) = [line for line in ended.err.splitlines() if "plug-in" in line]
    for fact in ("'plaink'", "sae-plain", "ModuleNotFoundError", "fix: pip install -U sae-plain"):
        assert fact in warning
    ended = broken("export", "sparsify", tmp_path / "run", "--out", tmp_path / "files")
    assert ended.code == 0, ended.err
    assert "'plain_files'" in ended.err
    of = ("--model", "embedded", "--hook", tiny.HOOK)
    assert broken("import", tmp_path / "files", "--out", tmp_path / "again", *of).code == 0


@pytest.mark.parametrize(
    "command",
    [
        ("train", "plaink", "--store", "S", "--out", "R"),
        ("plan", "train", "plaink", "--store", "S"),
        ("synthetic", "plaink"),
        ("import", "plain_files", ROOT, "--out", "R"),
        ("export", "plain_files", "R", "--out", "F"),
    ],
)
def test_only_using_a_broken_package_by_name_is_an_error(broken: Server, command: tuple[str | Path, ...]):
    ended = broken(*command)
    assert ended.code == 2
    assert "ModuleNotFoundError" in ended.err.splitlines()[-2]
    assert ended.err.splitlines()[-1].split() == ["fix:", "pip", "install", "-U", "sae-plain"]


def test_a_run_of_a_broken_packages_architecture_is_told_apart(broken: Server, runs: Path):
    ended = broken("evaluate", runs / "plain")
    assert ended.code == 2
    assert ended.err.splitlines()[-1].split() == ["fix:", "pip", "install", "-U", "sae-plain"]
