"""The package dictionary_learning: we read what its classes save, they load what we write, and both compute the same."""

import json
from typing import Any

import pytest
import torch

from sae.foreign import Origin
from sae.foreign import dictionary_learning as ours
from tests.peers.conftest import Record
from tests.sae.exchanged import rows, trained
from tests.sae.small import SMALL

theirs = pytest.importorskip(
    "dictionary_learning.utils", reason="dictionary_learning is not installed: make test-peers"
)

pytestmark = pytest.mark.peers

D, F, K = 16, 96, 8
HOOK = "blocks.3.hook_resid_post"
SETTINGS: dict[str, tuple[Any, ...]] = {
    "AutoEncoder": (),
    "AutoEncoderNew": (),
    "GatedAutoEncoder": (),
    "AutoEncoderTopK": (K,),
    "BatchTopKSAE": (K,),
    "MatryoshkaBatchTopKSAE": (K, [24, 24, 48]),
    "JumpReluAutoEncoder": (),
}
FREE_NORMS = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder")
EXPORTED = {
    "relu": "AutoEncoder",
    "gated": "GatedAutoEncoder",
    "topk": "AutoEncoderTopK",
    "abstopk": "AutoEncoderTopK",
    "batchtopk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
    "jumprelu": "JumpReluAutoEncoder",
    "jumprelu-tanh": "JumpReluAutoEncoder",
}


@torch.no_grad()
def made(name: str) -> Any:
    """Return an SAE of theirs with random parameters, with decoder rows of norm 1 where its training keeps them so."""
    theirs_ = getattr(theirs, name)(D, F, *SETTINGS[name])
    generator = torch.Generator().manual_seed(5)
    for key, tensor in theirs_.named_parameters():
        if name in FREE_NORMS or key not in ("decoder.weight", "W_dec"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    if "threshold" in theirs_.state_dict():
        theirs_.threshold.copy_(
            theirs_.threshold.abs() / 2 if name == "JumpReluAutoEncoder" else torch.tensor(0.3)
        )
    return theirs_


def saved(folder, name: str, dictionary: Any) -> None:
    """Save an SAE as `trainSAE` does."""
    folder.mkdir()
    trainer = {"dict_class": name, "lm_name": "gpt2", "layer": 3, "submodule_name": "resid_post_layer_3"}
    trainer |= {"k": K} if SETTINGS[name] else {}
    (folder / "config.json").write_text(
        json.dumps({"trainer": trainer, "buffer": {"io": "out", "ctx_len": 128}})
    )
    torch.save(dictionary.state_dict(), folder / "ae.pt")


def norms(dictionary: Any) -> torch.Tensor:
    weight = dictionary.W_dec if hasattr(dictionary, "W_dec") else dictionary.decoder.weight.T
    return weight.norm(dim=1)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_it_saves_is_read(record: Record, tmp_path, name):
    dictionary, x = made(name), rows(512, width=D)
    saved(tmp_path / "a", name, dictionary)
    sae, origin, _ = ours.read(tmp_path / "a")
    z, code = dictionary.encode(x), sae.encode(x)
    label = ("dictionary_learning", name, "theirs -> ours")
    record(label, (code.dense(), z * norms(dictionary)), (sae.decode(code), dictionary.decode(z)))
    assert (origin.model, origin.hook, origin.facts["context_size"]) == ("gpt2", HOOK, 128)


@pytest.mark.parametrize("name", EXPORTED)
def test_what_is_written_here_it_loads(record: Record, tmp_path, name):
    sae, x = trained(SMALL[name]), rows(512)
    ours.write(sae, Origin("gpt2", HOOK, {"context_size": 128}), tmp_path / "a")
    dictionary, config = theirs.load_dictionary(str(tmp_path / "a"), device="cpu")
    assert type(dictionary).__name__ == EXPORTED[name]
    assert (config["trainer"]["layer"], config["buffer"]["ctx_len"]) == (3, 128)
    z, code = dictionary.encode(x), sae.encode(x)
    x_hat = dictionary.decode(z)
    if name == "abstopk":  # latent F + j is latent j where it is negative
        positive, negative = z.chunk(2, dim=1)
        z = positive - negative
    record(("dictionary_learning", name, "ours -> theirs"), (code.dense(), z), (sae.decode(code), x_hat))
