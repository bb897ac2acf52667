"""Whatever the address of a page says, it is looked up, never opened: one line, or the page."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from activations.errors import ConfigError
from app.steering import link
from tests.activations.toys import LAWS
from tests.app import pages

PAGES = ("runs", "features", "feature", "text", "steering", "dead", "compare")
PATHS = ["../outside", "/etc", "linked", "toy/../toy", "a\0b", "toy/features", "~", "file:///etc", "x" * 5000]
ODD = {
    "features": {"compare": "-1,٣,99999999999999999999,<b>,../..,0"},
    "feature": {"feature": "0/../1"},
    "text": {"text": "\0<b>&", "token": "-1", "colour": "../../etc"},
    "steering": {"steer": "0:add:1,0:x:nan", "prompt": "\0" * 9, "positions": "all,../.."},
    "compare": {"other": "../toy", "a": "٣", "b": "1e9"},
    "runs": {"with": "../toy"},
    "dead": {"run": "toy\n"},
}


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run; a run outside, and a link to it inside."""
    folder = tmp_path_factory.mktemp("urls")
    for name in ("runs/toy", "runs/second", "outside"):
        shutil.copytree(world / "runs" / "toy", folder / name)
    (folder / "runs" / "linked").symlink_to(folder / "outside")
    return folder / "runs"


def opened(monkeypatch: pytest.MonkeyPatch, runs: Path, page: str, query: dict[str, str]) -> AppTest:
    monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(runs)])
    return pages.opened(page, query)


@pytest.mark.parametrize("page", PAGES)
def test_a_run_is_one_of_those_listed_or_refused(monkeypatch, runs: Path, page: str):
    at = opened(monkeypatch, runs, page, {"run": PATHS[0]})
    for path in PATHS:
        at.query_params["run"] = path
        at.run()
        assert not at.exception, at.exception[0].value
        assert len(at.error) == 1, path
        assert at.error[0].value.replace("\\", "").startswith("there is no run"), path


@pytest.mark.parametrize("page", ODD)
def test_odd_settings_of_a_page_are_one_line_or_left_out(monkeypatch, runs: Path, page: str):
    at = opened(monkeypatch, runs, page, {"run": "toy", **ODD[page]})
    assert not at.exception
    assert len(at.error) <= 1


WORDS = st.text(max_size=30) | st.sampled_from(
    ["1", "0", "all", "5:add:1", "5:clamp:-1", "max", "5:add:1e3", "9" * 40]
)
NAMES = ("feature", "unit", "steer", "prompt", "chat", "tokens", "temperature", "seed", "texts", "positions", "first", "error")  # fmt: skip


@LAWS
@given(st.dictionaries(st.sampled_from(NAMES), WORDS))
def test_any_link_to_steering_is_settings_or_one_line(query: dict[str, str]):
    try:
        made = link.read(query, 32, 0)
    except ConfigError as error:
        said = str(error)
    else:
        assert all(0 <= one.latent < 32 for one in made.interventions)
        return
    assert "\n" not in said
    assert len(said) < 500
