"""SAEs of SAELens trained on a model that TransformerLens processed have the same latents on the unprocessed model, or are refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from activations.errors import ForeignError
from sae.foreign import Origin, processing, saelens
from sae.workflows.import_sae import unlike_training
from tests.sae import lens

D = 16
TOKENS = torch.arange(24)[None] * 7 % 50
SITES = {
    "blocks.0.hook_resid_pre": ("transformer.h.0", "in"),
    "blocks.1.hook_resid_pre": ("transformer.h.1", "in"),
    "blocks.1.hook_resid_post": ("transformer.h.1", "out"),
    "blocks.1.hook_attn_out": ("transformer.h.1.attn", "out"),
    "blocks.1.hook_mlp_out": ("transformer.h.1.mlp", "out"),
    "blocks.1.attn.hook_z": ("transformer.h.1.attn.c_proj", "in"),
    "blocks.1.mlp.hook_post": ("transformer.h.1.mlp.c_proj", "in"),
    "blocks.1.ln2.hook_normalized": ("transformer.h.1.ln_2", "out"),
}
WRITTEN = list(SITES)[:5]


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    """Build a GPT-2 in float64 whose biases and norms differ from their initial values."""
    torch.manual_seed(0)
    made = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=32, n_embd=D, n_layer=2, n_head=2, initializer_range=0.4)
    )
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if name.endswith("bias") or "ln_" in name:
                tensor.add_(0.5 * torch.randn_like(tensor))
    return made.double().eval()


def centred(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Apply TransformerLens' center_writing_weights by hand. The unembedding is tied to W_E and is not rewritten."""
    twin = copy.deepcopy(model)
    twin.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for table in (twin.transformer.wte.weight, twin.transformer.wpe.weight):
            table.sub_(table.mean(-1, keepdim=True))
        for block in twin.transformer.h:
            for layer in (block.attn.c_proj, block.mlp.c_proj):
                layer.weight.sub_(layer.weight.mean(-1, keepdim=True))
                layer.bias.sub_(layer.bias.mean())
    return twin


def without_value_biases(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Apply TransformerLens' fold_value_biases by hand."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for block in twin.transformer.h:
            values = block.attn.c_attn.bias[2 * D :]
            block.attn.c_proj.bias.add_(values @ block.attn.c_proj.weight)
            values.zero_()
    return twin


@torch.no_grad()
def passing(model: GPT2LMHeadModel, hook: str) -> tuple[Tensor, Tensor]:
    """Return the activations at a hook point, [T, D], and the predictions."""
    seen: list[Tensor] = []
    name, side = SITES[hook]

    def keep(module: Any, args: Any, output: Any = None) -> None:
        value = args[0] if side == "in" else output
        seen.append(value[0] if isinstance(value, tuple) else value)

    module = model.get_submodule(name)
    handle = module.register_forward_pre_hook(keep) if side == "in" else module.register_forward_hook(keep)
    predicted = model(TOKENS).logits.log_softmax(-1)
    handle.remove()
    return seen[0][0], predicted


def folder(path: Path, hook: str, architecture: str = "topk", width: int = D, **about: Any) -> Path:
    metadata = {**lens.METADATA, "hook_name": hook, **about}
    return lens.folder(path, architecture, d=width, metadata=metadata)


def loaded_with(**asked: Any) -> dict[str, Any]:
    return {"model_from_pretrained_kwargs": asked}


@pytest.mark.parametrize("subtracted", [True, False])
@pytest.mark.parametrize("architecture", lens.TENSORS)
@pytest.mark.parametrize("hook", WRITTEN)
def test_centred_writing_weights_are_folded_into_the_encoder(model, tmp_path, hook, architecture, subtracted):
    path = lens.folder(
        tmp_path / "a", architecture, d=D, apply_b_dec_to_input=subtracted,
        metadata={**lens.METADATA, "hook_name": hook, **loaded_with(center_writing_weights=True)},
    )  # fmt: skip
    plain, before = passing(model, hook)
    processed, after = passing(centred(model), hook)
    assert torch.allclose(before, after)  # the processing changes no prediction
    assert torch.allclose(processed, plain - plain.mean(-1, keepdim=True))
    assert not torch.allclose(processed, plain)
    sae, _, notes = saelens.read(path)
    wanted = lens.latents(path, processed)
    norms = sae.W_dec.norm(dim=1).double() / lens.tensors_of(path)["W_dec"].norm(dim=1)
    found = sae.encode(plain.float()).dense().double() * norms
    assert (wanted != 0).any()
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    rebuilt = lens.decoded(path, wanted)
    assert (sae(plain.float()).double() - rebuilt).abs().max() < 1e-4 * rebuilt.abs().max()
    assert any("center_writing_weights" in note for note in notes)


def test_what_centring_and_value_biases_leave_alone_is_read_as_it_is(model, tmp_path):
    """The table of hook points agrees with the processed model itself."""
    for hook in SITES:
        for key, twin in (
            ("center_writing_weights", centred(model)),
            ("fold_value_biases", without_value_biases(model)),
        ):
            plain, processed = passing(model, hook)[0], passing(twin, hook)[0]
            path = folder(tmp_path / key / hook, hook, width=plain.shape[-1], **loaded_with(**{key: True}))
            if key == "fold_value_biases" and hook.endswith("hook_z"):
                assert not torch.allclose(plain, processed)
                with pytest.raises(ForeignError, match=key):
                    saelens.read(path)
                continue
            sae, wanted = saelens.read(path).sae, lens.latents(path, processed)
            assert torch.allclose(plain, processed) == (key == "fold_value_biases" or hook not in WRITTEN)
            assert (sae.encode(plain.float()).dense() - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize(
    ("hook", "key"),
    [
        ("blocks.0.ln1.hook_normalized", "fold_ln"),
        ("ln_final.hook_normalized", "fold_ln"),
        ("blocks.0.attn.hook_v", "fold_value_biases"),
        ("blocks.0.attn.hook_result", "fold_value_biases"),
        ("blocks.0.attn.hook_result", "center_writing_weights"),
        ("blocks.0.hook_in", "center_writing_weights"),
        ("blocks.0.attn.hook_q", "refactor_factored_attn_matrices"),
        ("blocks.0.attn.hook_z", "refactor_factored_attn_matrices"),
    ],
)
def test_what_has_no_exact_form_is_refused_by_name(tmp_path, hook, key):
    with pytest.raises(ForeignError, match=key) as caught:
        saelens.read(folder(tmp_path / "a", hook, **loaded_with(**{key: True})))
    assert hook in str(caught.value)
    assert (
        not saelens.read(folder(tmp_path / "b", hook, **loaded_with(**{key: False}))).sae.W_enc.isnan().any()
    )


def test_models_with_rmsnorm_are_not_centred_and_unknown_ones_are_refused(tmp_path):
    hook = "blocks.1.hook_resid_post"
    plain = saelens.read(folder(tmp_path / "plain", hook)).sae.W_enc
    asked = loaded_with(
        center_writing_weights=True, fold_ln=True, fold_value_biases=True, center_unembed=True
    )
    for number, name in enumerate(("gemma-2b", "meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-0.5B", "mistral-7b")):
        sae, _, notes = saelens.read(folder(tmp_path / str(number), hook, model_name=name, **asked))
        assert torch.equal(sae.W_enc, plain)
        assert not any("center" in note for note in notes)
    for number, name in enumerate(("my/model", None, "bloom-560m", "opt-350m"), 10):
        with pytest.raises(ForeignError, match="center_writing_weights"):
            saelens.read(folder(tmp_path / str(number), hook, model_name=name, **asked))
    for name, key, centres in (("ours", "layer_norm_epsilon", True), ("theirs", "rms_norm_eps", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({key: 1e-5}))
        sae = saelens.read(
            folder(tmp_path / f"of {name}", hook, model_name=str(tmp_path / name), **asked)
        ).sae
        assert torch.equal(sae.W_enc, plain) != centres


@pytest.mark.parametrize(
    ("about", "told"),
    [
        (loaded_with(), None),
        (loaded_with(n_devices=2, device_map="auto", fold_ln=False), None),
        (loaded_with(center_unembed=True), None),
        (loaded_with(dtype="bfloat16"), "bfloat16"),
        (loaded_with(torch_dtype="torch.float32"), None),
        (loaded_with(checkpoint_value=1000), "1000"),
        (loaded_with(revision="step512"), "step512"),
        (loaded_with(nosuch=3), "nosuch = 3"),
        ({"seqpos_slice": [5, None]}, "[5:]"),
        ({"seqpos_slice": [None]}, None),
        ({"exclude_special_tokens": True}, "special tokens"),
        ({"exclude_special_tokens": False}, None),
        ({"sae_lens_version": "6.0.0"}, None),
        ({"sae_lens_training_version": "3.14.0"}, "center_writing_weights"),
        ({"sae_lens_training_version": "3.20.1"}, None),
    ],
    ids=str,
)
def test_what_else_the_file_says_of_its_training_is_told_in_a_note(tmp_path, about, told):
    notes = saelens.read(folder(tmp_path / "a", "blocks.1.hook_resid_post", **about)).notes
    own = [note for note in notes if "norms from" not in note]
    assert len(own) == (told is not None), own
    assert not told or told in own[0]


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (loaded_with(fold_ln="yes"), "fold_ln"),
        ({"model_from_pretrained_kwargs": [1]}, "model_from_pretrained_kwargs"),
        ({"model_class_name": "HookedMamba"}, "HookedMamba"),
        ({"hook_name_out": "blocks.1.hook_mlp_out"}, "blocks.1.hook_mlp_out"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused(tmp_path, about, said):
    with pytest.raises(ForeignError, match=said):
        saelens.read(folder(tmp_path / "a", "blocks.1.hook_resid_post", **about))


def test_a_module_of_a_transformers_model_is_known_by_its_hook_point(tmp_path):
    about = {"model_class_name": "AutoModelForCausalLM", **loaded_with(dtype="float32")}
    origin = saelens.read(folder(tmp_path / "a", "model.layers.3", **about)).origin
    assert origin.hook == "blocks.3.hook_resid_post"


def test_an_export_says_that_the_model_was_not_processed(tmp_path):
    about = {"model_class_name": "AutoModelForCausalLM", **loaded_with(center_writing_weights=True)}
    saelens.write(lens.ours("topk"), Origin("gpt2", lens.HOOK, about), tmp_path / "a")
    metadata = json.loads((tmp_path / "a" / saelens.CFG).read_text())["metadata"]
    assert metadata["model_from_pretrained_kwargs"] == processing.PLAIN
    assert not any(processing.PLAIN.values())
    assert metadata["model_class_name"] == "HookedTransformer"


def test_windows_unlike_those_of_training_are_told(world):
    from activations.store import Store

    store = Store(world / "store")  # windows of 16 tokens that begin with BOS
    assert (
        unlike_training({}, store) == unlike_training({"prepend_bos": True, "context_size": 16}, store) == []
    )
    (bos,) = unlike_training({"prepend_bos": False}, store)
    assert "--no-bos" in bos
    assert "--no-bos" in unlike_training({"prepend_bos": False}, None)[0]
    (context,) = unlike_training({"prepend_bos": True, "context_size": 1024}, store)
    assert "1024" in context and "16" in context
