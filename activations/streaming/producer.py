"""Producers: processes that run the language model over the text and fill a ring, shard by shard, without end.

A trainer starts them (`Producers`) with their job on standard input, which stays open: its end is how a producer notices
that its trainer is gone, however that ended. A producer that fails prints one line of JSON, which the trainer raises; whatever else
it prints goes to standard error, since nobody reads its standard output while it lives."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import torch

from activations import engines, language_model
from activations.activation_source import ActivationSource, write_shard
from activations.disk import files
from activations.disk.schema import build
from activations.errors import BusyError, HarvestError, WorkbenchError
from activations.harvest import ModelSource, with_hooks
from activations.language_model import LanguageModel
from activations.parallel.threads import BackgroundWriter, prefetch
from activations.store import StoreSpec, row_bytes
from activations.store_writer import StoreWriter
from activations.streaming.folder import WAIT, RingFolder, StreamConfig
from activations.tokens import Window

RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # environment variables
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Job:
    """What one producer is to do: shards `number`, `number` + `of`, … of the ring in `folder`."""

    stream: StreamConfig
    hook: str | None
    labels: str | None
    folder: str
    size: int
    """Bytes that all shards together may take."""
    number: int
    of: int
    device: str
    threads: int
    gpus: tuple[int, ...] = ()
    """Numbers of the only GPUs that the producer sees, of those that its trainer sees; empty for all."""


def shard_bytes(spec: StoreSpec) -> int:
    """Return about how many bytes a full shard takes: its activations, tokens and labels, and some per cent for the rest."""
    row = sum(row_bytes(spec.dtype, width) for width in spec.hooks.values())
    return file_bytes(spec.windows_per_shard * spec.packing.context, row + 4 * (spec.labels is not None))


def file_bytes(rows: int, row: int) -> int:
    """Return about how many bytes a shard takes whose rows have `row` bytes beside their tokens."""
    return rows * (row + 4) + 100_000


def produce(job: Job) -> None:
    """Make this producer's shards, pass after pass over the text, each as soon as the ring has room for it.

    Shards that a former producer has made are kept if they are intact. Never returns; raises what `harvest` raises."""
    ring = RingFolder(Path(job.folder))
    stream = job.stream
    model = _load(job, _model_dtype(ring, job))
    source = ModelSource(model, with_hooks(model, stream.harvest(job.hook, job.labels)), writers=1)
    with BackgroundWriter() as background:
        while True:  # from the text's beginning again when a trainer has gone back
            with closing(_numbered(ring, source)) as shards:
                _fill(ring, job, source, shards, background)


def _fill(
    ring: RingFolder,
    job: Job,
    source: ModelSource,
    shards: Iterator[tuple[int, list[Window]]],
    background: BackgroundWriter,
) -> None:
    """Make those of the shards that are this producer's, until a trainer needs one again that has been deleted."""
    room = job.size // shard_bytes(source.spec)
    writer: StoreWriter | None = None
    for number, block in shards:
        writer = writer or _writer(ring, job, source, block)
        mine = number % job.of == job.number
        if mine and not _has_room(ring, job, number, room, background):
            return
        mine = mine and number >= ring.needed()
        if mine and not writer.has(number):
            background.submit(write_shard, writer, number, block, source.rows(block, lambda n: None))
        else:
            if mine:
                writer.check(number, block)
            source.skip(block)


def _load(job: Job, dtype: str) -> LanguageModel:
    """Load the model with the stream's engine; plain transformers spreads it over all GPUs that this process sees."""
    stream = job.stream
    if stream.engine == "bridge":
        return language_model.load(stream.model, stream.revision, dtype, job.device)
    return engines.load(stream.engine, stream.model, stream.revision, dtype)


def _model_dtype(ring: RingFolder, job: Job) -> str:
    """Return the precision the model runs in. Where it is measured, the first producer's measurement counts for the ring."""
    if job.stream.model_dtype != "auto":
        return job.stream.model_dtype
    while (spec := ring.spec()) is None:
        if job.number == 0 or job.device != "cpu":  # on a GPU nothing is measured, and all choose alike
            return "auto"
        time.sleep(WAIT)
    return spec.model_dtype


def _numbered(ring: RingFolder, source: ActivationSource) -> Generator[tuple[int, list[Window]], None, None]:
    """Yield the windows of shard 0, 1, 2, … without end, pass after pass over the text."""
    number = 0
    while True:
        first, windows = number, 0
        with closing(prefetch(source.blocks(), 1)) as blocks:
            for block in blocks:
                yield number, block
                number, windows = number + 1, windows + len(block)
        if not windows:
            raise source.empty()
        ring.set_text(number - first, ended=windows < source.tokens // source.spec.packing.context)


def _writer(ring: RingFolder, job: Job, source: ActivationSource, block: list[Window]) -> StoreWriter:
    """Return the writer of the ring's shards. The first producer records what they hold; the others wait for that."""
    if job.number == 0:
        source.check(block)
    else:
        while ring.spec() is None:
            time.sleep(WAIT)
    return StoreWriter(ring.shards, source.spec, source.tokens)


def _has_room(ring: RingFolder, job: Job, number: int, room: int, background: BackgroundWriter) -> bool:
    """Wait until shard `number`, the producer's next one, fits into the ring. Returns False when a trainer needs an earlier one again."""
    while not _is_gone(ring, job, number, background):
        if number < ring.needed() + room:
            ring.forget()
            return True
        background.check()  # without a shard that could not be written, the ring would stay full for ever
        time.sleep(WAIT)
    return False


def _is_gone(ring: RingFolder, job: Job, number: int, background: BackgroundWriter) -> bool:
    """Return whether a trainer needs a shard before `number` that this producer has made and that was deleted since.

    Shards are deleted from the first on, so that the first of those needed tells it. What is on the disk is looked at, and not
    whether the trainers' number has fallen: between two looks it may have risen and fallen without a trace."""
    first = ring.needed()
    own = first + (job.number - first) % job.of
    if own >= number or ring.note_path(own).exists():
        return False
    background.finish()  # it may be the one that is being written
    return not ring.note_path(own).exists() and ring.needed() <= own


class Producers:
    """Handle of the producer processes of one ring; `close` ends them."""

    def __init__(self, jobs: list[Job]):
        self._processes = [_start(job) for job in jobs]

    def check(self) -> None:
        """Raise HarvestError when a producer has ended: with its own message, or with how it died."""
        for process in self._processes:
            if (code := process.poll()) is None:
                continue
            assert process.stdout is not None
            said = _said(process.stdout.read())
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise HarvestError(
                said.message if said else f"a producer of activations died ({how})", fix=said and said.fix
            )

    def close(self) -> None:
        """End the producers; what they were about to write is lost, whole shards stay."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def _start(job: Job) -> subprocess.Popen[str]:
    # A producer is not a rank, although a rank starts it: what torchrun has set is left out.
    environment = {name: value for name, value in os.environ.items() if name not in RANK}
    # It runs the same code as this process, however that was installed.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    if job.gpus:
        environment[VISIBLE] = ",".join(visible(job.gpus, os.environ.get(VISIBLE)))
    process = subprocess.Popen(
        [sys.executable, "-m", "activations.streaming.producer"],
        env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(job)) + "\n")
    process.stdin.flush()
    return process


def visible(gpus: Sequence[int], among: str | None) -> list[str]:
    """Return the names of these of a process' GPUs, given its own `CUDA_VISIBLE_DEVICES`, for that variable of another process."""
    names = among.split(",") if among else None
    return [names[gpu].strip() if names else str(gpu) for gpu in gpus]


def main() -> int:
    """Do the job that the first line of standard input describes."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole terminal; the trainer ends the producers
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a pipe that nobody reads fills up, and who prints then waits for ever
    job = build(Job, json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_trainer, daemon=True).start()
    torch.set_num_threads(job.threads)
    try:
        with _alone_in(Path(job.folder) / f"producer-{job.number}"):
            produce(job)
    except WorkbenchError as error:
        _say(told, Said(error.message, error.fix))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        message = (
            f"the disk is full: the ring {job.folder} cannot grow to {files.size_text(job.size)}"
            if full
            else str(error)
        )
        _say(told, Said(message))
    return 1


@dataclass(frozen=True)
class Said:
    """The error that a producer ends with, as it tells it to the trainer."""

    message: str
    fix: str | None = None


def _say(told: IO[str], said: Said) -> None:
    told.write(json.dumps(asdict(said)) + "\n")
    told.flush()


def _said(output: str) -> Said | None:
    """Return the error in what a producer has printed; None where it has told none, as one that was killed."""
    for line in reversed(output.splitlines()):
        with suppress(ValueError, TypeError):
            return build(Said, json.loads(line))
    return None


def _end_with_trainer() -> None:
    sys.stdin.read()
    os._exit(1)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder. The producer of a killed trainer may still be ending: wait for it."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(files.alone_in(folder))
                break
            except BusyError:
                time.sleep(WAIT)
        yield


if __name__ == "__main__":
    sys.exit(main())
