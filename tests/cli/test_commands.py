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
    assert "'harvst'" in line
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
    "harvst": ["no command 'harvst' (nearest: harvest)"],
    "plan trian": ["no job 'trian' (nearest: train)"],
    "export saelans r --out a": ["no form 'saelans' (nearest: saelens)"],
    "store sohw a": ["no command 'sohw' (nearest: show)"],
    "store": ["needed first is the command", "show, verify"],
    "train": ["needed first is the architecture", "topk"],
    "train topq --store a --out b": ["no architecture 'topq' (nearest: topk)"],
    "train --store a topk": ["needed first is the architecture", "`sae train topk`"],
    "synthetic": ["needed first is the architecture"],
    "synthetic topk flat": ["no place for flat", "independent, heads, tree, gaussian"],
    "synthetic topk tree --d-model 8": ["d_model = 8"],
    "synthetic topk independent --n-featurs=8": ["no option '--n-featurs' (nearest: --n-features)"],
    "harvest": ["missing: --out PATH (Folder of the store)", "`sae harvest --help`"],
    "harvest --out a --modle b": ["no option '--modle' (nearest: --model)"],
    "harvest --modle b": ["no option '--modle' (nearest: --model)"],
    "harvest --out a --tokens many": ["--tokens many cannot be read: needed is --tokens INT"],
    "harvest --out a --dtype float8": ["'float8'", "'--dtype'", "'bfloat16'"],
    "harvest --out": ["Missing value for argument '--out'"],
    "train topk --out b": ["missing: --store STR (Activation store to train on"],
    "train topk --store a --out b --arch.threshold 1": ["no option '--arch.threshold'"],
    "train topk --store a --out b --train.batch-size 1": ["(nearest: --train.batch)", "`sae train topk --help`"],
    "train topk --store a --out b --lr 1": ["no option '--lr' (nearest: --train.lr)"],
    "train topk --store a --out b --train.batch_size=1": ["no option '--train.batch_size'"],
    "plan train topk --stoer a": ["(nearest: --store)", "`sae plan train topk --help`"],
    "export html r --features 17,18 --out a": ["--features 17,18 cannot be read: needed is --features INT INT …"],
    "evaluate": ["missing: PATH (Folder of the run)"],
    "evaluate a b": ["no place for b"],
    "features": ["missing: PATH"],
    "compare": ["needed: two or more"],
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
