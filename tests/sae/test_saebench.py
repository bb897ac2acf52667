"""The adapter for SAEBench and SAEDashboard does everything that SAEBench's self-test and evaluations ask of an SAE."""

from dataclasses import asdict, is_dataclass

import pytest
import torch

from activations.errors import ForeignError
from sae.architectures import ArchConfig
from sae.foreign import Origin
from sae.foreign.saebench import adapt
from tests.sae.exchanged import ORIGIN, apart, rows, trained
from tests.sae.small import SMALL, D, F, every_architecture

NEEDED = (
    "model_name d_in d_sae hook_layer hook_name context_size hook_head_index architecture apply_b_dec_to_input "
    "finetuning_scaling_factor activation_fn_str activation_fn_kwargs prepend_bos normalize_activations dtype device "
    "model_from_pretrained_kwargs dataset_path dataset_trust_remote_code seqpos_slice training_tokens "
    "sae_lens_training_version neuronpedia_id"
).split()


@every_architecture
def test_it_encodes_and_decodes_dense_as_the_sae_does(cfg: ArchConfig):
    sae = trained(cfg)
    bench, x = adapt(sae, ORIGIN), rows(24)
    code = sae.encode(x)
    assert apart(bench.encode(x), code.dense()) == 0
    assert bench.encode(x.view(2, 12, D)).shape == (2, 12, F)
    assert torch.equal(bench.encode(x.view(2, 12, D)).flatten(0, 1), bench.encode(x))
    assert apart(bench.decode(bench.encode(x)), sae.decode(code)) < 1e-6
    assert torch.allclose(bench(x.view(2, 12, D)), bench.decode(bench.encode(x.view(2, 12, D))))
    assert (bench.W_enc.shape, bench.W_dec.shape) == ((D, F), (F, D))
    assert (bench.b_enc.shape, bench.b_dec.shape) == ((F,), (D,))
    assert apart(bench.W_dec.data.norm(dim=1), torch.ones(F)) < 1e-5


@every_architecture
def test_its_settings_have_every_name_that_is_asked_for(cfg: ArchConfig):
    about = adapt(trained(cfg), ORIGIN).cfg
    assert is_dataclass(about) and about.to_dict() == asdict(about)
    assert set(NEEDED) <= about.to_dict().keys()
    assert (about.hook_layer, about.hook_name, about.model_name) == (3, ORIGIN.hook, "gpt2")
    assert (about.dtype, about.device, about.context_size) == ("float32", "cpu", 128)
    about.metadata = object()  # SAEBench adds it, and writes the rest as JSON
    assert "metadata" not in about.to_dict()


@pytest.mark.parametrize("moved", [lambda b: b.to(dtype=torch.bfloat16), lambda b: b.to(torch.bfloat16)])
def test_another_dtype_is_what_comes_out(moved):
    bench, x = adapt(trained(SMALL["topk"]), ORIGIN), rows(24)
    whole = bench.encode(x)
    assert moved(bench) is bench
    assert {t.dtype for t in (bench.encode(x), bench(x), bench.W_enc, bench.W_dec)} == {torch.bfloat16}
    assert (bench.dtype, bench.cfg.dtype) == (torch.bfloat16, "bfloat16")
    assert torch.equal(bench.encode(x), whole.bfloat16())  # rounded once, at the end
    assert torch.equal(bench.to(device="cpu", dtype=torch.float32).encode(x), whole)


def test_gradients_reach_what_is_decoded():
    bench = adapt(trained(SMALL["topk"]), ORIGIN)
    latents = torch.zeros(2, F, requires_grad=True)
    bench.decode(latents).sum().backward()
    assert apart(latents.grad, bench.W_dec.sum(1).expand(2, F)) < 1e-6


def test_signs_and_the_gates_magnitudes_are_shown():
    assert (adapt(trained(SMALL["abstopk"]), ORIGIN).encode(rows()) < 0).any()
    gated = trained(SMALL["gated"])
    assert torch.equal(adapt(gated, ORIGIN).b_mag, gated.b_mag)


def test_heads_come_flattened_and_norms_are_folded():
    bench, x = adapt(trained(SMALL["topk"]), ORIGIN), rows(24)
    before = bench.encode(x)
    bench.fold_W_dec_norm()
    bench.turn_on_forward_pass_hook_z_reshaping()
    assert bench.hook_z_reshaping_mode
    bench.turn_off_forward_pass_hook_z_reshaping()
    assert not bench.hook_z_reshaping_mode and torch.equal(bench.encode(x), before)


@pytest.mark.parametrize(
    "origin", [Origin(None, ORIGIN.hook), Origin("gpt2", None), Origin("gpt2", "hook_embed")]
)
def test_without_a_model_or_a_hook_in_a_block_it_is_refused(origin):
    with pytest.raises(ForeignError, match="need the name of the model and a hook point in a block"):
        adapt(trained(SMALL["topk"]), origin)
