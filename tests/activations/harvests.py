"""Helpers of the harvest tests: settings, a harvest that is interrupted, a harvest that fails."""

from pathlib import Path

import pytest

from activations.errors import WorkbenchError
from activations.harvest import HarvestConfig, harvest
from activations.language_model import LanguageModel
from activations.store import INDEX
from tests import tiny

HOOKS = "blocks.0.hook_mlp_out,blocks.1.attn.hook_z,blocks.1.hook_resid_post"


class Interrupted(BaseException):
    """Stands for what a signal handler may raise at any moment."""


def config(text: Path, **changes: object) -> HarvestConfig:
    return tiny.harvest_config(text, **{"tokens": 1600, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupted(lm: LanguageModel, out: Path, settings: HarvestConfig, after: int) -> None:
    """Harvest until `after` tokens are done, then stop as if by a signal."""
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if done >= after:
            raise Interrupted

    with pytest.raises(Interrupted):
        harvest(lm, out, settings, advance)
    assert not (out / INDEX).exists()


def line_of(lm: LanguageModel, out: Path, settings: HarvestConfig, kind: type[WorkbenchError]) -> str:
    """Return the one-line message of the error that a harvest ends with."""
    with pytest.raises(kind) as caught:
        harvest(lm, out, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)
