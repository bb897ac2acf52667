"""All Python in README and docs/ runs on the toy world, the blocks of a page one after the other."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.docs.pages import PAGES, blocks
from tests.docs.stand_ins import furnish

PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]
COMPILED_ALONE = {
    "docs/exchange.md": 1,
    "docs/hub.md": 1,
    "docs/steering.md": 1,
}  # blocks marked `compiled`, by page


def test_what_cannot_be_run_here_is_marked_and_known():
    assert Counter(block.page for block in PYTHON if block.mark) == COMPILED_ALONE


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_the_python_of_a_page_runs(page: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(furnish(tmp_path, world))
    names = {"x": torch.randn(5, 16, generator=torch.Generator().manual_seed(0))}  # rows of activations
    for block in PYTHON:
        if block.page == page:
            code = compile("\n" * block.line + block.text, block.page, "exec")
            if not block.mark:
                exec(code, names)
