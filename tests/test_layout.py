"""Who may import whom, what importing costs, and how the files are kept."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("activations", "sae", "app", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# One ordered table without exceptions: a file imports, of our own code, what lies on lower floors or on its own. Imports inside
# functions and those of packages' __init__ count too. Of two entries that match a file, the longer decides.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("activations/errors.py", "activations/progress.py"),
    ("activations/disk",),
    ("activations/parallel",),
    ("activations",),
    ("sae/chance.py", "sae/code.py", "sae/plugins.py"),
    ("sae/kernels",),
    ("sae/losses.py",),
    ("sae/architectures",),
    ("sae/config.py", "sae/evaluation"),
    ("sae/runs",),
    ("sae/probing",),
    ("sae/training", "sae/report"),
    ("sae/features",),
    ("sae/diagnosis",),
    ("sae/reading", "sae/steering", "sae/foreign", "sae/plan", "sae/trust", "sae/rules"),
    ("sae/judging",),
    ("sae/hub",),
    ("sae/workflows",),
    ("sae/__init__.py",),
    ("app",),
    ("sae/cli",),
    ("benchmarks",),
)
HEAVY = {
    "streamlit",
    "transformer_lens",
    "transformers",
    "datasets",
    "triton",
    "wandb",
    "gensim",
    "tensorboard",
    "sklearn",
}
# Streamlit runs these itself, and what puts a page together stands beside them; kernels are imported when used
SEEN_AT_IMPORT = re.compile(
    r"app/(box|main|server|widgets)\.py|app/[a-z]+/.*|sae/kernels/triton(_[a-z]+)?\.py"
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(node: ast.AST) -> list[str]:
    """Return the modules that a statement imports, a name within a module too where it is a module itself."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def file_of(module: str) -> Path | None:
    """Return the file of one of our modules, None for a name that is none."""
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def own_imports(path: Path) -> set[Path]:
    """Return our own files that a file imports, anywhere in it. Of a package whose module is meant, that module alone."""
    files = set()
    for node in ast.walk(ast.parse(path.read_text())):
        found = [
            file for module in imports(node) if module.split(".")[0] in PACKAGES and (file := file_of(module))
        ]
        if isinstance(node, ast.ImportFrom) and len(found) > 1:
            found = found[1:]
        files |= {file for file in found if file != path}
    return files


def floor(path: Path) -> int:
    """Return the number of the floor that a file lies on."""
    entries = [
        (len(entry), number)
        for number, floor in enumerate(FLOORS)
        for entry in floor
        if name(path) == entry or name(path).startswith(entry + "/")
    ]
    return max(entries)[1]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_import_leads_to_a_higher_floor(path):
    for file in own_imports(path):
        assert floor(file) <= floor(path), f"{name(path)} imports {name(file)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_heavy_libraries_are_imported_where_they_are_used(path):
    if SEEN_AT_IMPORT.fullmatch(name(path)):
        return
    for node in ast.parse(path.read_text()).body:
        heavy = {module.split(".")[0] for module in imports(node)} & HEAVY
        assert not heavy, f"{name(path)} imports {heavy} when it is imported"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_says_what_it_is_and_stays_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    if path.name != "__init__.py" or text.strip():
        assert ast.get_docstring(ast.parse(text)), "the first line of a file says what it is"


def test_only_the_command_line_prints():
    """Workflows and all below them return what they found; progress is shown by the function that the caller passes in."""
    for path in FILES:
        if name(path).startswith(("sae/cli/", "benchmarks/")) or name(path) == "activations/progress.py":
            continue
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in calls, name(path)


def test_the_command_line_exports_nothing_that_sae_exports():
    stub = ast.parse((ROOT / "sae/__init__.pyi").read_text())
    assert not [
        node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cli")
    ]


def test_pages_hold_no_logic():
    for path in (ROOT / "app").glob("*/page.py"):
        kinds = {type(node) for node in ast.walk(ast.parse(path.read_text()))}
        assert not kinds & {ast.ClassDef, ast.While, ast.Try, ast.Lambda}, name(path)


def test_parts_of_the_app_import_what_lies_below_them():
    """The session imports no page; of a page, state.py imports no controls, and controls.py no script."""
    layers = {"session": 0, "state.py": 1, "link.py": 1, "controls.py": 2, "page.py": 3}
    parts = {
        path: layers.get(path.parent.name, layers.get(path.name, 0)) for path in (ROOT / "app").glob("*/*.py")
    }
    for path, layer in parts.items():
        for file in own_imports(path) & parts.keys():
            assert parts[file] <= layer, f"{name(path)} imports {name(file)}"


def test_there_is_no_cycle_of_imports():
    graph = {path: own_imports(path) for path in FILES}
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, " -> ".join(map(name, [*trail, path]))
        if path not in done:
            for following in graph[path]:
                visit(following, (*trail, path))
            done.add(path)

    for path in FILES:
        visit(path, ())


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


@pytest.mark.parametrize("package", ["sae", "activations", "sae.cli.main"])
def test_importing_a_package_pulls_in_nothing_heavy(package):
    """Names are fetched when used: no torch (seconds), none of the heavy libraries, nothing printed."""
    loaded = run(f"import sys, {package}; print(*sorted(m for m in sys.modules if '.' not in m))").split()
    assert not {"torch", "numpy", "numba", *HEAVY} & set(loaded)
    assert run(f"import {package}") == ""


def test_the_version_is_known_without_torch():
    assert run("import sae, sys; print(sae.__version__[0].isdigit(), 'torch' in sys.modules)").split() == [
        "True",
        "False",
    ]


@pytest.mark.parametrize("package", ["sae", "activations"])
def test_every_public_name_is_there_and_documented(package):
    code = (
        f"import {package} as p; print(*[n for n in p.__all__ if not (getattr(p, n).__doc__ or '').strip()])"
    )
    assert run(code).strip() == ""


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(subprocess.CalledProcessError):
        run("import sae; sae.nosuch")
