"""A process with every heavy import done. It forks once a command: `sae` as a user starts it, minus seconds of imports.

Run as `python -m tests.cli.server`; speaks JSON lines on stdin and stdout (see `tests.cli.commands`)."""

import builtins
import ctypes
import errno
import importlib
import itertools
import json
import os
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

IMPORTS = (
    "datasets.packaged_modules.json.json",
    "plotly.subplots",
    "pyarrow.parquet",
    "rich.progress",
    "sae.cli.compare",
    "sae.cli.evaluate",
    "sae.cli.features",
    "sae.cli.store",
    "sae.cli.steer",
    "sae.cli.synthetic",
    "sae.cli.train",
    "torch._dynamo",
    "transformer_lens.model_bridge.generalized_components",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
)
OVERRIDES = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root write where the mode forbids it


def main() -> None:
    """Answer requests until stdin closes."""
    from sae.cli.main import _quiet

    _quiet()
    for name in IMPORTS:
        importlib.import_module(name)
    import torch
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import sae.workflows.training
    from tests import tiny

    get_checkpoint_conversion_mapping("llama")  # builds, once, a table that every loading of a model needs
    torch.set_num_threads(1)
    sae.workflows.training.fitting = tiny.fitting_by_steps
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "args" in request:
            answer = {"pid": start(request)}
        else:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        print(json.dumps(answer), flush=True)


def start(request: dict[str, Any]) -> int:
    """Fork; the child becomes the command and never comes back."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for number, path in ((0, "/dev/null"), (1, request["stdout"]), (2, request["stderr"])):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.dup2(handle, number)
            os.close(handle)
        os.chdir(request["cwd"])
        give_up_overrides()
        for fault, arguments in request["faults"].items():
            FAULTS[fault](*arguments)
        sys.argv = ["sae", *request["args"]]
        from sae.cli.main import main as command

        code = command()  # what the console script does
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill_at(number: int, folder: str, by: int = signal.SIGKILL) -> None:
    """Send this process a signal just before its `number`-th change of a name in `folder`: create, rename, remove."""
    left = number

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
        if event == "open":  # args: path, mode, flags
            changes = isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not changes or not isinstance(args[0], str | os.PathLike):
            return
        path = os.fspath(args[0])
        # shutil.rmtree removes names within an open folder
        if event in ("os.remove", "os.rmdir") and args[1] >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{args[1]}"), path)
        if path.startswith(folder):
            left -= 1
            if not left:
                os.kill(os.getpid(), by)

    sys.addaudithook(hook)


def die_past(size: int) -> None:
    """Let the kernel kill this process while it writes byte `size` of any file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def disk_full_after(files: int) -> None:
    """Let the disk be full when the file after so many others is put on it."""
    left, fsync = files, os.fsync

    def full(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    os.fsync = full


def clock_goes_back(seconds: float) -> None:
    """Let the time of day be so much earlier at each look at it."""
    now, looks = time.time, itertools.count()
    time.time = lambda: now() - seconds * next(looks)
    time.time_ns = lambda: int(time.time() * 1e9)


def loss_explodes_after(steps: int) -> None:
    """Let training meet activations so large, from a step on, that its loss overflows."""
    from sae.training.trainer import Trainer

    step = Trainer.train_step

    def explosive(trainer: Trainer, x: Any, *rest: Any) -> Any:
        x = x * 1e30 if trainer.step >= steps else x
        return step(trainer, x, x, *rest[1:])

    Trainer.train_step = explosive


def closed_output() -> None:
    """Let nobody read what this process prints, as when `| head` has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def stop_within(number: int, error: str) -> None:
    """Send this process a signal while it evaluates, in code that makes `error` of any exception, as compiled code may."""
    from sae.workflows import evaluate

    def reconstruction(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except BaseException:
            raise getattr(builtins, error)("could not determine the shape of object") from None

    evaluate.reconstruction = reconstruction


def hub_at(url: str, cache: str, token: str | None) -> None:
    """Let the hub be at another address, with a cache and a token of its own, as the environment says before a start."""
    import datasets
    from huggingface_hub import constants

    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    constants.ENDPOINT = url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE = constants.HUGGINGFACE_HUB_CACHE = cache
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False
    constants.HF_HUB_DISABLE_XET = True
    constants.DOWNLOAD_CHUNK_SIZE = 100  # what of a chunk has arrived when a connection breaks is lost
    constants.HF_TOKEN_PATH = f"{cache}/token"
    datasets.config.HF_ENDPOINT = url
    datasets.config.HF_DATASETS_CACHE = Path(cache) / "datasets"


def hook_elsewhere(hook: str, other: str, folder: str) -> None:
    """Let TransformerLens give at one hook point what passes another, in this process and in the producers that it starts."""
    from transformer_lens.model_bridge.bridge_core import BridgeCore

    names = BridgeCore.hook_dict.fget

    def planted(bridge: Any) -> dict[str, Any]:
        points = names(bridge)
        return points | {hook: points[other]} if other in points else points  # while it boots it has none

    BridgeCore.hook_dict = property(planted)
    # Python runs this file at the start of every process that has the folder on its path
    call = f"server.hook_elsewhere({hook!r}, {other!r}, {folder!r})"
    Path(folder, "sitecustomize.py").write_text(f"from tests.cli import server\n\n{call}\n")
    if folder not in sys.path:
        sys.path.insert(0, folder)


FAULTS: dict[str, Any] = {
    "clock_goes_back": clock_goes_back,
    "closed_output": closed_output,
    "die_past": die_past,
    "disk_full_after": disk_full_after,
    "environment": os.environ.update,  # as torchrun starts a rank
    "hook_elsewhere": hook_elsewhere,
    "hub_at": hub_at,
    "kill_at": kill_at,
    "loss_explodes_after": loss_explodes_after,
    "stop_within": stop_within,
}


def give_up_overrides() -> None:
    """Let file modes bind this process even when it is root's."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~OVERRIDES
    assert libc.capset(header, sets) == 0


if __name__ == "__main__":
    main()
