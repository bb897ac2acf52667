"""Errors in a page: the message as text, and below it the command that fixes it, ready to copy."""

from streamlit.testing.v1 import AppTest

from activations.errors import RunError
from app.session.jobs import Job
from tests.app.test_jobs import ended

FIX = "sae train topk --out 'runs/a b' --resume"


def raising_page() -> None:
    import streamlit as st

    from activations.errors import RunError
    from app import widgets

    with widgets.readable():
        raise RunError("sae.json of **x** is damaged", fix=st.session_state["fix"])


def job_page() -> None:
    import streamlit as st

    from app import widgets

    widgets.job(st.session_state["job"])


def shown(page, **state: object) -> tuple[list[str], list[str]]:
    """Return the messages of errors and the commands that a page shows."""
    tab = AppTest.from_function(page, default_timeout=60)
    for name, value in state.items():
        tab.session_state[name] = value
    tab.run()
    assert not tab.exception
    return [error.value.replace("\\", "") for error in tab.error], [code.value for code in tab.code]


def test_an_error_s_fix_is_a_command_of_its_own():
    assert shown(raising_page, fix=FIX) == (["sae.json of **x** is damaged"], [FIX])


def test_an_error_without_a_fix_has_no_command():
    assert shown(raising_page, fix=None) == (["sae.json of **x** is damaged"], [])


def test_a_failed_job_shows_its_fix_too():
    def work(report):
        raise RunError("no finished features at runs/toy", fix="sae features runs/toy")

    messages, commands = shown(job_page, job=ended(Job(work)))
    assert messages == ["no finished features at runs/toy"]
    assert commands == ["sae features runs/toy"]


def test_a_damaged_evaluation_shows_its_fix(show, runs, tmp_path):
    import shutil

    shutil.copytree(runs / "toy", tmp_path / "toy")
    (tmp_path / "toy" / "eval.json").write_text("{")
    at = show("runs", folder=tmp_path)
    assert "eval.json" in at.error[0].value.replace("\\", "")
    assert f"sae evaluate {tmp_path / 'toy'}" in [code.value for code in at.code]
