"""sparsify's files: read as its own loader computes them, ours written and read back, mistakes refused."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize
from torch.testing import assert_close

from activations import language_model
from activations.errors import ForeignError
from sae.architectures import AbsTopK, AbsTopKConfig, TopK
from sae.foreign import sparsify
from sae.workflows.import_sae import import_sae
from tests import tiny
from tests.families.models import ROWS
from tests.sae.exchanged import ORIGIN, apart, rows, trained
from tests.sae.small import SMALL, D, F

K = 3


def tensors(unit=True):
    generator = torch.Generator().manual_seed(0)
    encoder, decoder, bias, b_dec = (
        torch.randn(*shape, generator=generator) for shape in ((F, D), (F, D), (F,), (D,))
    )
    decoder = normalize(decoder, dim=1) if unit else decoder
    return {"encoder.weight": encoder / 2, "encoder.bias": bias / 4, "W_dec": decoder, "b_dec": b_dec}


def save(folder, content=None, **about):
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {
        "activation": "topk",
        "expansion_factor": 3,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": K,
        "d_in": D,
    }
    (folder / "cfg.json").write_text(json.dumps({**cfg, **about}))
    save_file(tensors() if content is None else content, folder / "sae.safetensors")
    return folder


def formula(x, s, signed=False):
    """Return latents and reconstruction in float64: the k largest of relu(u), or of |u|, with b_dec subtracted from x."""
    u = (x.double() - s["b_dec"].double()) @ s["encoder.weight"].double().T + s["encoder.bias"].double()
    u = u if signed else u.relu()
    places = u.abs().topk(K, dim=1).indices
    z = torch.zeros_like(u).scatter_(1, places, u.gather(1, places))
    return z, z @ s["W_dec"].double() + s["b_dec"].double()


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_read_as_its_formula(tmp_path, normalised, signed):
    """`num_latents` may be 0, and b_dec is subtracted whatever `normalize_decoder` says."""
    content, x = tensors(unit=normalised), rows()
    read = sparsify.read(save(tmp_path, content, normalize_decoder=normalised, signed=signed))
    z, x_hat = formula(x, content, signed)
    code = read.sae.encode(x)
    assert apart(code.dense(), z) < 1e-5
    assert apart(read.sae.decode(code), x_hat) < 1e-5
    assert isinstance(read.sae, AbsTopK if signed else TopK)
    assert any("keep them" in note for note in read.notes) is not normalised


@pytest.mark.parametrize("folder", ["layers.3.mlp", "layers.3.mlp/seed1"])
def test_the_folder_names_the_module_and_the_run_above_it_the_model(tmp_path, folder):
    (tmp_path / "config.json").write_text(json.dumps({"model": "gpt2", "ctx_len": 64}))
    origin = sparsify.read(save(tmp_path / folder)).origin
    assert (origin.model, origin.hook, origin.facts["context_size"]) == ("gpt2", "blocks.3.mlp.hook_out", 64)


@pytest.mark.parametrize(("family", "after"), [("Gemma 2", True), ("Qwen3", False)])
def test_an_sae_of_a_module_reads_what_the_module_gives(tmp_path, family, after):
    """Where the model normalises what its MLP gives, a store of what the MLP adds to the residual stream is of another place."""
    made = next(row for row in ROWS if row.name == family).folder(tmp_path / "model")
    model = language_model.load(str(made))
    (tmp_path / "config.json").write_text(json.dumps({"model": str(made)}))
    wide = torch.randn(F, model.width)
    content = {
        "encoder.weight": wide,
        "encoder.bias": torch.zeros(F),
        "W_dec": normalize(wide),
        "b_dec": torch.zeros(model.width),
    }
    path = save(tmp_path / "layers.1.mlp", content, d_in=model.width)
    hook = import_sae(path, tmp_path / "run").hook
    given, tokens = [], torch.arange(2, 10)[None]
    read = model.capture(tokens, [hook, "blocks.1.hook_mlp_out"])
    watch = model.plain.model.layers[1].mlp.register_forward_hook(lambda *seen: given.append(seen[2]))
    with torch.no_grad():
        model.plain(tokens)
    watch.remove()
    assert_close(read[hook], given[-1])
    store = tiny.store(tmp_path, model, hooks="blocks.1.hook_mlp_out")
    if after:
        assert not torch.allclose(read["blocks.1.hook_mlp_out"], given[-1], atol=0.1)
        with pytest.raises(ForeignError, match="harvest it"):
            import_sae(path, tmp_path / "of-store", store=store.path)
    else:
        assert import_sae(path, tmp_path / "of-store", store=store.path).hook == "blocks.1.hook_mlp_out"


def test_ours_come_back_as_they_were(tmp_path):
    sae, x = trained(SMALL["topk"]), rows()
    sparsify.write(sae, ORIGIN, tmp_path / "layers.3")
    back = sparsify.read(tmp_path / "layers.3")
    assert apart(back.sae.encode(x).dense(), sae.encode(x).dense()) < 1e-6
    assert apart(back.sae(x), sae(x)) < 1e-6
    assert back.origin.hook == ORIGIN.hook


def test_multi_topk_is_of_training_alone_and_comes_back(tmp_path):
    sae, x = trained(SMALL["topk-multi"]), rows()
    sparsify.write(sae, ORIGIN, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "cfg.json").read_text())["multi_topk"] is True
    assert sparsify.read(tmp_path / "ours").sae.cfg.multi_weight == 1 / 8
    content = tensors()
    read = sparsify.read(save(tmp_path / "theirs", content, multi_topk=True)).sae
    assert read.cfg.multi_weight == 1 / 8
    assert apart(read.encode(x).dense(), formula(x, content)[0]) < 1e-5


def test_a_signed_latent_becomes_two(tmp_path):
    sae, x = trained(SMALL["abstopk"]), rows()
    (note,) = sparsify.write(sae, ORIGIN, tmp_path / "out")
    assert "24 + j where negative" in note
    back = sparsify.read(tmp_path / "out").sae
    positive, negative = back.encode(x).dense().chunk(2, dim=1)
    assert apart(positive - negative, sae.encode(x).dense()) < 1e-5
    assert apart(back(x), sae(x)) < 1e-5


@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"topk", "topk-multi", "abstopk"}))
def test_what_it_cannot_hold_is_refused_and_nothing_is_written(tmp_path, name):
    with pytest.raises(ForeignError, match="sparsify cannot compute what .* it holds TopK SAEs"):
        sparsify.write(trained(SMALL[name]), ORIGIN, tmp_path / "out")
    with pytest.raises(
        ForeignError, match="sparsify cannot compute what abstopk .* both sides; it holds TopK SAEs"
    ):
        sparsify.write(trained(AbsTopKConfig(d_sae=F, k=K, per="batch")), ORIGIN, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"transcode": True}, "is a transcoder"),
        ({"skip_connection": True}, "linear skip connection"),
        ({"activation": "groupmax"}, "activation 'groupmax': one latent of each of k groups"),
        ({"k": F + 1}, r"k = 25 must lie between 1 and the 24 latents"),
        ({"k": "3"}, "the setting k is '3', expected one of type int"),
        ({"d_in": D + 1}, r"encoder.weight has shape \(24, 8\), expected \(any, 9\)"),
    ],
)
def test_mistakes_are_told(tmp_path, about, said):
    with pytest.raises(ForeignError, match=said) as error:
        sparsify.read(save(tmp_path, **about))
    assert "\n" not in str(error.value)


def test_a_file_without_a_decoder_and_one_cut_short_are_refused(tmp_path):
    content = tensors()
    del content["W_dec"]
    with pytest.raises(ForeignError, match="lacks the tensor W_dec"):
        sparsify.read(save(tmp_path, content))
    whole = save(tmp_path) / "sae.safetensors"
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(ForeignError, match="cannot be read as safetensors"):
        sparsify.read(tmp_path)
