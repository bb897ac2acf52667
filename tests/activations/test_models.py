"""Hook points: captures are the model's activations and edits change just them. On a Llama and on a GPT-2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from activations.errors import HookError, ModelError
from activations.language_model import LanguageModel, load
from tests.activations.toys import assert_same_up_to_rounding

TOKENS = torch.randint(0, 258, (3, 11), generator=torch.Generator().manual_seed(5))
RESIDUAL, HEADS = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"


def inner(lm: LanguageModel, name: str) -> torch.nn.Module:
    """Return a module of the plain model's block 1 by its role."""
    names = {
        "llama": {
            "block": "",
            "attn": ".self_attn",
            "mlp": ".mlp",
            "z": ".self_attn.o_proj",
            "post": ".mlp.down_proj",
        },
        "gpt2": {"block": "", "attn": ".attn", "mlp": ".mlp", "z": ".attn.c_proj", "post": ".mlp.c_proj"},
    }
    kind = lm.plain.config.model_type
    stem = {"llama": "model.layers.1", "gpt2": "transformer.h.1"}[kind]
    return lm.plain.get_submodule(stem + names[kind][name])


def changed(lm: LanguageModel, part: str, side: str, change: Callable[[Tensor], Tensor | None]) -> Tensor:
    """Return the plain model's logits with `change` applied to the input or output of a module of block 1."""

    def before(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        new = change(args[0])
        return (args if new is None else (new, *args[1:])), kwargs

    def after(_: Any, __: tuple, output: Any) -> Any:
        whole = output if isinstance(output, tuple) else (output,)
        new = change(whole[0])
        return output if new is None else ((new, *whole[1:]) if isinstance(output, tuple) else new)

    module = inner(lm, part)
    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if side == "in"
        else module.register_forward_hook(after)
    )
    with handle, torch.no_grad():
        return lm.plain(TOKENS).logits


PLACES = {
    RESIDUAL: ("block", "in"),
    "blocks.1.hook_resid_post": ("block", "out"),
    "blocks.1.hook_attn_out": ("attn", "out"),
    "blocks.1.hook_mlp_out": ("mlp", "out"),
    HEADS: ("z", "in"),
    "blocks.1.mlp.hook_post": ("post", "in"),
}
every_place = pytest.mark.parametrize(
    ("hook", "part", "side"), [(h, *p) for h, p in PLACES.items()], ids=PLACES
)


@every_place
def test_capture_is_what_a_hand_written_hook_on_the_model_sees(
    lm: LanguageModel, hook: str, part: str, side: str
):
    seen: list[Tensor] = []
    changed(lm, part, side, seen.append)
    found = lm.capture(TOKENS, [hook])
    assert list(found) == [hook]
    assert_same_up_to_rounding(found[hook], seen[0])


@every_place
def test_logits_with_an_edit_are_those_of_a_hand_written_splice(
    lm: LanguageModel, hook: str, part: str, side: str
):
    def edit(x: Tensor) -> Tensor:
        return 0.5 * x.roll(1, -1) - 0.3

    expected = changed(lm, part, side, edit)
    assert not torch.allclose(expected, lm.logits(TOKENS), rtol=0.1)
    assert_same_up_to_rounding(lm.logits(TOKENS, {hook: edit}), expected)


@every_place
def test_an_identity_edit_changes_no_logit(lm: LanguageModel, hook: str, part: str, side: str):
    same = lm.logits(TOKENS, {hook: lambda x: x})
    if hook in lm._sites:
        assert torch.equal(same, lm.logits(TOKENS))
    else:  # the bridge computes attention eagerly: its own logits, without an edit
        assert torch.equal(same, lm.bridge(TOKENS, return_type="logits"))
        assert_same_up_to_rounding(same, lm.logits(TOKENS))


def test_logits_without_edits_are_the_plain_models(lm: LanguageModel):
    with torch.no_grad():
        assert torch.equal(lm.logits(TOKENS), lm.plain(TOKENS).logits)


def test_several_edits_act_together_the_first_before_the_second(lm: LanguageModel):
    def halve(x: Tensor) -> Tensor:
        return x * 0.5

    def shift(x: Tensor) -> Tensor:
        return x + 1

    both = lm.logits(
        TOKENS, {"blocks.0.hook_resid_post": shift, RESIDUAL: halve, "blocks.1.hook_mlp_out": shift}
    )
    alone = lm.logits(TOKENS, {RESIDUAL: lambda x: (x + 1) * 0.5, "blocks.1.hook_mlp_out": shift})
    assert_same_up_to_rounding(both, alone)


def test_the_plain_model_is_used_where_it_sees_what_transformer_lens_sees(lm: LanguageModel):
    assert {hook.split(".")[1] for hook in lm._sites} == {"0", "1"}
    for hook in lm._sites:
        seen: list[Tensor] = []
        lm.bridge.run_with_hooks(TOKENS, fwd_hooks=[(hook, lambda x, hook, seen=seen: seen.append(x))])
        assert_same_up_to_rounding(lm.capture(TOKENS, [hook])[hook], seen[0], hook)
        assert lm._agreeing[hook], hook


def test_a_bridge_that_computes_something_else_has_no_say(world: Path):
    lm = load(str(world / "model"))
    lm._sites  # located in the two models as they are
    lm.plain.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0] * 1.1, *args[1:]))
    with torch.no_grad():
        states = lm.plain(TOKENS, output_hidden_states=True).hidden_states
    hook = "blocks.0.hook_resid_post"
    assert_same_up_to_rounding(lm.capture(TOKENS, [hook])[hook], states[1])
    with pytest.raises(HookError, match="blocks.1.attn.hook_z") as caught:
        lm.capture(TOKENS, [HEADS])
    assert "its logits differ" in str(caught.value)


@pytest.mark.parametrize(
    "hooks", [(RESIDUAL, "blocks.0.hook_mlp_out"), (HEADS, RESIDUAL, "blocks.0.mlp.hook_post")]
)
def test_several_hook_points_in_one_pass_are_as_one_at_a_time(lm: LanguageModel, hooks: tuple[str, ...]):
    together = lm.capture(TOKENS, hooks)
    assert set(together) == set(hooks)
    for hook in hooks:
        assert_same_up_to_rounding(together[hook], lm.capture(TOKENS, [hook])[hook], hook)


def test_two_names_of_one_place_are_both_captured(lm: LanguageModel):
    names = ["blocks.1.hook_in", RESIDUAL, "blocks.0.hook_out", "blocks.0.hook_resid_post"]
    found = lm.capture(TOKENS, names)
    assert set(found) == set(names)
    assert torch.equal(found["blocks.1.hook_in"], found[RESIDUAL])


@pytest.mark.parametrize("hook", [RESIDUAL, HEADS])
def test_a_row_does_not_depend_on_the_other_windows_of_the_batch(lm: LanguageModel, hook: str):
    whole = lm.capture(TOKENS, [hook])[hook]
    others = torch.cat([TOKENS[:1], TOKENS[1:].flip(1)])
    assert torch.equal(lm.capture(others, [hook])[hook][0], whole[0])
    for number, row in enumerate(TOKENS):
        alone = lm.capture(row[None], [hook])[hook][0]
        assert_same_up_to_rounding(alone, whole[number])


@pytest.mark.parametrize(
    ("hook", "mlp_calls"),
    [
        ("blocks.0.hook_resid_post", 0),
        (RESIDUAL, 0),
        (HEADS, 0),
        ("blocks.1.mlp.hook_post", 1),
        ("blocks.1.hook_out", 1),
    ],
)
def test_capture_stops_at_the_deepest_hook_point(lm: LanguageModel, hook: str, mlp_calls: int):
    hooks = ["blocks.0.hook_resid_pre", hook]
    lm.capture(TOKENS, hooks)  # both views are compared at the first call
    mlp, head = inner(lm, "mlp"), lm.plain.get_output_embeddings()
    twin = lm.bridge.original_model.modules()
    last = {
        type(module): module for module in twin if type(module) in (type(mlp), type(head))
    }  # the deepest of each
    assert len(last) == 2
    calls = {"mlp": 0, "head": 0}

    def count(module: torch.nn.Module, _: Any) -> None:
        calls["mlp" if isinstance(module, type(mlp)) else "head"] += 1

    handles = [module.register_forward_pre_hook(count) for module in (mlp, head, *last.values())]
    lm.capture(TOKENS, hooks)
    for handle in handles:
        handle.remove()
    assert calls == {"mlp": mlp_calls, "head": 0}


def test_every_hook_point_gives_a_row_for_every_token_or_is_refused_by_name(lm: LanguageModel):
    shapes, refusals = {}, {}
    for hook in lm.hooks:
        try:
            shapes[hook] = tuple(lm.capture(TOKENS, [hook])[hook].shape)
        except HookError as error:
            refusals[hook] = str(error)
    assert len(shapes) > 50
    assert {
        hook: shape for hook, shape in shapes.items() if len(shape) != 3 or shape[:2] != TOKENS.shape
    } == {}
    assert all(hook in line and "\n" not in line for hook, line in refusals.items())


def test_a_hook_point_with_a_head_axis_comes_flattened(lm: LanguageModel):
    heads, width = lm.plain.config.num_attention_heads, lm.plain.config.hidden_size
    seen: list[tuple[int, ...]] = []
    lm.bridge.run_with_hooks(TOKENS, fwd_hooks=[(HEADS, lambda x, hook: seen.append(tuple(x.shape)))])
    assert seen == [(*TOKENS.shape, heads, width // heads)]
    assert lm.capture(TOKENS, [HEADS])[HEADS].shape == (*TOKENS.shape, width)
    lm.logits(TOKENS, {HEADS: lambda x: seen.append(tuple(x.shape)) or x})
    assert seen[1] == (*TOKENS.shape, width)


@pytest.mark.parametrize("unknown", ["blocks.1.hook_resid_psot", "blocks.9.hook_resid_post", "resid_post"])
def test_an_unknown_hook_point_is_refused_with_the_nearest(lm: LanguageModel, unknown: str):
    for use in (lambda: lm.capture(TOKENS, [unknown]), lambda: lm.logits(TOKENS, {unknown: lambda x: x})):
        with pytest.raises(HookError) as caught:
            use()
        assert repr(unknown) in str(caught.value)
        assert "blocks.1.hook_resid_post" in str(caught.value)
        assert "2 blocks" in str(caught.value)


def float64(parameter: Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()


def test_the_vocabulary_effect_is_the_final_norm_then_the_unembedding(lm: LanguageModel):
    directions = torch.randn(5, lm.plain.config.hidden_size, generator=torch.Generator().manual_seed(1))
    d, unembed = float64(directions), float64(lm.plain.get_output_embeddings().weight)
    if lm.plain.config.model_type == "llama":
        norm = lm.plain.model.norm
        normed = d / np.sqrt((d**2).mean(1, keepdims=True) + norm.variance_epsilon)
    else:
        norm = lm.plain.transformer.ln_f
        normed = (d - d.mean(1, keepdims=True)) / np.sqrt(d.var(1, keepdims=True) + norm.eps)
    expected = (normed * float64(norm.weight)) @ unembed.T
    found = lm.vocabulary_effect(directions)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_direction_of_zero_writes_nothing(lm: LanguageModel):
    assert not lm.vocabulary_effect(torch.zeros(2, lm.plain.config.hidden_size)).any()


def test_the_weights_hash_is_of_the_weights_alone(world: Path, llama: LanguageModel):
    again = load(str(world / "model"))
    assert again.weights_hash == llama.weights_hash
    other = load(str(world / "model"))
    other.plain.model.norm.weight.data[0] += 1
    assert other.weights_hash != llama.weights_hash
    assert load(str(world / "model"), dtype=torch.bfloat16).weights_hash != llama.weights_hash


def test_the_two_views_share_their_weights(lm: LanguageModel):
    bridged = {tensor.data_ptr() for tensor in lm.bridge.original_model.parameters()}
    own = {name for name, tensor in lm.plain.named_parameters() if tensor.data_ptr() not in bridged}
    assert all("c_attn" in name for name in own)  # GPT-2's joint projection, which TransformerLens splits


@pytest.mark.parametrize("name", ["./gone", "/gone/model", "~/gone", "gone", "gone/model", "a/b/c"])
def test_a_model_that_is_not_there_is_refused_in_one_line(name: str):
    with pytest.raises(ModelError) as caught:
        load(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_a_damaged_model_folder_is_refused_in_one_line(world: Path, tmp_path: Path, file: str, damage: str):
    for path in (world / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    if damage == "cut short":
        (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError) as caught:
        load(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
