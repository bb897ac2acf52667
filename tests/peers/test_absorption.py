"""Absorption beside SAEBench's own calculator: the same numbers for each word, with the same probe and main latents."""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae.architectures import ArchConfig
from sae.evaluation.absorption import absorbed
from sae.foreign import Origin
from sae.foreign.saebench import adapt
from tests.sae.exchanged import rows, trained
from tests.sae.small import F, every_architecture

pytest.importorskip("sae_bench", reason="SAEBench is needed, in an environment of its own: make test-peers")
bench: Any = import_module("sae_bench.evals.absorption.feature_absorption_calculator")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

WORDS = [f"word{n}" for n in range(200)]
POSITION = -2


class Model:
    """A language model that knows the activation of each word."""

    def __init__(self, x: Tensor):
        self.of = dict(zip(WORDS, x, strict=True))

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> tuple[None, dict[str, Tensor]]:
        x = torch.stack([self.of[prompt.split("\n")[-1].removesuffix(":")] for prompt in prompts])
        return None, {names_filter[0]: torch.stack([x, torch.zeros_like(x)], 1)}

    def to_tokens(self, prompt: str) -> Tensor:
        return torch.zeros(1, 2)


@every_architecture
def test_each_word_has_the_numbers_of_saebench(cfg: ArchConfig):
    sae = trained(cfg)
    x = rows(len(WORDS))
    calculator = bench.FeatureAbsorptionCalculator(
        model=Model(x),
        icl_word_list=["other"],
        max_icl_examples=1,
        word_token_pos=POSITION,
        topk_feats=min(10, F),
    )
    values = sae.encode(x).dense()
    probe = x[values.sum(1).argmax()] - sae.b_dec
    by_cosine = (sae.W_dec @ probe).argsort(descending=True).tolist()
    mine = SimpleNamespace(fraction=[], full=[])
    theirs = SimpleNamespace(fraction=[], full=[])
    for main in ([by_cosine[0]], by_cosine[1:3], [by_cosine[-1]]):
        found = calculator.calculate_absorption(
            adapt(sae, Origin("toy", "blocks.0.hook_resid_post")),
            WORDS,
            probe,
            main,
            layer=0,
            show_progress=False,
        )
        theirs.fraction += [float(word.absorption_fraction) for word in found.word_results]
        theirs.full += [word.is_full_absorption for word in found.word_results]
        result = absorbed(x, values, sae.W_dec, probe, main)
        mine.fraction += result.fraction.tolist()
        mine.full += result.full.tolist()
    if bool(
        (values >= 0).all()
    ):  # this release of SAEBench takes a negative value for silence; its later code does not
        assert mine.full == theirs.full
    np.testing.assert_allclose(mine.fraction, theirs.fraction, atol=2e-4)
    assert 0 < np.mean(mine.fraction) < 1
