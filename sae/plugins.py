"""Add architectures and file formats that installed packages name in their entry points to those that are built in."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from activations.errors import ConfigError

T = TypeVar("T")


class Plugins(Mapping[str, T]):
    """Things by name: the built-in ones, in order, then those of one group of entry points.

    Entry points are looked up when a name is asked for that is not built in, or all names are listed, and each is
    loaded when it is itself asked for. Raises ConfigError, which names the entry point and its package, for one that cannot
    be loaded, is of the wrong kind for the group, or has a name that exists already."""

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
        yield from (*self._built_in, *self._entry_points)

    def __len__(self) -> int:
        return len(self._built_in) + len(self._entry_points)

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._entry_points

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        by_name: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self._group):
            if entry.name in self._built_in:
                raise self._refusal(entry, "the workbench has one of that name itself")
            if (
                entry.name in by_name and by_name[entry.name] != entry
            ):  # equal where one package lies on the path twice
                raise self._refusal(entry, f"{_package(by_name[entry.name])} has one of that name too")
            by_name[entry.name] = entry
        return by_name

    def _load(self, entry: EntryPoint) -> T:
        try:
            thing = entry.load()
        except Exception as error:  # the package's own code runs, and may raise anything
            raise self._refusal(
                entry, f"loading {entry.value} raised {type(error).__name__}: {error}"
            ) from error
        if problem := self._problem(entry.name, thing):
            raise self._refusal(entry, f"{entry.value} {problem}")
        return thing

    def _refusal(self, entry: EntryPoint, reason: str) -> ConfigError:
        package = _package(entry)
        return ConfigError(
            f"the plug-in {entry.name!r} of the package {package} ({self._group}) cannot be used: {reason}",
            fix=f"pip uninstall {package}",
        )


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "of unknown name"
