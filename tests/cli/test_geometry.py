"""`sae store geometry`: its table and advice, the file beside the store, and mistakes."""

import shutil
from pathlib import Path

from activations.geometry.measure import FILE, read
from activations.store import Store
from tests.cli.commands import Server, harvest
from tests.tiny import HOOK

HOOKS = f"{HOOK},blocks.1.hook_resid_post"


def test_a_store_is_measured_and_the_result_kept(sae: Server, world: Path, tmp_path: Path):
    out = tmp_path / "store"
    sae(*harvest(world, out, hooks=HOOKS))
    ended = sae("store", "geometry", out, "--points", 300)
    assert ended.code == 0, ended.err
    for said in ("1.hook_resid_pre", "1.resid_post", "TwoNN", "linear", "no peak"):
        assert said.replace("hook_", "") in ended.out, ended.out
    assert "geometry: " in ended.err
    kept = read(Store(out))
    assert kept and [hook.hook for hook in kept.hooks] == HOOKS.split(",")
    written = (out / FILE).read_bytes()
    again = sae("store", "geometry", out, "--points", 300)
    assert again.out == ended.out
    assert "geometry: " not in again.err  # nothing is measured twice
    assert (out / FILE).read_bytes() == written
    assert sae(*harvest(world, out, hooks=HOOKS)).code == 0  # the finished store is still taken for one
    assert sae("store", "verify", out).code == 0


def test_mistakes_are_one_line(sae: Server, world: Path, tmp_path: Path):
    out = Path(shutil.copytree(world / "store", tmp_path / "store"))
    assert "neighbours = 1 must be at least 2" in sae("store", "geometry", out, "--neighbours", 1).complaint
    (out / FILE).write_text("{")
    assert f"rm {out / FILE}" in sae("store", "geometry", out).complaint
    assert "is not a store" in sae("store", "geometry", tmp_path).complaint
