"""A fake language model on loopback that answers chat completions: honestly, by the texts it is shown, or with the faults that a server has."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sae.judging.client import Judge
from sae.judging.config import JudgeConfig

QUOTED = re.compile(r'^\d+: (".*")$', re.MULTILINE)
MARKED = re.compile(r"<<(.*?)>>", re.DOTALL)
KEY = "sk-very-secret-17"
TOKEN = "the token "
Say = Callable[[str, str], str]


def named(token: str) -> str:
    """Return how an honest reader explains a feature that fires on a token."""
    return f"{TOKEN}{json.dumps(token)}"


def honest(system: str, user: str) -> str:
    """Answer as a reader does who takes a feature for the one token that is marked most often."""
    texts = [json.loads(text) for text in QUOTED.findall(user)]
    if '"explanation"' in system:
        marked = Counter(token for text in texts for token in MARKED.findall(text))
        return json.dumps({"explanation": named(marked.most_common(1)[0][0])})
    if '"texts"' in system:
        explanation = json.loads(user.splitlines()[0].removeprefix("Explanation: "))
        token = json.loads(explanation.removeprefix(TOKEN)) if explanation.startswith(TOKEN) else explanation
        return json.dumps({"texts": [n for n, text in enumerate(texts, 1) if token in text]})
    tokens = [token for text in texts for token in MARKED.findall(text)]
    rarest = min(range(len(tokens)), key=lambda place: tokens.count(tokens[place]))
    return json.dumps({"intruder": rarest + 1})


class FakeJudge:
    """A server that answers as `say` does, after the faults that are left."""

    def __init__(self) -> None:
        self.say: Say = honest
        self.key: str | None = None
        """The key that it asks for."""
        self.faults: list[tuple[Any, ...]] = []
        """Of its next requests: (status, 500), (status, 429, Retry-After), (wait, seconds), (body, bytes), (drop,)."""
        self.asked: list[tuple[str, str]] = []
        """The system and the user message of every request that was answered honestly, in order."""
        self.requests = 0
        self._lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"judge": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def next_fault(self) -> tuple[Any, ...]:
        """Count a request and return its fault, empty for none."""
        with self._lock:
            self.requests += 1
            return self.faults.pop(0) if self.faults else ()

    def close(self) -> None:
        """Stop the server."""
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def running() -> Iterator[FakeJudge]:
    """Run a fake while the block lasts."""
    judge = FakeJudge()
    try:
        yield judge
    finally:
        judge.close()


class Handler(BaseHTTPRequestHandler):
    """Handler of one request to `judge`."""

    judge: FakeJudge
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        fault = self.judge.next_fault()
        if fault[:1] == ("drop",):
            self.close_connection = True
            return None
        if fault[:1] == ("wait",):
            time.sleep(fault[1])
        if fault[:1] == ("status",):
            after = {"Retry-After": fault[2]} if len(fault) > 2 else {}
            return self.send(fault[1], b'{"error": {"message": "come again later"}}', **after)
        if fault[:1] == ("body",):
            return self.send(200, fault[1])
        if self.path != "/v1/chat/completions":
            return self.send(404, b"no such page")
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.judge.key and key != self.judge.key:
            return self.send(401, json.dumps({"error": {"message": f"wrong key: {key}"}}).encode())
        system, user = (message["content"] for message in body["messages"])
        self.judge.asked.append((system, user))
        answer = {
            "choices": [{"message": {"role": "assistant", "content": self.judge.say(system, user)}}],
            "usage": {"prompt_tokens": len(user) // 4, "completion_tokens": 5},
        }
        return self.send(200, json.dumps(answer).encode())

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def config(fake: FakeJudge, **changes) -> JudgeConfig:
    settings = {"judge": fake.url, "judge_model": "fake", "judge_at_once": 2}
    return JudgeConfig(**{**settings, **changes})


def asker(fake: FakeJudge, folder: Path, **changes) -> Judge:
    return Judge(config(fake, **changes), folder, first_wait=0.001)
