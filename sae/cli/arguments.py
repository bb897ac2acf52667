"""Parse command lines with tyro, and turn its errors into one line: what is wrong, the nearest option, where to look.

tyro prints its errors as boxes for people and offers no data about them, so the facts are read out of that text.
Its `return_unknown_args` does not replace this: it returns unknown options only where everything else is right, so a misspelled
required option (`--outt`) still ends in a box, as do missing and unreadable values."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from io import StringIO
from itertools import pairwise, takewhile
from textwrap import dedent
from typing import Any, TypeVar

import tyro

from activations.errors import ConfigError
from sae.plugins import Plugins

T = TypeVar("T")
FLAG = re.compile(r"--[a-zA-Z][\w.-]*")
HELP = {"-h", "--help"}
RULE = re.compile(r"^.*---[ ]*$", re.MULTILINE)
BORDERS = str.maketrans("│╭╮╰╯─", "     -")


def parse(kind: type[T], prog: str, args: list[str], *config: Any) -> T:
    """Parse `args` into a `kind`. Raises ConfigError when that is not possible; --help is printed and ends the process."""
    return _parsed(lambda args: tyro.cli(kind, prog=prog, args=args, config=config), prog, args)


def changed(settings: Any) -> list[tuple[str, str]]:
    """Return the options that are not at their defaults, as pairs (group, option): fields of a nested dataclass have the name of
    the field that holds it as their group, others their own name. Fields without a default are left out."""
    names: list[tuple[str, str]] = []
    for each in fields(settings):
        value = getattr(settings, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if is_dataclass(default):
            names += [
                (each.name, inner.name)
                for inner in fields(value)
                if getattr(value, inner.name) != getattr(default, inner.name)
            ]
        elif default is not MISSING and value != default:
            names.append((each.name, each.name))
    return names


def parse_preset(presets: Mapping[str, tuple[str, T]], prog: str, args: list[str]) -> T:
    """Parse a command whose first word, which `choose` has checked, is the name of one of the presets."""
    return _parsed(
        lambda args: tyro.extras.overridable_config_cli(presets, prog=prog, args=args),
        f"{prog} {args[0]}",
        args,
    )


def choose(names: Collection[str], what: str, prog: str, args: list[str]) -> None:
    """Raise ConfigError unless the first argument is one of the names, each of which is a `what`, or asks for help.

    `names` may be a table of plug-ins: for the name of one that cannot be used, its own ConfigError is raised."""
    if args and args[0] in HELP:
        return
    if args and args[0] in names:
        if isinstance(names, Plugins):
            names[args[0]]
        return
    known = [*names]
    if not args or args[0].startswith("-"):
        raise ConfigError(f"the {what} is missing, as in `{prog} {known[0]}`: choose from {', '.join(known)}")
    raise ConfigError(f"{unknown(what, args[0], known)}; choose from {', '.join(known)}")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return that a name is unknown, and which known name it is nearest to."""
    whole = {option.lstrip("-"): option for option in known}
    typed = whole | {
        short.rpartition(".")[2]: option for short, option in whole.items()
    }  # --lr for --train.lr
    near = get_close_matches(name.lstrip("-"), typed, n=1)
    return f"unknown {what} {name}" + (f"; did you mean {typed[near[0]]}?" if near else "")


def _parsed(read: Callable[[list[str]], T], prog: str, args: list[str]) -> T:
    try:
        with redirect_stderr(StringIO()):
            return read(args)
    except SystemExit as end:
        if not end.code:  # help
            raise
    raise ConfigError(_mistake(read, args), fix=f"{prog} --help")


def _mistake(read: Callable[[list[str]], Any], args: list[str]) -> str:
    """Return what is wrong with arguments that tyro refused."""
    command = [arg for arg in args[:1] if not arg.startswith("-")]
    known = {
        flag for asked in (args, command) for flag in FLAG.findall(_printed(read, [*asked, "--help"])[0])
    }
    for name in (arg.partition("=")[0] for arg in args):
        if FLAG.fullmatch(name) and known and name.replace("_", "-") not in known:
            return unknown("option", name, known)
    return _reworded(_printed(read, args)[1], args)


def _printed(read: Callable[[list[str]], Any], args: list[str]) -> tuple[str, str]:
    """Return what tyro prints to stdout and stderr, on lines so wide that none is wrapped."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, suppress(SystemExit):
            read(args)
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return out.getvalue(), err.getvalue()


def _reworded(box: str, args: list[str]) -> str:
    """Return the first part of tyro's error box as one line, in our words where there are better ones."""
    title, *parts = RULE.split(box.translate(BORDERS))
    first, *rest = [dedent(part).splitlines() for part in parts or [title]]
    said = " ".join(" ".join(first).split())
    after = [line.strip() for part in rest for line in part]
    if said.startswith("Missing from"):
        needed = pairwise(first)  # an argument's name, indented by 4; what it is, by 8
        return "missing: " + ", ".join(_argument(*pair) for pair in needed if re.match(r" {4}\S", pair[0]))
    if said.startswith("Unrecognized"):
        words = [word for word in args if word in re.split(r",?\s", said)]
        choices = [line.partition(": ")[2] for line in after if line.startswith("Available subcommands")]
        return f"unexpected argument {' '.join(words)}" + "".join(
            f": choose from {names}" for names in choices
        )
    if bad := re.match(r"Error parsing (--\S+): ", said):
        usage = next((line for line in after if line.startswith(f"{bad[1]} ")), bad[1])
        return f"{bad[1]} {' '.join(_values(args, bad[1]))} cannot be read: expected {_plain(usage)}"
    return said.rstrip(".")


def _argument(name: str, what: str) -> str:
    return f"{_plain(name.strip())} ({what.strip().removesuffix(' (required)').rstrip('.')})"


def _plain(usage: str) -> str:
    """Rewrite tyro's `--features [INT [INT ...]]` as `--features INT INT …`."""
    return re.sub(r"\[(\S+) \[\1 \.\.\.\]\]", r"\1 \1 …", usage)


def _values(args: list[str], flag: str) -> list[str]:
    """Return the values that follow a flag."""
    for place, arg in enumerate(args):
        name, _, value = arg.partition("=")
        if name.replace("_", "-") == flag:
            return [value] if value else [*takewhile(lambda one: not one.startswith("--"), args[place + 1 :])]
    return []
