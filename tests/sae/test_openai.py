"""OpenAI's files: a ReLU autoencoder against its formula, ours written and read back, what has no exact form refused."""

import pytest
import torch

from activations.errors import ForeignError
from sae.foreign import openai
from tests.sae.exchanged import ORIGIN, apart, rows, trained
from tests.sae.small import SMALL, D, F


def state(tied=False, **more):
    generator = torch.Generator().manual_seed(0)
    encoder, decoder, bias, b_dec = (
        torch.randn(*shape, generator=generator) for shape in ((F, D), (D, F), (F,), (D,))
    )
    matrix = {"decoder.linear.weight": encoder / 2} if tied else {"decoder.weight": decoder}
    return {
        "pre_bias": b_dec,
        "latent_bias": bias / 4,
        "encoder.weight": encoder / 2,
        **matrix,
        "stats_last_nonzero": torch.zeros(F, dtype=torch.int64),
        "latents_activation_frequency": torch.ones(F),
        "latents_mean_square": torch.zeros(F),
        "activation": "ReLU",
        "activation_state_dict": {},
        **more,
    }


@pytest.mark.parametrize("tied", [True, False])
def test_read_as_its_formula(tmp_path, tied):
    content, x = state(tied), rows()
    torch.save(content, tmp_path / "8.pt")
    assert openai.recognises(tmp_path / "8.pt")
    sae = openai.read(tmp_path / "8.pt").sae
    s = {name: t.double() for name, t in content.items() if isinstance(t, torch.Tensor)}
    decoder = s["encoder.weight"] if tied else s["decoder.weight"].T
    z = ((x.double() - s["pre_bias"]) @ s["encoder.weight"].T + s["latent_bias"]).relu()
    assert apart(sae.encode(x).dense(), z * decoder.norm(dim=1)) < 1e-5
    assert apart(sae(x), z @ decoder + s["pre_bias"]) < 1e-5


def test_ours_come_back_as_they_were(tmp_path):
    sae, x = trained(SMALL["relu"]), rows()
    openai.write(sae, ORIGIN, tmp_path / "out")
    assert openai.recognises(tmp_path / "out")
    back = openai.read(tmp_path / "out").sae
    assert apart(back.encode(x).dense(), sae.encode(x).dense()) < 1e-5
    assert apart(back(x), sae(x)) < 1e-5


@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"relu"}))
def test_what_it_cannot_hold_is_refused_and_nothing_is_written(tmp_path, name):
    with pytest.raises(
        ForeignError,
        match="OpenAI's code cannot compute what .* it holds ReLU SAEs, and TopK SAEs that normalise",
    ):
        openai.write(trained(SMALL[name]), ORIGIN, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "ReLU"}},
            "normalises each row",
        ),
        ({"activation": "Identity"}, "not a sparse autoencoder"),
        ({"activation": "Swish"}, "not known here"),
        ({"activation": torch.zeros(3)}, "the activation a Tensor: that is not a name; expected ReLU"),
        ({"latent_bias": torch.zeros(F + 1)}, r"latent_bias has shape \(25,\), expected \(24\)"),
    ],
)
def test_mistakes_are_told(tmp_path, more, said):
    torch.save(state(**more), tmp_path / "a.pt")
    with pytest.raises(ForeignError, match=said) as error:
        openai.read(tmp_path / "a.pt")
    assert "\n" not in str(error.value)


def test_a_list_is_none(tmp_path):
    torch.save([1], tmp_path / "a.pt")
    assert not openai.recognises(tmp_path / "a.pt")
    with pytest.raises(ForeignError, match="holds a list, expected a state dict"):
        openai.read(tmp_path / "a.pt")
