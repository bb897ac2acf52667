"""SAELens' files are read by its formulas, written so that they compute what ours does, and refused where neither is possible."""

import json
import os
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.testing import assert_close

from activations.errors import ForeignError
from sae.architectures import AbsTopKConfig, build, name_of
from sae.foreign import FORMATS, Origin, saelens, writable
from sae.foreign.weights import read_json, read_pt, read_safetensors
from tests.sae import lens
from tests.sae.lens import EXPORTED, HOOK, ours
from tests.sae.small import SMALL, D, F

REFUSED = {
    "kron": "square roots",
    "topafa": "row's norm",
    "gba": "cosine",
    "gba-untied": "cosine",
    "abstopk-batch": "chosen per batch",
    "mfr": "negative",
    "adaptivek": "probe",
}
assert {*EXPORTED, *REFUSED} == {*SMALL}


def rows(n: int = 64) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(3))


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Assert equality to 1e-5 of the largest value, and that the same latents fire."""
    assert torch.equal(found != 0, wanted != 0)
    assert (found.double() - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("subtracted", [True, False])
@pytest.mark.parametrize("architecture", lens.TENSORS)
def test_an_imported_sae_computes_what_the_file_says(tmp_path, architecture, subtracted):
    path, x = lens.folder(tmp_path / "a", architecture, apply_b_dec_to_input=subtracted), rows()
    sae, _, notes = saelens.read(path)
    z, norms = lens.latents(path, x), lens.tensors_of(path)["W_dec"].norm(dim=1)
    by_rank = architecture in ("topk", "abstopk")
    close(sae.encode(x).dense(), z if by_rank else z * norms)
    close(sae(x), lens.decoded(path, z))
    if not by_rank:
        assert_close(sae.W_dec.norm(dim=1), torch.ones(F))
    assert (z != 0).any() and (z == 0).any()
    assert any("decoder rows had norms" in note for note in notes)
    assert any("b_dec W_enc" in note for note in notes) == (subtracted != sae.pre_bias)


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_latents_ranked_by_norm_carry_their_norms(tmp_path, architecture):
    path = lens.folder(tmp_path / "a", architecture, rescale_acts_by_decoder_norm=True)
    sae, x = saelens.read(path).sae, rows()
    close(sae.encode(x).dense(), lens.latents(path, x))
    close(sae(x), lens.decoded(path, lens.latents(path, x)))
    assert_close(sae.W_dec.norm(dim=1), torch.ones(F))


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_sae_says_what_ours_computes_and_comes_back(tmp_path, name):
    sae, path, x = ours(name), tmp_path / "a", rows()
    saelens.write(sae, Origin("gpt2", HOOK, {"context_size": 16}), path)
    assert json.loads((path / "cfg.json").read_text())["architecture"] == EXPORTED[name]
    exact = ours(name).double()
    with torch.no_grad():
        code = exact.encode(x.double())
        z, x_hat = code.dense(), exact.decode(code)
    close(lens.latents(path, x), z)
    close(lens.decoded(path, lens.latents(path, x)), x_hat)
    back, origin, _ = saelens.read(path)
    assert (origin.model, origin.hook, origin.facts["context_size"]) == ("gpt2", HOOK, 16)
    assert origin.facts["training_architecture"] == name_of(sae.cfg)
    close(back.encode(x).dense() @ back.W_dec + back.b_dec, x_hat)
    if sae.unit_norm_decoder or name == "relu":
        close(back.encode(x).dense(), z)
        if EXPORTED[name] == name:
            for key, tensor in sae.named_parameters():
                assert_close(back.get_parameter(key), tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_saelens_cannot_compute_is_refused_by_name_and_writes_nothing(tmp_path, name):
    with pytest.raises(ForeignError, match=f"{name_of(SMALL[name])} does.*{REFUSED[name]}"):
        saelens.write(ours(name), Origin("gpt2", HOOK), tmp_path / "a")
    assert not [*tmp_path.iterdir()]


def test_a_two_sided_threshold_is_refused(tmp_path):
    with pytest.raises(ForeignError, match="both sides"):
        saelens.write(
            build(AbsTopKConfig(d_sae=F, k=3, per="batch"), D), Origin("gpt2", HOOK), tmp_path / "a"
        )


def test_the_files_have_the_keys_shapes_and_types_of_saelens(tmp_path):
    for name, architecture in EXPORTED.items():
        saelens.write(ours(name), Origin("gpt2", HOOK), tmp_path / name)
        sizes = {"D": D, "F": F}
        wanted = {
            key: [sizes[axis] for axis in lens.SHAPES[key]] for key in lens.TENSORS[architecture].split()
        }
        tensors = load_file(tmp_path / name / "sae_weights.safetensors")
        assert {key: [*tensor.shape] for key, tensor in tensors.items()} == wanted
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        cfg = json.loads((tmp_path / name / "cfg.json").read_text())
        common = {
            "architecture", "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations",
            "reshape_activations", "metadata",
        }  # fmt: skip
        assert {*cfg} - common == ({"k", "rescale_acts_by_decoder_norm"} if "topk" in architecture else set())
        assert cfg["metadata"]["sae_lens_version"] >= "6"
        assert {*(path.name for path in (tmp_path / name).iterdir())} == {
            "cfg.json",
            "sae_weights.safetensors",
        }


def test_heads_are_told_apart_where_the_hook_has_them(tmp_path):
    saelens.write(ours("topk"), Origin("gpt2", "blocks.0.attn.hook_z"), tmp_path / "a")
    assert json.loads((tmp_path / "a/cfg.json").read_text())["reshape_activations"] == "hook_z"


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/note").touch()
    with pytest.raises(FileExistsError):
        saelens.write(ours("topk"), Origin("gpt2", HOOK), tmp_path / "a")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "note"]


def test_files_from_before_version_6_are_read(tmp_path):
    """Settings were flat, and the activation function named what is now the architecture."""
    flat = {
        "hook_point": HOOK, "model_name": "gpt2-small", "d_in": D, "d_sae": F, "dtype": "torch.float32", "metadata": None,
        "hook_point_head_index": None, "dataset_path": "openwebtext", "normalize_activations": False,
    }  # fmt: skip
    path = lens.folder(tmp_path / "a", "standard", tensors={"scaling_factor": torch.ones(F)})
    (path / "cfg.json").write_text(json.dumps(flat))
    sae, origin, _ = saelens.read(path)
    assert (origin.model, origin.hook, origin.facts["dataset_path"]) == ("gpt2-small", HOOK, "openwebtext")
    whole = lens.folder(tmp_path / "b", "standard")
    close(sae(rows()), lens.decoded(whole, lens.latents(whole, rows())))
    as_topk = {**flat, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}
    (path / "cfg.json").write_text(json.dumps(as_topk))
    assert saelens.read(path).sae.cfg.k == 5


@pytest.mark.parametrize("ranked", [True, False])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_what_batchtopk_is_in_training_is_read_as_the_jumprelu_it_becomes(tmp_path, architecture, ranked):
    extra = {"topk_threshold": torch.tensor(0.6, dtype=torch.float64)}
    path = lens.folder(tmp_path / "a", architecture, tensors=extra, rescale_acts_by_decoder_norm=ranked)
    sae, x, t = saelens.read(path).sae, rows(), lens.tensors_of(path)
    norms = t["W_dec"].norm(dim=1)
    u = (x.double() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    level = u * norms if ranked else u
    close(sae.encode(x).dense(), u.relu() * norms * (level > 0.6))


def test_half_precision_is_read_as_it_is_and_said(tmp_path):
    whole = lens.folder(tmp_path / "a", "standard")
    halved = {name: tensor.bfloat16() for name, tensor in load_file(whole / saelens.WEIGHTS).items()}
    path = lens.folder(tmp_path / "b", "standard", tensors=halved, dtype="bfloat16")
    sae, _, notes = saelens.read(path)
    close(sae(rows()), lens.decoded(path, lens.latents(path, rows())))
    assert any("bfloat16" in note for note in notes)


@pytest.mark.parametrize(
    "name", ["matching_pursuit", "temporal", "transcoder", "skip_transcoder", "jumprelu_transcoder"]
)
def test_architectures_without_a_form_here_are_refused_by_name(tmp_path, name):
    path = lens.folder(tmp_path / "a", name)
    with pytest.raises(ForeignError, match=f"is a {name} SAE, which has no exact form here: "):
        saelens.read(path)


@pytest.mark.parametrize(
    ("said", "changes", "tensors"),
    [
        ("the architecture 'nosuch' is not known", {"architecture": "nosuch"}, {}),
        ("the setting architecture is missing", {"architecture": None}, {}),
        ("layer_norm.*standard deviation", {"normalize_activations": "layer_norm"}, {}),
        ("not in the file", {"normalize_activations": "expected_average_only_in"}, {}),
        ("by its own norm", {"normalize_activations": "constant_norm_rescale"}, {}),
        ("matrices", {"normalize_activations": "covariance_whitening"}, {}),
        ("not known here", {"normalize_activations": "nosuch"}, {}),
        ("head 3", {"metadata": {**lens.METADATA, "hook_head_index": 3}}, {}),
        ("the setting k is missing", {"k": None}, {}),
        ("k = 99 must lie between", {"k": 99}, {}),
        ("the setting d_in is 'eight'", {"d_in": "eight"}, {}),
        (r"W_enc has shape \(8, 24\), expected \(8, 23\)", {"d_sae": 23}, {}),
        ("lacks the tensor b_enc; its remaining tensors: none", {}, {"b_enc": None}),
        ("not understood here: W_skip", {}, {"W_skip": torch.zeros(D, D)}),
        ("b_dec has values that are not finite", {}, {"b_dec": torch.full((D,), torch.nan)}),
        ("b_dec is torch.int64", {}, {"b_dec": torch.zeros(D, dtype=torch.int64)}),
        ("scaling_factor is not 1", {}, {"scaling_factor": torch.full((F,), 2.0)}),
        ("beyond float32", {}, {"b_dec": torch.full((D,), 1e300, dtype=torch.float64)}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tmp_path, said, changes, tensors):
    path = lens.folder(tmp_path / "a", "topk", tensors=tensors)
    whole = json.loads((path / saelens.CFG).read_text())
    (path / saelens.CFG).write_text(json.dumps({**whole, **changes}))
    with pytest.raises(ForeignError, match=said):
        saelens.read(path)


@pytest.mark.parametrize("bytes_", [b"", b"{", b"[1]", b"\xff\xfe", pickle.dumps({"architecture": "topk"})])
@pytest.mark.parametrize("file", [saelens.CFG, saelens.WEIGHTS])
def test_bytes_that_are_something_else_are_refused(tmp_path, file, bytes_):
    path = lens.folder(tmp_path / "a", "topk")
    (path / file).write_bytes(bytes_)
    with pytest.raises(ForeignError, match=file):
        saelens.read(path)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats() | st.sampled_from(["topk", "none", "x"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["k", "sae_lens_version"]), inner)
    ),
    max_leaves=4,
)
KEYS = (
    "architecture d_in d_sae dtype apply_b_dec_to_input normalize_activations metadata k hook_name activation_fn_str "
    "activation_fn_kwargs rescale_acts_by_decoder_norm".split()
)


@settings(deadline=None, derandomize=True)
@given(changes=st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=3))
def test_settings_of_any_kind_are_read_or_refused(tmp_path_factory, changes):
    path = lens.folder(tmp_path_factory.mktemp("any") / "a", "topk")
    whole = json.loads((path / saelens.CFG).read_text())
    (path / saelens.CFG).write_text(json.dumps({**whole, **changes}))
    with suppress(ForeignError):
        assert torch.isfinite(saelens.read(path).sae(rows(2))).all()


def test_every_format_says_what_it_is_and_knows_its_own_files(tmp_path):
    written = tmp_path / "a"
    saelens.write(ours("topk"), Origin("gpt2", HOOK), written)
    assert [name for name, form in FORMATS.items() if form.recognises(written)] == ["saelens"]
    assert not any(form.recognises(tmp_path) for form in FORMATS.values())
    assert all(form.TITLE for form in FORMATS.values())
    assert writable().items() <= FORMATS.items()


def test_a_pt_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weights": torch.zeros(2), "trap": Trap()}, tmp_path / "a.pt")
    with pytest.raises(ForeignError, match="cannot be read safely"):
        read_pt(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()
    torch.save({"weights": torch.zeros(2)}, tmp_path / "b.pt")
    assert_close(read_pt(tmp_path / "b.pt")["weights"], torch.zeros(2))
    for content in (b"", b"\x80\x02garbage"):
        (tmp_path / "c.pt").write_bytes(content)
        with pytest.raises(ForeignError, match=r"c\.pt"):
            read_pt(tmp_path / "c.pt")


@pytest.mark.parametrize("reader", [read_json, read_safetensors, read_pt])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ForeignError, match="not an ordinary file"):
        reader(tmp_path / "pipe")


def test_zeros_in_the_decoder_stay_zeros(tmp_path):
    """A row of norm 0 cannot be scaled to norm 1; its latent contributes nothing, before and after."""
    whole = load_file(lens.folder(tmp_path / "a", "jumprelu") / saelens.WEIGHTS)["W_dec"]
    whole[3] = 0
    path = lens.folder(tmp_path / "b", "jumprelu", tensors={"W_dec": whole})
    close(saelens.read(path).sae(rows()), lens.decoded(path, lens.latents(path, rows())))


def test_a_tied_weight_may_be_saved_as_a_view(tmp_path):
    """safetensors cannot hold views, so writing copies."""
    sae = ours("topk")
    sae.W_enc.data = sae.W_dec.T
    saelens.write(sae, Origin("gpt2", HOOK), tmp_path / "a")
    assert_close(load_file(tmp_path / "a" / saelens.WEIGHTS)["W_enc"], sae.W_dec.T, rtol=0, atol=0)


def test_a_hook_point_that_their_model_lacks_is_noted(tmp_path):
    assert saelens.write(ours("topk"), Origin("gpt2", HOOK), tmp_path / "named") == []
    (note,) = saelens.write(ours("topk"), Origin("gpt2", "blocks.3.mlp.hook_out"), tmp_path / "a")
    assert "blocks.3.hook_mlp_out" in note and "blocks.3.mlp.hook_out" in note
