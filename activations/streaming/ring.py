"""The trainer's side of a ring: starts producers, waits for shards, says which are used up, keeps some as a store."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from activations.disk import files
from activations.errors import ConfigError, HarvestError
from activations.parallel import ranks
from activations.shard import Shard, ShardEntry, shard_name
from activations.store import INDEX, ShardFolder, StoreSpec
from activations.store_writer import StoreWriter
from activations.streaming.folder import WAIT, RingFolder, StreamConfig
from activations.streaming.producer import Job, Producers, shard_bytes
from activations.streaming.reader import shards_per_group

log = logging.getLogger(__name__)


class Ring(ShardFolder):
    """Shards that producer processes make while this process reads them, at most `size` bytes of them at a time.

    On each rank, `pass_to` says what training has passed; producers delete it. Rank 0 starts the producers when a shard is
    first needed, and keeps every nth shard of the first pass in each of the folders `kept`, which `finish_store` and
    `finish` make stores of. Where the ring has been lost, or a run goes on from an older checkpoint, the producers make the
    shards again from the text. `hooks` are hook points separated by commas.

    Raises ConfigError when `size` bytes do not hold `groups` shuffle groups: one in use and one being read, and one more
    where several readers may be a group apart. Raises HarvestError when a producer fails or dies."""

    def __init__(
        self,
        folder: Path,
        stream: StreamConfig,
        *,
        kept: Sequence[Path],
        size: int,
        shuffle_tokens: int,
        hooks: str | None = None,
        labels: str | None = None,
        producers: int = 1,
        groups: int = 2,
    ):
        self._folder, self._stream = RingFolder(folder), stream
        # Of each kept store, the number of the shard up to which all that belong there have been linked
        self._kept = dict.fromkeys(kept, 0)
        self._producers: Producers | None = None
        self._first: int | None = None  # the first shard that training still needs, once it has begun
        self._closed = self._told = False
        self._lock = threading.Lock()
        self._jobs = [
            Job(stream, hooks, labels, str(folder), size, number, producers, device, torch.get_num_threads(), gpus)
            for number, (device, gpus) in enumerate(devices_of(producers, stream.engine))
        ]  # fmt: skip
        with ranks.first_goes_first():
            if not ranks.rank():
                _check_space(folder, size)
                self._folder.clear_trainers()
        super().__init__(self._folder.shards, self._spec())
        if stream.model_dtype == "auto" and self.spec.model_dtype != "float32" and not ranks.rank():
            log.info("the stream's model runs in %s", self.spec.model_dtype)
        self._capacity = size // shard_bytes(self.spec)
        group = shards_per_group(self.spec, shuffle_tokens)
        if self._capacity < groups * group:
            self.close()
            apart = "" if groups == 2 else ", and readers may be a group apart"
            raise ConfigError(
                f"the ring takes {files.size_text(size)} and {groups} shuffle groups of {group} shards take "
                f"{files.size_text(groups * group * shard_bytes(self.spec))}, one in use and one being read{apart}: use a larger "
                f"--ring, or fewer --shuffle-tokens"
            )

    @property
    def shards_per_pass(self) -> int:
        """Number of shards that the text fills; while that is not known, those that the tokens asked for would fill."""
        text = self._folder.text()
        return text[0] if text else self.planned_shards

    @property
    def planned_shards(self) -> int:
        """Number of shards that the tokens asked for would fill: what follows from it must not change as the text is read."""
        return self._stream.shards(self.spec)

    @property
    def text_ended(self) -> bool:
        """Whether the text is known to end before the tokens asked for."""
        text = self._folder.text()
        return bool(text and text[1])

    def shard(self, number: int, hooks: tuple[str, ...]) -> Shard:
        """Return shard `number`, waiting until a producer has made it. Raises HarvestError when none can or will: a producer makes no
        shard that has been passed.

        Where the ring has no room for it, the oldest shard is given up: its rows have been read, and only a run that is
        resumed would want them again."""
        if self._first is None:
            self.begin(number)
        self.pass_to(number - self._capacity + 1)
        while self._folder.entry(number) is None:
            if self._first is not None and number < self._first:
                raise HarvestError(
                    f"shard {number} of the stream is needed again, and it made room for later ones: use a larger --ring, or a "
                    f"--train.batch that is small beside --shuffle-tokens"
                )
            self._check()
            time.sleep(WAIT)
        return self.read(number, hooks)

    def begin(self, number: int) -> None:
        """Let producers make the shards from `number` on, which may be an earlier one than before."""
        with self._lock:
            self._first = number
            self._folder.need_from(ranks.rank(), number)
            if not self._producers and not ranks.rank():
                for folder in (self._folder.path, self._folder.shards):
                    files.sweep(folder)  # what producers were writing when they were ended takes room
                self._producers = Producers(self._jobs)

    def pass_to(self, number: int) -> None:
        """Let producers forget the shards before `number`; those of them that are to be kept are linked first."""
        with self._lock:  # a thread that reads ahead calls this too
            if self._first is None or number <= self._first:
                return
            if not ranks.rank():
                for folder in self._kept:
                    self._keep(folder, self._first, number)
            if self.text_ended and not self._told:
                self._told = True
                asked = f"{self._stream.tokens:,}"
                log.warning("the text ends before the %s tokens asked for and begins again", asked)
            self._first = number
            self._folder.need_from(ranks.rank(), number)

    def finish(self, number: int) -> None:
        """Make the kept shards before `number` stores, on rank 0, and end the producers."""
        if ranks.rank():
            return
        self.pass_to(number)
        for folder in [*self._kept]:
            self.finish_store(folder, number)
        self.close()

    def finish_store(self, folder: Path, number: int) -> None:
        """Make the shards kept in one folder, those before `number`, a store, on rank 0; others go on being kept."""
        if ranks.rank():
            return
        with self._lock:
            assert self._first is not None
            self._keep(folder, self._first, number)
            del self._kept[folder]
        if not (folder / INDEX).exists():
            writer = StoreWriter(folder, self.spec)
            count = sum(1 for _ in folder.glob("shard-*.json"))
            writer.finish(count, text_ended=False)

    def close(self) -> None:
        """End the producers. A thread that waits for a shard raises HarvestError."""
        self._closed = True
        if self._producers:
            self._producers.close()

    def _spec(self) -> StoreSpec:
        while (spec := self._folder.spec()) is None:
            if self._first is None:
                self.begin(0)
            self._check()
            time.sleep(WAIT)
        return spec

    def _check(self) -> None:
        if self._closed:
            raise HarvestError("the stream of activations was closed")
        if self._producers:
            self._producers.check()

    def _entry(self, number: int) -> ShardEntry:
        entry = self._folder.entry(number)
        assert entry is not None
        return entry

    def _keep(self, folder: Path, first: int, stop: int) -> None:
        """Link those of the shards `first` to `stop` into a kept store that it is to have: every nth of the first pass."""
        kept_shards = max(1, self._stream.kept_tokens // (self.spec.windows_per_shard * self.context))
        every = max(1, -(-self._stream.shards(self.spec) // kept_shards))
        if (folder / INDEX).exists():
            return
        for number in range(max(first, self._kept[folder]), min(stop, self.shards_per_pass)):
            if number % every:
                continue
            StoreWriter(folder, self.spec)
            source, target = self.path / shard_name(number), folder / shard_name(number // every)
            for suffix in (".safetensors", ".json"):  # the note last: it says that the shard is whole
                if not target.with_suffix(suffix).exists():
                    files.write_atomically(
                        target.with_suffix(suffix), partial(_link, source.with_suffix(suffix))
                    )
        self._kept[folder] = max(stop, self._kept[folder])


def devices_of(producers: int, engine: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return for each producer its device, and the only GPUs it sees where they are to share a model; empty for all.

    Producers take the GPUs that no trainer uses, then the trainers', or the CPU. One whose model is spread over GPUs by
    transformers gets its share of those that no trainer uses."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return [("cpu", ())] * producers
    if engine == "bridge":
        return [(f"cuda:{(ranks.world() + number) % count}", ()) for number in range(producers)]
    free = range(ranks.world(), count) or range(count)
    shares = [free[number::producers] or free[number % len(free) :][:1] for number in range(producers)]
    return [("cuda:0", tuple(share)) for share in shares]


def _check_space(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    taken = sum(file.stat().st_size for file in folder.rglob("shard-*.safetensors"))
    if size - taken > (free := files.free_bytes(folder)):
        raise HarvestError(
            f"the ring takes {files.size_text(size)} and {folder} has {files.size_text(free)} free: use a smaller --ring or another "
            f"--ring-folder"
        )


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the two lie on different disks."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
