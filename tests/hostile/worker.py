"""A process that lets readers read mutated files, in children that may die, hang or eat memory without harm.

Run as `python -m tests.hostile.worker FOLDER`; speaks JSON lines on stdin and stdout (see `tests.hostile.fuzz`)."""

import importlib
import json
import os
import resource
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from activations.errors import WorkbenchError
from tests.hostile.mutations import mutated
from tests.hostile.readers import READERS, Reader

IMPORTS = (
    "datasets.packaged_modules.csv.csv",
    "datasets.packaged_modules.json.json",
    "datasets.packaged_modules.parquet.parquet",
    "datasets.packaged_modules.text.text",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)
OWN = WorkbenchError
MEMORY = 512 << 20  # bytes beyond what the process has when it begins
WAITING = 6  # times a reader's seconds of work, for one that waits: the machine may be busy
LONGEST = 4000  # characters of a message
EXECUTES = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "code.__new__", "socket.connect")  # fmt: skip
OUT_OF_MEMORY = ("allocate memory", "bad_alloc", "enough memory", "std::length_error", "malloc")


def main() -> None:
    """Answer requests until stdin closes: {reader, seeds} -> {seed: what is wrong, …}, and how many were refused."""
    torch.set_num_threads(1)
    for name in IMPORTS:
        importlib.import_module(name)
    folder = Path(sys.argv[1])
    originals = {name: (folder / reader.file).read_bytes() for name, reader in READERS.items()}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        name = request["reader"]
        found = fuzz(READERS[name], folder, originals[name], request["seeds"])
        for other, content in originals.items():  # what was repaired beside the file is as it was, too
            (folder / READERS[other].file).write_bytes(content)
        print(json.dumps(found), file=answers, flush=True)


def fuzz(reader: Reader, folder: Path, original: bytes, seeds: list[int]) -> dict[str, Any]:
    """One child for all seeds, and another after each that kills it."""
    wrong, refused, left = {}, 0, list(seeds)
    while left:
        outcomes = _in_child(reader, folder, original, left)
        for seed, said in zip(left, outcomes, strict=False):
            refused += said == "refused"
            if said not in ("read", "refused"):
                wrong[seed] = said
        left = left[len(outcomes) :]
    return {"wrong": wrong, "refused": refused}


def _in_child(reader: Reader, folder: Path, original: bytes, seeds: list[int]) -> list[str]:
    """What became of each seed; the last one's may be how it ended the child."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(receiver)
        try:
            _cases(reader, folder, original, seeds, sender)
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, encoding="utf-8") as lines:
        outcomes = [json.loads(line) for line in lines if line.endswith("\n")]
    _, status = os.waitpid(pid, 0)
    if len(outcomes) < len(seeds):
        code = os.waitstatus_to_exitcode(status)
        outcomes.append("no end" if -code in (signal.SIGPROF, signal.SIGALRM) else f"ended by {code}")
    return outcomes


def _cases(reader: Reader, folder: Path, original: bytes, seeds: list[int], sender: int) -> None:
    path = folder / reader.file
    path.write_bytes(original)
    if (
        said := outcome(reader, folder)
    ) != "read":  # what a reader refuses whole, it refuses for no good reason
        os.write(sender, (json.dumps(f"the whole file: {said}") + "\n").encode() * len(seeds))
        return
    limit(MEMORY)
    watched: list[str] = []
    _watch(watched, folder)
    for seed in seeds:
        path.write_bytes(mutated(seed, original))
        if reader.repair and seed % 4:
            _quietly(reader, folder)
        watched.clear()
        signal.setitimer(signal.ITIMER_PROF, reader.seconds)
        signal.setitimer(signal.ITIMER_REAL, WAITING * reader.seconds)
        said = outcome(reader, folder)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(sender, (json.dumps("; ".join(watched) or said) + "\n").encode())


def alone(reader: Reader, folder: Path) -> str:
    """What becomes of reading the file as it is, in a child of its own and within its limits."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            limit(MEMORY)
            signal.setitimer(signal.ITIMER_PROF, reader.seconds)
            signal.setitimer(signal.ITIMER_REAL, WAITING * reader.seconds)
            os.write(sender, outcome(reader, folder).encode())
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, encoding="utf-8") as said:
        found = said.read()
    _, status = os.waitpid(pid, 0)
    return found or f"ended by {os.waitstatus_to_exitcode(status)}"


def outcome(reader: Reader, folder: Path) -> str:
    """read, refused (one line, of our own classes), or what is wrong with how it ended."""
    try:
        reader.read(folder)
    except OWN as error:
        said = str(error)
        if os.environ.get("SHOW"):
            print(said, file=sys.stderr)
        if any(mark in said for mark in OUT_OF_MEMORY):
            return f"took too much memory: {said}"
        return (
            "refused" if "\n" not in said and len(said) < LONGEST else f"no line: {said[:300]!r} {len(said)}"
        )
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)
        ours = [
            frame
            for frame in place
            if "site-packages" not in frame.filename and "/lib/python" not in frame.filename
        ]
        at = ours[-1] if ours else place[-1]
        return f"{type(error).__name__}: {str(error)[:200]!r} at {Path(at.filename).name}:{at.lineno}"
    return "read"


def limit(memory: int) -> None:
    """Let this process have so many bytes more, and no more processor time than an hour."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(found: list[str], folder: Path) -> None:
    """Note whatever runs code, starts a program, asks the network, or writes or reads where the reader has no business."""
    places = [
        folder,
        sys.prefix,
        sys.base_prefix,
        os.getcwd(),
        Path.home() / ".cache",
        "/usr",
        "/proc",
        "/dev",
        "/sys",
    ]
    allowed = tuple(os.path.realpath(place) for place in places)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in EXECUTES:
            found.append(f"{event} {args!r:.80}")
        elif event == "open" and str(args[0]).startswith("/"):
            found.extend([f"opened {args[0]}"] * (not os.path.realpath(args[0]).startswith(allowed)))

    sys.addaudithook(hook)


def _quietly(reader: Reader, folder: Path) -> None:
    assert reader.repair
    with suppress(Exception):  # what the mutation left may be beyond repairing
        reader.repair(folder)


if __name__ == "__main__":
    main()
