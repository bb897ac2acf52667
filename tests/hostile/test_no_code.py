"""Nothing of the project unpickles, evaluates or executes what it reads."""

import ast
from pathlib import Path

import pytest

from tests.test_layout import FILES, name

# module or call -> why it must not be there
FORBIDDEN = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "jsonpickle",
    "eval", "exec", "compile", "os.system", "os.popen", "pty.spawn", "code.interact",
    "numpy.fromfile", "torch.hub.load", "torch.jit.load", "torch.package",
}  # fmt: skip
HARMLESS = {"pandas.read_csv"}  # all of pandas that may be called: others of its readers unpickle
NEEDED = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}


def called(node: ast.Call, names: dict[str, str]) -> str:
    """The full name of what is called, such as numpy.load for np.load."""
    parts, target = [], node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    if not isinstance(target, ast.Name):
        return ""
    return ".".join([names.get(target.id, target.id), *reversed(parts)])


def faults(source: str) -> list[str]:
    """What a file does that it must not."""
    tree, names, found = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found += [node.module] * (node.module.split(".")[0] in FORBIDDEN)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            what = called(node, names)
            if what in FORBIDDEN or (what.split(".")[0] == "pandas" and what not in HARMLESS):
                found.append(what)
            if what in NEEDED:
                flag, value = NEEDED[what]
                given = [k.value for k in node.keywords if k.arg == flag]
                if not (given and isinstance(given[0], ast.Constant) and given[0].value is value):
                    found.append(f"{what} without {flag}={value}")
            if any(k.arg == "trust_remote_code" and not _is_false(k.value) for k in node.keywords):
                found.append("trust_remote_code")
            if any(k.arg == "shell" and not _is_false(k.value) for k in node.keywords):
                found.append("shell=True")
    return found


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_can_run_what_it_reads(path: Path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "eval('1')", "exec(text)", "import os\nos.system('x')",
        "import torch\ntorch.load(path)", "import torch as t\nt.load(path, weights_only=False)",
        "from torch import load\nload(path)", "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path)", "import yaml", "import pandas as pd\npd.read_pickle(path)", "f(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)", "compile(text, 'x', 'exec')",
    ],
)  # fmt: skip
def test_the_check_finds_what_it_looks_for(source: str):
    assert faults(source)


def test_the_check_lets_the_safe_forms_be():
    safe = "import re, torch, numpy as np\nre.compile('x')\ntorch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)"
    assert faults(safe) == []
