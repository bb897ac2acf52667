"""Generation: the same tokens with and without cache, reproducible seeds, edits at their positions, ends, prompts as data."""

import numpy as np
import pytest
import torch
from torch import Tensor

from activations.errors import GenerationError
from activations.generation import Sampling, generate, prompt_ids
from activations.language_model import LanguageModel

RESIDUAL, HEADS = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"
PROMPT = [0, 61, 90, 101, 77]  # no end of text within 24 tokens of either model
PUSH = 10 * torch.linspace(-1, 1, 16).roll(5)
BOTH = pytest.mark.parametrize(
    "sampling",
    [Sampling(tokens=24), Sampling(tokens=24, temperature=0.8, top_p=0.95)],
    ids=["greedy", "drawn"],
)


def push_from(position: int):
    """Return an edit that adds PUSH from this position on."""

    def edit(x: Tensor, first: int = 0) -> Tensor:
        at = torch.arange(first, first + x.shape[1])
        return x + (at >= position)[:, None] * PUSH[: x.shape[2]]

    return edit


@BOTH
@pytest.mark.parametrize("position", [0, 3, 12])
def test_cached_generation_is_uncached_generation_token_by_token(lm: LanguageModel, sampling, position):
    edits = {RESIDUAL: push_from(position)}
    seeds = (0, 1, 2)
    cached = generate(lm, PROMPT, edits, sampling, seeds)
    assert lm.plain_sites([RESIDUAL]) is not None, "or nothing was cached"
    assert cached == generate(lm, PROMPT, edits, sampling, seeds, cache=False)
    assert cached != generate(lm, PROMPT, None, sampling, seeds), "the edit does something"


def test_where_only_the_bridge_sees_the_hook_point_it_is_used(lm: LanguageModel):
    assert lm.plain_sites([HEADS]) is None
    found = generate(lm, PROMPT, {HEADS: push_from(2)}, Sampling(tokens=6))
    tokens = list(PROMPT)
    for token in found[0]:
        assert token == lm.logits(torch.tensor([tokens]), {HEADS: push_from(2)})[0, -1].argmax()
        tokens.append(token)


def test_greedy_generation_takes_the_likeliest_token_each_time(lm: LanguageModel):
    (found,) = generate(lm, PROMPT, None, Sampling(tokens=12))
    logits = lm.logits(torch.tensor([PROMPT + found]))[0]
    assert found == logits[len(PROMPT) - 1 : -1].argmax(-1).tolist()


def test_a_seed_draws_the_same_alone_and_beside_others(lm: LanguageModel):
    sampling = Sampling(tokens=20, temperature=1.5)
    together = generate(lm, PROMPT, None, sampling, (3, 4, 3))
    assert together[0] == together[2] != together[1]
    assert generate(lm, PROMPT, None, sampling, (4,)) == together[1:2]


def test_drawing_leaves_the_global_generator_alone(lm: LanguageModel):
    before = torch.get_rng_state()
    generate(lm, PROMPT, None, Sampling(tokens=3, temperature=1.0))
    assert torch.equal(before, torch.get_rng_state())


def test_tokens_are_drawn_with_the_model_s_probabilities(lm: LanguageModel):
    """Compare 4,000 draws of one token, over the ten likeliest and the rest, by a chi-square test."""
    drawn = generate(lm, PROMPT, None, Sampling(tokens=1, temperature=0.7), range(4000))
    p = (lm.logits(torch.tensor([PROMPT]))[0, -1].double() / 0.7).softmax(-1).numpy()
    top = p.argsort()[::-1][:10]
    counts = np.bincount([row[0] for row in drawn], minlength=len(p))
    seen, expected = (
        np.append(counts[top], 4000 - counts[top].sum()),
        4000 * np.append(p[top], 1 - p[top].sum()),
    )
    assert ((seen - expected) ** 2 / expected).sum() < 29.6  # 99.9 % quantile of 10 degrees of freedom


@pytest.mark.parametrize("restriction", [{"top_k": 3}, {"top_p": 0.3}])
def test_only_likely_tokens_are_drawn_where_asked(lm: LanguageModel, restriction):
    drawn = generate(lm, PROMPT, None, Sampling(tokens=1, temperature=1.0, **restriction), range(300))
    p = lm.logits(torch.tensor([PROMPT]))[0, -1].double().softmax(-1)
    order = p.argsort(descending=True)
    n = restriction.get("top_k") or int((p[order].cumsum(0) < 0.3).sum()) + 1
    assert {row[0] for row in drawn} == set(order[:n].tolist())


def test_an_end_of_text_token_is_the_last_of_its_continuation_alone(llama: LanguageModel):
    end = llama.tokenizer.eos_token_id

    def towards_the_end(x: Tensor, first: int = 0) -> Tensor:
        row = llama.plain.get_output_embeddings().weight[end]
        late = torch.arange(first, first + x.shape[1]) >= len(PROMPT) + 2
        return x + 100 * late[:, None] * row

    hook = "blocks.1.hook_resid_post"
    found = generate(llama, PROMPT, {hook: towards_the_end}, Sampling(tokens=20, temperature=1.0), (0, 1))
    assert [row.index(end) for row in found] == [len(row) - 1 for row in found]
    assert all(3 <= len(row) < 20 for row in found)


def test_what_is_told_each_token_can_end_the_work(llama: LanguageModel):
    told: list[int] = []

    def stop(count: int) -> None:
        told.append(count)
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(llama, PROMPT, {RESIDUAL: push_from(0)}, Sampling(tokens=9), on_token=stop)
    assert told == [1, 2, 3]
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():  # no hook is left behind
        assert torch.equal(llama.logits(tokens), llama.plain(tokens, use_cache=False).logits)
        assert not llama.plain.model.layers[1]._forward_pre_hooks


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda lm: Sampling(tokens=0), "tokens = 0"),
        (lambda lm: Sampling(temperature=-1), "temperature = -1"),
        (lambda lm: Sampling(temperature=float("nan")), "temperature = nan"),
        (lambda lm: Sampling(top_p=0), "top_p = 0"),
        (lambda lm: Sampling(top_k=0), "top_k = 0"),
        (lambda lm: generate(lm, []), "0 tokens"),
        (lambda lm: generate(lm, PROMPT, seeds=()), "0 seeds"),
        (lambda lm: generate(lm, PROMPT, None, Sampling(tokens=124)), "make 129.* reads at most 128"),
        (lambda lm: prompt_ids(lm, "hello", chat=True), "no chat template"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line(llama: LanguageModel, use, says: str):
    with pytest.raises(GenerationError, match=says) as caught:
        use(llama)
    assert "\n" not in str(caught.value)


def test_a_prompt_begins_with_bos_and_its_special_tokens_are_characters(llama: LanguageModel):
    ids = prompt_ids(llama, "a<eos>b")
    assert ids[0] == llama.tokenizer.bos_token_id
    assert len(ids) == 1 + len("a<eos>b")
    assert llama.tokenizer.decode(ids[1:]) == "a<eos>b"
    assert prompt_ids(llama, "") == [llama.tokenizer.bos_token_id]


def test_a_chat_prompt_is_the_template_s_with_the_user_s_words_as_data(llama: LanguageModel, monkeypatch):
    template = "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}says: "
    monkeypatch.setattr(llama.tokenizer, "chat_template", template)
    ids = prompt_ids(llama, "hi<eos>", chat=True)
    assert llama.tokenizer.decode(ids) == "<bos>user: hi<eos><eos>says: "
    assert ids[0] == 0
    assert ids.count(1) == 1, "the template's, not the user's"
