"""Small tokenizers of every common kind, trained when needed and wrapped as transformers loads them."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The cat sat on the mat, and the naïve birds of 1999 flew over 12,345 houses; it's what they'd do.",
    "Tokens come  in runs:   spaces,\ttabs\nand\n\nlines. USER: hello ASSISTANT: hi there </s> <b>bold</b>",
    "def f(x):\n    return x ** 2  # a square\n\n\nclass A:\n        pass\n",
    "人工智能正在改变世界,我们每天都在使用它。今天天气很好。",
    "الذكاء الاصطناعي يغير العالم كل يوم",
    "कृत्रिम बुद्धिमत्ता दुनिया को बदल रही है",
    "Ein größerer Überblick über die Straße; où est la bibliothèque?",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 👍🏽 thumbs",
    "aaaa aaaaaaaa abababab hahahaha",
]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_bpe(prefix_space: bool = False) -> Tokenizer:
    """Train a byte-level BPE, as GPT-2, Llama 3 and Qwen have."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    built.train_from_iterator(CORPUS, trainer)
    return built


def sentencepiece_bpe(style: str) -> Tokenizer:
    """Train a SentencePiece BPE: of Llama 2 (`legacy`: the normaliser puts ▁ in front; `metaspace`: Metaspace does) or of
    Gemma (nothing does)."""
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [*SPECIAL, *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    learned.train_from_iterator(CORPUS, trainer)
    vocabulary = learned.get_vocab()
    merges: list[tuple[str, str]] = []
    for run in (2, 4, 8, 16):  # these tokenizers have runs of spaces as pieces
        vocabulary.setdefault("▁" * run, len(vocabulary))
        merges.append(("▁" * (run // 2), "▁" * (run // 2)))
    pairs = [tuple(pair) for pair in _merges(learned)]
    known = [*pairs, *(pair for pair in merges if pair not in pairs)]
    built = Tokenizer(
        models.BPE(vocabulary, known, unk_token="<unk>", fuse_unk=True, byte_fallback=True)  # type: ignore[arg-type]
    )
    spaces = normalizers.Replace(" ", "▁")
    if style == "legacy":
        built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    elif style == "metaspace":
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        built.normalizer = spaces
        built.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [] if style == "gemma" else [decoders.Strip(" ", 1, 0)]
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    built.add_special_tokens(SPECIAL)
    return built


def unigram() -> Tokenizer:
    """Train a unigram model, as T5 and XGLM have: NFKC, runs of spaces collapsed to one, byte fallback."""
    learned = Tokenizer(models.Unigram())
    learned.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    learned.train_from_iterator(CORPUS, trainer)
    pieces = sorted(learned.get_vocab(), key=lambda piece: learned.token_to_id(piece) or 0)
    scored = _scores(learned)
    vocabulary = [(piece, scored[piece]) for piece in pieces] + [(piece, -20.0) for piece in BYTES]
    learned.model = models.Unigram(vocabulary, 0, True)
    return learned


def wordpiece() -> Tokenizer:
    """Train a WordPiece, as BERT has: lower case, no accents, words of more than 100 letters unknown."""
    built = Tokenizer(models.WordPiece(unk_token="<unk>"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    built.train_from_iterator(CORPUS, trainer)
    return built


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-bpe": byte_bpe,
    "byte-bpe-prefix": lambda: byte_bpe(prefix_space=True),
    "llama2": lambda: sentencepiece_bpe("legacy"),
    "metaspace": lambda: sentencepiece_bpe("metaspace"),
    "gemma": lambda: sentencepiece_bpe("gemma"),
    "unigram": unigram,
    "wordpiece": wordpiece,
}


@cache
def trained(kind: str) -> str:
    """Return the tokenizer.json of a kind, which is trained once per process."""
    return KINDS[kind]().to_str()


def tokenizer(kind: str, **settings) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one of KINDS, with <s>, </s> and <unk>; `settings` go to transformers."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained(kind)), **special)


def _model(learned: Tokenizer) -> dict[str, Any]:
    return json.loads(learned.to_str())["model"]


def _merges(learned: Tokenizer) -> list[list[str]]:
    return _model(learned)["merges"]


def _scores(learned: Tokenizer) -> dict[str, float]:
    return dict(_model(learned)["vocab"])
