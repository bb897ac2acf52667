"""Text going on: a prompt's token ids, and what the model adds to them, seeded, cached, with edits on the way."""

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

MOST_TOKENS = 2**20  # of a continuation: no model reads further, and each token takes memory
LARGEST_SEED = 2**64 - 1  # of torch's generators
HEAD = 1024  # likeliest tokens looked at first: nearly always enough for top_p, and ten times faster than sorting all


class PlacedEdit(Protocol):
    """An edit that is told where it works: x [n, T, D] are positions first ... first + T - 1 of a sequence.

    Called without `first` it sees the sequence from its start, so that it is an `Edit` too."""

    def __call__(self, x: Tensor, first: int = 0, /) -> Tensor:
        """What goes on instead of x, of the same shape."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How next tokens are chosen."""

    tokens: int = 40
    """New tokens, at most: a continuation ends with the end-of-text token before."""
    temperature: float = 0.0
    """Divides the logits; at 0 the likeliest token is taken and nothing is random."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability are drawn from; 1 for all."""
    top_k: int | None = None
    """Only so many of the likeliest tokens are drawn from; all when left out."""

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MOST_TOKENS:
            raise GenerationError(f"tokens = {self.tokens} must lie between 1 and {MOST_TOKENS:,}")
        if not 0 <= self.temperature < float("inf"):
            raise GenerationError(f"temperature = {self.temperature} must be a number of at least 0")
        if not 0 < self.top_p <= 1:
            raise GenerationError(f"top_p = {self.top_p} must lie in (0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise GenerationError(f"top_k = {self.top_k} must be at least 1; leave it out for all tokens")


def prompt_ids(
    model: LanguageModel, text: str, chat: bool = False, first: Sequence[int] | None = None
) -> list[int]:
    """Token ids of a prompt: `first` and the text; with `chat` as a user's turn, without `first`.

    `first` are the ids a text begins with: those of the windows an SAE was trained on (`Run.first_tokens`), or the
    tokenizer's BOS, where it has one, when left out.

    A chat prompt is laid out by the tokenizer's own template and ends where the answer begins; its ids are those of
    `apply_chat_template`. Special tokens spelled out in the text are data: they are tokenised as the characters
    they are, as in a store. Raises GenerationError when nothing is left to read, the tokenizer has no chat
    template, or its template fails."""
    tokenizer = model.tokenizer
    if chat:
        try:
            ids = ChatTemplate(tokenizer).ids([{"role": "user", "content": text}], answer=True)
        except ChatError as error:
            raise GenerationError(f"{model.name}: {error}") from error
    else:
        begins = first_token(tokenizer, PackingConfig()) if first is None else [*first]
        ids = begins + plain_ids(tokenizer, text)
    if not ids:
        raise GenerationError(
            f"the prompt is empty and {model.name} has no token to begin a text: write some"
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
) -> list[list[int]]:
    """New token ids of one continuation of the prompt for each seed; an end-of-text token is the last there.

    The continuations run side by side, with keys and values of earlier tokens (or a recurrent state) kept, in
    the plain model where it agrees with the bridge at all hook points. Elsewhere, for a model that keeps
    nothing, or with `cache=False`, every step reads all tokens again. A continuation is drawn with a generator of its own, seeded with its seed: token =
    argmax(log p / temperature + Gumbel noise), so that two models with equal predictions draw equal tokens from
    equal seeds, and models that differ little often do. `on_token` is told how many tokens each continuation
    has; what it raises ends the work. Raises GenerationError when prompt and tokens do not fit the model."""
    sampling = sampling or Sampling()
    _check(model, prompt, sampling, seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    ends = _end_ids(model)
    rows = [list(prompt) for _ in seeds]
    going = set(range(len(rows)))
    with _reader(model, edits or {}, cache) as read:
        for count in range(1, sampling.tokens + 1):
            logits = read(torch.tensor(rows, device=model.device))
            for place, row in enumerate(rows):
                row.append(_choose(logits[place], sampling, generators[place]))
                if row[-1] in ends:
                    going.discard(place)
            on_token(count)
            if not going:
                break
    return [_until_end(row[len(prompt) :], ends) for row in rows]


def _check(model: LanguageModel, prompt: Sequence[int], sampling: Sampling, seeds: Sequence[int]) -> None:
    if not prompt or not seeds:
        raise GenerationError(
            f"a prompt of {len(prompt)} tokens and {len(seeds)} seeds given: needed is one of each"
        )
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise GenerationError(f"seed = {seed} must lie between 0 and 2^64 - 1")
    asked = len(prompt) + sampling.tokens
    if model.longest is not None and asked > model.longest:
        raise GenerationError(
            f"a prompt of {len(prompt)} tokens and {sampling.tokens} new ones make {asked}, {model.name} reads "
            f"{model.longest} at most: shorten the prompt or ask for fewer"
        )


@contextmanager
def _reader(
    model: LanguageModel, edits: Mapping[str, PlacedEdit], cache: bool
) -> Iterator[Callable[[Tensor], Tensor]]:
    """What gives the next token's logits [n, V] for sequences [n, T], each call's longer than the last's."""
    sites = model.plain_sites(list(edits)) if cache else None
    name = None if sites is None else model.state_kept
    if sites is None or name is None:
        for hook in edits:
            model.check_hook(hook)
        yield lambda tokens: model.logits(tokens, edits)[:, -1]
        return
    read, kept = 0, None

    def step(tokens: Tensor) -> Tensor:
        nonlocal read, kept
        given = {} if kept is None else {name: kept}
        output = model.plain(tokens[:, read:], use_cache=True, **given)
        read, kept = tokens.shape[1], output[name]
        return output.logits[:, -1]

    def placed(edit: PlacedEdit) -> Callable[[Tensor], Tensor]:
        return lambda x: edit(x, read)

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
    if (
        log_p.isnan().any()
    ):  # the quotient is beyond float32: relative to the largest logit, in float64, it cannot overflow
        relative = logits.double() - logits.max().double()
        log_p = (relative / sampling.temperature).log_softmax(-1).float()
    uniform = torch.rand(len(log_p), generator=generator)  # one for every token, whichever may be drawn
    allowed = _likely(log_p, sampling)
    gumbel = -(-uniform[allowed].log()).log()
    return int(allowed[(log_p[allowed] + gumbel).argmax()])


def _likely(log_p: Tensor, sampling: Sampling) -> Tensor:
    """Ids of the tokens that may be drawn."""
    most = min(sampling.top_k or len(log_p), len(log_p))
    if sampling.top_p == 1:
        return log_p.topk(most).indices if most < len(log_p) else torch.arange(most)
    best = log_p.topk(min(HEAD, most))
    if best.values.exp().sum() < sampling.top_p:
        best = log_p.topk(most)
    before = best.values.exp().cumsum(0) - best.values.exp()
    allowed = before < sampling.top_p
    allowed[0] = True  # in float32 a top_p below its smallest number is 0
    return best.indices[allowed]


def check_logits(logits: Tensor) -> None:
    """Raise GenerationError unless next-token logits [..., V] are numbers to choose by; single tokens may be at -inf."""
    best = logits.amax(-1)  # NaN where any is
    if not best.isfinite().all():
        raise GenerationError(
            "the model's next-token logits are not finite: what passes it overflows its precision; where it is steered, "
            "lower the strength, else load it in float32"
        )


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: last + 1]


def _end_ids(model: LanguageModel) -> set[int]:
    """Every id that ends a text, of the tokenizer and of the model's own settings."""
    own = getattr(model.plain.generation_config, "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return {token for token in (*listed, model.tokenizer.eos_token_id) if token is not None}
