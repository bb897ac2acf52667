"""Laws that every architecture of the table obeys."""

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from activations.errors import ConfigError, ShapeError
from sae.architectures import SAE, build, name_of
from sae.code import SparseCode
from sae.config import TrainConfig
from sae.runs.saved_sae import load_sae, save_sae
from sae.training.optimizer import Adam
from sae.training.trainer import Trainer
from tests.sae.small import SMALL, D, F, architectures, every_architecture

NONE_DEAD = torch.zeros(F, dtype=torch.bool)


def rows(n: int = 64, seed: int = 0) -> torch.Tensor:
    """Sparse mixtures of more directions than there are dimensions, the same directions for every seed."""
    directions = torch.nn.functional.normalize(
        torch.randn(F, D, generator=torch.Generator().manual_seed(99)), dim=1
    )
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, F, generator=generator) < 0.1
    return (torch.rand(n, F, generator=generator) * active) @ directions + 0.1


def trained(cfg, steps: int = 30, scale: float = 1.0, until: int | None = None) -> tuple[SAE, Trainer]:
    """An SAE after some steps, or after the first `until` of them, in the units it was trained in."""
    settings = TrainConfig(steps=steps, batch=64, lr=1e-2, dead_after_tokens=10**9, warmup_steps=2)
    trainer = Trainer(build(cfg, D, seed=1), settings, scale)
    for step in range(steps if until is None else until):
        x = rows(seed=step)
        trainer.train_step(x, x)
    return trainer.sae.eval(), trainer


@every_architecture
def test_a_row_is_encoded_alike_alone_and_in_a_batch(cfg):
    sae, x = trained(cfg)[0], rows(16, seed=99)
    together = sae.encode(x).dense()
    alone = torch.cat([sae.encode(row[None]).dense() for row in x])
    assert torch.equal(together != 0, alone != 0)
    assert_close(together, alone)


@every_architecture
def test_leading_axes_are_rows(cfg):
    sae, x = trained(cfg)[0], rows(12)
    flat = sae(x)
    assert_close(sae(x.view(3, 4, D)), flat.view(3, 4, D))
    assert_close(sae(x[0]), flat[0])
    assert sae.encode(x.view(3, 4, D)).n_rows == 12


@every_architecture
def test_the_reconstruction_is_the_decoded_code(cfg):
    sae, x = trained(cfg)[0], rows(12)
    code = sae.encode(x)
    assert_close(sae(x), code.dense() @ sae.W_dec + sae.b_dec)
    assert code.l0().float().mean() > 0


@every_architecture
def test_a_code_names_no_latent_twice_in_a_row(cfg):
    code = trained(cfg)[0].encode(rows())
    pairs = code.rows() * F + code.indices
    assert len(pairs.unique()) == len(pairs)


@architectures(unit_norm=True)
def test_decoder_rows_have_unit_norm_at_the_start_and_after_every_step(cfg):
    settings = TrainConfig(steps=3, batch=64, lr=1e-2, dead_after_tokens=10**9, warmup_steps=0)
    trainer = Trainer(build(cfg, D), settings)
    for seed in range(3):
        assert_close(trainer.sae.W_dec.norm(dim=1), torch.ones(F))
        trainer.train_step(rows(seed=seed), rows(seed=seed))
    assert_close(trainer.sae.W_dec.norm(dim=1), torch.ones(F))


@architectures(unit_norm=True)
def test_what_moves_decoder_rows_is_tangent_to_them(cfg):
    """A gradient along the rows is dropped: added to the loss's, it changes no step of a latent that has fired."""
    plain, pushed = build(cfg, D), build(cfg, D)
    for sae, push in ((plain, 0.0), (pushed, 3.0)):
        optimizer, x = Adam(sae, 1e-2, clip_norm=1.0), rows()
        with optimizer.collecting():
            sae.loss(x, x, NONE_DEAD).total.backward()
        sae.W_dec.grad += push * sae.W_dec.detach()
        optimizer.step()
    moved = (plain.W_dec - build(cfg, D).W_dec).norm(dim=1) > 1e-4  # the others' gradients are of rounding
    assert moved.sum() > F // 3
    assert_close(pushed.W_dec[moved], plain.W_dec[moved], atol=1e-5, rtol=1e-5)


@architectures("aux_weight")
def test_encoder_directions_start_as_positive_multiples_of_decoder_rows(cfg):
    sae = build(cfg, D)
    ratio = sae.encoder_directions() / sae.W_dec
    assert ratio.min() > 0
    assert_close(ratio, ratio[:, :1].expand_as(ratio))


@pytest.mark.parametrize("cfg", [SMALL["gated"], SMALL["jumprelu"], SMALL["jumprelu-tanh"]], ids=name_of)
def test_an_untrained_sae_that_starts_at_its_gain_gives_back_about_the_size_it_reads(cfg):
    sae = build(cfg, D)
    x = torch.nn.functional.normalize(torch.randn(500, D, generator=torch.Generator().manual_seed(3)), dim=1)
    assert 0.7 < sae.decode(sae.training_code(x)).norm(dim=1).mean() < 1.4


@every_architecture
def test_folding_the_input_scale_gives_the_same_function_of_raw_activations(cfg):
    scale = 7.3
    sae, _ = trained(cfg, scale=scale)
    x = rows(40, seed=5)
    folded = copy.deepcopy(sae)
    folded.fold_input_scale(scale)
    assert_close(folded(x), sae(x * scale) / scale, rtol=1e-4, atol=1e-6)
    assert_close(folded.encode(x).dense(), sae.encode(x * scale).dense() / scale, rtol=1e-4, atol=1e-6)
    assert torch.equal(folded.W_dec, sae.W_dec)


@architectures(unit_norm=False)
def test_folding_decoder_norms_gives_unit_rows_and_the_same_function(cfg):
    sae, x = trained(cfg)[0], rows(40, seed=5)
    norms = sae.W_dec.detach().norm(dim=1)
    if "W_dec" in dict(
        sae.named_parameters()
    ):  # where it follows from others its rows may be of norm 1 already
        assert norms.std() > 0.01
    folded = copy.deepcopy(sae)
    folded.fold_decoder_norms()
    assert_close(folded.W_dec.norm(dim=1), torch.ones(F))
    assert_close(folded(x), sae(x), rtol=1e-4, atol=1e-5)
    assert_close(folded.encode(x).dense(), sae.encode(x).dense() * norms, rtol=1e-4, atol=1e-6)


@every_architecture
def test_a_folded_sae_and_what_a_checkpoint_keeps_go_on_with_the_same_bits(cfg):
    scale = 7.3
    _, whole = trained(cfg, steps=20, scale=scale)
    _, part = trained(cfg, steps=20, scale=scale, until=12)
    kept = {name: tensor.clone() for name, tensor in part.tensors().items()}
    part.sae.fold_input_scale(scale)
    part.sae.fold_decoder_norms()
    again = Trainer(build(cfg, D), part.cfg, scale)
    again.sae.load_state_dict(part.sae.state_dict())
    again.restore(12, kept)
    for step in range(12, 20):
        again.train_step(rows(seed=step), rows(seed=step))
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(again.sae.state_dict()[name], tensor), name


@every_architecture
def test_saving_and_loading_reproduces_every_bit(cfg, tmp_path):
    sae, x = trained(cfg)[0], rows(32)
    save_sae(tmp_path, sae, {})
    again = load_sae(tmp_path)
    assert again.cfg == cfg
    assert torch.equal(again(x), sae(x))
    for name, tensor in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@every_architecture
def test_training_twice_with_one_seed_gives_the_same_bits(cfg):
    first, second = trained(cfg)[0].state_dict(), trained(cfg)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_architecture
def test_training_taken_up_from_a_checkpoint_goes_on_with_the_same_bits(cfg):
    settings = TrainConfig(steps=14, batch=64, lr=1e-2, dead_after_tokens=128, warmup_steps=2)
    whole, resumed = (Trainer(build(cfg, D, seed=1), settings, scale=7.3) for _ in range(2))
    for step in range(7):
        whole.train_step(rows(seed=step), rows(seed=step))
    saved = copy.deepcopy(whole.sae)
    saved.fold_input_scale(7.3)
    resumed.sae.load_state_dict(saved.state_dict())
    resumed.restore(7, copy.deepcopy(whole.tensors()))
    for step in range(7, 14):
        for trainer in (whole, resumed):
            trainer.train_step(rows(seed=step), rows(seed=step))
    first, second = whole.sae.state_dict(), resumed.sae.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_architecture
def test_training_lowers_the_loss(cfg):
    x = rows(256, seed=1000)
    before = build(cfg, D, seed=1).loss(x, x, NONE_DEAD).terms["fvu"]
    after = trained(cfg, steps=200)[0].loss(x, x, NONE_DEAD).terms["fvu"]
    assert after < before * 0.4


@every_architecture
def test_evaluating_changes_nothing(cfg):
    sae = trained(cfg)[0]
    before = copy.deepcopy(sae.state_dict())
    sae.encode(rows())
    sae.loss(rows(), rows(), NONE_DEAD)
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())


@every_architecture
def test_the_loss_logs_detached_scalars_with_fvu_and_l0_among_them(cfg):
    loss = build(cfg, D).loss(rows(), rows(), NONE_DEAD)
    assert {"fvu", "l0"} <= loss.terms.keys()
    assert all(term.ndim == 0 and not term.requires_grad for term in loss.terms.values())
    assert loss.total.requires_grad
    assert loss.fired.any()


@every_architecture
def test_the_loss_reconstructs_the_target_not_the_input(cfg):
    sae, x = build(cfg, D), rows()
    assert sae.loss(x, x, NONE_DEAD).terms["fvu"] != sae.loss(x, x.flip(0), NONE_DEAD).terms["fvu"]


@architectures("aux_weight")
def test_auxk_is_off_without_dead_latents_and_never_changes_the_support(cfg):
    sae, x = build(cfg, D, seed=2), rows()
    without = sae.loss(x, x, NONE_DEAD)
    dead = ~without.fired
    dead[:4] = True
    with_dead = sae.loss(x, x, dead)
    assert without.terms["auxk"] == 0
    assert with_dead.terms["auxk"] > 0
    assert torch.equal(without.fired, with_dead.fired)
    assert with_dead.terms["fvu"] == without.terms["fvu"]
    assert_close(with_dead.total - without.total, cfg.aux_weight * with_dead.terms["auxk"])


@architectures("aux_weight")
def test_auxk_reaches_dead_latents_only(cfg):
    """One step down its gradient moves what dead latents listen to and write, and nothing of the others'."""
    x = rows()
    dead = torch.zeros(F, dtype=torch.bool)
    dead[8:16] = True  # where latents share factors of an encoder, all that share them: a whole head

    def after_a_step(weight: float) -> dict[str, torch.Tensor | None]:
        twin = build(type(cfg)(**{**vars(cfg), "aux_weight": weight}), D, seed=2)
        twin.loss(x, x, dead).total.backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad)
            bias = twin.encoder_bias()
            return {"encoder": twin.encoder_directions(), "decoder": twin.W_dec, "bias": bias}

    plain, rescued = after_a_step(0.0), after_a_step(1.0)
    for name, tensor in plain.items():
        if tensor is not None:
            assert (rescued[name] - tensor)[~dead].abs().max() <= 1e-6, name
    for name in ("encoder", "decoder"):
        assert (rescued[name] - plain[name])[dead].abs().sum() > 0, name


@architectures(pre_bias=True)
def test_shifting_inputs_and_b_dec_together_keeps_the_code_and_shifts_the_output(cfg):
    sae, x = trained(cfg)[0], rows(16)
    shift = torch.linspace(-2, 2, D)
    moved = copy.deepcopy(sae)
    with torch.no_grad():
        moved.b_dec.add_(shift)
    assert_close(moved.encode(x + shift).dense(), sae.encode(x).dense(), rtol=1e-4, atol=1e-5)
    assert_close(moved(x + shift), sae(x) + shift, rtol=1e-4, atol=1e-5)


@architectures("aux_weight")
def test_the_loss_does_not_depend_on_units(cfg):
    sae, x = build(cfg, D, seed=2), rows()
    dead = torch.zeros(F, dtype=torch.bool)
    dead[:6] = True
    scaled = copy.deepcopy(sae)
    scaled.fold_input_scale(1 / 1000)  # now reads inputs a thousand times as large
    assert_close(
        scaled.loss(x * 1000, x * 1000, dead).total, sae.loss(x, x, dead).total, rtol=1e-4, atol=1e-6
    )


@every_architecture
def test_a_wrong_width_is_named_with_both_sides(cfg):
    sae = build(cfg, D)
    with pytest.raises(ShapeError, match=rf"\(3, {D + 1}\).*width {D}"):
        sae.encode(torch.zeros(3, D + 1))
    code = SparseCode(torch.ones(1), torch.tensor([0]), torch.tensor([0, 1]), F + 1)
    with pytest.raises(ShapeError, match=str(F + 1)):
        sae.decode(code)


@architectures("k")
def test_k_must_fit_the_dictionary(cfg):
    with pytest.raises(ConfigError, match=f"d_sae = {F}"):
        type(cfg)(d_sae=F, k=F + 1)
    with pytest.raises(ConfigError, match="k = 0"):
        type(cfg)(d_sae=F, k=0)


@pytest.mark.parametrize("cfg", [SMALL["topk"], SMALL["batchtopk"]], ids=name_of)
def test_one_step_of_training_equals_a_dense_float64_step(cfg):
    """An independent dense implementation of loss, gradient, projection, clipping, Adam and normalisation."""
    x = rows(32, seed=7)
    settings = TrainConfig(
        steps=1, batch=32, lr=1e-3, dead_after_tokens=10**9, warmup_steps=0, decay_share=0.0
    )
    trainer = Trainer(build(cfg, D, seed=4), settings)
    start = {name: tensor.double().clone() for name, tensor in trainer.sae.named_parameters()}
    code = trainer.sae.train().loss(x, x, NONE_DEAD)
    mask = _support(trainer.sae, x, cfg)
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
    x64 = x.double()
    z = ((x64 - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu() * mask
    error = (z @ weights["W_dec"] + weights["b_dec"] - x64).square().sum()
    loss = error / (x64 - x64.mean(0)).square().sum()
    assert_close(code.total.double(), loss.detach(), rtol=1e-5, atol=0)
    loss.backward()
    radial = (weights["W_dec"].grad * start["W_dec"]).sum(1, keepdim=True)
    weights["W_dec"].grad -= radial * start["W_dec"] / start["W_dec"].square().sum(1, keepdim=True)
    norm = math.sqrt(sum(tensor.grad.square().sum().item() for tensor in weights.values()))
    trainer.train_step(x, x)
    for name, tensor in weights.items():
        gradient = tensor.grad * min(1.0, 1.0 / (norm + 1e-6))
        expected = start[name] - 1e-3 * gradient / (gradient.abs() + 6.25e-10)  # Adam's first step
        if name == "W_dec":
            expected = expected / expected.norm(dim=1, keepdim=True)
        moving = gradient.abs() > 1e-7  # where rounding cannot turn the sign
        ours = trainer.sae.get_parameter(name).double()
        assert moving.any(), name
        assert_close(ours[moving], expected[moving], rtol=1e-4, atol=1e-6, msg=name)


def _support(sae: SAE, x: torch.Tensor, cfg) -> torch.Tensor:
    """Which latents the training rule keeps, found by sorting."""
    u = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()
    if name_of(cfg) == "topk":
        cut = u.sort(dim=1, descending=True).values[:, cfg.k - 1 : cfg.k]
    else:
        cut = u.flatten().sort(descending=True).values[int(len(x) * cfg.k) - 1]
    return (u >= cut).double()
