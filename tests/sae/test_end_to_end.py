"""Fine-tuning end to end: its gradient, what it changes and what it leaves alone, and how it goes on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from activations import language_model
from activations.errors import ConfigError
from activations.language_model import LanguageModel
from activations.store import Store
from sae.architectures import ArchConfig, ReLUConfig, TopKConfig, build
from sae.config import RunConfig, TrainConfig
from sae.evaluation.splicing import splice
from sae.runs.run import Run
from sae.training.end_to_end import SplicedReader, spliced
from sae.training.trainer import Trainer
from sae.workflows import training
from sae.workflows.finetune import FinetuneConfig, finetune
from sae.workflows.train import train
from tests import tiny
from tests.cli.commands import Server
from tests.sae.small import every_architecture

TUNE = FinetuneConfig(tokens=100 * 128, batch=128, lr=1e-2)


@pytest.fixture(scope="module")
def store(world: Path) -> Store:
    return Store(world / "store")


@pytest.fixture(scope="module")
def model(world: Path) -> LanguageModel:
    return language_model.load(str(world / "model"))


@pytest.fixture(scope="module")
def first(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = TrainConfig(steps=150, batch=64, lr=3e-3, log_every=50)
    cfg = RunConfig(str(world / "store"), arch=TopKConfig(d_sae=32, k=4), train=settings)
    return train(cfg, tmp_path_factory.mktemp("first") / "run")


@every_architecture
def test_what_a_reconstruction_asks_of_the_decoder_reaches_the_weights(cfg: ArchConfig):
    """Against a finite difference of the dense product in float64: the KL is a function of reconstructions alone."""
    sae = build(cfg, 8, seed=1).double().train()
    generator = torch.Generator().manual_seed(0)
    x, pull = torch.randn(2, 40, 8, generator=generator, dtype=torch.float64)
    code = sae.training_code(x)
    code = code._replace(values=code.values.detach())
    (sae.decode(code) * pull).sum().backward()

    @torch.no_grad()
    def pulled_at(weights: Tensor, changed: Tensor) -> float:
        weights.copy_(changed)
        sae.refresh()
        return float(((code.dense() @ sae.W_dec + sae.b_dec) * pull).sum())

    for name, weights in sae.named_parameters():
        way = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
        got = 0.0 if weights.grad is None else float((weights.grad * way).sum())
        own = weights.detach().clone()
        difference = pulled_at(weights, own + 1e-5 * way) - pulled_at(weights, own - 1e-5 * way)
        assert got == pytest.approx(difference / 2e-5, rel=1e-6, abs=1e-6), name
        pulled_at(weights, own)


def kl_held_out(run: Run) -> float:
    estimates = splice(run.language_model(), run.sae(), run.store, run.hook, 32)["estimates"]
    return estimates["kl"]["value"]


def test_the_divergence_and_its_gradient_are_those_of_the_formula_in_float64(
    model: LanguageModel, store: Store
):
    """Against KL written out with the second block and the head called by hand, its own gradient, and a finite difference."""
    model = language_model.load(model.name)
    model.plain.double()
    shard = store.read(0)
    both = store.rows(shard, "train").any(1) & store.rows(shard, "held-out").any(1)
    tokens, chosen = shard.tokens[both].long(), store.rows(shard, "train")[both]
    assert len(tokens)
    x, divergence = spliced(model, tiny.HOOK, tokens, chosen)
    generator = torch.Generator().manual_seed(0)
    x_hat = (x + 0.3 * torch.randn(x.shape, generator=generator)).double().requires_grad_()

    def by_hand(replaced: Tensor) -> Tensor:
        """The toy model's second block and head on its residual stream, with some rows replaced."""
        hidden = model.plain(tokens, output_hidden_states=True).hidden_states[1]
        clean = model.plain(tokens).logits[chosen].log_softmax(-1)
        hidden = hidden.index_put((chosen,), replaced)
        layer, inner = model.plain.model.layers[1], model.plain.model
        embedded = inner.rotary_emb(hidden, torch.arange(tokens.shape[1])[None])
        mask = torch.full((tokens.shape[1],) * 2, -torch.inf, dtype=hidden.dtype).triu(1)[None, None]
        out = layer(hidden, attention_mask=mask, position_embeddings=embedded)
        out = out if isinstance(out, Tensor) else out[0]
        changed = model.plain.lm_head(inner.norm(out))[chosen].log_softmax(-1)
        return (clean.exp() * (clean - changed)).sum(-1).mean()

    value = divergence(x_hat)
    (gradient,) = torch.autograd.grad(value, x_hat)
    # Logits are compared in float32, and transformers' RMSNorm computes in it whatever the weights are.
    written_out = by_hand(x_hat)
    assert_close(value.double(), written_out, rtol=1e-5, atol=1e-7)
    assert_close(gradient, torch.autograd.grad(written_out, x_hat)[0], rtol=1e-4, atol=1e-7)
    step, along = 3e-3, gradient / gradient.norm()
    slope = (by_hand(x_hat.detach() + step * along) - by_hand(x_hat.detach() - step * along)) / (2 * step)
    assert_close(gradient.norm(), slope, rtol=1e-3, atol=0)
    assert not any(p.grad is not None for p in model.plain.parameters())


def test_the_loss_has_both_terms_at_equal_size_and_the_gradient_of_their_sum(
    model: LanguageModel, store: Store
):
    """One step without warm-up: Adam's first moment is a tenth of the gradient, clipped nowhere."""
    cfg = TopKConfig(d_sae=32, k=4, aux_weight=0.0)
    settings = TrainConfig(
        steps=5, batch=128, lr=1e-3, warmup_steps=0, dead_after_tokens=10**9, clip_norm=1e9
    )
    made = Trainer(build(cfg, 16, seed=0), settings, scale=0.5)
    made.sae.unit_norm_decoder = False  # tangent gradients would be another formula
    made = Trainer(made.sae, settings, scale=0.5)
    twin = build(cfg, 16, seed=0)
    x, y, labels, divergence = next(iter(SplicedReader(store, tiny.HOOK, model, 8)))
    assert divergence is not None
    loss, _ = made.train_step(x, y, labels, divergence)

    scaled = 0.5 * x
    dense = ((scaled - twin.b_dec) @ twin.W_enc + twin.b_enc).relu()
    kept = dense * (dense >= dense.topk(4, dim=1).values[:, -1:])
    x_hat = kept @ twin.W_dec + twin.b_dec
    fvu = (x_hat - scaled).square().sum() / (scaled - scaled.mean(0)).square().sum()
    kl = divergence(x_hat / 0.5)
    (fvu + (fvu / kl).detach() * kl).backward()
    assert_close(loss.terms["kl"], kl.detach(), rtol=1e-4, atol=0)
    assert_close(loss.total, 2 * fvu.detach(), rtol=1e-4, atol=0)
    for name, parameter in twin.named_parameters():
        moment = made.optimizer.state[dict(made.sae.named_parameters())[name]]["exp_avg"]
        assert_close(
            10 * moment, parameter.grad, rtol=2e-3, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_the_divergence_on_held_out_text_falls_and_the_model_stays(first: Run, tmp_path: Path):
    before, weights = kl_held_out(first), first.sae().state_dict()
    tuned = finetune(first, tmp_path / "tuned", TUNE)
    assert kl_held_out(tuned) < 0.7 * before
    assert tuned.log[-1]["kl"] < 0.8 * tuned.log[0]["kl"]
    assert "held_out_fvu" in tuned.log[-1]
    assert tuned.config.start_from == str(first.path)
    assert tuned.language_model().weights_hash == first.record.weights_sha256
    assert_close(tuned.sae().W_dec.norm(dim=1), torch.ones(32), rtol=1e-5, atol=0)
    assert all(torch.equal(weights[name], tensor) for name, tensor in first.sae().state_dict().items())


@every_architecture
def test_every_method_is_tuned(world: Path, tmp_path: Path, cfg: ArchConfig):
    labelled = tiny.store(tmp_path, labels="builtin") if cfg.reads_labels else Store(world / "store")
    settings = TrainConfig(steps=20, batch=64, lr=3e-3)
    run = train(RunConfig(str(labelled.path), arch=cfg, train=settings), tmp_path / "run")
    tuned = finetune(run, tmp_path / "tuned", replace(TUNE, tokens=4 * 128))
    assert [row["step"] for row in tuned.log] == [1, 2, 3, 4]
    assert all(row["kl"] > 0 for row in tuned.log)
    assert tuned.digest != run.digest
    if isinstance(cfg, ReLUConfig):  # its penalty has its whole weight from the first step
        assert cfg.l1_weight is not None
        row = tuned.log[0]
        assert row["loss"] == pytest.approx(2 * row["squared_error"] + cfg.l1_weight * row["l1"], rel=1e-5)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cfg, whole = replace(TUNE, tokens=50 * 128), training.fitting  # more than a pass over the store
    undisturbed = finetune(first, tmp_path / "undisturbed", cfg)

    class Enough(Exception):
        pass

    def some(trainer, batches, *, log, save, stop):
        yield from whole(trainer, batches, log=log, save=save, stop=lambda: trainer.step == 23)
        raise Enough

    with monkeypatch.context() as patch:
        patch.setattr(training, "fitting", some)
        with pytest.raises(Enough):
            finetune(first, tmp_path / "stopped", cfg)
    assert not Run(tmp_path / "stopped").finished
    assert Run(tmp_path / "stopped").resume == f"sae resume {tmp_path / 'stopped'}"
    again = finetune(first, tmp_path / "stopped", cfg, resume=True)
    assert again.digest == undisturbed.digest
    times = ("seconds", "tokens_per_second")
    logs = [
        [{k: v for k, v in row.items() if k not in times} for row in run.log] for run in (undisturbed, again)
    ]
    assert logs[0] == logs[1]


def test_the_command_makes_a_run_that_other_commands_take(
    sae: Server, world: Path, first: Run, tmp_path: Path
):
    out = tmp_path / "tuned"
    ended = sae("finetune", first.path, "--out", out, "--tokens", 512, "--batch", 128)
    assert ended.code == 0, ended.err
    assert "KL " in ended.err
    assert f"sae evaluate {out}" in ended.out
    assert sae("evaluate", out, "--windows", 4).code == 0
    assert json.loads((out / "run.json").read_text())["config"]["loss"] == "kl"
    assert sae("compare", first.path, out).code == 0


def test_mistakes_are_one_line(sae: Server, world: Path, first: Run, tmp_path: Path):
    out = tmp_path / "out"
    started = sae("finetune", tmp_path / "nosuch", "--out", out)
    assert "no run at" in started.complaint
    assert "tokens = 0" in sae("finetune", first.path, "--out", out, "--tokens", 0).complaint
    assert (
        "lr = 0.0 must be a number above 0" in sae("finetune", first.path, "--out", out, "--lr", 0).complaint
    )
    assert "already holds" in sae("finetune", first.path, "--out", first.path).complaint

    def changed(name: str, **facts: object) -> Path:
        """A copy of the run with other facts in run.json."""
        copy = tmp_path / name
        copy.mkdir()
        for file in ("sae.safetensors", "sae.json"):
            (copy / file).write_bytes((first.path / file).read_bytes())
        record = {**json.loads((first.path / "run.json").read_text()), **facts}
        record.pop("checksum", None)
        (copy / "run.json").write_text(json.dumps(record))
        return copy

    settings = first.record.config
    for facts, said in (
        ({"model": "/no/such/model"}, "no model folder at /no/such/model"),
        ({"config": {**settings, "store": ""}}, "imported without a store"),
        ({"config": {**settings, "store": "/no/store"}}, "/no/store is not a store"),
        ({"config": {**settings, "train": {}}}, "add --tokens"),
    ):
        line = sae("finetune", changed(said.replace("/", "-"), **facts), "--out", out).complaint
        assert said in line
        assert not out.exists()


def test_a_loss_without_a_run_to_start_from_is_refused():
    with pytest.raises(ConfigError, match="a run to start from"):
        RunConfig(store="s", loss="kl")
