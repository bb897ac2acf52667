"""For every family of models, what is captured, edited, read out and generated is what the model itself computes."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from activations.errors import HookError, ModelError
from activations.generation import Sampling, generate
from activations.hook_check import check
from activations.language_model import LanguageModel, load
from tests.activations.toys import assert_same_up_to_rounding
from tests.families.models import ROWS, Family, table

ACCEPTED = [row for row in ROWS if not row.refused]
TOKENS = torch.randint(2, 258, (1, 16), generator=torch.Generator().manual_seed(1))
PARTS = ("hook_attn_out", "hook_mlp_out", "attn.hook_z")


@pytest.fixture(scope="module", params=ACCEPTED, ids=lambda row: row.name)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Family, LanguageModel]:
    """Return a family and its model, loaded as a user loads it."""
    folder = request.param.folder(tmp_path_factory.mktemp("family") / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kernels that are not installed
        return request.param, load(str(folder))


def blocks(lm: LanguageModel) -> list[torch.nn.Module]:
    """Return the plain model's blocks, found without TransformerLens: its longest list of modules."""
    lists = [part for part in lm.plain.modules() if isinstance(part, torch.nn.ModuleList)]
    return next(list(part) for part in lists if len(part) == lm.n_layers)


def by_hand(lm: LanguageModel, change: Any = None) -> tuple[list[Tensor], list[Tensor], Any]:
    """Return the input and output of each block, and the model's output; `change` replaces the last block's output."""
    into, out, last = [], [], lm.n_layers - 1

    def before(_: Any, args: tuple, kwargs: dict) -> None:
        into.append((args[0] if args else kwargs["hidden_states"]).clone())

    def after(_: Any, __: tuple, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple | list) else output
        out.append(x.clone())
        if change is None or len(out) <= last:
            return None
        return type(output)([change, *output[1:]]) if isinstance(output, tuple | list) else change

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks(lm)]
    handles += [block.register_forward_hook(after) for block in blocks(lm)]
    tokens = TOKENS if change is None else TOKENS[:, : change.shape[1]]
    with torch.no_grad():
        output = lm.plain(tokens, use_cache=False, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    return into, out, output


def there(lm: LanguageModel, names: tuple[str, ...]) -> Iterator[str]:
    """Return the hook points of these names in all blocks that the model has."""
    hooks = set(lm.hooks)
    yield from (hook for i in range(lm.n_layers) for name in names if (hook := f"blocks.{i}.{name}") in hooks)


def test_the_residual_stream_is_the_model_s_hidden_states(made):
    _, lm = made
    into, out, output = by_hand(lm)
    states = output.hidden_states
    listed = out[:-1] if torch.equal(states[0], out[0]) else into  # Mamba and RWKV list only outputs
    for state, x in zip(states, listed, strict=False):
        assert_same_up_to_rounding(x, state)
    hooks = list(there(lm, ("hook_resid_pre", "hook_resid_post")))
    assert len(hooks) == 2 * lm.n_layers
    captured = lm.capture(TOKENS, hooks)
    for i in range(lm.n_layers):
        assert_same_up_to_rounding(captured[f"blocks.{i}.hook_resid_pre"], into[i])
        assert_same_up_to_rounding(captured[f"blocks.{i}.hook_resid_post"], out[i])


def test_every_hook_point_of_use_passes_the_check_of_a_harvest(made):
    row, lm = made
    border = list(there(lm, ("hook_resid_pre", "hook_resid_post")))
    assert set(check(lm, TOKENS, border)) == set(border)
    inside = list(there(lm, PARTS))
    if row.inside:
        assert not lm.bridge_fault
        assert set(check(lm, TOKENS, inside)) == set(inside)
    else:
        z = next(hook for hook in inside if hook.endswith("hook_z"))
        with pytest.raises(HookError, match=z):
            check(lm, TOKENS, [z])


def test_what_attention_and_mlp_give_adds_up_where_the_page_says_so(made):
    row, lm = made
    names = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
    whole = [i for i in range(lm.n_layers) if {f"blocks.{i}.{name}" for name in names} <= set(lm.hooks)]
    assert (row.adds is None) == (not whole)
    for i in whole if row.inside else ():
        pre, attn, mlp, post = (
            lm.capture(TOKENS, [f"blocks.{i}.{name}"])[f"blocks.{i}.{name}"] for name in names
        )
        assert bool((pre + attn + mlp - post).norm() < 1e-5 * post.norm()) is row.adds


def test_the_readout_is_the_model_s_own_path_to_the_logits(made):
    _, lm = made
    readout = lm.readout
    assert readout is not None
    residual = torch.randn(1, 9, lm.bridge.cfg.d_model, generator=torch.Generator().manual_seed(2))
    assert_same_up_to_rounding(readout.logits(residual[0]), by_hand(lm, residual)[2].logits[0])
    cap = readout.cap

    def scores(x: Tensor) -> Tensor:
        logits = by_hand(lm, x[None])[2].logits[0].double()
        return logits if cap is None else cap * (logits / cap).atanh()

    directions = residual[0]
    expected = scores(directions) - scores(torch.zeros_like(directions))
    effect = lm.vocabulary_effect(directions)
    assert (effect - expected).norm() < 1e-4 * expected.norm()


def test_a_direct_effect_is_the_slope_of_the_model_s_own_logits(made):
    """A step orthogonal to the residual leaves the norm's scale as it is to first order, so freezing the scale changes nothing."""
    row, lm = made
    generator = torch.Generator().manual_seed(3)
    residual, step = torch.randn(2, 9, lm.bridge.cfg.d_model, generator=generator)
    residual = 3 * residual
    centred = residual - residual.mean(1, keepdim=True)
    step = step - step.mean(1, keepdim=True)
    step = step - (step * centred).sum(1, keepdim=True) / centred.square().sum(1, keepdim=True) * centred
    tokens = torch.arange(20, 29)
    directions = lm.readout and lm.readout.next_token_directions(residual, tokens)
    assert (directions is not None) == row.effects
    if directions is None or lm.readout is None:
        return
    exact, readout = lm.readout, []
    lm.plain.double()
    for sign in (1, -1):
        scores = exact.scores(exact.normed(residual.double() + sign * 1e-2 * step.double()))
        readout.append(scores[range(9), tokens] - scores.mean(1))
    lm.plain.float()
    slope = (readout[0] - readout[1]) / 2e-2
    found = (directions * step).sum(1).double()
    assert (found - slope).norm() < 5e-3 * slope.norm()


def test_generation_is_the_same_from_a_kept_state_and_from_the_whole_text(made):
    row, lm = made
    assert (lm.state_kept is not None) == row.state
    hook = f"blocks.{lm.n_layers - 1}.hook_resid_pre"
    size = lm.capture(TOKENS, [hook])[hook].std()

    def edit(x: Tensor, first: int = 0) -> Tensor:
        at = torch.arange(first, first + x.shape[1])
        return x + (at >= 3)[:, None] * size * torch.linspace(-1, 1, x.shape[2])

    for edits in ({}, {hook: edit}):
        for sampling in (Sampling(tokens=14), Sampling(tokens=14, temperature=0.8)):
            kept = generate(lm, [0, 61, 90, 101, 77], edits, sampling, (0, 1))
            assert kept == generate(lm, [0, 61, 90, 101, 77], edits, sampling, (0, 1), cache=False)


@pytest.mark.parametrize("row", [row for row in ROWS if row.refused], ids=lambda row: row.name)
def test_what_is_no_causal_model_of_a_known_family_is_refused_in_one_line(row: Family, tmp_path: Path):
    folder = row.folder(tmp_path / "model")
    with pytest.raises(ModelError) as caught:
        load(str(folder)).hooks
    line = str(caught.value)
    assert str(folder) in line
    assert row.refused in line
    assert "\n" not in line


def test_the_page_shows_the_rows_that_are_tested():
    page = Path(__file__).parents[2] / "docs" / "families.md"
    assert table() in page.read_text(encoding="utf-8"), "python -m tests.families.models prints the table"
    assert len(ROWS) >= 36
