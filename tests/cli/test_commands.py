"""The `sae` command itself: its help, and what it says to a command line it cannot make sense of."""

import re
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


@pytest.mark.parametrize(
    "args",
    [
        ("harvest",),
        ("harvest", "--out", "a", "--modle", "b"),
        ("harvest", "--out", "a", "--tokens", "many"),
        ("harvest", "--out", "a", "--dtype", "float8"),
        ("train",),
        ("train", "topq", "--store", "a", "--out", "b"),
        ("train", "topk", "--out", "b"),
        ("train", "topk", "--store", "a", "--out", "b", "--arch.threshold", "1"),
        ("evaluate",),
        ("synthetic",),
        ("synthetic", "topk", "flat"),
        ("synthetic", "topk", "tree", "--d-model", "8"),
        ("features",),
        ("compare",),
        ("sweep",),
        ("store",),
        ("store", "sohw", "a"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_does_not_parse_fails_without_a_traceback_or_a_file(
    sae: Server, tmp_path: Path, args: tuple[str, ...]
):
    ended = sae(*args, cwd=tmp_path)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert ended.err
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
