"""A fake hub on loopback that answers what `huggingface_hub` asks, from memory, with the faults that a network has."""

import hashlib
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".npz", ".pt", ".parquet")  # kept as LFS objects, known by their SHA-256
TOKEN = "hf_good"
KINDS = {"models": "model", "datasets": "dataset"}


@dataclass
class Repository:
    """The files of a repository at one commit, and who may read them."""

    files: dict[str, bytes] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    branches: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        """A hash of all the repository's files."""
        whole = json.dumps(
            {path: hashlib.sha1(data).hexdigest() for path, data in sorted(self.files.items())}
        )
        return hashlib.sha1(whole.encode()).hexdigest()


def entry(path: str, data: bytes) -> dict[str, Any]:
    """Return the hub's description of a file."""
    oid = hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if path.endswith(LARGE):
        found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return found


class FakeHub:
    """Repositories by name, faults by file, and a record of the requests."""

    def __init__(self) -> None:
        self.models: dict[str, Repository] = {}
        self.datasets: dict[str, Repository] = {}
        self.faults: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        """File name, or `api` -> faults of its next requests: (status, 500), (cut, bytes), (long, bytes more),
        (other, bytes), (wait, seconds), (restart,)."""
        self.asked: list[tuple[str, str, str]] = []
        """Method, path and Range header of every request."""
        self.sent = 0
        """Number of bytes of files that were sent."""
        self.objects: dict[str, bytes] = {}
        self.stray: list[str] = []
        """Requests that this fake has no answer to."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self) -> None:
        """Stop the server."""
        self.server.shutdown()
        self.server.server_close()

    def gets(self, name: str) -> list[str]:
        """Return the Range headers of the GET requests for files of this name."""
        return [rng for method, path, rng in self.asked if method == "GET" and path.endswith(name)]

    def repository(self, kind: str, name: str) -> Repository | None:
        """Return a repository, or None if it does not exist."""
        return (self.models if kind == "models" else self.datasets).get(name)


@contextmanager
def running() -> Iterator[FakeHub]:
    """Run a hub while the block lasts."""
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()


class Handler(BaseHTTPRequestHandler):
    """Handler of one request to `hub`."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append((self.command, path, self.headers.get("Range") or ""))
        if path == "/":
            return self.send(200, b"")
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, path):
                return getattr(self, method)(*match.groups(), query=parse_qs(url.query))
        self.hub.stray.append(f"{self.command} {self.path}")
        return self.send(404, b"{}")

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def tell(self, content: Any, status: int = 200) -> None:
        self.send(status, json.dumps(content).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str, text: str) -> None:
        self.send(status, json.dumps({"error": text}).encode(), X_Error_Code=code, X_Error_Message=text)

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def opened(self, kind: str, name: str, revision: str = "main") -> Repository | None:
        """Return the repository, or send a refusal and return None."""
        found = self.hub.repository(kind, name)
        faults = self.hub.faults["api"]
        if faults and faults[0][0] == "status":
            self.send(faults.pop(0)[1], b"{}")
        elif faults and faults[0][0] == "wait":
            time.sleep(faults.pop(0)[1])
            self.send(200, b"{}")
        elif found is None or (found.private and not self.known):
            self.refuse(401, "RepoNotFound", "Repository not found")
        elif found.gated and not self.known:
            self.refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        elif revision not in (*found.branches, found.commit):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return found
        return None

    def info(self, kind: str, name: str, revision: str | None = None, query: Any = None) -> None:
        if found := self.opened(kind, name, revision or "main"):
            siblings = [{"rfilename": path} for path in found.files]
            self.tell({"id": name, "modelId": name, "sha": found.commit, "siblings": siblings, "private": found.private,
                       "gated": found.gated, "tags": [], "downloads": 0, "likes": 0, "author": name.split("/", maxsplit=1)[0]})  # fmt: skip

    def tree(self, kind: str, name: str, revision: str, under: str | None = None, query: Any = None) -> None:
        if found := self.opened(kind, name, revision):
            under = (under or "").strip("/")
            inside = {p: d for p, d in found.files.items() if not under or p.startswith(under + "/")}
            if not inside:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            entries = [entry(path, data) for path, data in inside.items()]
            if (query or {}).get("recursive", ["false"])[0].lower() in ("false", "0"):
                skip = len(under) + 1 if under else 0
                folders = {p[:skip] + p[skip:].split("/")[0] for p in inside if "/" in p[skip:]}
                entries = [e for e in entries if "/" not in e["path"][skip:]]
                entries += [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders]
            return self.tell(entries)
        return None

    def paths(self, kind: str, name: str, revision: str, query: Any = None) -> None:
        if found := self.opened(kind, name, revision):
            text = self.body.decode()
            wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
            self.tell([entry(path, found.files[path]) for path in wanted if path in found.files])

    def file(self, datasets: str | None, name: str, revision: str, path: str, query: Any = None) -> None:
        found = self.opened("datasets" if datasets else "models", name, revision)
        if found is None:
            return None
        data = found.files.get(path)
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        told = entry(path, data)
        tag = f'"{told["lfs"]["oid"] if "lfs" in told else told["oid"]}"'
        headers = {"ETag": tag, "X_Repo_Commit": found.commit, "Accept_Ranges": "bytes"}
        headers |= {"X_Linked_Etag": tag, "X_Linked_Size": str(len(data))} if "lfs" in told else {}
        if self.command == "HEAD":
            return self.stream(200, data, headers, len(data))
        name = path.rpartition("/")[2]
        fault = self.hub.faults[name].pop(0) if self.hub.faults[name] else ("none",)
        match fault:
            case ("status", status):
                return self.send(status, b"")
            case ("wait", seconds):
                time.sleep(seconds)
            case ("other", other):
                data = other
        first = int(re.sub(r"\D*(\d+)-.*", r"\1", self.headers.get("Range") or "0-"))
        part = data[first:]
        if fault[0] == "restart":  # as a server does that does not know ranges
            first, part = 0, data
        if first:
            headers["Content_Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        claimed = len(part) + (fault[1] if fault[0] == "long" else 0)
        if fault[0] == "cut":
            part = part[: fault[1]]
        return self.stream(206 if first else 200, part, headers, claimed)

    def stream(self, status: int, data: bytes, headers: dict[str, str], claimed: int) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content_Length": str(claimed)}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.sent += len(data)
        self.wfile.write(data)
        self.wfile.flush()
        if claimed != len(data):
            self.close_connection = True
            self.connection.close()

    def whoami(self, query: Any = None) -> None:
        if self.known:
            self.tell({"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}, "orgs": []})
        else:
            self.refuse(401, "", "Invalid user token.")

    def create(self, query: Any = None) -> None:
        if not self.known:
            return self.refuse(401, "", "Invalid user token.")
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name.split("/", maxsplit=1)[0] != "me":
            return self.refuse(403, "", "You don't have the rights to create a model under this namespace")
        if name in self.hub.models:
            return self.tell(
                {"url": f"{self.hub.url}/{name}", "error": "You already created this model repo"}, 409
            )
        self.hub.models[name] = Repository(
            {".gitattributes": b""},
            private=bool(asked.get("private") or asked.get("visibility") == "private"),
        )
        return self.tell({"url": f"{self.hub.url}/{name}", "id": name})

    def preupload(self, kind: str, name: str, revision: str, query: Any = None) -> None:
        if not self.known:
            return self.refuse(401, "", "Invalid user token.")
        asked = json.loads(self.body)["files"]
        found = self.opened(kind, name, revision)
        answers = [{"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular", "shouldIgnore": False,
                    "oid": entry(one["path"], found.files[one["path"]])["oid"] if found and one["path"] in found.files else None} for one in asked]  # fmt: skip
        return self.tell({"files": answers}) if found else None

    def batch(self, name: str, query: Any = None) -> None:
        objects = []
        for one in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}}
            objects.append(
                {**one, "authenticated": True}
                | ({} if one["oid"] in self.hub.objects else {"actions": actions})
            )
        self.tell({"transfer": "basic", "objects": objects})

    def put(self, oid: str, query: Any = None) -> None:
        faults = self.hub.faults["upload"]
        if faults and faults[0][0] == "status":
            return self.send(faults.pop(0)[1], b"")
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        return self.send(200, b"")

    def commit(self, kind: str, name: str, revision: str, query: Any = None) -> None:
        import base64

        found = self.opened(kind, name, revision)
        if found is None:
            return
        for line in self.body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.objects[value["oid"]]
        url = f"{self.hub.url}/{name}/commit/{found.commit}"
        self.tell({"success": True, "commitOid": found.commit, "commitUrl": url, "hookOutput": ""})

    def yaml(self, query: Any = None) -> None:
        self.tell({"errors": [], "warnings": []})


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    (rf"/api/(models|datasets)/{NAME}", "info"),
    (rf"/api/(models|datasets)/{NAME}/revision/([^/]+)", "info"),
    (rf"/api/(models|datasets)/{NAME}/tree/([^/]+)(/.*)?", "tree"),
    (rf"/api/(models|datasets)/{NAME}/paths-info/([^/]+)", "paths"),
    (rf"/(?:(datasets)/)?{NAME}/resolve/([^/]+)/(.+)", "file"),
    (r"/api/whoami-v2", "whoami"),
    (r"/api/repos/create", "create"),
    (rf"/api/(models|datasets)/{NAME}/preupload/([^/]+)", "preupload"),
    (rf"/{NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"/lfs/(\w+)", "put"),
    (rf"/api/(models|datasets)/{NAME}/commit/([^/]+)", "commit"),
    (r"/api/validate-yaml", "yaml"),
)
