"""One's own text under one latent: its value on each token."""

from typing import NamedTuple

import torch

from activations.models import LanguageModel
from sae.architectures import SAE
from sae.errors import ConfigError
from sae.features.write import token_text


class Trial(NamedTuple):
    """A text's tokens and a latent's value on each; what stands before it (BOS) is left out."""

    latent: int
    text: str
    tokens: list[str]
    values: list[float]


@torch.no_grad()
def try_text(model: LanguageModel, sae: SAE, hook: str, latent: int, text: str) -> Trial:
    """Run a text, after the model's BOS token if it has one, and encode what passes the hook point.

    Raises ConfigError for a text without a token, and for one longer than the model reads."""
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    bos = [] if model.tokenizer.bos_token_id is None else [model.tokenizer.bos_token_id]
    if not ids:
        raise ConfigError("there is no text to read: write a word or more")
    if model.longest and len(bos + ids) > model.longest:
        raise ConfigError(f"the text has {len(ids):,} tokens, the model reads {model.longest:,}: shorten it")
    x = model.capture(torch.tensor([bos + ids]), [hook])[hook][0, len(bos) :]
    code = sae.encode(x.to(sae.W_dec))
    found = torch.where(code.indices == latent, code.values, 0.0)
    values = found.new_zeros(len(ids)).index_add_(0, code.rows(), found)
    return Trial(latent, text, [token_text(model.tokenizer, token) for token in ids], values.tolist())
