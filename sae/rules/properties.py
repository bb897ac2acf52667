"""Properties of a token that rules may ask for: how it is written, its script, its language, where it stands."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Test = Callable[[str], bool]
LETTER = re.compile(r"[^\W\d_]")


def _matches(pattern: str) -> Test:
    compiled = re.compile(pattern)
    return lambda text: compiled.fullmatch(text) is not None


PIECES: dict[str, Test] = {
    "capitalised": lambda text: (
        (bare := text.strip())[:1].isupper() and (len(bare) == 1 or not bare.isupper())
    ),
    "in capitals": lambda text: len(bare := text.strip()) > 1 and bare.isupper(),
    "digits": _matches(r"\s*\d+"),
    "contains a digit": lambda text: any(character.isdigit() for character in text),
    "punctuation": lambda text: bool(bare := text.strip()) and not any(c.isalnum() for c in bare),
    "end of a sentence": _matches(r"\s*[.!?…]+[\"”’')\]]*\s*"),
    "a bracket": _matches(r"\s*[()\[\]{}<>]+\s*"),
    "a quotation mark": _matches(r"\s*[\"“”„«»‘’'`]+\s*"),
    "line break": lambda text: "\n" in text,
    "white space": lambda text: bool(text) and not text.strip(),
    "a single letter": _matches(r"\s*[^\W\d_]"),
    "not ASCII": lambda text: not text.isascii(),
}
"""Properties of one token's text."""
WORDS: dict[str, Test] = {
    "a year": _matches(r"1[0-9]{3}|20[0-9]{2}"),
    "a number of several digits": _matches(r"\d{2,}"),
    "a decimal or grouped number": _matches(r"\d+([.,]\d+)+"),
    "an ordinal number": _matches(r"\d+(st|nd|rd|th)"),
    "a Roman numeral": _matches(r"(?=[IVXLCDM]{2,})M*(C[MD]|D?C*)(X[CL]|L?X*)(I[XV]|V?I*)"),
    "an acronym with points": _matches(r"([A-Z]\.){2,}[A-Z]?"),
    "a hyphenated word": _matches(r"[^\W\d_]+(-[^\W\d_]+)+"),
    "a web address": _matches(r"(https?://|www\.)\S*"),
    "an e-mail address": _matches(r"[\w.+-]+@[\w.-]+"),
    "camelCase": _matches(r"[a-z]+([A-Z][a-z]+)+"),
    "snake_case": _matches(r"[a-z]+(_[a-z0-9]+)+"),
    "hexadecimal": _matches(r"0x[0-9a-fA-F]+"),
}
"""Properties of the word up to and including the token: regular expressions on it."""
LANGUAGES: dict[str, str] = {
    "English": "the of and to in is was that for with as his it by on are from which were",
    "German": "der die und das den von zu mit sich ist nicht auf ein eine dem wurde als auch im",
    "French": "le la les et des en du une est dans qui par pour pas au sur plus il avec",
    "Spanish": "el los las y del que por con una su para es al como más fue lo se",
    "Italian": "il di che della per un è con non sono una nel dei alla gli anche come",
    "Portuguese": "o os da do em um para com não uma dos ao mais como foi das pela",
    "Dutch": "de het een van en in dat op te zijn met voor niet aan werd ook door",
    "Swedish": "och att det som en på är av för med till den har inte ett om",
    "Polish": "w i na z do nie się że jest o to przez po od jak oraz",
}
"""Frequent short words of languages; a window is of the language most of whose words it has, from LEAST_WORDS on."""
LEAST_WORDS = 4
FIRST = (1, 2, 5, 20, 100)  # tokens of a document, and of a window, that count as its beginning


def written(texts: Sequence[str], tests: dict[str, Test]) -> dict[str, NDArray[np.bool_]]:
    """Return for each test which of the texts pass it."""
    return {name: np.fromiter(map(test, texts), bool, len(texts)) for name, test in tests.items()}


def scripts(texts: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return for each script (Latin, Cyrillic, …) which of the texts have a letter of it as their first letter."""
    of_text = [
        unicodedata.name(letter[0], "").partition(" ")[0].capitalize()
        if (letter := LETTER.search(text))
        else ""
        for text in texts
    ]
    return {
        f"{script} script": np.array([one == script for one in of_text])
        for script in Counter(of_text)
        if script
    }


def languages(words: Sequence[str], of_row: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Return for each language which windows are of it. `of_row` [W, T] is the number in `words` of each row's word."""
    lists = {language: set(listed.split()) for language, listed in LANGUAGES.items()}
    counts = np.stack(
        [np.array([word in listed for word in words])[of_row].sum(1) for listed in lists.values()]
    )
    most = counts.argmax(0)
    enough = counts.max(0) >= LEAST_WORDS
    return {f"{language} text": (most == place) & enough for place, language in enumerate(lists)}


def places(
    pieces: Sequence[str], tokens: NDArray[np.int32], positions: NDArray[np.int32]
) -> dict[str, NDArray[np.bool_]]:
    """Return properties [W, T] of a token's place. `pieces` holds the text of every token id."""
    columns = np.arange(tokens.shape[1])
    found: dict[str, NDArray[np.bool_]] = {}
    for n in FIRST:
        name = "the first token" if n == 1 else f"the first {n} tokens"
        found[f"{name} of a document"] = (positions >= 0) & (positions < n)
        if n > 1:
            found[f"{name} of the window"] = np.broadcast_to(columns < n, tokens.shape)
    breaks, ends = (
        np.array([name in piece or bool(PIECES["end of a sentence"](piece)) * both for piece in pieces])[
            tokens
        ]
        for name, both in (("\n", False), ("\n", True))
    )
    found["at the start of a line"] = _shifted(breaks)
    found["at the start of a sentence"] = _shifted(ends)
    opened = np.array([piece.count("(") - piece.count(")") for piece in pieces])[tokens]
    found["inside brackets"] = _shifted(_depth(opened) > 0)
    quotes = np.array([piece.count('"') for piece in pieces])[tokens].cumsum(1) % 2 == 1
    curly = np.array([piece.count("“") - piece.count("”") for piece in pieces])[tokens]
    found["inside quotation marks"] = _shifted(quotes | (_depth(curly) > 0))
    return found


def _shifted(holds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what held at the token before; nothing holds before a window's first."""
    before = np.zeros_like(holds)
    before[:, 1:] = holds[:, :-1]
    return before


def _depth(opened: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many brackets are open after each token of a window. One that closes none is ignored."""
    running = opened.cumsum(1)
    return running - np.minimum(np.minimum.accumulate(running, 1), 0)
