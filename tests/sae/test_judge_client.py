"""The client of a language model that explains: faults of its server, keys and addresses, and nothing asked twice."""

import time

import pytest

from activations.errors import ConfigError, JudgeError
from sae.judging.client import Question
from sae.judging.config import JudgeConfig
from tests import tiny
from tests.fake_judge import KEY, asker


def questions(n: int) -> list[Question]:
    return [Question('say {"texts": …}', f'Explanation: "a"\n1: "a{number}"') for number in range(n)]


@pytest.mark.parametrize(
    "fault",
    [("status", 500), ("status", 503), ("status", 429, "0"), ("drop",), ("body", b"<html>"), ("body", b'{"choices": []}'), ("wait", 0.5)],
)  # fmt: skip
def test_a_fault_that_passes_is_tried_again(fake, tmp_path, fault):
    fake.faults = [fault, fault]
    (answer,) = asker(fake, tmp_path, judge_timeout=0.25).ask(questions(1), "ask")
    assert answer.text == '{"texts": [1]}' and fake.requests == 3


def test_a_server_that_never_answers_ends_in_one_line_and_answers_are_kept(fake, tmp_path):
    asker(fake, tmp_path).ask(questions(2), "ask")
    fake.faults = [("status", 500)] * 99
    with pytest.raises(JudgeError, match=r"gave no answer in 6 tries: status 500: come again later"):
        asker(fake, tmp_path).ask(questions(3), "ask")
    assert len([*tmp_path.glob("*.json")]) == 2 and fake.requests == 8


def test_the_pause_that_a_server_asks_for_is_kept(fake, tmp_path):
    fake.faults = [("status", 429, "1")]
    told = tiny.Told()
    begun = time.monotonic()
    asker(fake, tmp_path).ask(questions(1), "ask", told)
    assert time.monotonic() - begun >= 1
    assert sum(told.steps["ask"]) == told.totals["ask"] == 1


def test_a_wrong_key_and_a_wrong_address_are_refused_at_once_and_the_key_is_nowhere(
    fake, tmp_path, monkeypatch
):
    fake.key = "another"
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises(
        JudgeError, match="status 401: wrong key: …; put a valid key into.*JUDGE_KEY"
    ) as error:
        asker(fake, tmp_path, judge_key_env="JUDGE_KEY").ask(questions(1), "ask")
    assert KEY not in str(error.value) and fake.requests == 1
    with pytest.raises(JudgeError, match="status 404: no such page; check the address"):
        asker(fake, tmp_path, judge=fake.url.removesuffix("/v1")).ask(questions(1), "ask")
    fake.key = KEY
    asker(fake, tmp_path, judge_key_env="JUDGE_KEY").ask(questions(1), "ask")
    assert [path for path in tmp_path.rglob("*") if KEY.encode() in path.read_bytes()] == []


def test_the_key_of_openai_goes_to_openai_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert JudgeConfig(judge="https://api.openai.com/v1").key == KEY
    assert JudgeConfig(judge="http://lab:8000/v1").key is None
    assert JudgeConfig(judge="http://lab:8000/v1", judge_key_env="OPENAI_API_KEY").key == KEY


@pytest.mark.parametrize(
    "judge", ["http://[::1/v1", "http://localhost:port/v1", "http://x/v1#part", "localhost"]
)
def test_what_is_no_address_is_refused_before_anything_is_sent(judge: str):
    with pytest.raises(ConfigError, match="is not an address"):
        _ = JudgeConfig(judge=judge).address


def test_nothing_is_asked_twice_after_an_interruption_and_equal_questions_once(fake, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        asker(fake, tmp_path).ask(questions(20), "ask", tiny.Told(end_at=0.3))
    before = fake.requests
    assert 6 <= before < 20
    answers = asker(fake, tmp_path).ask([*questions(20), *questions(20)], "ask")
    assert fake.requests == 20 == len(set(fake.asked))
    assert [answer.text for answer in answers[:20]] == [answer.text for answer in answers[20:]]
    asker(fake, tmp_path, judge_model="other").ask(questions(1), "ask")
    assert fake.requests == 21, "another model's answers do not count"


def test_a_damaged_answer_is_asked_for_again(fake, tmp_path):
    asker(fake, tmp_path).ask(questions(1), "ask")
    (path,) = tmp_path.glob("*.json")
    path.write_bytes(path.read_bytes().replace(b"[1]", b"[2]"))
    (answer,) = asker(fake, tmp_path).ask(questions(1), "ask")
    assert answer.text == '{"texts": [1]}' and fake.requests == 2
