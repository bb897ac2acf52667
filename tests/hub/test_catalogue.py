"""Every entry of the catalogue has a name that parses and a format that can be read, and searches find what they ask for."""

import json

import pytest

from activations.errors import HubError
from sae.foreign import FORMATS
from sae.hub import catalogue, parse_name

COUNT = 12_945  # SAEs that the patterns stand for


def test_every_entry_parses_and_is_read_or_says_why_not():
    entries = catalogue.entries()
    assert len(entries) == COUNT
    assert (
        len({entry.name for entry in entries}) >= COUNT - 30
    )  # a repository as a whole stands for several layers
    for entry in entries:
        assert parse_name(entry.name).repository in entry.name
        assert (entry.format in FORMATS) != (entry.format is None)
        assert (entry.unsupported is not None) or entry.format is not None
        assert entry.width is None or entry.width % 768 == 0 or entry.width % 1024 == 0
        assert "{" not in f"{entry.name}{entry.hook}"
    sources = json.loads((catalogue.files("sae.hub") / "catalogue.json").read_text())["sources"]
    assert any("SAELens" in source for source in sources)


@pytest.mark.parametrize(
    ("query", "name", "model", "hook"),
    [
        (
            "gemma 2 2b layer 20 16k l0 71 residual",
            "hf:google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
            "google/gemma-2-2b",
            "blocks.20.hook_resid_post",
        ),
        (
            "gemma-3-1b-it l13 262k mlp big",
            "hf:google/gemma-scope-2-1b-it/mlp_out_all/layer_13_width_262k_l0_big",
            "google/gemma-3-1b-it",
            "blocks.13.hook_mlp_out",
        ),
        (
            "llama 3.1 8b layer 8 32768 residual",
            "hf:fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L8R-8x",
            "meta-llama/Llama-3.1-8B",
            "blocks.8.hook_resid_post",
        ),
        (
            "qwen3 8b layer 20 l0 50",
            "hf:Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50/layer20.sae.pt",
            "Qwen/Qwen3-8B-Base",
            "blocks.20.hook_resid_post",
        ),
        (
            "gpt2 layer 8 relu 24k",
            "hf:jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre",
            "gpt2",
            "blocks.8.hook_resid_pre",
        ),
        ("sparsify llama 3 8b", "hf:EleutherAI/sae-llama-3-8b-32x", "meta-llama/Meta-Llama-3-8B", None),
    ],
)
def test_words_find_what_they_mean(query, name, model, hook):
    found = catalogue.search(query)
    match = next(entry for entry in found if entry.name == name)
    assert (match.model, match.hook) == (model, hook)
    asked = catalogue.parse(query)
    for entry in found:
        assert asked.layer in (None, entry.layer)
        assert asked.width in (None, entry.width)
    assert found[0].unsupported is None


def test_gemma_2_is_the_model_before_it_is_a_release():
    assert {entry.model for entry in catalogue.search("gemma 2 layer 20 16k")[:5]} <= {
        "google/gemma-2-2b", "google/gemma-2-9b", "google/gemma-2-9b-it",
    }  # fmt: skip


@pytest.mark.parametrize(
    "query", ["gemma 2 2b layer 99 16k", "layer 20 l0 7100 gemma-2-9b", "mystery-model layer 3"]
)
def test_what_is_not_there_names_the_nearest(query):
    with pytest.raises(HubError, match=r"nearest: hf:\w+/"):
        catalogue.search(query)


def test_what_cannot_be_read_says_why():
    assert {entry.unsupported is None for entry in catalogue.search("qwen3 transcoder")} == {False}


def test_the_command_prints_names_and_json(sae):
    ended = sae("catalogue", "gemma", "2", "2b", "layer", 20, "16k")
    assert ended.code == 0, ended.err
    assert "hf:google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71" in ended.out.splitlines()
    assert "next: sae open hf:" in ended.out
    rows = json.loads(sae("catalogue", "gpt2 layer 8", "--json").out)
    assert {row["model"] for row in rows} == {"gpt2"}
    assert {row["layer"] for row in rows} == {8}
    assert "nearest: hf:" in sae("catalogue", "gpt2 layer 80").complaint
    assert "no words to look for" in sae("catalogue").complaint
