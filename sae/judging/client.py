"""Ask a language model at an OpenAI-compatible address. Answers are kept by the content of their question, so that none is asked twice."""

import hashlib
import json
import logging
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import Any, NamedTuple

import httpx

from activations.disk import files
from activations.disk.schema import parse
from activations.errors import JudgeError
from activations.progress import Progress, no_progress
from sae.judging.config import JudgeConfig

log = logging.getLogger(__name__)

TRIES = 6
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
AGAIN = (408, 409, 429)  # of the statuses below 500, those that may pass


class Question(NamedTuple):
    """What a model is asked."""

    system: str
    user: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat of two messages that is sent."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}]


@dataclass(frozen=True)
class Answer:
    """What the model answered, with the tokens that the server counted; None where it did not count them."""

    text: str
    tokens_in: int | None = None
    tokens_out: int | None = None


class _Passing(Exception):
    """A fault that may pass, with the seconds that the server asks to wait."""

    def __init__(self, what: str, wait: float = 0.0):
        super().__init__(what)
        self.wait = wait


class Judge:
    """A language model at an address, with the folder in which its answers are kept.

    An answer's file is named by the SHA-256 of the model's name, the messages and the settings that are sent; the address is not
    among them. The key is sent to the address in the header `Authorization` and kept nowhere. Redirections are not followed."""

    def __init__(self, cfg: JudgeConfig, folder: Path, first_wait: float = 1.0):
        """Raises ConfigError where the model's name is missing. `first_wait` is the pause after the first fault, in seconds."""
        self.cfg, self.folder, self.first_wait = cfg, folder, first_wait
        self.settings, self._has_told = cfg.sent, False

    def kept(self, question: Question) -> Answer | None:
        """Return the answer that is kept; None where there is none. A damaged one is reported and does not count."""
        path = self._path(question)
        if not path.exists():
            return None
        try:
            return parse(Answer, files.read_json(path))
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s is damaged (%s); asking again", path, error)
            return None

    def ask(
        self, questions: Sequence[Question], stage: str, progress: Progress = no_progress
    ) -> list[Answer]:
        """Return the answers to the questions, in their order; those that are kept are not asked again, nor equal ones twice.

        Several are asked at once. Connection errors, timeouts, the statuses 408, 409, 429 and from 500 on, and answers that are
        not chat completions are tried again up to five times, with pauses that double, or that the server asks for, at most a
        minute. Interrupted, it waits for the questions that were sent, and keeps their answers.

        Raises JudgeError for other statuses at once, and where the last try fails. Answers are kept in any case."""
        answers = {question: self.kept(question) for question in dict.fromkeys(questions)}
        missing = [question for question, answer in answers.items() if answer is None]
        stop = threading.Event()
        with (
            progress(stage, len(answers), "answers", len(answers) - len(missing)) as advance,
            self._client() as client,
            ThreadPoolExecutor(self.cfg.judge_at_once) as pool,
        ):
            sent = {pool.submit(self._answered, client, question, stop): question for question in missing}
            try:
                for future in as_completed(sent):
                    answers[sent[future]] = future.result()
                    advance(1)
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        found = [answers[question] for question in questions]
        assert all(answer is not None for answer in found)
        return [answer for answer in found if answer is not None]

    def _path(self, question: Question) -> Path:
        content = json.dumps({**self.settings, "messages": question.messages}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()}.json"

    def _client(self) -> httpx.Client:
        key = self.cfg.key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(headers=headers, timeout=self.cfg.judge_timeout)

    def _answered(self, client: httpx.Client, question: Question, stop: threading.Event) -> Answer:
        """Ask until there is an answer, and keep it."""
        reason = ""
        for number in range(TRIES):
            if stop.is_set():
                raise JudgeError("another question failed before this one was asked")
            try:
                answer = self._tried(client, question)
            except _Passing as fault:
                reason = str(fault)
                if number + 1 < TRIES:
                    self._tell(reason)
                    # spread, so that questions that failed together do not come again together
                    pause = self.first_wait * 2**number * random.uniform(0.75, 1.25)
                    stop.wait(min(max(pause, fault.wait), LONGEST_WAIT))
            else:
                files.write_sealed(self._path(question), asdict(answer))
                return answer
        raise JudgeError(
            f"{self.cfg.judge} gave no answer in {TRIES} tries: {reason}; answers so far are kept, and the same command goes on"
        )

    def _tell(self, reason: str) -> None:
        """Say once that something is tried again, so that nobody waits without knowing why."""
        if not self._has_told:
            self._has_told = True
            log.warning("%s: %s; trying again, for half a minute or longer", self.cfg.judge, reason)

    def _tried(self, client: httpx.Client, question: Question) -> Answer:
        """Ask once. Raises _Passing for a fault that may pass, JudgeError for another."""
        try:
            response = client.post(self.cfg.address, json={**self.settings, "messages": question.messages})
        except httpx.TimeoutException as error:
            raise _Passing(f"no answer within {self.cfg.judge_timeout:g} s (--judge-timeout)") from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise _Passing(self._without_key(f"{type(error).__name__}: {error}")) from error
        status = response.status_code
        if status in AGAIN or status >= 500:
            raise _Passing(f"status {status}: {self._said(response)}", _retry_after(response))
        if status != 200:
            raise self._refused(status, self._said(response))
        return _completion(response)

    def _refused(self, status: int, said: str) -> JudgeError:
        named = self.cfg.key_variable
        variable = (
            f"the environment variable {named} (--judge-key-env)"
            if named
            else "an environment variable, and name it with --judge-key-env"
        )
        remedy = {
            401: f"put a valid key into {variable}",
            403: f"the key in {variable} must be allowed to use the model",
            404: "check the address, which mostly ends in /v1, and --judge-model",
        }.get(status, "check --judge, --judge-model and --judge-max-tokens")
        return JudgeError(f"{self.cfg.judge} refuses with status {status}: {said}; {remedy}")

    def _said(self, response: httpx.Response) -> str:
        """Return what the server says of its refusal, in at most 300 characters."""
        try:
            content = response.json()
            error = content.get("error", content) if isinstance(content, dict) else content
            text = error.get("message") if isinstance(error, dict) else error
        except ValueError:
            text = response.text
        return self._without_key(" ".join(str(text or "").split())[:300] or "it says nothing more")

    def _without_key(self, text: str) -> str:
        """Return a text in which the key, which some servers repeat, is left out."""
        return text.replace(self.cfg.key, "…") if self.cfg.key else text


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 without one that can be read."""
    value = response.headers.get("Retry-After", "")
    try:
        return (
            float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - time()
        )
    except ValueError:
        return 0.0


def _completion(response: httpx.Response) -> Answer:
    try:
        content: Any = files.parse_json(
            response.text
        )  # refuses what could not be kept, such as half a surrogate
        text = content["choices"][0]["message"]["content"]
        usage = content.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Passing("its answer is not a chat completion; does the address end in /v1?") from error
    # a model that declines answers with null
    known = [count if type(count) is int and 0 <= count < 2**40 else None for count in counts]
    return Answer(text if isinstance(text, str) else "", *known)
