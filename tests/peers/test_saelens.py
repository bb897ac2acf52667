"""The package SAELens: we read what it writes, it reads what we write, and both compute the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from activations.errors import ForeignError
from sae.foreign import Origin, saelens
from sae.workflows.import_sae import import_sae
from tests.peers.conftest import Record
from tests.probe_file import read_probe
from tests.sae import lens
from tests.sae.lens import EXPORTED, HOOK, ours

sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed here: make test-peers")
registry = pytest.importorskip("sae_lens.registry")

pytestmark = pytest.mark.peers

D, F = 16, 96
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("StandardSAE", {}),
    "topk": ("TopKSAE", {"k": 8}),
    "topk, ranked by norm": ("TopKSAE", {"k": 8, "rescale_acts_by_decoder_norm": True}),
    "abstopk": ("AbsTopKSAE", {"k": 8}),
    "abstopk, ranked by norm": ("AbsTopKSAE", {"k": 8, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": ("JumpReLUSAE", {}),
    "gated": ("GatedSAE", {}),
}
TRAINING: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("StandardTrainingSAE", {}),
    "topk": ("TopKTrainingSAE", {"k": 8}),
    "abstopk": ("AbsTopKTrainingSAE", {"k": 8}),
    "batchtopk": ("BatchTopKTrainingSAE", {"k": 8}),
    "batchtopk, not by norm": ("BatchTopKTrainingSAE", {"k": 8, "rescale_acts_by_decoder_norm": False}),
    "matryoshka_batchtopk": ("MatryoshkaBatchTopKTrainingSAE", {"k": 8, "matryoshka_widths": [24, 96]}),
    "jumprelu": ("JumpReLUTrainingSAE", {}),
    "gated": ("GatedTrainingSAE", {}),
}
WITHOUT_A_FORM: dict[str, tuple[str, dict[str, Any]]] = {
    "matching_pursuit": ("MatchingPursuitSAE", {}),
    "transcoder": ("Transcoder", {"d_out": 20, "apply_b_dec_to_input": False}),
    "skip_transcoder": ("SkipTranscoder", {"d_out": 20, "apply_b_dec_to_input": False}),
    "jumprelu_transcoder": ("JumpReLUTranscoder", {"d_out": 20, "apply_b_dec_to_input": False}),
    "jumprelu_skip_transcoder": ("JumpReLUSkipTranscoder", {"d_out": 20, "apply_b_dec_to_input": False}),
    "temporal": ("TemporalSAE", {"d_in": 64, "d_sae": 256, "n_heads": 4, "bottleneck_factor": 4}),
}


def rows(d: int = D, n: int = 512) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def theirs(kind: str, settings: dict[str, Any]) -> Any:
    """Return an SAE of theirs with random parameters and thresholds."""
    from sae_lens import saes

    about = saes.sae.SAEMetadata(model_name="gpt2", hook_name=HOOK, context_size=128)
    cfg = getattr(saes, f"{kind}Config")
    made = getattr(saes, kind)(cfg(**{"d_in": D, "d_sae": F, "metadata": about, **settings}))
    generator = torch.Generator().manual_seed(5)
    for tensor in made.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    if "topk_threshold" in dict(made.named_buffers()):
        made.topk_threshold.fill_(0.7)
    elif "threshold" in dict(made.named_parameters()):
        made.threshold.abs_()
    return made.eval()


def both(path: Path, lensed: Any, x: torch.Tensor) -> tuple[Any, ...]:
    """Return latents and reconstructions, ours first. Our latents carry the decoder norms where they may."""
    sae = saelens.read(path).sae
    code, z = sae.encode(x), lensed.encode(x)
    norms = lensed.W_dec.norm(dim=1) / sae.W_dec.norm(dim=1)
    if getattr(lensed.cfg, "rescale_acts_by_decoder_norm", False):
        norms = torch.ones_like(norms)
    return (code.dense(), z * norms), (sae.decode(code), lensed.decode(z))


@pytest.mark.parametrize("subtracted", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_what_saelens_writes_is_read(record: Record, tmp_path, name, subtracted):
    kind, settings = KINDS[name]
    lensed = theirs(kind, {**settings, "apply_b_dec_to_input": subtracted})
    lensed.save_model(tmp_path)
    label = f"{name}, {'x - b_dec' if subtracted else 'x'} read"
    record(("saelens", label, "theirs -> ours"), *both(tmp_path, lensed, rows()))
    origin = saelens.read(tmp_path).origin
    assert (origin.model, origin.hook, origin.facts["context_size"]) == ("gpt2", HOOK, 128)
    for found, wanted in (
        (lens.latents(tmp_path, rows()), lensed.encode(rows())),
        (lens.decoded(tmp_path, lens.latents(tmp_path, rows())), lensed(rows())),
    ):  # the formulas that other tests go by
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", KINDS)
def test_the_probe_that_an_import_keeps_is_what_saelens_makes_of_its_rows(record: Record, tmp_path, name):
    lensed = theirs(*KINDS[name])
    lensed.save_model(tmp_path / "files")
    probe = read_probe(import_sae(tmp_path / "files", tmp_path / "run"))
    norms = saelens.read(tmp_path / "files").sae.W_dec.norm(dim=1)
    z, x_hat = lensed.encode(probe.x), lensed(probe.x)
    if not getattr(lensed.cfg, "rescale_acts_by_decoder_norm", False):
        z = z * lensed.W_dec.norm(dim=1) / norms
    record(("saelens", name, "theirs -> probe"), (probe.code.dense(), z), (probe.x_hat, x_hat))


@pytest.mark.parametrize("name", TRAINING)
def test_what_saelens_has_trained_is_read_as_it_uses_it(record: Record, tmp_path, name):
    kind, settings = TRAINING[name]
    training = theirs(kind, settings)
    training.save_inference_model(tmp_path / "use")
    in_use = sae_lens.SAE.load_from_disk(tmp_path / "use")
    record(("saelens", f"{name}, trained", "theirs -> ours"), *both(tmp_path / "use", in_use, rows()))
    training.save_model(tmp_path / "training")  # as a checkpoint holds it
    record(("saelens", f"{name}, checkpoint", "theirs -> ours"), *both(tmp_path / "training", in_use, rows()))


@pytest.mark.parametrize("name", EXPORTED)
def test_what_is_written_here_saelens_reads(record: Record, tmp_path, name):
    sae = ours(name)
    saelens.write(sae, Origin("gpt2", HOOK, {"context_size": 16}), tmp_path / "a")
    lensed = sae_lens.SAE.load_from_disk(tmp_path / "a")
    x = rows(sae.d_model)
    code, z = sae.encode(x), lensed.encode(x)
    record(("saelens", name, "ours -> theirs"), (code.dense(), z), (sae.decode(code), lensed.decode(z)))
    about = lensed.cfg.metadata
    assert (about.model_name, about.hook_name, about.context_size) == ("gpt2", HOOK, 16)
    assert lensed.cfg.architecture() == EXPORTED[name]
    lensed.save_model(tmp_path / "b")  # and what it then writes is read again
    record(("saelens", name, "ours -> theirs -> ours"), *both(tmp_path / "b", lensed, x))


@pytest.mark.parametrize(
    "flat",
    [
        {"activation_fn_str": "relu", "apply_b_dec_to_input": False},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}},
        {"architecture": "gated"},
        {"architecture": "jumprelu"},
    ],
)
def test_files_from_before_version_6_are_read_as_saelens_reads_them(record: Record, tmp_path, flat):
    path = lens.folder(tmp_path / "a", flat.get("architecture", "standard"))
    common = {"hook_point": HOOK, "model_name": "gpt2", "d_in": 8, "d_sae": 24, "dtype": "float32"}
    (path / "cfg.json").write_text(json.dumps({**common, **flat}))
    lensed = sae_lens.SAE.load_from_disk(path)
    name = f"{lensed.cfg.architecture()}, before version 6"
    record(("saelens", name, "theirs -> ours"), *both(path, lensed, rows(8)))
    assert saelens.read(path).origin.hook == lensed.cfg.metadata.hook_name == HOOK


def test_heads_that_saelens_keeps_apart_lie_side_by_side_here(record: Record, tmp_path):
    sae = ours("topk")
    saelens.write(sae, Origin("gpt2", "blocks.0.attn.hook_z"), tmp_path)
    lensed, x = sae_lens.SAE.load_from_disk(tmp_path), rows(8)
    z = lensed.encode(x.view(-1, 2, 4))
    x_hat = lensed.decode(z).flatten(1)
    code = sae.encode(x)
    record(("saelens", "topk, heads", "ours -> theirs"), (code.dense(), z), (sae.decode(code), x_hat))


@pytest.mark.parametrize("name", WITHOUT_A_FORM)
def test_what_has_no_form_here_is_refused_by_name(tmp_path, name):
    kind, settings = WITHOUT_A_FORM[name]
    theirs(kind, settings).save_model(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == name
    with pytest.raises(ForeignError, match=f"is a {name} SAE, which has no exact form here: "):
        saelens.read(tmp_path)


def test_every_architecture_of_saelens_is_read_or_refused():
    tried = {name.split(",")[0] for name in (*KINDS, *TRAINING)} | {*WITHOUT_A_FORM}
    assert {*registry.SAE_CLASS_REGISTRY, *registry.SAE_TRAINING_CLASS_REGISTRY} == tried
