"""`sae app` listens where it is told, prints the address, and ends with one line when it cannot."""

import importlib
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from activations.errors import ConfigError, RunError
from app.server import PASSWORD
from sae.cli import app


@pytest.fixture
def streamlit(monkeypatch):
    """Replace Streamlit's command line and record what it is called with."""
    monkeypatch.setenv(PASSWORD, "")  # put back when the test is over
    calls: list[list[str]] = []

    def run(args, standalone_mode):
        calls.append(args)

    def load(name):
        return SimpleNamespace(main=run) if name == "streamlit.web.cli" else importlib.import_module(name)

    monkeypatch.setattr(app, "import_module", load)
    return calls


def flags(call: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for flag in call[1 : call.index("--") - 1]:
        name, value = flag.removeprefix("--").split("=")
        found.setdefault(name, []).append(value)
    return found


def listening() -> socket.socket:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken


def test_it_listens_on_this_machine_only_and_tells_nobody(streamlit, tmp_path, capsys):
    assert app.main([str(tmp_path), "--port", "18501", "--no-browser"]) == 0
    (call,) = streamlit
    found = flags(call)
    assert found["server.address"] == ["127.0.0.1"]
    assert found["browser.gatherUsageStats"] == ["false"]
    assert found["server.headless"] == ["true"]
    assert set(found["server.allowedHosts"]) == {"127.0.0.1", "localhost", "::1"}
    assert call[-1] == str(tmp_path)
    script = Path(call[call.index("--") - 1])
    assert script.name == "server.py" and script.is_file()
    assert [found[f"server.{name}"] for name in ("enableXsrfProtection", "enableCORS")] == [
        ["true"],
        ["true"],
    ]
    written = capsys.readouterr()
    assert "http://127.0.0.1:18501" in written.out
    assert not written.err


def test_another_host_is_warned_about(streamlit, tmp_path, capsys):
    assert app.main([str(tmp_path), "--host", "0.0.0.0", "--port", "18501"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "no password" in line and "--password" in line
    assert "server.allowedHosts" not in flags(streamlit[0])
    assert PASSWORD not in os.environ


def test_a_password_is_made_up_and_said_once_or_taken_from_the_environment(
    streamlit, tmp_path, capsys, monkeypatch
):
    where = [str(tmp_path), "--host", "0.0.0.0", "--port", "18501"]
    assert app.main([*where, "--password"]) == 0
    said, warned = capsys.readouterr().err.splitlines()
    made = os.environ[PASSWORD]
    assert len(made) >= 16
    assert made in said
    assert "unencrypted" in warned and made not in warned
    assert not any(made in flag for flag in streamlit[-1])
    monkeypatch.setenv(PASSWORD, "my own")
    assert app.main(where) == 0
    assert "my own" not in capsys.readouterr().err
    assert os.environ[PASSWORD] == "my own"
    assert app.main([*where, "--no-password"]) == 0
    assert PASSWORD not in os.environ


def test_the_app_is_served_behind_its_door_where_there_is_a_password(monkeypatch):
    for password, layers in (("a word", ["PasswordGate", "VisitorCookie"]), (None, ["VisitorCookie"])):
        monkeypatch.setenv(PASSWORD, password) if password else monkeypatch.delenv(PASSWORD)
        served = importlib.reload(importlib.import_module("app.server"))
        assert [layer.cls.__name__ for layer in served.app._user_middleware] == layers


def test_a_taken_port_is_left_alone_and_said(capsys):
    with listening() as taken:
        port = taken.getsockname()[1]
        assert app.free_port("127.0.0.1", port) > port
        assert f"port {port} is taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 70000), ("192.0.2.1", 8501), ("no such host", 8501)]
)
def test_a_place_nobody_can_listen_on_is_a_readable_error(host, port):
    with pytest.raises(ConfigError, match=r"port|host"):
        app.free_port(host, port)


def test_a_missing_folder_is_a_readable_error(tmp_path):
    with pytest.raises(RunError, match="there is no folder"):
        app.main([str(tmp_path / "nosuch")])


@pytest.mark.parametrize("package", ["streamlit", "plotly"])
def test_missing_packages_are_named_with_the_extra_that_brings_them(tmp_path, monkeypatch, package):
    def load(name):
        raise ModuleNotFoundError(f"No module named '{package}.sub'", name=f"{package}.sub")

    monkeypatch.setattr(app, "import_module", load)
    with pytest.raises(ConfigError, match=r"pip install 'sae-workbench\[app\]'"):
        app.main([str(tmp_path), "--port", "18501"])


def test_a_browser_is_opened_only_where_it_would_be_seen(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not app.has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert app.has_display()
    monkeypatch.setenv("SSH_CONNECTION", "somewhere")
    assert not app.has_display()
