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
# First match wins: a file under the left path imports, of our own code, only what the right side lists.
ALLOWED = {
    "activations": ["activations"],
    "activations/errors.py": ["activations.errors"],
    "sae/runs/records.py": [],
    "sae/code.py": [],
    "sae/runs/problems.py": [],
    "sae/losses.py": ["sae.kernels"],
    "sae/kernels": ["sae.kernels", "sae.code", "activations.errors"],
    "sae/architectures": ["sae.architectures", "sae.kernels", "sae.losses", "sae.code", "activations.errors"],
    "sae/training/trainer.py": ["sae.training", "sae.architectures", "sae.kernels", "activations.errors"],
    "sae/training/optimizers.py": ["sae.architectures", "sae.kernels"],
    "sae/training/distributed.py": [
        "sae.training",
        "sae.architectures",
        "sae.kernels",
        "activations.errors",
        "activations.parallel.ranks",
    ],
    "sae/training/sharing.py": ["sae.training", "activations"],
    "sae/training": [
        "sae.training",
        "sae.architectures",
        "sae.runs.records",
        "activations.errors",
        "sae.runs.run",
        "activations.disk.files",
        "activations.disk.schema",
    ],
    "sae/config.py": [
        "sae.architectures",
        "activations.errors",
        "sae.runs.log",
        "sae.training.trainer",
        "activations.disk.schema",
    ],
    "sae/runs/run.py": [
        "sae.config",
        "sae.runs.records",
        "sae.architectures",
        "activations.errors",
        "sae.runs.problems",
        "sae.runs.log",
        "activations",
    ],
    "sae/evaluation": [
        "sae.evaluation",
        "sae.architectures",
        "sae.losses",
        "sae.code",
        "activations.errors",
        "activations",
    ],
    "sae/features": [
        "sae.features",
        "sae.runs.records",
        "sae.architectures",
        "sae.kernels",
        "sae.code",
        "activations.errors",
        "sae.runs.run",
        "sae.show",
        "activations",
    ],
    "sae/steering": [
        "sae.steering",
        "sae.features.store",
        "sae.architectures",
        "sae.code",
        "activations.errors",
        "activations",
    ],
    "sae/show": ["sae.show"],
    "sae/foreign/__init__.py": ["sae.foreign", "sae.architectures"],
    "sae/foreign/workbench.py": ["sae.foreign", "sae.runs.run", "activations.errors"],
    "sae/foreign": ["sae.foreign", "sae.architectures", "activations.errors", "activations.disk.files"],
    "sae/hub/push.py": [
        "sae.hub",
        "sae.show",
        "sae.features.store",
        "sae.architectures",
        "activations.errors",
        "sae.runs.run",
        "activations",
    ],
    "sae/hub": ["sae.hub", "sae.foreign", "activations.progress", "activations.errors", "activations"],
    "sae/plan": [
        "sae.plan",
        "sae.features",
        "sae.training",
        "sae.architectures",
        "sae.kernels",
        "sae.losses",
        "sae.code",
        "activations.errors",
        "sae.runs.run",
        "activations",
    ],
    "sae": ["sae", "activations"],
    "app/session": ["app", "sae", "activations"],
    "app": ["app", "sae.show"],
    "benchmarks": ["sae", "activations", "benchmarks", "sae.report.features"],
}
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
    r"app/(main|served|frame|[a-z]+_frame)\.py|app/(session|views)/.*|sae/kernels/triton(_[a-z]+)?\.py"
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_the_allowed_way(path):
    allowed = next(
        right for left, right in ALLOWED.items() if name(path) == left or name(path).startswith(left + "/")
    )
    for node in ast.walk(ast.parse(path.read_text())):
        modules = imports(node)
        if modules and modules[0].split(".")[0] in PACKAGES:
            ok = any(m == good or m.startswith(good + ".") for good in allowed for m in modules)
            assert ok, f"{name(path)} imports {modules[0]}"


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


def test_views_hold_no_logic():
    for path in (ROOT / "app/views").glob("*.py"):
        kinds = {type(node) for node in ast.walk(ast.parse(path.read_text()))}
        assert not kinds & {ast.ClassDef, ast.While, ast.Try, ast.Lambda}, name(path)


def test_there_is_no_cycle_of_imports():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        module = name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        found = {m for node in ast.parse(path.read_text()).body for m in imports(node)}
        graph[module] = {m for m in found if (ROOT / m.replace(".", "/")).with_suffix(".py").exists()}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        for following in graph.get(module, ()):
            visit(following, (*trail, module))

    for module in graph:
        visit(module, ())


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


def test_importing_sae_takes_less_than_a_second():
    code = "import time; t = time.perf_counter(); import sae, activations; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(3)) < 1.0


@pytest.mark.parametrize("package", ["sae", "activations"])
def test_every_public_name_is_there_and_documented(package):
    code = (
        f"import {package} as p; print(*[n for n in p.__all__ if not (getattr(p, n).__doc__ or '').strip()])"
    )
    assert run(code).strip() == ""


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(subprocess.CalledProcessError):
        run("import sae; sae.nosuch")
