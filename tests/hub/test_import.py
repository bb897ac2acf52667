"""`sae import hf:…`: what is fetched, what is kept, and the errors when the hub lacks what was asked for."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from activations.progress import Advance
from sae.hub.fetch import locate
from sae.runs.run import Run
from tests import tiny
from tests.hub import fake_hub
from tests.hub.conftest import contents
from tests.hub.fake_hub import TOKEN, Repository
from tests.sae import lens, test_llama_scope, test_qwen_scope
from tests.sae.test_gemma_scope import first, tensors

GEMMA = "google/gemma-scope-2b-pt-res"
PLACE = "layer_20/width_16k/average_l0_71"


@pytest.fixture
def gemma(hub, tmp_path):
    """Put a repository with three SAEs and an unrelated file on the hub."""
    folder = tmp_path / "made"
    for place in (PLACE, "layer_20/width_16k/average_l0_139", "layer_3/width_16k/average_l0_59"):
        first(folder / place, tensors())
    (folder / "README.md").write_text("# Many\n" * 1000)
    hub.models[GEMMA] = Repository(contents(folder))
    return hub.models[GEMMA]


def test_one_of_many_is_fetched_alone_told_before_and_where_it_is_from_is_kept(hub, gemma, asking, tmp_path):
    ended = asking("import", f"hf:{GEMMA}/{PLACE}", "--out", "run")
    assert ended.code == 0, ended.err
    size = len(gemma.files[f"{PLACE}/params.npz"])
    assert f"hf:{GEMMA}/{PLACE}: 1 of 1 files, {size / 1e3:.1f} kB" in ended.out
    assert hub.sent == size
    run = Run(tmp_path / "run")
    assert (run.hook, run.record.model) == ("blocks.20.hook_resid_post", "google/gemma-2-2b")
    about = json.loads((tmp_path / "run/run.json").read_text())
    assert about["imported"]["path"] == f"hf:{GEMMA}/{PLACE}@{gemma.commit}"
    assert about["imported"]["hub"] == {
        "repository": GEMMA, "path": PLACE, "revision": None, "commit": gemma.commit,
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(about)
    assert not hub.stray


@pytest.mark.parametrize(
    "name", [f"hf:{GEMMA}/{PLACE}/params.npz", f"hf:{GEMMA}/{PLACE}@main", f"hf://{GEMMA}/{PLACE}/"]
)
def test_a_file_a_branch_and_slashes_name_it_too(gemma, asking, tmp_path, name):
    ended = asking("import", "gemma_scope", name, "--out", "run")
    assert ended.code == 0, ended.err
    assert Run(tmp_path / "run").record.model == "google/gemma-2-2b"


def test_what_is_here_is_not_fetched_again_and_works_without_the_hub(hub, gemma, asking, tmp_path):
    assert asking("import", f"hf:{GEMMA}/{PLACE}", "--out", "a").code == 0
    sent = hub.sent
    assert asking("import", f"hf:{GEMMA}/{PLACE}", "--out", "b").code == 0
    ended = asking("import", f"hf:{GEMMA}/{PLACE}", "--out", "c", url="http://127.0.0.1:9")
    assert ended.code == 0, ended.err
    assert hub.sent == sent
    assert contents(tmp_path / "a")["sae.safetensors"] == contents(tmp_path / "c")["sae.safetensors"]
    line = asking("import", f"hf:{GEMMA}/layer_3", "--out", "d", url="http://127.0.0.1:9").complaint
    assert "has no layer_3" in line or "127.0.0.1:9 does not answer" in line


REPOSITORIES = {
    "saelens": ("a/lens", "blocks.8.hook_resid_pre", lambda folder: lens.folder(folder, "topk")),
    "llama_scope": (
        "fnlp/Llama3_1-8B-Base-LXR-8x",
        "Llama3_1-8B-Base-L8R-8x",
        lambda folder: test_llama_scope.first(folder, test_llama_scope.linear()),
    ),
    "qwen_scope": (
        f"Qwen/{test_qwen_scope.REPOSITORY}",
        "layer20.sae.pt",
        lambda folder: test_qwen_scope.file(folder.parent, test_qwen_scope.tensors()),
    ),
    "workbench": ("me/mine", "", None),
}


@pytest.mark.parametrize("form", REPOSITORIES)
@pytest.mark.parametrize("whole", [True, False])
def test_every_layout_is_found(hub, asking, world, tmp_path, form, whole):
    """A shared run is found by its path, and by the repository's name where it holds nothing else."""
    name, path, make = REPOSITORIES[form]
    folder = tmp_path / "made"
    if make:
        make(folder / path)
    hub.models[name] = Repository(contents(folder) if make else contents(world / "runs/toy"))
    more = ("--hook", tiny.HOOK, "--model", "gpt2") if form == "saelens" else ()
    ended = asking(
        "import", f"hf:{name}" if whole or not path else f"hf:{name}/{path}", "--out", "run", *more
    )
    assert ended.code == 0, ended.err
    assert Run(tmp_path / "run").record.imported.format == form


def test_a_run_of_ours_comes_with_what_was_measured_on_it(hub, asking, world, tmp_path):
    hub.models["me/mine"] = Repository(contents(world / "runs/toy"))
    ended = asking("import", "hf:me/mine", "--out", "run")
    assert ended.code == 0, ended.err
    there, here = Run(world / "runs/toy"), Run(tmp_path / "run")
    assert here.evaluation == there.evaluation
    assert contents(tmp_path / "run/features") == contents(world / "runs/toy/features")
    assert all(torch.equal(here.sae().state_dict()[key], t) for key, t in there.sae().state_dict().items())
    assert not hub.gets("training.safetensors")
    again = asking("import", "hf:me/mine", "--out", "over", "--store", world / "store")
    assert again.code == 0, again.err
    assert asking("evaluate", "over", "--windows", 4).code == 0


MISSING = {
    "hf:nobody/nothing": "nobody/nothing does not exist",
    "hf:nobody": "is not a name on the hub",
    "hf:a/b/../c": "is not a name on the hub",
    "hf:": "is not a name on the hub",
    f"hf:{GEMMA}": f"holds 3 SAEs: {PLACE}, layer_20/width_16k/average_l0_139, layer_3",
    f"hf:{GEMMA}/layer_20": f"holds 2 SAEs: {PLACE}",
    f"hf:{GEMMA}/layer_20/width_16k/average_l0_70": f"nearest: {PLACE}",
    f"hf:{GEMMA}@v9": "has no revision 'v9'",
    "hf:a/text": "holds no SAE in a format known here",
    "hf:a/clt": "is a cross-layer transcoder",
    "hf:a/gated": "a/gated is gated: ask for access",
    "hf:a/private": "or is private",
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_not_there_is_one_line_and_nothing_is_written(hub, gemma, asking, tmp_path, name):
    hub.models["a/text"] = Repository({"README.md": b"a"})
    hub.models["a/clt"] = Repository({"W_enc_0.safetensors": b"a", "W_dec_0.safetensors": b"a"})
    hub.models["a/gated"] = Repository({"README.md": b"a"}, gated=True)
    hub.models["a/private"] = Repository({"README.md": b"a"}, private=True)
    assert MISSING[name] in asking("import", name, "--out", "run").complaint
    assert not (tmp_path / "run").exists()
    assert hub.sent == 0


def test_a_token_opens_what_is_private(hub, asking, world, tmp_path):
    hub.models["a/private"] = Repository(contents(world / "runs/toy"), private=True)
    assert "hf auth login" in asking("import", "hf:a/private", "--out", "run").complaint
    ended = asking("import", "hf:a/private", "--out", "run", token=TOKEN)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("fault", [("cut", 600), ("long", 500)])
def test_a_download_that_breaks_off_is_gone_on_with(hub, gemma, asking, fault):
    """One command resumes where the download broke off, and does not wait for bytes that the server claims beyond the end."""
    hub.faults["params.npz"] = [fault]
    ended = asking("import", f"hf:{GEMMA}/{PLACE}", "--out", "run")
    whole = len(gemma.files[f"{PLACE}/params.npz"])
    assert ended.code == 0, ended.err
    assert hub.sent == whole
    assert hub.gets("params.npz") == (["", "bytes=600-"] if fault[0] == "cut" else [""])


def test_progress_ends_at_the_whole_where_a_server_starts_a_file_over(hub, gemma, tmp_path, monkeypatch):
    from huggingface_hub import constants

    at = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "DOWNLOAD_CHUNK_SIZE": 100,
    }
    for name, value in at.items():
        monkeypatch.setattr(constants, name, value)
    hub.faults["params.npz"] = [("cut", 600), ("restart",)]
    advanced: list[int] = []

    @contextmanager
    def progress(stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        yield lambda n, note="": advanced.append(n)

    located = locate(f"hf:{GEMMA}/{PLACE}", progress=progress)
    whole = gemma.files[f"{PLACE}/params.npz"]
    assert (located.path / "params.npz").read_bytes() == whole
    assert hub.sent == 600 + len(whole)
    assert sum(advanced) == len(whole)


def test_a_command_that_failed_in_the_middle_is_gone_on_with_by_the_next(hub, gemma, asking):
    hub.faults["params.npz"] = [("cut", 600), ("status", 403)]
    assert "(status 403)" in asking("import", f"hf:{GEMMA}/{PLACE}", "--out", "run").complaint
    before = hub.sent
    assert 0 < before <= 600
    ended = asking("import", f"hf:{GEMMA}/{PLACE}", "--out", "run")
    assert ended.code == 0, ended.err
    assert hub.gets("params.npz")[-1] == f"bytes={before}-"
    assert hub.sent == len(gemma.files[f"{PLACE}/params.npz"])


def test_other_bytes_are_refused_and_fetched_anew_by_the_next_command(hub, gemma, asking, tmp_path):
    right = gemma.files[f"{PLACE}/params.npz"]
    hub.faults["params.npz"] = [("other", bytes(len(right)))]
    line = asking("import", f"hf:{GEMMA}/{PLACE}", "--out", "run").complaint
    assert "its hash is not" in line
    assert not (tmp_path / "run").exists()
    assert asking("import", f"hf:{GEMMA}/{PLACE}", "--out", "run").code == 0
    assert hub.gets("params.npz") == ["", ""]


def test_a_hub_out_of_order_is_asked_again(hub, gemma, asking):
    hub.faults["api"] = [("status", 500)]
    hub.faults["params.npz"] = [("status", 503)]
    ended = asking("import", f"hf:{GEMMA}/{PLACE}", "--out", "run")
    assert ended.code == 0, ended.err


def test_a_hub_that_stays_out_of_order_is_told(hub, gemma, asking):
    hub.faults["api"] = [("status", 500)] * 9
    assert "with status 500" in asking("import", f"hf:{GEMMA}/{PLACE}", "--out", "run").complaint


def test_a_disk_without_room_is_told_before(hub, asking, tmp_path, monkeypatch):
    """A repository may claim any size."""
    hub.models["a/huge"] = Repository({"params.npz": b"a"})
    entry = fake_hub.entry
    monkeypatch.setattr(fake_hub, "entry", lambda path, data: _huge(entry(path, data)))
    line = asking("import", "hf:a/huge", "--out", "run").complaint
    assert "needs 1,000,000.0 GB" in line
    assert hub.sent == 0


def _huge(told):
    return {**told, "size": 10**15, "lfs": {**told["lfs"], "size": 10**15}}


def test_a_silent_hub_is_told_within_seconds(asking):
    began = time.monotonic()
    line = asking("import", "hf:a/b", "--out", "run", url="http://127.0.0.1:9").complaint
    assert "http://127.0.0.1:9 does not answer" in line
    assert time.monotonic() - began < 6


def test_sparsify_and_dictionary_learning_are_read_with_the_file_above_them(hub, asking, tmp_path):
    folder = tmp_path / "made"
    (folder / "layers.3").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m", "ctx_len": 128}))
    settings = {"activation": "topk", "expansion_factor": 3, "num_latents": 0, "k": 2, "d_in": 8}
    (folder / "layers.3/cfg.json").write_text(json.dumps(settings))
    parts = {"encoder.weight": (24, 8), "encoder.bias": (24,), "W_dec": (24, 8), "b_dec": (8,)}
    save_file({n: torch.randn(*shape) for n, shape in parts.items()}, folder / "layers.3/sae.safetensors")
    hub.models["EleutherAI/sae-pythia"] = Repository(contents(folder))
    ended = asking("import", "hf:EleutherAI/sae-pythia/layers.3", "--out", "run")
    assert ended.code == 0, ended.err
    assert Run(tmp_path / "run").record.model == "EleutherAI/pythia-160m"


def test_bytes_that_are_no_arrays_are_refused_as_ever(hub, asking, tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.zeros((2, 3)))
    hub.models["a/b"] = Repository({"params.npz": (tmp_path / "params.npz").read_bytes()})
    assert "lacks the tensor W_dec" in asking("import", "hf:a/b", "--out", "run").complaint
