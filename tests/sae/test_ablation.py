"""The sparsity of latents' effects against hooks on the plain model in float64, and where the answer is planted."""

import math
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from activations.errors import ConfigError, RunError
from activations.language_model import LanguageModel, load
from activations.rows import is_held_out
from activations.store import Store
from sae.architectures import TopKConfig, build
from sae.evaluation import ablation
from sae.evaluation.ablation import (
    DICTIONARY,
    DIRECTIONS,
    KINDS,
    LATENTS,
    AblationConfig,
    ablation_effects,
    effect,
)
from sae.report import effects as report
from sae.runs.run import Run
from sae.trust.controls import random_dictionary
from sae.workflows.evaluate import evaluate
from tests.cli.commands import Server

CFG = AblationConfig(latents=5, firings=1000, positions=4, windows=6)


@pytest.fixture(scope="module")
def run(world) -> Run:
    return Run(world / "runs/toy")


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return load(str(world / "model"), dtype=torch.float64)


def test_the_sparsity_of_known_differences():
    one = torch.zeros(4, 10)
    one[2, 7] = -3.0
    assert effect(one) == pytest.approx((1 / 40, math.sqrt(9 / 40)))
    shift = torch.arange(4.0)[:, None]
    assert effect(one + shift).sparsity == pytest.approx(1 / 40), (
        "a shift of all logits changes no prediction"
    )
    ups = torch.tensor([1.0, -1.0, 0.0]).repeat(4, 3)  # median 0, two of three change
    assert effect(ups).sparsity == pytest.approx(2 / 3)
    silent = effect(torch.ones(2, 5))
    assert math.isnan(silent.sparsity)
    assert silent.size == 0
    x = np.random.default_rng(0).normal(size=(3, 11))
    centred = x - np.median(x, 1, keepdims=True)
    by_hand = np.abs(centred).sum() ** 2 / (centred**2).sum() / 33
    assert effect(torch.from_numpy(x)).sparsity == pytest.approx(by_hand, rel=1e-12)


def by_hand(model, tokens, window, position, written):
    """Return the sparsity of taking a vector out of the residual stream, by a hook on the plain model, in numpy."""

    def take_out(module, args, kwargs):
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        x[0, position] -= written
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    ids = tokens[window].long()[None]
    with torch.no_grad():
        clean = model.plain(ids).logits[0]
        handle = model.plain.model.layers[1].register_forward_pre_hook(take_out, with_kwargs=True)
        ablated = model.plain(ids).logits[0]
        handle.remove()
    differences = (clean - ablated)[position : position + CFG.positions].numpy()
    middle = np.sort(differences, 1)[:, (differences.shape[1] - 1) // 2]
    differences = differences - middle[:, None]
    l1, l2 = np.abs(differences).sum(), np.sqrt((differences**2).sum())
    return (l1 / l2) ** 2 / differences.size, l2 / math.sqrt(differences.size)


def test_effects_equal_hooks_on_the_plain_model_in_float64(run, model):
    sae, store = run.sae().double(), run.store
    # A dictionary of which one latent fires on each row, so that nothing is left to the draw.
    control = random_dictionary(torch.randn(64, 16), torch.zeros(16), 32, 1, seed=3).double()
    found = ablation_effects(model, sae, control, store, run.hook, CFG)
    tokens, documents = ablation.held_out_windows(store, CFG.windows)
    sizes, firings = {kind: {} for kind in (LATENTS, DICTIONARY)}, 0
    live = set()
    for window in range(len(tokens)):
        x = model.capture(tokens[window].long()[None], [run.hook])[run.hook][0]
        codes, others = sae.encode(x).dense(), control.encode(x).dense()
        for position in range(1, store.context - CFG.positions + 1):
            own = documents[window, position : position + CFG.positions]
            if not is_held_out(own[:1])[0] or len(set(own.tolist())) > 1:
                continue
            [other] = others[position].nonzero()[:, 0].tolist()
            live |= set(codes[position].nonzero()[:, 0].tolist())
            for latent in set(codes[position].nonzero()[:, 0].tolist()) & set(found.latents):
                firings += 1
                for kind, written in (
                    (LATENTS, codes[position, latent] * sae.W_dec[latent]),
                    (DICTIONARY, others[position, other] * control.W_dec[other]),
                ):
                    measured = by_hand(model, tokens, window, position, written)
                    sizes[kind].setdefault(latent, []).append(measured)
    assert (found.live, found.firings) == (len(live), firings)
    assert len(found.latents) == 5
    assert firings > 20
    for kind, of_latent in sizes.items():
        means = np.array([np.mean(of_latent[latent], 0) for latent in found.latents])
        group = found.groups[kind]
        assert group.values == pytest.approx(means[:, 0], rel=1e-6)
        assert group.sparsity.value == pytest.approx(means[:, 0].mean(), rel=1e-6)
        assert group.size.value == pytest.approx(means[:, 1].mean(), rel=1e-6)
        assert group.quantiles["0.5"] == pytest.approx(np.median(means[:, 0]), rel=1e-6)
    less = found.groups[DICTIONARY].less_than
    assert less is not None
    assert less.value == pytest.approx(
        found.groups[DICTIONARY].sparsity.value - found.groups[LATENTS].sparsity.value, rel=1e-9
    )
    assert (found.positions, found.vocabulary) == (4, 258)


class Linear:
    """A stand-in for a language model whose logits are the activation itself: a latent of one coordinate moves one logit."""

    def __init__(self, width: int):
        self.embedding = torch.randn(300, width, generator=torch.Generator().manual_seed(0)).abs()

    def capture(self, tokens, hooks):
        return dict.fromkeys(hooks, self.embedding[tokens])

    def logits(self, tokens, edits=None):
        x = self.embedding[tokens]
        for edit in (edits or {}).values():
            x = edit(x)
        return x


def axes(width: int):
    """An SAE whose latents are the coordinates."""
    sae = build(TopKConfig(d_sae=width, k=4), d_model=width).requires_grad_(False).eval()
    for weights in (sae.W_enc, sae.W_dec):
        weights.copy_(torch.eye(width))
    sae.b_enc.zero_()
    sae.b_dec.zero_()
    return sae


def test_latents_that_move_one_logit_are_told_from_random_directions(world):
    width, store = 16, Store(world / "store")
    sae, stand_in = axes(width), Linear(width)
    control = random_dictionary(stand_in.embedding, torch.zeros(width), width, 4, seed=0)
    cfg = AblationConfig(latents=16, firings=4, positions=3)
    found = ablation_effects(stand_in, sae, control, store, "anything", cfg)  # type: ignore[arg-type]
    assert found.groups[LATENTS].values == pytest.approx([1 / (3 * width)] * len(found.latents), rel=1e-5)
    for kind in (DICTIONARY, DIRECTIONS):
        group = found.groups[kind]
        # A normal vector of one position out of three has (L1 / L2)^2 = 2 / pi of its entries.
        assert group.sparsity.value == pytest.approx(2 / math.pi / 3, rel=0.2)
        assert group.less_than is not None
        assert group.less_than.low > 0.1
    sizes = [found.groups[kind].size for kind in (LATENTS, DIRECTIONS)]
    assert sizes[1].value == pytest.approx(sizes[0].value, rel=0.2), (
        "directions have the norm of what latents write"
    )
    assert report.conclusions(found)[0].startswith(
        "Effects of latents are sparser than those of the random dictionary"
    )
    again = ablation_effects(stand_in, sae, control, store, "anything", cfg)  # type: ignore[arg-type]
    assert again == found


def test_what_cannot_be_measured_is_refused(run, model):
    control = random_dictionary(torch.randn(64, 16), torch.zeros(16), 32, 1, seed=3)
    with pytest.raises(RunError, match="16 positions in one window after its first"):
        ablation_effects(model, run.sae(), control, run.store, run.hook)
    with pytest.raises(ConfigError, match="effects: firings = 0 must be at least 1"):
        AblationConfig(firings=0)


def test_they_are_part_of_the_evaluation_and_shown_with_it(world, tmp_path: Path, run):
    copy = Run(shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("features")))
    cfg = AblationConfig(latents=6, firings=2, positions=4)
    evaluation = evaluate(copy, copy.sae(), load(str(world / "model")), 8, effects=cfg)
    effects = Run(copy.path).evaluation.effects  # type: ignore[union-attr]
    assert effects == evaluation.effects
    assert effects is not None
    assert list(effects.groups) == list(KINDS)
    lines = list(report.lines(effects))
    assert [line.title for line in lines] == ["latents", "random dictionary", "random directions"]
    assert "6 of " in report.basis(effects)
    assert len(report.conclusions(effects)) == 2
    curves = cast(Any, report.figure(effects).data)
    assert [list(curve.x) for curve in curves] == [sorted(group.values) for group in effects.groups.values()]
    evaluate(copy, copy.sae(), None, 0)
    assert Run(copy.path).evaluation.effects is None  # type: ignore[union-attr]


def test_the_command_prints_them(sae: Server, run, tmp_path: Path):
    copy = shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("features"))
    ended = sae("evaluate", copy, "--windows", 8, "--effects", 4, "--effect-positions", 4)
    assert ended.code == 0, ended.err
    assert "sparsity of effects on the logits: 4 of " in ended.out
    assert "random directions" in ended.out
    assert "Effects of latents are" in ended.out
    assert (
        "--effects needs the language model"
        in sae("evaluate", copy, "--windows", 0, "--effects", 4).complaint
    )


def test_only_places_with_enough_of_their_own_held_out_document_count():
    assert is_held_out(torch.tensor([1, 2])).tolist() == [True, False], (
        "document 1 is held out by every store"
    )
    documents = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 1, 1, -1], [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]])
    places = ablation._eligible(documents, excluded=1, positions=2).nonzero().tolist()
    assert places == [[0, 1], [0, 2], [0, 7]]
    assert not ablation._eligible(documents, 1, 11).any()
