"""Small tokenizers of every common kind, trained on the spot, as transformers loads them."""

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
    """GPT-2, Llama 3 and Qwen: BPE over bytes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def sentencepiece_bpe(style: str) -> Tokenizer:
    """Llama 2 (`legacy`: the normaliser puts ▁ in front; `metaspace`: Metaspace does) and Gemma (nothing does)."""
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [*SPECIAL, *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    learned.train_from_iterator(CORPUS, trainer)
    vocabulary = learned.get_vocab()
    merges: list[tuple[str, str]] = []
    for run in (2, 4, 8, 16):  # runs of spaces are pieces there
        vocabulary.setdefault("▁" * run, len(vocabulary))
        merges.append(("▁" * (run // 2), "▁" * (run // 2)))
    pairs = [tuple(pair) for pair in _merges(learned)]
    known = [*pairs, *(pair for pair in merges if pair not in pairs)]
    made = Tokenizer(
        models.BPE(vocabulary, known, unk_token="<unk>", fuse_unk=True, byte_fallback=True)  # type: ignore[arg-type]
    )
    spaces = normalizers.Replace(" ", "▁")
    if style == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    elif style == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = spaces
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [] if style == "gemma" else [decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    made.add_special_tokens(SPECIAL)
    return made


def unigram() -> Tokenizer:
    """T5 and XGLM: unigram pieces after NFKC, runs of spaces made one, byte fallback."""
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
    """BERT: lower case, accents gone, words of more than 100 letters unknown."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return made


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
    """A kind's tokenizer.json; training is done once a process."""
    return KINDS[kind]().to_str()


def tokenizer(kind: str, **settings) -> PreTrainedTokenizerFast:
    """A tokenizer of one of KINDS, with <s>, </s> and <unk>; settings go to transformers."""
    given = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained(kind)), **given)


def _model(learned: Tokenizer) -> dict[str, Any]:
    return json.loads(learned.to_str())["model"]


def _merges(learned: Tokenizer) -> list[list[str]]:
    return _model(learned)["merges"]


def _scores(learned: Tokenizer) -> dict[str, float]:
    return dict(_model(learned)["vocab"])
