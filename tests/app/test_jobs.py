"""Background jobs have results and progress, can be stopped, and report failures in one line."""

import threading
import time

import pytest
from streamlit.testing.v1 import AppTest

from activations.errors import ConfigError
from app.session import jobs, visitors
from app.session.jobs import Job


def ended(job: Job) -> Job:
    """Wait for the end of a job and return it."""
    for _ in range(500):
        if not job.running:
            return job
        time.sleep(0.01)
    raise AssertionError("the job does not end")


def test_a_job_has_progress_and_then_a_result():
    go_on = threading.Event()

    def work(report):
        report(0.25, "a quarter")
        go_on.wait(5)
        return 7

    job = Job(work)
    while not job.share:
        time.sleep(0.001)
    assert (job.running, job.share, job.note, job.result) == (True, 0.25, "a quarter", None)
    assert job.seconds_left == pytest.approx(3 * job.seconds, rel=0.5)
    go_on.set()
    assert (ended(job).result, job.error, job.stopped) == (7, None, False)
    took = job.seconds
    time.sleep(0.01)
    assert job.seconds == took


def test_a_stopped_job_ends_at_its_next_report_and_has_no_result():
    reports = 0

    def work(report):
        nonlocal reports
        for _ in range(100_000):
            report(0.5, "on and on")
            reports += 1
            time.sleep(0.001)
        return 1

    job = Job(work)
    job.stop()
    assert (ended(job).stopped, job.result, job.error) == (True, None, None)
    assert reports < 1000


def test_mistakes_and_faults_are_one_line(caplog):
    def mistaken(report):
        raise ConfigError("k = 0 must be at least 1")

    def faulty(report):
        return {}["nothing"]

    mistake = ended(Job(mistaken)).error
    assert mistake is not None
    assert mistake.message == "k = 0 must be at least 1"
    assert not caplog.records
    error = ended(Job(faulty)).error
    assert error is not None
    assert "KeyError" in error.message
    assert "\n" not in error.message
    assert caplog.records, "the trace is in the log"


def test_two_jobs_on_one_page_are_stopped_each_by_its_own_button():
    def page() -> None:
        import streamlit as st

        from app import widgets

        for job in st.session_state["jobs"]:
            widgets.job(job)

    def work(report):
        while True:
            report(0.5, "on and on")
            time.sleep(0.001)

    both = [Job(work), Job(work)]
    tab = AppTest.from_function(page, default_timeout=60)
    tab.session_state["jobs"] = both
    tab.run()
    assert not tab.exception
    tab.button[1].click().run()
    assert ended(both[1]).stopped
    assert both[0].running
    both[0].stop()
    ended(both[0])


def test_work_that_is_to_stop_but_reports_nothing_yet_says_that_it_is_stopping():
    def page() -> None:
        import streamlit as st

        from app import widgets

        widgets.job(st.session_state["job"])

    loaded = threading.Event()

    def work(report):
        loaded.wait(60)
        report(0.5, "loaded")

    job = Job(work)
    tab = AppTest.from_function(page, default_timeout=60)
    tab.session_state["job"] = job
    tab.run()
    assert [(each.label, each.disabled) for each in tab.button] == [("Stop", False)]
    tab.button[0].click().run()
    assert [(each.label, each.disabled) for each in tab.button] == [("Stopping", True)]
    loaded.set()
    assert ended(job).stopped
    assert not tab.run().button


def test_a_job_that_nobody_sees_ends_and_one_that_somebody_sees_goes_on(monkeypatch):
    here = {"ann"}
    monkeypatch.setattr(visitors, "is_here", lambda visitor: visitor in here)
    monkeypatch.setattr(jobs, "UNSEEN", 0.05)

    def work(report):
        for step in range(10_000):
            report.keep(step)
            report(0.5, "on and on")
            time.sleep(0.001)

    seen, unseen = (Job(work, owner=visitors.Tab(name, "tab")) for name in ("ann", "ben"))
    assert ended(unseen).stopped
    assert unseen.result is not None, "what was done is kept"
    assert seen.running
    here.clear()
    assert ended(seen).stopped


def test_waiting_and_loading_do_not_count_towards_the_pace():
    go_on = threading.Event()

    def work(report):
        for _ in range(3):
            report(0.0, "waiting")
            time.sleep(0.1)
        report(0.0, "reading")
        time.sleep(0.01)
        report(0.5, "reading")
        go_on.wait(5)

    job = Job(work)
    while not job.share:
        time.sleep(0.001)
    left = job.seconds_left
    assert left is not None and left < 0.2 < job.seconds
    go_on.set()
    ended(job)


def test_all_jobs_end_when_the_app_ends():
    def page() -> None:
        from app.session import jobs
        from tests.app.test_jobs import forever

        jobs.start("endless", forever, "waiting for the end")

    AppTest.from_function(page, default_timeout=60).run()
    job = jobs._jobs[-1]
    assert (job.title, job.running) == ("waiting for the end", True)
    jobs.end_all()
    assert job.stopped and not job.thread.is_alive()
    jobs._jobs.remove(job)


def forever(report: jobs.Report) -> None:
    while True:
        report(0.5, "on and on")
        time.sleep(0.001)
