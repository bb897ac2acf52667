"""Add architectures and file formats that installed packages name in their entry points to those that are built in."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from activations.errors import ConfigError

log = logging.getLogger(__name__)
T = TypeVar("T")


class Plugins(Mapping[str, T]):
    """Things by name: the built-in ones, in order, then those of one group of entry points.

    Entry points are looked up when a name that is not built in is used, or all names are listed. A list leaves out an entry
    point that cannot be loaded, is of the wrong kind for the group, or has a name that exists already, and logs one warning about
    it. Using it by name, unless that is the name of a built-in thing, raises ConfigError, which names the entry point, its
    package and the reason. `name in plugins` is true for it, so that it is told apart from a name that nobody has."""

    def __init__(self, group: str, built_in: Mapping[str, T], problem: Callable[[str, Any], str | None]):
        """Create the table of an entry point group. `problem(name, object)` returns what is wrong with a loaded object, or
        None when it may be used."""
        self._group, self._built_in, self._problem = group, dict(built_in), problem
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name in self._built_in:
            return self._built_in[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(self._entry_points[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from (*self._built_in, *self._usable)

    def __len__(self) -> int:
        return len(self._built_in) + len(self._usable)

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._entry_points

    @cached_property
    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        """The entry points of each name; two are equal, and count once, where one package lies on the path twice."""
        by_name: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self._group):
            same_name = by_name.setdefault(entry.name, [])
            if entry not in same_name:
                same_name.append(entry)
        return by_name

    @cached_property
    def _usable(self) -> list[str]:
        """The names of the entry points that can be used; each of the others is warned of, once."""
        names = []
        for name, entries in self._entry_points.items():
            try:
                if name in self._built_in:
                    raise self._taken(entries[0], "the workbench has")
                self[name]
            except ConfigError as error:
                log.warning("%s; it is skipped; fix: %s", error.message, error.fix)
            else:
                names.append(name)
        return names

    def _load(self, entries: list[EntryPoint]) -> T:
        entry, *others = entries
        if others:
            raise self._taken(others[0], f"the package {_package(entry)} has")
        try:
            thing = entry.load()
        except (Exception, SystemExit) as error:  # the package's own code runs, and may raise anything
            raise self._refusal(
                entry, f"loading {entry.value} raised {type(error).__name__}: {error}", "install -U"
            ) from error
        if problem := self._problem(entry.name, thing):
            raise self._refusal(entry, f"{entry.value} {problem}", "install -U")
        return thing

    def _taken(self, entry: EntryPoint, by: str) -> ConfigError:
        return self._refusal(entry, f"{by} one of that name too", "uninstall")

    def _refusal(self, entry: EntryPoint, reason: str, remedy: str) -> ConfigError:
        package = _package(entry)
        return ConfigError(
            f"the plug-in {entry.name!r} of the package {package} ({self._group}) cannot be used: {reason}",
            fix=f"pip {remedy} {package}",
        )


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "PACKAGE"
