"""A harvest on several ranks makes the store of a single process, even if ranks die or their number changes on resuming."""

from pathlib import Path

import pytest

from tests.cli.commands import Command, Ended, Server, contents, harvest
from tests.ranks import environments

KILLED = -9


def start(sae: Server, world: int, command: list[object]) -> list[Command]:
    """Run the command in `world` processes as torchrun starts them."""
    return [sae.start(*command, environment=(variables,)) for variables in environments(world)]


def together(sae: Server, world: int, command: list[object]) -> list[Ended]:
    return [running.wait() for running in start(sae, world, command)]


@pytest.fixture(scope="module")
def undisturbed(sae: Server, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store that one process makes, in eight shards."""
    out = tmp_path_factory.mktemp("alone") / "store"
    assert sae(*harvest(world, out, shard_tokens=208, labels="builtin")).code == 0
    return contents(out)


def test_ranks_together_make_the_store_of_one(
    sae: Server, world: Path, tmp_path: Path, undisturbed: dict[str, bytes]
):
    command = harvest(world, tmp_path / "store", shard_tokens=208, labels="builtin")
    for _ in range(2):  # the second time there is nothing left to do
        ended = together(sae, 3, command)
        assert [one.code for one in ended] == [0] * 3, ended
        assert "1,600 tokens" in ended[0].out
        assert not any(one.out or one.err for one in ended[1:])  # only rank 0 speaks
        assert contents(tmp_path / "store") == undisturbed


@pytest.mark.parametrize(("dies", "processes"), [(0, 3), (1, 2), (1, 1)])
def test_what_a_dead_rank_left_is_finished_by_any_number_of_ranks(
    sae: Server, world: Path, tmp_path: Path, undisturbed: dict[str, bytes], dies: int, processes: int
):
    out = tmp_path / "store"
    command = harvest(world, out, shard_tokens=208, labels="builtin")
    faults: list[dict] = [{}, {}]
    faults[dies] = {"kill_at": (12, out)}
    ranks = [
        sae.start(*command, environment=(variables,), **fault)
        for variables, fault in zip(environments(2), faults, strict=True)
    ]
    ended = [running.wait() for running in ranks]
    assert ended[dies].code == KILLED
    assert f"rank {1 - dies} of 2 lost the others" in ended[1 - dies].complaint
    assert not (out / "index.json").exists()
    assert 1 <= len(list(out.glob("shard-*.json"))) < 8
    assert [one.code for one in together(sae, processes, command)] == [0] * processes
    assert contents(out) == undisturbed


def test_a_mistake_is_told_by_the_rank_that_meets_it(sae: Server, world: Path, tmp_path: Path):
    (tmp_path / "mine").write_text("a file")
    first, second = together(sae, 2, harvest(world, tmp_path))
    assert "holds files that are not a store" in first.complaint
    assert "lost the others" in second.complaint
    first, second = together(sae, 2, harvest(world, tmp_path / "new", hooks="blocks.1.no"))
    assert "no hook point" in first.complaint
    assert contents(tmp_path) == {"mine": b"a file"}
