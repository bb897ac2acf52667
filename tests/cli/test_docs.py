"""Every command in README and docs/ parses as it stands, and runs, smaller, on the toy world; every flag named is one."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import pytest
import tyro

from sae.architectures import ARCHITECTURES
from sae.cli.export import FORMS
from sae.cli.main import COMMANDS
from sae.foreign import writable
from tests.cli.commands import Server
from tests.docs.pages import PAGES, PROGRAMS, ROOT, Block, blocks, commands, spans
from tests.docs.stand_ins import furnish, smaller

# only parsed: a server, and a command that fetches the embedded model
NOT_HERE = ("app", "demo")
# blocks marked `parsed`, by page: they need a hub, several processes, a server, hours or a registry
PARSED_ALONE = {
    "docs/absorption.md": 1,
    "README.md": 1,
    "docs/app.md": 1,
    "docs/comparisons.md": 4,
    "docs/exchange.md": 1,
    "docs/explanations.md": 2,
    "docs/hub.md": 1,
    "docs/install.md": 3,
    "docs/many-gpus.md": 5,
    "docs/mixed-text.md": 1,
    "docs/methods/adaptivek.md": 2,
    "docs/probing.md": 2,
    "docs/scaling.md": 1,
    "docs/steering.md": 2,
    "docs/streaming.md": 2,
    "docs/tutorial.md": 3,
    "docs/your-model-and-data.md": 3,
}
# commands of indented blocks, which cannot carry a mark
PARSED_UNMARKED = {"make": 2}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]")
# torchrun's, that sentences speak of, and the one of `sae` itself
FOREIGN = {"--max-restarts", "--nnodes", "--rdzv-endpoint", "--version"}
# commands that have commands of their own, or are one for each method
PARTS: dict[str, Iterable[str]] = {
    "train": ARCHITECTURES, "synthetic": ["topk", "all", "all structured"], "plan": ["harvest", "features", "explain", "scaling", *(f"train {n}" for n in ARCHITECTURES)],
    "export": [*FORMS, *writable()], "store": ["show", "verify", "label", "import", "geometry"],
}  # fmt: skip
SHELL = [block for page in PAGES for block in blocks(page) if block.language == "sh"]
FAILING = [block for block in SHELL if block.mark == "fails"]
CALLS = [
    pytest.param(words, id=f"{block.page}:{block.line} {' '.join(words)[:60]}")
    for block in SHELL
    if block.mark != "fails"
    for words in commands(block.text)
]


class Parsed(Exception):
    """Raised in place of the work of a command."""


@pytest.fixture
def place(world: Path, tmp_path: Path) -> Path:
    """Return a folder with stand-ins, in which commands may write."""
    return furnish(tmp_path, world)


@pytest.fixture
def stops_when_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make commands parse their arguments and then raise Parsed."""
    real = tyro.cli

    def parse(*args, **options):
        raise Parsed(real(*args, **options))

    monkeypatch.setattr(tyro, "cli", parse)


def test_every_block_says_what_it_is():
    for page in PAGES:
        for block in blocks(page):
            assert block.language in ("sh", "python", "text", "toml"), f"{page}:{block.line}"
            assert block.mark in ("", "parsed", "compiled", "fails"), f"{page}:{block.line}"


def test_what_cannot_be_run_here_is_marked_and_known():
    assert Counter(block.page for block in SHELL if block.mark == "parsed") == PARSED_ALONE


def test_what_cannot_be_run_here_and_cannot_be_marked_is_known():
    unmarked = [words for block in SHELL if not block.mark for words in commands(block.text)]
    assert Counter(words[0] for words in unmarked if not runs(words)) == PARSED_UNMARKED


def runs(words: list[str]) -> bool:
    """Say whether a command of an unmarked block is run in the tests."""
    return words[0] == "sae" and words[1] not in NOT_HERE


@pytest.mark.parametrize("words", CALLS)
def test_a_command_parses_as_it_stands(words: list[str], stops_when_parsed: None):
    program, *args = words
    assert program in PROGRAMS, f"nobody knows what {program} is"
    {"make": target, "torchrun": ranked, "python": script, "pip": package, "uv": package}.get(
        program, parses
    )(args)


def parses(args: list[str]) -> None:
    with pytest.raises(Parsed):
        COMMANDS[args[0]].run(args[1:])


def target(args: list[str]) -> None:
    made = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert args[0] in made


def ranked(args: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    asked = get_args_parser().parse_args(args)
    assert asked.module
    assert asked.training_script == "sae.cli.main"
    parses(asked.training_script_args)


def script(args: list[str]) -> None:
    path = args[1].replace(".", "/") + ".py" if args[0] == "-m" else args[0]
    assert (ROOT / path).exists() or args[1] == "pytest"


def package(args: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.findall(r"\[([\w,]+)\]", " ".join(args))
    assert {extra for some in asked for extra in some.split(",")} <= extras.keys()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.page == page and not b.mark for b in SHELL)]
)
def test_the_commands_of_a_page_run_one_after_the_other(page: str, sae: Server, place: Path):
    ran = [
        sae(*smaller(words[1:]), cwd=place)
        for block in SHELL
        if block.page == page and not block.mark
        for words in commands(block.text)
        if runs(words)
    ]
    assert [ended.err for ended in ran if ended.code] == []


@pytest.mark.parametrize("block", FAILING, ids=lambda block: f"{block.page}:{block.line}")
def test_a_command_that_is_to_fail_says_what_the_page_quotes(block: Block, sae: Server, place: Path):
    (words,) = commands(block.text)
    said = next(other for other in blocks(block.page) if other.line > block.line)
    assert without_numbers(sae(*words[1:], cwd=place).complaint) == without_numbers(
        said.text.strip().replace("\n  fix: ", "; ")
    )


def without_numbers(line: str) -> str:
    """Replace every number by N: counts in the pages and on the toy world differ."""
    return re.sub(r"\d[\d,]*", "N", line)


def flags(*command: str) -> set[str]:
    """Return all flags in the help of a command."""
    with redirect_stdout(StringIO()) as out, suppress(SystemExit):
        COMMANDS[command[0]].run([*command[1:], "--help"])
    return set(FLAG.findall(out.getvalue()))


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Return the flags of every command, together with those of its own commands."""
    return {
        name: set().union(*(flags(name, *part.split()) for part in PARTS.get(name, [""])))
        for name in COMMANDS
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_named_in_a_sentence_exists(page: str, known: dict[str, set[str]]):
    every = set().union(*known.values()) | FOREIGN
    for span in spans(page):
        if span.startswith(("--", "sae ")):  # else it is of another program
            own = known.get(span.split()[1]) if span.startswith("sae ") else None
            assert set(FLAG.findall(span)) <= (every if own is None else own), f"{page}: {span}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_named_in_a_sentence_exists(page: str):
    for span in spans(page):
        words = span.replace("|", " ").split()
        if words[:1] == ["sae"] and len(words) > 1:
            assert words[1] in {*COMMANDS, "COMMAND", "--version"}, f"{page}: {span}"


def test_every_command_is_in_the_map():
    named = {span.split()[1] for page in PAGES for span in spans(page) if span.startswith("sae ")}
    assert named >= COMMANDS.keys()
