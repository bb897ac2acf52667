"""What the reference on the site is made of: every public name, its methods and its fields have docstrings."""

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import activations
import sae

PACKAGES = ("activations", "sae", "app")
PUBLIC = [(package, name) for package in (activations, sae) for name in package.__all__]
COMMANDS = sorted(
    path.stem for path in (Path(sae.__file__).parent / "cli").glob("*.py") if path.stem != "__init__"
)


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=lambda given: getattr(given, "__name__", given))
def test_a_public_name_and_its_parts_say_what_they_are(package: Any, name: str):
    thing = getattr(package, name)
    assert inspect.getdoc(thing), name
    if inspect.isclass(thing):
        silent = [part for part in parts(thing) if not inspect.getdoc(getattr(thing, part))]
        assert not silent
        assert not (name.endswith("Config") and undocumented(thing))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_a_command_has_its_help(command: str):
    module = importlib.import_module(f"sae.cli.{command}")
    own = [thing for thing in vars(module).values() if getattr(thing, "__module__", "") == module.__name__]
    assert not [name for thing in own if dataclasses.is_dataclass(thing) for name in undocumented(thing)]


def parts(cls: type) -> Iterator[str]:
    """Yield the public methods and properties that a class itself defines."""
    for name, value in vars(cls).items():
        described = callable(value) or hasattr(value, "__get__")
        if described and not name.startswith("_") and name not in fields(cls):
            yield name


def fields(cls: type) -> set[str]:
    """Return the names of the fields of a class and of its parents."""
    return {name for one in cls.__mro__ for name in vars(one).get("__annotations__", {})}


def undocumented(cls: Any) -> list[str]:
    """Return the settings of a configuration, nested ones included, that are not followed by a docstring."""
    if not dataclasses.is_dataclass(cls):
        return []
    body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
    own = {
        before.target.id
        for before, after in zip(body, [*body[1:], None], strict=True)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    }
    held = [field.type for field in dataclasses.fields(cls) if dataclasses.is_dataclass(field.type)]
    unsaid = [
        field.name
        for field in dataclasses.fields(cls)
        if field.name in own
        and field.default_factory is dataclasses.MISSING
        and not dataclasses.is_dataclass(field.type)
    ]
    return unsaid + [name for one in held for name in undocumented(one)]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_that_it_is_typed(package: str):
    found = importlib.import_module(package).__file__
    assert found is not None
    assert Path(found).with_name("py.typed").exists()
