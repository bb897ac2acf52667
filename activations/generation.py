"""Text generation: a prompt's token ids and the model's seeded continuations of them, with edits at hook points."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from activations.chat import ChatTemplate
from activations.chunks import plain_ids
from activations.errors import ChatError, GenerationError
from activations.language_model import LanguageModel
from activations.tokens import PackingConfig, first_token
from activations.views import attached

MOST_TOKENS = 2**20  # in a continuation: no model can read more, and each token takes memory
LARGEST_SEED = 2**64 - 1  # that torch's generators take
HEAD = 1024  # likeliest tokens that are sorted first: nearly always enough for top_p, and ten times faster than all


class PlacedEdit(Protocol):
    """An edit that is told its position: x [n, T, D] are the activations at positions first ... first + T - 1.

    Without `first`, x starts at the beginning of the sequence, so that a PlacedEdit is an `Edit` too."""

    def __call__(self, x: Tensor, first: int = 0, /) -> Tensor:
        """Return what replaces x, of the same shape."""
        ...


@dataclass(frozen=True)
class Sampling:
    """Settings that choose the next token."""

    tokens: int = 40
    """Most new tokens: a continuation ends earlier at an end-of-text token."""
    temperature: float = 0.0
    """Divides the logits; at 0 the likeliest token is chosen and nothing is random."""
    top_p: float = 1.0
    """Tokens are drawn from the fewest likeliest tokens that together reach this probability; from all when 1."""
    top_k: int | None = None
    """Tokens are drawn from this number of likeliest tokens; from all when left out."""

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise GenerationError(f"tokens = {self.tokens}, must lie between 1 and {MOST_TOKENS:,}")
        if not 0 <= self.temperature < float("inf"):
            raise GenerationError(f"temperature = {self.temperature}, must be a finite number of at least 0")
        if not 0 < self.top_p <= 1:
            raise GenerationError(f"top_p = {self.top_p}, must lie in (0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise GenerationError(f"top_k = {self.top_k}, must be at least 1; leave it out for all tokens")


def prompt_ids(
    model: LanguageModel, text: str, chat: bool = False, first: Sequence[int] | None = None
) -> list[int]:
    """Return the token ids of a prompt: `first`, then the text; with `chat`, a user's turn without `first`.

    `first` are the ids that a text begins with: those of the windows an SAE was trained on (`Run.first_tokens`), or by
    default the tokenizer's BOS, if it has one.

    A chat prompt is laid out by the tokenizer's own template and ends where the answer begins; its ids are those of
    `apply_chat_template`. Special tokens spelled out in the text are tokenised as ordinary characters, as in a store.
    Raises GenerationError when the prompt is empty, the tokenizer has no chat template, or its template fails."""
    tokenizer = model.tokenizer
    if chat:
        try:
            ids = ChatTemplate(tokenizer).ids([{"role": "user", "content": text}], answer=True)
        except ChatError as error:
            raise GenerationError(f"{model.name}: {error}") from error
    else:
        beginning = first_token(tokenizer, PackingConfig()) if first is None else [*first]
        ids = beginning + plain_ids(tokenizer, text)
    if not ids:
        raise GenerationError(
            f"the prompt is empty and {model.name} has no token that begins a text: write at least one character"
        )
    return ids


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    edits: Mapping[str, PlacedEdit] | None = None,
    sampling: Sampling | None = None,
    seeds: Sequence[int] = (0,),
    on_token: Callable[[int], None] = lambda n: None,
    cache: bool = True,
    on_texts: Callable[[list[list[int]]], None] | None = None,
) -> list[list[int]]:
    """Return the new token ids of one continuation of the prompt for each seed, up to and including an end-of-text token.

    The continuations run side by side. Keys and values of earlier tokens, or a recurrent state, are kept if the plain model
    agrees with the bridge at all hook points. Otherwise, for a model that keeps no state, or with `cache=False`, every step
    reads all tokens again. Each continuation has a generator of its own, seeded with its seed, and draws token =
    argmax(log p / temperature + Gumbel noise): two models with equal predictions draw equal tokens from equal seeds, and
    models that differ little often do. `on_token` is called after every step with the number of tokens of each
    continuation, and `on_texts` with all their tokens so far; an exception that either raises ends the work. Raises GenerationError when prompt and tokens do not fit the model."""
    sampling = sampling or Sampling()
    _check(model, prompt, sampling, seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    ends = _end_ids(model)
    rows = [list(prompt) for _ in seeds]
    unfinished = set(range(len(rows)))
    with _reader(model, edits or {}, cache) as read:
        for count in range(1, sampling.tokens + 1):
            logits = read(torch.tensor(rows, device=model.device))
            for number, row in enumerate(rows):
                # A row that has ended goes on, unused, because all rows have to have the same length
                row.append(_choose(logits[number], sampling, generators[number]))
                if row[-1] in ends:
                    unfinished.discard(number)
            on_token(count)
            if on_texts:
                on_texts(_continuations(rows, prompt, ends))
            if not unfinished:
                break
    return _continuations(rows, prompt, ends)


def _check(model: LanguageModel, prompt: Sequence[int], sampling: Sampling, seeds: Sequence[int]) -> None:
    if not prompt or not seeds:
        raise GenerationError(
            f"the prompt has {len(prompt)} tokens and there are {len(seeds)} seeds, at least 1 of each is needed"
        )
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise GenerationError(f"seed = {seed}, must lie between 0 and 2^64 - 1")
    total = len(prompt) + sampling.tokens
    if model.longest is not None and total > model.longest:
        raise GenerationError(
            f"a prompt of {len(prompt)} tokens and {sampling.tokens} new ones make {total}, {model.name} reads at most "
            f"{model.longest}: shorten the prompt or ask for fewer new tokens"
        )


@contextmanager
def _reader(
    model: LanguageModel, edits: Mapping[str, PlacedEdit], cache: bool
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function from sequences [n, T] to next-token logits [n, V]; each call has to extend the sequences of the last."""
    sites = model.plain_sites(list(edits)) if cache else None
    name = None if sites is None else model.state_kept
    if sites is None or name is None:
        for hook in edits:
            model.check_hook(hook)
        yield lambda tokens: model.logits(tokens, edits)[:, -1]
        return
    n_read, state = 0, None

    def step(tokens: Tensor) -> Tensor:
        nonlocal n_read, state
        argument = {} if state is None else {name: state}
        output = model.plain(tokens[:, n_read:], use_cache=True, **argument)
        n_read, state = tokens.shape[1], output[name]
        return output.logits[:, -1]

    def placed(edit: PlacedEdit) -> Callable[[Tensor], Tensor]:
        return lambda x: edit(x, n_read)  # evaluated during `step`, before it moves on

    with attached(
        model.plain, [(site, placed(edit)) for site, edit in zip(sites, edits.values(), strict=True)]
    ):
        yield step


def _choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    logits = logits.float().cpu()
    check_logits(logits)
    if sampling.temperature == 0:
        return int(logits.argmax())
    log_p = (logits / sampling.temperature).log_softmax(-1)
    if log_p.isnan().any():
        # At a tiny temperature the quotient overflows float32. Relative to the largest logit, in float64, it cannot
        relative = logits.double() - logits.max().double()
        log_p = (relative / sampling.temperature).log_softmax(-1).float()
    # One for every token, allowed or not, so that top_p and top_k do not change the noise of the others
    uniform = torch.rand(len(log_p), generator=generator)
    allowed = _likely(log_p, sampling)
    gumbel = -(-uniform[allowed].log()).log()
    return int(allowed[(log_p[allowed] + gumbel).argmax()])


def _likely(log_p: Tensor, sampling: Sampling) -> Tensor:
    """Return the ids of the tokens that may be drawn."""
    most = min(sampling.top_k or len(log_p), len(log_p))
    if sampling.top_p == 1:
        return log_p.topk(most).indices if most < len(log_p) else torch.arange(most)
    best = log_p.topk(min(HEAD, most))
    if best.values.exp().sum() < sampling.top_p:
        best = log_p.topk(most)
    likelier = best.values.exp().cumsum(0) - best.values.exp()
    allowed = likelier < sampling.top_p
    allowed[0] = True  # a top_p below the smallest float32 compares as 0
    return best.indices[allowed]


def check_logits(logits: Tensor) -> None:
    """Raise GenerationError unless the largest of the next-token logits [..., V] is finite; others may be -inf."""
    best = logits.amax(-1)  # NaN if any logit is NaN
    if not best.isfinite().all():
        raise GenerationError(
            "the model's next-token logits are not finite: activations overflow its precision; lower the strength if "
            "the model is steered, otherwise load it in float32"
        )


def _continuations(rows: list[list[int]], prompt: Sequence[int], ends: set[int]) -> list[list[int]]:
    return [_until_end(row[len(prompt) :], ends) for row in rows]


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    last = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: last + 1]


def _end_ids(model: LanguageModel) -> set[int]:
    """Return every id that ends a text, according to the tokenizer and to the model's generation settings."""
    configured = getattr(model.plain.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (*listed, model.tokenizer.eos_token_id) if token is not None}
