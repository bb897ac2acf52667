"""What the hook check refuses (activations that are not the model's, hook points without influence) and what it only warns of."""

import logging
from pathlib import Path

import pytest
import torch

from activations import hook_check
from activations.errors import HookError
from activations.harvest import harvest
from activations.hook_check import check
from activations.language_model import LanguageModel, load
from tests import tiny

TOKENS = torch.randint(2, 258, (1, 16), generator=torch.Generator().manual_seed(1))
INSIDE = "blocks.1.attn.hook_z"


@pytest.fixture
def fresh(world: Path) -> LanguageModel:
    """A model that a test may break."""
    return load(str(world / "model"))


def test_a_hook_point_is_compared_with_the_module_a_person_would_name(lm: LanguageModel):
    compared = check(lm, TOKENS, ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", INSIDE])
    assert compared["blocks.0.hook_resid_post"] == "hidden_states[1]"
    assert compared["blocks.1.hook_mlp_out"].startswith("the output of ")
    assert compared[INSIDE].endswith(("o_proj", "c_proj"))


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", INSIDE])
def test_activations_that_are_not_the_model_s_are_refused_before_anything_is_written(
    fresh: LanguageModel, hook: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    honest = fresh.observe

    def wrong(tokens, hooks):
        logits, activations = honest(tokens, hooks)
        return logits, {name: 1.1 * x for name, x in activations.items()}

    monkeypatch.setattr(fresh, "observe", wrong)
    text = tiny.text_file(tmp_path / "text.jsonl")
    with pytest.raises(HookError) as caught:
        harvest(fresh, tmp_path / "store", tiny.harvest_config(text, hooks=hook))
    assert hook in str(caught.value)
    assert "10.0%" in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_hook_point_whose_edits_change_nothing_is_refused(
    fresh: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    honest = fresh.logits
    monkeypatch.setattr(
        fresh, "logits", lambda tokens, edits=None: honest(tokens, {hook: lambda x: x for hook in edits})
    )
    monkeypatch.setattr(fresh, "observe", LanguageModel.observe.__get__(load(fresh.name)))
    with pytest.raises(HookError, match="no influence"):
        check(fresh, TOKENS, ["blocks.0.hook_resid_post"])


def test_what_can_be_compared_with_nothing_is_accepted_and_said(
    gpt2: LanguageModel, caplog: pytest.LogCaptureFixture
):
    hook = "blocks.1.attn.hook_q"  # cut out of a joint projection
    with caplog.at_level(logging.WARNING, hook_check.log.name):
        assert check(gpt2, TOKENS, [hook]) == {}
    assert [record for record in caplog.records if hook in record.getMessage()]
