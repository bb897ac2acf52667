"""A WordNet of ten synsets in the database's own format, and a registry on loopback that serves it."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from activations import wordnet

LICENCE = "  1 This software and database is being provided to you\n"
# offset, lexicographer's file, kind, number of words (hexadecimal), each word with a number, number of pointers, pointers
DATA = {
    "noun": """
00000010 28 n 02 month 0 calendar_month 0 002 ~ 00000020 n 0000 ~ 00000030 n 0000 | a twelfth of a year
00000020 28 n 01 March 0 001 @ 00000010 n 0000 | the month after February
00000030 28 n 02 June 0 Jun 0 002 @ 00000010 n 0000 + 00000010 v 0000 | the month after May
00000040 15 n 01 Scotland 0 001 %p 00000050 n 0000 | a country
00000050 15 n 01 Edinburgh 0 001 %p 00000060 n 0000 | its capital
00000060 06 n 01 Royal_Mile 0 001 #p 00000050 n 0000 | a street
00000070 04 n 01 March 0 000 | a steady walk
""",
    "verb": "00000010 38 v 01 march 0 000 01 + 02 00 | walk in step\n",
    "adj": """
00000010 00 a 01 red 0 001 & 00000020 a 0000 | like blood
00000020 00 s 01 scarlet 0 001 & 00000010 a 0000 | bright red
""",
    "adv": "",
}
INDEX = {
    "noun": """
calendar_month n 1 1 ~ 1 0 00000010
edinburgh n 1 1 %p 1 0 00000050
jun n 1 1 @ 1 0 00000030
june n 1 1 @ 1 0 00000030
march n 2 1 @ 2 1 00000020 00000070
month n 1 1 ~ 1 1 00000010
royal_mile n 1 1 #p 1 0 00000060
scotland n 1 1 %p 1 0 00000040
""",
    "verb": "march v 1 0 1 0 00000010\n",
    "adj": "red a 1 1 & 1 0 00000010\nscarlet a 1 1 & 1 0 00000020\n",
    "adv": "",
}


def archive() -> bytes:
    """Return the database as the registry's package of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        for start, files in (("data", DATA), ("index", INDEX)):
            for kind, lines in files.items():
                content = (LICENCE + lines.lstrip("\n")).encode()
                entry = tarfile.TarInfo(f"package/dict/{start}.{kind}")
                entry.size = len(content)
                made.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, missing: int = 0) -> Iterator[list[str]]:
    """Within the block, the registry serves this WordNet; the paths that it was asked for are yielded.

    `missing` are the bytes at the end that it announces and does not send, as where a connection breaks off."""
    content, asked = archive(), []

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - missing])

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_address[1]}/")
    monkeypatch.setattr(wordnet, "ARCHIVE_SHA256", hashlib.sha256(content).hexdigest())
    yield asked
    server.shutdown()
    server.server_close()
