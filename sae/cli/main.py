"""The `sae` command: finds the subcommand, turns mistakes into one line and exit code 2, signals into 130 and 143."""

import errno
import importlib
import logging
import os
import signal
import sys
from types import FrameType

COMMANDS = {
    "demo": "the whole job on an embedded model and text: harvest, train, evaluate, features",
    "harvest": "text -> a store of activations",
    "store": "what a store holds (show), and whether its bytes are right (verify)",
    "train": "a store -> a sparse autoencoder: sae train topk --store S --out R",
    "evaluate": "how well a run's SAE rebuilds held-out activations and the model's predictions",
    "features": "what every latent of a run's SAE fires on",
    "app": "browse runs and features in a web browser, on this machine",
}


class Stopped(BaseException):
    """A signal asked the process to end; not an Exception, so that no handler on the way swallows it."""

    def __init__(self, number: int):
        self.number = number


def main(args: list[str] | None = None) -> int:
    """Run `sae` with the given arguments (default: the process's); return its exit code."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0 if args else 2
    if args[0] not in COMMANDS:
        print(f"sae: there is no command {args[0]!r}: choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    _quiet()
    try:
        return _run(args[0], args[1:])
    except Stopped as stopped:
        print(f"sae {args[0]}: stopped; the same command goes on from here", file=sys.stderr)
        return 128 + stopped.number


def _run(command: str, args: list[str]) -> int:
    from activations.errors import ActivationsError
    from sae.errors import SAEError

    try:
        return importlib.import_module(f"sae.cli.{command}").main(args)
    except (ActivationsError, SAEError) as error:
        return _fail(command, str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(command, f"the disk is full ({error.filename or 'while writing'}): free some space and run "
                                  f"the same command again; finished parts are kept")  # fmt: skip
        if isinstance(error, PermissionError):
            return _fail(
                command, f"no permission for {error.filename}: choose another place or change its mode"
            )
        raise


def _fail(command: str, message: str) -> int:
    print(f"sae {command}: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: sae COMMAND [OPTIONS]", "", *lines, "", "sae COMMAND --help tells a command's options."]
    )


def _quiet() -> None:
    """Show our own messages; hide the progress bars and chatter of the libraries below."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for package in ("activations", "sae"):
        logging.getLogger(package).setLevel(logging.INFO)
    for package in ("transformers", "huggingface_hub", "httpx", "datasets"):
        logging.getLogger(package).setLevel(logging.ERROR)
    for name in (
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS",
        "HF_HUB_DISABLE_TELEMETRY",
    ):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


if __name__ == "__main__":
    sys.exit(main())
