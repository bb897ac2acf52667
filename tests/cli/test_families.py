"""`sae families`: what it prints beside chance, the largest families, and mistakes in one line."""

import shutil
from pathlib import Path

from sae.features.families import families_of
from sae.features.feature import FeatureStore
from tests.cli.commands import Server

LOOSE = ("--split", "all", "--shuffles", "1", "--rules.coverage", ".5", "--rules.share", ".01")


def test_families_are_printed_beside_chance(sae: Server, world: Path, tmp_path: Path):
    run = shutil.copytree(world / "runs" / "toy", tmp_path / "toy")
    ended = sae("families", run, *LOOSE, "--largest", "1")
    assert ended.code == 0
    found = families_of(FeatureStore(run / "features"))
    assert found is not None
    assert "latents with a parent" in ended.out and "shuffled" in ended.out
    root = found.roots[0]
    lines = ended.out.splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith(f"{root}  "))
    assert lines[place + 1].startswith(f"   {found.children(root)[0]}  ") and "chance" in lines[place + 1]
    assert f"and {len(found.roots) - 1} smaller families" in ended.out or len(found.roots) == 1
    assert "families.json: written" in ended.out and "too few windows" not in ended.out
    again = sae("families", run, *LOOSE)
    assert again.code == 0 and "rows (" not in again.err, "what is there is kept"


def test_a_text_that_is_too_short_is_told(sae: Server, world: Path, tmp_path: Path):
    run = shutil.copytree(world / "runs" / "toy", tmp_path / "toy")
    ended = sae("families", run, "--rules.coverage", ".95")
    assert ended.code == 0 and "in too few windows of this text" in ended.out and "--split all" in ended.out


def test_what_is_missing_is_told_with_the_command(sae: Server, world: Path, tmp_path: Path):
    bare = shutil.copytree(
        world / "runs" / "toy", tmp_path / "bare", ignore=shutil.ignore_patterns("features")
    )
    ended = sae("families", bare)
    assert ended.code == 2 and "sae features" in ended.err
    assert "times = 0.5 must be at least 1" in sae("families", bare, "--rules.times", ".5").err
    assert "largest = -1" in sae("families", bare, "--largest", "-1").err
