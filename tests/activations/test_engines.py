"""Models larger than one device: other engines give the rows of TransformerLens' view, or refuse a hook point in one line."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from activations import engines
from activations.engines import HookedModel
from activations.errors import HookError
from activations.harvest import harvest
from activations.language_model import LanguageModel
from activations.store import Store
from activations.views import Site
from sae.runs.run import Run
from tests import tiny
from tests.activations import toys
from tests.activations.toys import assert_same_up_to_rounding
from tests.cli.commands import Ended, Server, contents
from tests.cli.commands import harvest as command
from tests.ranks import environments

KINDS = ("resid_pre", "resid_post", "attn_out", "mlp_out")
HOOKS = ",".join(f"blocks.{block}.hook_{kind}" for block in (0, 1) for kind in KINDS)


def shards(store: Path) -> list[str]:
    return [entry.sha256 for entry in Store(store).shards]


def ranked(sae: Server, args: list[object], **fault: tuple) -> list[Ended]:
    """Run a command in two processes as torchrun starts them; the fault befalls the second."""
    faults = ({}, fault)
    started = [
        sae.start(*args, environment=(variables,), **fault)
        for variables, fault in zip(environments(2), faults, strict=True)
    ]
    return [one.wait() for one in started]


def test_plain_hooks_give_the_bytes_of_the_bridge(lm: LanguageModel, tmp_path: Path, text: Path):
    how = tiny.harvest_config(text, tokens=1600, hooks=HOOKS)
    hooked = engines.load("transformers", lm.name)
    made = harvest(hooked, tmp_path / "hooked", how)
    expected = harvest(lm, tmp_path / "bridge", how)
    assert shards(made.path) == shards(expected.path)
    assert (made.spec.source, made.spec.weights_sha256) == ("transformers", expected.spec.weights_sha256)
    assert made.spec.hooks == expected.spec.hooks


@pytest.mark.parametrize("site", [Site("model.layers.0", "in"), Site("model.layers.1", "out")])
def test_a_hook_on_another_module_is_refused(
    world: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, site: Site
):
    hooked = engines.load("transformers", str(world / "model"))
    monkeypatch.setitem(hooked.located, "blocks.0.hook_resid_post", (site, "block"))
    with pytest.raises(HookError, match=r"blocks\.0\.hook_resid_post of .* is not what the model computes"):
        harvest(hooked, tmp_path / "store", tiny.harvest_config(text, hooks="blocks.0.hook_resid_post"))
    assert not (tmp_path / "store").exists()


def test_what_an_engine_cannot_give_is_one_line_that_says_what_it_can(
    sae: Server, world: Path, tmp_path: Path
):
    wrong = command(world, tmp_path / "store", hooks="blocks.0.attn.hook_z", engine="transformers")
    line = sae(*wrong).complaint
    assert "no hook point 'blocks.0.attn.hook_z'" in line
    assert (
        "it gives hook_in, hook_resid_pre, hook_out, hook_resid_post, hook_attn_out, hook_mlp_out of its 2 blocks"
        in line
    )
    line = sae(*command(world, tmp_path / "store", engine="fsdp")).complaint
    assert "this is the only one: start several" in line
    assert "torchrun --nproc-per-node" in line
    assert not (tmp_path / "store").exists()


def test_attention_whose_output_is_normalised_before_it_is_added_is_not_given(tmp_path: Path):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    tiny.tokenizer().save_pretrained(tmp_path / "gemma")
    hooked = engines.load("transformers", str(tmp_path / "gemma"))
    hooked.check_hook("blocks.1.hook_resid_post")
    with pytest.raises(HookError, match=r"take blocks\.1\.hook_resid_post"):
        hooked.check_hook("blocks.1.hook_attn_out")


def test_weights_that_lie_on_the_disk_are_the_same_weights(llama: LanguageModel, tmp_path: Path):
    places = {
        "model.embed_tokens": "disk",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
    }
    spread = AutoModelForCausalLM.from_pretrained(
        llama.name,
        device_map={**places, "model.rotary_emb": "cpu", "lm_head": "disk"},
        offload_folder=tmp_path,
    )
    assert spread.get_input_embeddings().weight.is_meta
    names = [name for name, _ in llama.plain.named_parameters()]
    hooked = HookedModel(spread, llama.tokenizer, llama.name, None, "transformers", names)
    tokens = torch.arange(40).view(2, 20) + 2
    found, expected = (model.capture(tokens, HOOKS.split(",")) for model in (hooked, llama))
    assert all(torch.equal(found[hook], expected[hook]) for hook in expected)
    assert torch.equal(hooked.logits(tokens), llama.logits(tokens))
    assert hooked.weights_hash == llama.weights_hash


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_shared_among_two_processes_give_the_bytes_of_one(
    sae: Server, world: Path, tmp_path: Path, family: str
):
    model = world / "model" if family == "llama" else toys.gpt2_folder(tmp_path / "gpt2")
    settings = {"model": model, "hooks": HOOKS, "model_dtype": "float32"}
    assert sae(*command(world, tmp_path / "one", **settings)).code == 0
    ended = ranked(sae, command(world, tmp_path / "two", engine="fsdp", **settings))
    assert [one.code for one in ended] == [0, 0], ended
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    for number in range(len(one.shards)):
        ours, theirs = two.read(number, tuple(one.spec.hooks)), one.read(number, tuple(one.spec.hooks))
        assert torch.equal(ours.tokens, theirs.tokens)
        for hook in one.spec.hooks:
            assert_same_up_to_rounding(ours.activations[hook], theirs.activations[hook], hook)
    assert (two.spec.source, two.spec.weights_sha256) == ("fsdp", one.spec.weights_sha256)


def test_a_sharded_harvest_that_lost_a_process_ends_with_the_same_bytes(
    sae: Server, world: Path, tmp_path: Path
):
    args = {"hooks": HOOKS, "engine": "fsdp", "shard_tokens": 208}
    assert [one.code for one in ranked(sae, command(world, tmp_path / "whole", **args))] == [0, 0]
    out = tmp_path / "store"
    first, second = ranked(sae, command(world, out, **args), kill_at=(12, str(out)))
    assert second.code == -9
    assert "lost the others" in first.complaint
    assert 1 <= len(list(out.glob("shard-*.json"))) < 8
    assert [one.code for one in ranked(sae, command(world, out, **args))] == [0, 0]
    assert contents(out) == contents(tmp_path / "whole")


def test_tensors_shared_among_two_processes_give_the_rows_of_one(sae: Server, world: Path, tmp_path: Path):
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(world / "model", num_attention_heads=4, num_key_value_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    settings = {"model": tmp_path / "model", "hooks": HOOKS}
    assert sae(*command(world, tmp_path / "one", **settings)).code == 0
    ended = ranked(sae, command(world, tmp_path / "two", engine="tensor-parallel", **settings))
    assert [one.code for one in ended] == [0, 0], ended
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    assert two.spec.weights_sha256 == one.spec.weights_sha256
    for hook in one.spec.hooks:
        ours, theirs = (store.read(0, (hook,)).activations[hook] for store in (two, one))
        assert_same_up_to_rounding(ours, theirs, hook)


def test_a_family_without_a_plan_for_shared_tensors_is_refused(sae: Server, world: Path, tmp_path: Path):
    model = toys.gpt2_folder(tmp_path / "gpt2")
    for one in ranked(sae, command(world, tmp_path / "store", model=model, engine="tensor-parallel")):
        assert "no tensor-parallel plan" in one.complaint
    assert not (tmp_path / "store").exists()


def test_a_run_of_another_engine_is_evaluated_and_read_with_it(sae: Server, world: Path, tmp_path: Path):
    runs = []
    for engine in ("bridge", "transformers"):
        store, run = tmp_path / engine, tmp_path / f"{engine}-run"
        assert sae(*command(world, store, engine=engine, hooks=tiny.HOOK)).code == 0
        flags = ["--arch.d-sae", 32, "--arch.k", 4, "--train.steps", 20, "--train.batch", 64, "--out", run]
        for args in (
            ["train", "topk", "--store", store, *flags],
            ["evaluate", run, "--windows", 4],
            ["features", run],
        ):
            ended = sae(*args)
            assert ended.code == 0, ended.err
        runs.append(Run(run))
    assert isinstance(runs[1].language_model(), HookedModel)
    bridge, hooked = (
        run.evaluation.splice.estimates for run in runs if run.evaluation and run.evaluation.splice
    )
    assert hooked["kl"].value == pytest.approx(bridge["kl"].value, rel=1e-4)
