"""`sae features` on several ranks writes the same folder for any number of ranks, also when it changes on resuming."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from activations.parallel import ranks
from tests.cli.commands import Command, Server, contents
from tests.ranks import environments, together

SETTINGS = "--strongest 4 --sampled 10 --neighbours 3 --logits 3 --batch 64".split()


def bare(world: Path, folder: Path) -> Path:
    """Copy the toy run without its features."""
    return Path(shutil.copytree(world / "runs/toy", folder, ignore=shutil.ignore_patterns("features")))


def start(sae: Server, run: Path, n: int, **faults: tuple) -> list[Command]:
    """Run `sae features` in n processes as torchrun starts them; the last one has the faults."""
    own = [{"environment": (environment,)} for environment in environments(n)]
    own[-1] |= faults
    return [sae.start("features", run, *SETTINGS, **each) for each in own]


@pytest.mark.parametrize("n", [2, 3])
def test_any_number_of_ranks_makes_the_same_bytes(sae, world, tmp_path, n):
    run = bare(world, tmp_path / "run")
    ended = [command.wait() for command in start(sae, run, n)]
    assert [end.code for end in ended] == [0] * n, ended
    assert [end.out.count("\n") for end in ended] == [1] + [0] * (n - 1), "only the first speaks"
    assert contents(run / "features") == contents(world / "runs/toy/features")


def test_what_ranks_left_unfinished_one_goes_on_with(sae, world, tmp_path):
    run = bare(world, tmp_path / "run")
    codes = run / "features/codes"
    first, last = start(sae, run, 2, kill_at=(1, str(codes / "shard-00003")))
    assert last.wait().code == -9
    assert "lost the others" in first.wait().complaint
    left = {path: path.stat().st_mtime_ns for path in codes.glob("shard-*.safetensors")}
    assert len(left) > 2
    assert not (run / "features/features.json").exists()
    again = sae.start("features", run, *SETTINGS, kill_at=(1, str(run / "features/features.parquet")))
    assert again.wait().code == -9, "all is found, nothing is written yet"
    assert left.items() <= {path: path.stat().st_mtime_ns for path in codes.glob("shard-*")}.items()
    assert sae("features", run, *SETTINGS).code == 0
    assert contents(run / "features") == contents(world / "runs/toy/features")


def share(out: Path) -> None:
    with ranks.group():
        found = ranks.share_latents(out, "n", 5, lambda latents: {"n": torch.tensor([*latents]) ** 2})
    sys.exit(found["n"].tolist() != [0, 1, 4, 9, 16])


@pytest.mark.parametrize("n", [2, 7])
def test_shares_are_put_together_in_order_even_where_some_are_empty(tmp_path, n):
    assert together(n, share, tmp_path) == [0] * n
