"""The `sae` command itself: its help, and what it says to a command line it cannot make sense of."""

import re
from importlib import metadata
from pathlib import Path

import pytest

from sae.architectures import ARCHITECTURES
from sae.cli.main import COMMANDS
from tests.cli.commands import Server

LONG_JOBS = [
    "demo", "harvest", "train topk", "train batchtopk", "evaluate", "synthetic topk", "features", "compare", "sweep",
    "plan harvest", "plan train topk", "plan features",
]  # fmt: skip


def test_an_unknown_command_is_one_line_with_those_there_are(sae: Server):
    line = sae("harvst").complaint
    assert "harvst" in line
    assert all(command in line for command in COMMANDS)


def test_no_command_prints_the_usage_and_fails(sae: Server):
    ended = sae()
    assert ended.code == 2
    assert ended.out.startswith("usage: sae COMMAND")


def test_version_is_that_of_the_package(sae: Server):
    ended = sae("--version")
    assert ended.code == 0
    assert ended.out == f"sae {metadata.version('sae-workbench')}\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command_with_what_it_does(sae: Server, flag: str):
    ended = sae(flag)
    assert ended.code == 0
    assert not ended.err
    for name, command in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, command.what] for line in ended.out.splitlines())


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        "store show",
        "store verify",
        "train topk",
        "train batchtopk",
        "synthetic topk",
        "synthetic gba tree",
        "synthetic all",
    ],
)
def test_every_command_has_help_that_says_what_it_does(sae: Server, command: str):
    ended = sae(*command.split(), "--help")
    assert ended.code == 0
    assert not ended.err
    assert f"usage: sae {command}" in ended.out
    own = [
        line.strip("│ •") for line in ended.out.splitlines() if "usage:" not in line and "help" not in line
    ]
    assert any(len(line.split()) > 4 for line in own)


@pytest.mark.parametrize("command", LONG_JOBS)
def test_the_help_of_every_long_job_has_an_example(sae: Server, command: str):
    assert f"Example: sae {command.split(maxsplit=1)[0]} " in " ".join(
        sae(*command.split(), "--help").out.split()
    )


MISTYPED = {
    "harvst": ["unknown command harvst", "did you mean harvest?"],
    "plan trian": ["unknown job trian", "did you mean train?"],
    "export saelans r --out a": ["unknown form saelans", "did you mean saelens?"],
    "store sohw a": ["unknown command sohw", "did you mean show?"],
    "store": ["the command is missing", "show, verify"],
    "train": ["the architecture is missing", "topk"],
    "train topq --store a --out b": ["unknown architecture topq", "did you mean topk?"],
    "train --store a topk": ["the architecture is missing", "`sae train topk`"],
    "synthetic": ["the architecture is missing"],
    "synthetic topk flat": ["unexpected argument flat", "independent, heads, tree, structured, gaussian"],
    "synthetic topk tree --d-model 8": ["d_model = 8"],
    "synthetic topk independent --n-featurs=8": ["unknown option --n-featurs", "did you mean --n-features?"],
    "harvest": ["missing: --out PATH (Folder of the store)", "; sae harvest --help"],
    "harvest --out a --modle b": ["unknown option --modle", "did you mean --model?"],
    "harvest --modle b": ["unknown option --modle", "did you mean --model?"],
    "harvest --out a --tokens many": ["--tokens many cannot be read: expected --tokens INT"],
    "harvest --out a --dtype float8": ["'float8'", "'--dtype'", "'bfloat16'"],
    "harvest --out": ["Missing value for argument '--out'"],
    "train topk --out b": ["--store", "--ring 20GB", "sae harvest"],
    "train topk --store a": ["missing: --out PATH (Folder of the run)"],
    "train topk --store a --out b --arch.threshold 1": ["unknown option --arch.threshold"],
    "train topk --store a --out b --train.batch-size 1": ["did you mean --train.batch?", "; sae train topk --help"],
    "train topk --store a --out b --lr 1": ["unknown option --lr", "did you mean --train.lr?"],
    "train topk --store a --out b --train.batch_size=1": ["unknown option --train.batch_size"],
    "plan train topk --stoer a": ["did you mean --store?", "; sae plan train topk --help"],
    "export html r --features 17,18 --out a": ["--features 17,18 cannot be read: expected --features INT INT …"],
    "evaluate": ["missing: PATH (Folder of the run)"],
    "evaluate a b": ["unexpected argument b"],
    "features": ["missing: PATH"],
    "compare": ["must be at least 2"],
    "sweep": ["missing: PATH (The grid, a TOML file)"],
}  # fmt: skip


@pytest.mark.parametrize(("typed", "says"), MISTYPED.items(), ids=MISTYPED)
def test_a_command_line_that_does_not_parse_is_one_line_and_makes_nothing(
    sae: Server, tmp_path: Path, typed: str, says: list[str]
):
    line = sae(*typed.split(), cwd=tmp_path, environment=({"COLUMNS": "40"},)).complaint
    assert all(part in line for part in says), line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_help_of_a_method_names_its_source(sae: Server, name: str):
    ended = sae("train", name, "--help")
    assert ended.code == 0
    assert re.search(r"arXiv:\s*\d{4}\.\d{5}|Anthropic", ended.out)
    assert f"sae train {name} --store" in " ".join(ended.out.split())


def test_output_into_a_pipe_that_closes_is_no_error_to_speak_of(sae: Server):
    ended = sae("train", "topk", "--help", closed_output=())
    assert "Traceback" not in ended.err
