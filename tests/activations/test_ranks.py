"""Ranks: a single process does nothing; real processes wait for each other and notice when one dies."""

import os
import time
from pathlib import Path

import pytest
import torch

from activations.errors import RankError
from activations.parallel import ranks
from tests.ranks import together


def work(out: Path, fails: int | None) -> None:
    """Run as one rank of a job in which a rank that did not wait would miss the others' files."""
    with ranks.group():
        with ranks.first_goes_first():
            if ranks.rank() == 0:
                time.sleep(0.1)
                out.mkdir()
            assert out.exists()
        assert ranks.from_first(f"of rank {ranks.rank()}") == "of rank 0"
        if ranks.rank() == fails:
            os._exit(7)
        time.sleep(0.1 * ranks.rank())
        (out / f"part-{ranks.rank()}").touch()
        try:
            ranks.barrier()
        except RankError as error:
            (out / "lost").write_text(str(error))
            os._exit(2)
        assert len(list(out.glob("part-*"))) == ranks.world()
        (out / f"done-{ranks.rank()}").touch()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_process_alone_is_the_first_of_one_and_waits_for_nobody():
    with ranks.group(), ranks.first_goes_first():
        ranks.barrier()
        assert (ranks.rank(), ranks.world()) == (0, 1)
        assert ranks.from_first("mine") == "mine"
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_wait_for_each_other(tmp_path: Path, world: int):
    assert together(world, work, tmp_path / "out", None) == [0] * world
    assert names(tmp_path / "out") == {f"{what}-{n}" for what in ("part", "done") for n in range(world)}


def test_a_rank_left_alone_says_so_in_one_line(tmp_path: Path):
    assert together(2, work, tmp_path / "out", 1) == [2, 7]
    assert names(tmp_path / "out") == {"part-0", "lost"}
    assert "\n" not in (tmp_path / "out" / "lost").read_text()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for number in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", number)
        assert ranks.device() == torch.device("cuda", int(number))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RankError, match="2 GPUs .* number 2"):
        ranks.device()
