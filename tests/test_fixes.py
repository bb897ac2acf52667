"""The command that an error offers can be pasted into a shell, whatever the names of the folders in it."""

import ast
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import activations
import sae
from activations.errors import WorkbenchError, quoted
from sae.cli.main import main
from tests.test_layout import FILES, name

ODD = "my run's $folder; (old) & new"


def missing_store(folder: Path) -> None:
    activations.Store(folder)


def missing_features(folder: Path) -> None:
    sae.FeatureStore(folder / "features")


def missing_report(folder: Path) -> None:
    from sae.diagnosis.report import DeadReport

    DeadReport(folder / "dead")


@pytest.mark.parametrize("fault", [missing_store, missing_features, missing_report])
def test_a_fix_names_the_folder_whatever_its_name(fault: Callable[[Path], None], tmp_path: Path):
    with pytest.raises(WorkbenchError) as caught:
        fault(tmp_path / ODD)
    assert caught.value.fix
    assert str(tmp_path / ODD) in shlex.split(caught.value.fix)


def test_the_fix_of_a_damaged_evaluation_names_the_run(world: Path, tmp_path: Path):
    run = shutil.copytree(world / "runs" / "toy", tmp_path / ODD)
    (run / "eval.json").write_text("{")
    with pytest.raises(WorkbenchError) as caught:
        _ = sae.Run(run).evaluation
    assert shlex.split(str(caught.value.fix)) == ["sae", "evaluate", str(run)]


def test_the_command_line_prints_it_for_pasting(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = shutil.copytree(world / "runs" / "toy", tmp_path / ODD, ignore=shutil.ignore_patterns("features"))
    assert main(["export", "html", str(run), "--features", "1", "--out", str(tmp_path / "page.html")]) == 2
    (fix,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  fix: ")]
    assert shlex.split(fix.removeprefix("  fix: ")) == ["sae", "features", str(run)]


def test_plain_words_stay_plain():
    assert quoted(Path("runs/demo-1")) == "runs/demo-1"
    assert quoted("needed:runs/demo") == "needed:runs/demo"


def commands(tree: ast.AST) -> list[ast.JoinedStr]:
    """Return the f-strings that are given as `fix=`, or that begin with a command such as `rm`."""
    given = [
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "fix"
    ]
    begins = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        and isinstance(node.values[0], ast.Constant)
        and str(node.values[0].value).startswith(("rm ", "sae resume "))
    ]
    return [node for node in (*given, *begins) if isinstance(node, ast.JoinedStr)]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_path_in_a_fix_is_quoted(path: Path):
    for command in commands(ast.parse(path.read_text())):
        for value in command.values:
            if isinstance(value, ast.FormattedValue):
                word = ast.unparse(value.value)
                # the names of formats, packages and programs are plain words; `made` is a command, quoted already
                assert word.startswith("quoted(") or word in {"other", "prog", "remedy", "package", "made"}, (
                    f"{name(path)}: {word} in a fix is not quoted"
                )
