"""dictionary_learning's files: each class against its formula in float64, ours written and read back, mistakes refused."""

import json

import pytest
import torch
from torch.nn.functional import normalize

from activations.errors import ForeignError
from sae.architectures import AbsTopKConfig
from sae.foreign import Origin, dictionary_learning
from sae.foreign.weights import hook_of_module
from tests.sae.exchanged import ORIGIN, apart, rows, trained
from tests.sae.small import SMALL, D, F

GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def linear(bias, unit=True):
    decoder = draw(D, F)
    decoder = normalize(decoder, dim=0) if unit else decoder
    return {
        "encoder.weight": draw(F, D) / 2,
        "encoder.bias": draw(F) / 4,
        "decoder.weight": decoder,
        bias: draw(D),
    }


def parameters():
    weights = {"W_enc": draw(D, F) / 2, "b_enc": draw(F) / 4, "W_dec": normalize(draw(F, D), dim=1)}
    return {**weights, "b_dec": draw(D)}


def rule(k=3, threshold=0.5):
    return {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(threshold)}


def gated():
    weights = {"encoder.weight": draw(F, D) / 2, "decoder.weight": draw(D, F), "decoder_bias": draw(D)}
    return {**weights, "r_mag": draw(F) / 4, "gate_bias": draw(F) / 4, "mag_bias": draw(F) / 4}


def largest(u, k):
    kept = u.topk(k, dim=1)
    return torch.zeros_like(u).scatter_(1, kept.indices, kept.values)


def above(u, threshold):
    return u.relu() * (u.relu() > threshold)


def pre(x, s, bias):
    return (x - s[bias]) @ s["encoder.weight"].T + s["encoder.bias"]


def relu_z(x, s):
    return pre(x, s, "bias").relu()


def new_relu_z(x, s):
    return (x @ s["encoder.weight"].T + s["encoder.bias"]).relu()


def gated_z(x, s):
    v = (x - s["decoder_bias"]) @ s["encoder.weight"].T
    return (v + s["gate_bias"] > 0) * (s["r_mag"].exp() * v + s["mag_bias"]).relu()


def matryoshka_z(x, s):
    return above((x - s["b_dec"]) @ s["W_enc"] + s["b_enc"], s["threshold"])


def jumprelu_z(x, s):
    u = x @ s["W_enc"] + s["b_enc"]
    return (u * (u > s["threshold"])).relu()


SIZES = {"group_sizes": torch.tensor([6, 6, 12])}
CLASSES = {
    "AutoEncoder": (linear("bias", unit=False), relu_z, "bias"),
    "AutoEncoderNew": (linear("decoder.bias", unit=False), new_relu_z, "decoder.bias"),
    "GatedAutoEncoder": (gated(), gated_z, "decoder_bias"),
    "AutoEncoderTopK": (
        {**linear("b_dec"), **rule()},
        lambda x, s: largest(pre(x, s, "b_dec").relu(), 3),
        "b_dec",
    ),
    "BatchTopKSAE": (
        {**linear("b_dec"), **rule()},
        lambda x, s: above(pre(x, s, "b_dec"), s["threshold"]),
        "b_dec",
    ),
    "MatryoshkaBatchTopKSAE": ({**parameters(), **rule(), **SIZES}, matryoshka_z, "b_dec"),
    "JumpReluAutoEncoder": ({**parameters(), "threshold": draw(F) / 2}, jumprelu_z, "b_dec"),
}
every_class = pytest.mark.parametrize("name", CLASSES)


def save(folder, name, state, **trainer):
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "ae.pt")
    about = {"dict_class": name, "k": 3, "lm_name": "gpt2", "submodule_name": "resid_post_layer_3", **trainer}
    (folder / "config.json").write_text(json.dumps({"trainer": about, "buffer": {"io": "out"}}))
    return folder


def compare(sae, name, state, scale=1.0):
    """Compare an SAE with the class's formula, for inputs divided by `scale` and reconstructions multiplied by it."""
    x = rows()
    _, latents, bias = CLASSES[name]
    s = {key: value.double() for key, value in state.items()}
    decoder = s["W_dec"] if "W_dec" in s else s["decoder.weight"].T
    z = latents(x.double() / scale, s)
    code = sae.encode(x)
    assert apart(code.dense(), scale * z * decoder.norm(dim=1)) < 1e-5
    assert apart(sae.decode(code), scale * (z @ decoder + s[bias])) < 1e-5
    assert 0 < code.l0().float().mean() < F


@every_class
def test_each_class_is_read_as_its_formula(tmp_path, name):
    state = CLASSES[name][0]
    sae, origin, _ = dictionary_learning.read(save(tmp_path, name, state))
    compare(sae, name, state)
    assert apart(sae.W_dec.norm(dim=1), torch.ones(F)) < 1e-6
    assert (origin.model, origin.hook) == ("gpt2", "blocks.3.hook_resid_post")


@every_class
def test_a_backup_in_the_middle_of_training_is_read_in_raw_units(tmp_path, name):
    state, *_ = CLASSES[name]
    backup = {
        "step": 7,
        "ae": state,
        "optimizer": {},
        "config": {"dict_class": name, "k": 3},
        "norm_factor": 5.0,
    }
    torch.save(backup, tmp_path / "ae.pt")
    sae, _, notes = dictionary_learning.read(tmp_path)
    compare(sae, name, state, scale=5.0)
    assert "(step 7), not its end" in notes[0]


def test_older_names_a_checkpoint_and_an_unset_threshold_are_known(tmp_path):
    old = linear("bias")
    sae, *_ = dictionary_learning.read(save(tmp_path / "old", "AutoEncoderTopK", old))
    compare(sae, "AutoEncoderTopK", {**old, "b_dec": old["bias"]})
    unset = {**linear("b_dec"), **rule(threshold=-1.0)}
    save(tmp_path, "BatchTopKSAE", unset)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ae.pt").rename(tmp_path / "checkpoints" / "ae_100.pt")
    sae, _, notes = dictionary_learning.read(tmp_path / "checkpoints" / "ae_100.pt")
    compare(sae, "BatchTopKSAE", unset)
    assert "never set" in notes[0]


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"])
def test_ours_come_back_as_they_were(tmp_path, name):
    sae, x = trained(SMALL[name]), rows()
    dictionary_learning.write(sae, ORIGIN, tmp_path / "out")
    back, origin, notes = dictionary_learning.read(tmp_path / "out")
    assert apart(back.encode(x).dense(), sae.encode(x).dense()) < 1e-5
    assert apart(back(x), sae(x)) < 1e-5
    assert type(back) is type(sae)
    assert (origin.model, origin.hook, origin.facts["context_size"]) == ("gpt2", ORIGIN.hook, 128)
    assert not [note for note in notes if "norm" in note]


@pytest.mark.parametrize("per", ["token", "batch"])
def test_a_signed_latent_becomes_two(tmp_path, per):
    sae, x = trained(AbsTopKConfig(d_sae=F, k=3, per=per)), rows()
    (note,) = dictionary_learning.write(sae, ORIGIN, tmp_path / "out")
    assert "24 + j where negative" in note
    back, *_ = dictionary_learning.read(tmp_path / "out")
    positive, negative = back.encode(x).dense().chunk(2, dim=1)
    assert negative.any()
    threshold = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)["threshold"]
    assert threshold == (-1 if per == "token" else sae.threshold)  # -1 there: never set
    assert apart(positive - negative, sae.encode(x).dense()) < 1e-5
    assert apart(back(x), sae(x)) < 1e-5


@pytest.mark.parametrize("name", ["kron", "gba", "mfr", "topafa", "adaptivek"])
def test_what_it_cannot_hold_is_refused_and_nothing_is_written(tmp_path, name):
    with pytest.raises(
        ForeignError, match=f"dictionary_learning cannot compute what {name} does in use: .*; it holds"
    ):
        dictionary_learning.write(trained(SMALL[name]), ORIGIN, tmp_path / "out")
    assert not any(tmp_path.iterdir())


TOPK = CLASSES["AutoEncoderTopK"][0]
WRONG = {
    "another class": (
        "AutoEncoderMystery",
        TOPK,
        {},
        "is of class 'AutoEncoderMystery' .* one of AutoEncoder",
    ),
    "a crosscoder": ("CrossCoder", TOPK, {}, "is a crosscoder .CrossCoder."),
    "no class": (None, TOPK, {}, "does not give its dict_class"),
    "two k": ("AutoEncoderTopK", TOPK, {"k": 4}, "gives k = 3 and 4"),
    "no k": ("AutoEncoderTopK", linear("b_dec"), {"k": 0}, "k is 0, expected an integer"),
    "too many": (
        "AutoEncoderTopK",
        {**TOPK, "k": torch.tensor(25)},
        {"k": 25},
        "ae.pt: k = 25 must lie between 1 and d_sae = 24",
    ),
    "a shape": (
        "AutoEncoderTopK",
        {**TOPK, "b_dec": draw(D + 1)},
        {},
        r"b_dec has shape \(9,\), expected \(8\)",
    ),
    "a gap": ("AutoEncoder", TOPK, {}, "lacks the tensor bias"),
    "nan": ("AutoEncoderTopK", {**TOPK, "b_dec": draw(D) * torch.nan}, {}, "not finite"),
    "too much": ("AutoEncoderTopK", {**TOPK, "W_skip": draw(D, D)}, {}, "not understood here: W_skip"),
    "a view": (
        "AutoEncoderTopK",
        {**TOPK, "encoder.weight": torch.zeros(()).expand(10**6, 10**6)},
        {},
        "claims more",
    ),
    "groups": (
        "MatryoshkaBatchTopKSAE",
        {**CLASSES["MatryoshkaBatchTopKSAE"][0], "group_sizes": torch.tensor([6, 6])},
        {},
        "group_sizes add up to 12 .* expected a sum of 24",
    ),
    "no names": ("AutoEncoderTopK", {**TOPK, 7: draw(D)}, {}, "holds a dict, expected a state dict"),
    "no dict": ("AutoEncoderTopK", [1, 2], {}, "holds a list, expected a state dict"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_told(tmp_path, case):
    name, state, trainer, said = WRONG[case]
    with pytest.raises(ForeignError, match=said) as error:
        dictionary_learning.read(save(tmp_path, name, state, **trainer))
    assert "\n" not in str(error.value)


def test_without_its_config_the_class_is_not_known(tmp_path):
    torch.save(TOPK, tmp_path / "ae.pt")
    with pytest.raises(ForeignError, match="does not give its dict_class .no config.json beside it"):
        dictionary_learning.read(tmp_path)


def test_a_hook_point_without_a_name_there_is_kept(tmp_path):
    hook = "blocks.3.attn.hook_z"
    dictionary_learning.write(trained(SMALL["topk"]), Origin("gpt2", hook), tmp_path / "out")
    assert dictionary_learning.read(tmp_path / "out").origin.hook == hook


def test_a_transcoder_and_a_bad_factor_are_refused(tmp_path):
    save(tmp_path, "AutoEncoderTopK", TOPK)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**about, "buffer": {"io": "in_and_out"}}))
    with pytest.raises(ForeignError, match="is a transcoder"):
        dictionary_learning.read(tmp_path)
    torch.save({"ae": TOPK, "norm_factor": 0.0, "config": {}}, tmp_path / "ae.pt")
    with pytest.raises(ForeignError, match=r"norm_factor is 0\.0, expected a number above 0"):
        dictionary_learning.read(tmp_path)


@pytest.mark.parametrize(
    ("module", "hook"),
    [
        ("layers.10", "blocks.10.hook_resid_post"),
        ("model.layers.10.mlp", "blocks.10.mlp.hook_out"),
        ("h.3.attn", "blocks.3.attn.hook_out"),
        ("gpt_neox.layers.2.attention", "blocks.2.attn.hook_out"),
        ("layers.10.mlp.down_proj", None),
        ("embed_tokens", None),
    ],
)
def test_modules_have_hook_points(module, hook):
    assert hook_of_module(module) == hook
