"""The package sparsify: we read what it saves, it loads what we write, and both compute the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from activations.errors import ForeignError
from sae.foreign import Origin
from sae.foreign import sparsify as ours
from tests.peers.conftest import Record
from tests.sae.exchanged import rows, trained
from tests.sae.small import SMALL

theirs = pytest.importorskip("sparsify", reason="sparsify is not installed: make test-peers")

pytestmark = pytest.mark.peers

D, K = 16, 8


@torch.no_grad()
def made(**settings: Any) -> Any:
    """Return an SAE of theirs, six times as wide as its input, with random parameters that obey `normalize_decoder`."""
    coder = theirs.SparseCoder(D, theirs.SparseCoderConfig(expansion_factor=6, k=K, **settings))
    generator = torch.Generator().manual_seed(5)
    for tensor in coder.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    if coder.cfg.normalize_decoder:
        coder.set_decoder_norm_to_unit_norm()
    return coder


def both(coder: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return its dense latents and its reconstruction."""
    found = coder.encode(x)
    dense = torch.zeros(len(x), coder.num_latents).scatter_(1, found.top_indices, found.top_acts)
    return dense, coder.decode(found.top_acts, found.top_indices)


@pytest.mark.parametrize("normalised", [True, False])
def test_what_it_saves_is_read(record: Record, tmp_path, normalised):
    coder, x = made(normalize_decoder=normalised), rows(512, width=D)
    coder.save_to_disk(tmp_path / "layers.3")
    sae, origin, _ = ours.read(tmp_path / "layers.3")
    code, (z, x_hat) = sae.encode(x), both(coder, x)
    name = f"topk, {'normalised' if normalised else 'free'} decoder"
    record(("sparsify", name, "theirs -> ours"), (code.dense(), z), (sae.decode(code), x_hat))
    assert origin.hook == "blocks.3.hook_resid_post"


@pytest.mark.parametrize("name", ["topk", "abstopk"])
def test_what_is_written_here_it_loads(record: Record, tmp_path, name):
    sae, x = trained(SMALL[name]), rows(512)
    ours.write(sae, Origin("gpt2", "blocks.3.hook_resid_post"), tmp_path / "layers.3")
    coder = theirs.SparseCoder.load_from_disk(tmp_path / "layers.3")
    code, (z, x_hat) = sae.encode(x), both(coder, x)
    if name == "abstopk":  # latent F + j is latent j where it is negative
        positive, negative = z.chunk(2, dim=1)
        z = positive - negative
    record(("sparsify", name, "ours -> theirs"), (code.dense(), z), (sae.decode(code), x_hat))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"activation": "groupmax"}, "activation 'groupmax'"),
        ({"transcode": True}, "is a transcoder"),
        ({"skip_connection": True}, "linear skip connection"),
    ],
)
def test_what_has_no_form_here_is_refused(tmp_path, settings, said):
    made(**settings).save_to_disk(tmp_path / "layers.3")
    with pytest.raises(ForeignError, match=said):
        ours.read(tmp_path / "layers.3")
