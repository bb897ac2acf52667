"""`sae app`: browse runs and features in a web browser, on this machine."""

import errno
import gc
import os
import secrets
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import tyro

from activations.errors import ConfigError, RunError
from sae.cli import arguments
from sae.workflows.signals import Stopped

LOCAL = ("127.0.0.1", "localhost", "::1")
PASSWORD = "SAE_PASSWORD"  # the environment variable in which `app.server` looks for it
PORTS_TRIED = 20


def has_display() -> bool:
    """Return whether a browser opened here would be seen: not over SSH, not on a Linux machine without a desktop."""
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


@dataclass(frozen=True)
class App:
    """Show the runs in a folder in a web browser. Nothing leaves this machine.

    Example: sae app runs --port 8600. Ctrl-C ends it. From another machine it is safest to come in by SSH:
    ssh -L 8501:localhost:8501 HOST, and then open http://localhost:8501 there."""

    runs: tyro.conf.Positional[Path] = Path("runs")
    """Folder with runs at any depth, or one run."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own lets the network in: whoever reaches it can read all
    runs, write labels, and have this machine compute."""
    port: int = 8501
    """Port to listen on; when it is taken, the next free one."""
    browser: bool = field(default_factory=has_display)
    """Open a browser window. By default where there is a display."""
    password: bool = field(default_factory=lambda: bool(os.environ.get(PASSWORD)))
    """Ask every visitor for a password: the value of the environment variable SAE_PASSWORD, or else one that is
    generated and printed. This is the default where that variable is set. It travels unencrypted: there is no TLS."""


def main(args: list[str]) -> int:
    """Parse and run, until Ctrl-C."""
    command = arguments.parse(App, "sae app", args)
    if not command.runs.is_dir():
        raise RunError(
            f"there is no folder {command.runs}: name the one your runs are in, as in `sae app runs`"
        )
    port = free_port(command.host, command.port)
    _set_password(command.password)
    serve(command, port)
    return 0


def _set_password(wanted: bool) -> None:
    """Leave the password, or none, where the app looks for it; one that is made up is printed, once."""
    if not wanted:
        os.environ.pop(PASSWORD, None)
    elif not os.environ.get(PASSWORD):
        os.environ[PASSWORD] = secrets.token_urlsafe(12)
        print(f"password: {os.environ[PASSWORD]} (any user name)", file=sys.stderr)


def free_port(host: str, port: int) -> int:
    """Return the port, or the next free one, which is then printed.

    Raises ConfigError when all of PORTS_TRIED are taken, or when the host is not an address of this machine."""
    if not 0 < port < 65536:
        raise ConfigError(f"--port {port} must lie between 1 and 65535")
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        if _is_free(host, candidate):
            if candidate != port:
                print(f"port {port} is taken, using {candidate}", file=sys.stderr)
            return candidate
    raise ConfigError(
        f"ports {port} to {port + PORTS_TRIED - 1} of {host} are all taken: choose another --port"
    )


def serve(command: App, port: int) -> None:
    """Run the Streamlit server in this process; returns when it has been stopped."""
    script = _script()
    if command.host not in LOCAL:
        print(f"warning: {_meaning(command)}", file=sys.stderr)
    print(f"runs in {command.runs}: http://{_shown(command.host)}:{port} (Ctrl-C ends it)", flush=True)
    options = {
        "server.address": command.host,
        "server.port": port,
        "server.headless": not command.browser,
        "server.showEmailPrompt": False,
        "server.enableXsrfProtection": True,  # these three whatever a configuration file on the way says
        "server.enableCORS": True,
        "server.enableStaticServing": False,
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": True,
        "logger.level": "warning",
    }
    flags = [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in options.items()
    ]
    if command.host in LOCAL:  # a web page elsewhere cannot reach in by giving its own name this address
        flags += [f"--server.allowedHosts={name}" for name in LOCAL]
    run = import_module("streamlit.web.cli").main
    gc.freeze()  # Streamlit collects garbage after every run of a page: not among what is loaded for good
    with suppress(Stopped):  # the server, having closed down, hands on the signal that ended it
        run(["run", *flags, str(script), "--", str(command.runs)], standalone_mode=False)


def _meaning(command: App) -> str:
    """Return a warning about listening on an address that others can reach."""
    if command.password:
        return (
            f"the password and all pages travel unencrypted to {command.host}: use it in a network you trust, or "
            f"behind a proxy with HTTPS"
        )
    return (
        f"anyone who can reach {command.host} can read these runs, write labels and run the model here, "
        f"because no password is set: --password asks for one"
    )


def _script() -> Path:
    """Return the path of the app's entry script. Loads what its pages need, so that the first page does not wait for it."""
    try:
        return Path(import_module("app.session.address").__file__ or "").parents[1] / "server.py"
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("streamlit", "plotly"):
            raise
        raise ConfigError(f"the app needs {error.name}: pip install 'sae-workbench[app]'") from error


def _is_free(host: str, port: int) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # a server that just ended does not count
            trial.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        why = f"cannot listen on {host}, port {port} ({error.strerror})"
        raise ConfigError(f"{why}: choose another --host or --port") from error
    return True


def _shown(host: str) -> str:
    """Return the host as a browser on this machine writes it in a URL."""
    return "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
