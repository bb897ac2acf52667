"""Toy data of the `activations` tests: windows and stores with chosen numbers, and a tiny GPT-2."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import assume, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from activations.store import Store, StoreSpec
from activations.store_writer import StoreWriter
from activations.tokens import NOWHERE, PackingConfig, Window
from tests import tiny

LAWS = settings(deadline=None, max_examples=50, derandomize=True)
PRINTABLE = [
    *range(33, 127),
    *range(161, 173),
    *range(174, 256),
]  # bytes that byte-level BPE writes as themselves
BYTES = PRINTABLE + [byte for byte in range(256) if byte not in PRINTABLE]
BOS, EOS = 0, 1


def byte_ids(text: str) -> list[int]:
    """Return the token ids that the toy tokenizer should give, by the rule of byte-level BPE alone."""
    return [2 + BYTES.index(byte) for byte in text.encode()]


def spec(
    hooks: dict[str, int], context: int, dtype: str = "float32", windows_per_shard: int = 2
) -> StoreSpec:
    """Return the spec of a store of made-up activations."""
    return StoreSpec(
        model="toy",
        model_revision=None,
        weights_sha256="0" * 64,
        tokenizer_sha256="1" * 64,
        dataset={"dataset": "made up"},
        dataset_revision=None,
        packing=PackingConfig(context=context),
        bos_token=BOS,
        hooks=hooks,
        dtype=dtype,
        windows_per_shard=windows_per_shard,
    )


def window(documents: list[int], positions: list[int], tokens: list[int] | None = None) -> Window:
    """Return a window with these documents and positions."""
    tokens = tokens or list(range(100, 100 + len(documents)))
    return Window(*(np.array(column, np.int32) for column in (tokens, documents, positions)))


def write(
    path: Path,
    about: StoreSpec,
    windows: list[Window],
    activations: dict[str, torch.Tensor],
    backwards: bool = False,
) -> Store:
    """Write a store of these windows and their activations [n, T, D], `windows_per_shard` in each shard."""
    writer = StoreWriter(path, about)
    starts = list(range(0, len(windows), about.windows_per_shard))
    for number, start in sorted(enumerate(starts), reverse=backwards):
        part = slice(start, start + about.windows_per_shard)
        writer.write(number, windows[part], {hook: x[part] for hook, x in activations.items()})
    writer.finish(len(starts), text_ended=True)
    return Store(path)


@st.composite
def window_lists(draw: st.DrawFn) -> list[Window]:
    """Draw windows like those of packing: with or without BOS, runs of documents and padding, with a row that counts."""
    context, bos = draw(st.integers(2, 9)), draw(st.booleans())
    document, made = draw(st.integers(0, 30)), []
    for _ in range(draw(st.integers(1, 6))):
        documents, positions = [NOWHERE] * bos, [NOWHERE] * bos
        while len(documents) < context:
            if len(documents) > bos and draw(st.booleans()):
                padding = context - len(documents)
                documents, positions = documents + [NOWHERE] * padding, positions + [NOWHERE] * padding
                break
            run, start = draw(st.integers(1, context - len(documents))), draw(st.integers(0, 40))
            documents, positions = documents + [document] * run, [*positions, *range(start, start + run)]
            document += draw(st.integers(1, 4))
        made.append(
            window(
                documents, positions, draw(st.lists(st.integers(0, 257), min_size=context, max_size=context))
            )
        )
    assume(rows_that_count(made))  # a store of none is refused
    return made


def assert_same_up_to_rounding(found: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    """Assert equality up to float32 rounding: 1e-5 of the largest value, about eighty units in its last place."""
    assert found.shape == expected.shape, what
    worst = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert worst < 1e-5, f"{what} differs by {worst:.1e}"


def rows_that_count(windows: list[Window], excluded: int = 1) -> list[tuple[int, int]]:
    """Return (window, column) of every row that is neither padding nor among the first `excluded`, found one by one."""
    found = []
    for number, one in enumerate(windows):
        for column, document in enumerate(one.documents):
            bos = column == 0 and document == NOWHERE
            if column >= excluded and (bos or document != NOWHERE):
                found.append((number, column))
    return found


def gpt2_folder(path: Path) -> Path:
    """Return a two-layer GPT-2: LayerNorm with biases, learned positions, tied unembedding, attention that returns a tuple."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=258, n_embd=12, n_layer=2, n_head=3, n_positions=32, bos_token_id=0, eos_token_id=1,
        initializer_range=0.3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if "ln_" in name or name.endswith(
            "bias"
        ):  # initialised to ones and zeros, which would hide a mistake
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path
