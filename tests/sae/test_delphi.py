"""The cache of latents for delphi, read as its loader reads it, has every firing where the SAE has it."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from activations.activation_source import make_store
from activations.errors import RunError
from activations.from_files import FilesSource
from activations.store import Store
from sae.architectures import TopKConfig, build
from sae.cli.main import main
from sae.foreign import delphi
from sae.runs.run import Run
from tests import tiny
from tests.cli.test_from_files import dump


@pytest.fixture
def parts(world):
    run = Run(world / "runs/toy")
    return run.sae(), Store(world / "store")


def loaded(folder):
    """Read a cache as delphi's TensorBuffer does: (window, column, latent) -> value, and the tokens of each file."""
    found, tokens = {}, []
    for file in sorted(folder.glob("*.safetensors")):
        content = load_file(file)
        first, last = map(int, file.stem.split("_"))
        places = content["locations"].astype(np.int64)
        assert places.shape == (len(content["activations"]), 3) and len(places)
        places[:, 2] += first
        assert places[:, 2].min() >= first and places[:, 2].max() <= last
        for latent in np.unique(
            places[:, 2]
        ):  # of a latent, windows in order: pooled by runs of equal ones there
            own = places[places[:, 2] == latent]
            assert (np.diff(own[:, 0] * 10**6 + own[:, 1]) > 0).all()
        found |= dict(zip(map(tuple, places.tolist()), content["activations"].tolist(), strict=True))
        tokens.append(content["tokens"])
    return found, tokens


def expected(sae, store):
    found = {}
    for number in range(len(store.shards)):
        shard = store.read(number, (tiny.HOOK,))
        code = sae.encode(shard.activations[tiny.HOOK].float())
        kept = store.rows(shard).flatten()
        for row, latent, value in zip(
            code.rows().tolist(), code.indices.tolist(), code.values.tolist(), strict=True
        ):
            if value and kept[row]:
                window = store.first_windows[number] + row // store.context
                found[window, row % store.context, latent] = value
    return found


@pytest.mark.parametrize("most", [delphi.MOST, 100])
def test_every_firing_is_there_and_no_other(parts, tmp_path, most):
    sae, store = parts
    files = delphi.write_cache(sae, store, tiny.HOOK, tmp_path / "cache", most=most)
    found, tokens = loaded(tmp_path / "cache" / tiny.HOOK)
    wanted = expected(sae, store)
    assert found.keys() == wanted.keys()
    assert all(found[place] == pytest.approx(wanted[place], rel=1e-3, abs=1e-6) for place in wanted)
    assert all(
        (each == torch.cat([store.read(n).tokens for n in range(len(store.shards))]).numpy()).all()
        for each in tokens
    )
    assert (len(files) > 1) is (most == 100)
    edges = sorted(tuple(map(int, file.stem.split("_"))) for file in files)
    assert edges[0][0] == 0 and edges[-1][1] == sae.d_sae - 1
    assert all(b[0] == a[1] + 1 for a, b in pairwise(edges))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [
        tiny.HOOK
    ]  # delphi takes each folder for a module


def test_values_beyond_half_precision_are_kept_whole(parts, tmp_path):
    sae, store = parts
    with torch.no_grad():
        sae.W_enc.mul_(1e6)
    delphi.write_cache(sae, store, tiny.HOOK, tmp_path / "cache")
    found, _ = loaded(tmp_path / "cache" / tiny.HOOK)
    assert max(found.values()) > 65504 and np.isfinite(list(found.values())).all()


@pytest.mark.parametrize(
    "hook", ["../../outside", "/tmp/outside", "vit/layer3", "..", ".hidden", "a\\b", "codes"]
)
def test_the_hook_point_of_a_folder_of_files_is_a_name_and_no_path(tmp_path, hook):
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    folder = dump(tmp_path / "files", [{"rows": rows}], hook=hook, width=8)
    store = make_store(FilesSource(folder, context=8), tmp_path / "store", lambda tokens: None)
    sae = build(TopKConfig(d_sae=16, k=4), 8)
    (tmp_path / "in").mkdir()
    for path in delphi.write_cache(sae, store, hook, tmp_path / "in/out"):
        assert path.is_file() and path.parent.parent == tmp_path / "in/out"
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["out"]
    assert len([path for path in (tmp_path / "in/out").iterdir() if path.name[0] != "."]) == 1


def test_ranges_hold_a_firing_each_and_all_latents():
    fired = torch.tensor([0, 5, 0, 1, 1, 0, 9, 0])
    assert delphi._ranges(fired, 3) == [range(0, 4), range(4, 6), range(6, 8)]
    assert delphi._ranges(fired, 100) == [range(0, 8)]


def test_a_silent_sae_and_a_taken_folder_are_refused(parts, tmp_path):
    sae, store = parts
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(RunError, match="taken is not empty: choose another --out"):
        delphi.write_cache(sae, store, tiny.HOOK, tmp_path / "taken")
    with torch.no_grad():
        sae.b_enc.fill_(-1e9)
    with pytest.raises(RunError, match="no latent fires"):
        delphi.write_cache(sae, store, tiny.HOOK, tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_command_writes_it(world, tmp_path, capsys):
    out = tmp_path / "cache"
    assert main(["export", "delphi", str(world / "runs/toy"), "--out", str(out), "--tokens", "600"]) == 0
    about = json.loads((out / tiny.HOOK / "config.json").read_text())
    assert (about["cache_ctx_len"], about["n_splits"]) == (16, 1)
    assert 600 <= about["n_tokens"] < 1200
    assert "cache" in capsys.readouterr().out
    for mistake, said in (([], "is not empty"), (["--tokens", "0"], "tokens = 0 must be at least 1")):
        assert main(["export", "delphi", str(world / "runs/toy"), "--out", str(out), *mistake]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error
