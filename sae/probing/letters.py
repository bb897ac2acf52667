"""The first-letter task: words of a model's vocabulary, prompts that spell them, probes for each letter and the latents behind them.

Chanin et al. 2024, arXiv:2409.14507, as SAEBench runs it (`sae_bench/evals/absorption` of sae-bench 0.6). Probes minimise the
objectives that SAEBench's Adam is given, to convergence."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from activations.errors import LabelError
from activations.vocabulary import Vocabulary
from sae.probing.probes import Matrix, columns

LETTERS = ascii_lowercase
EXAMPLES = 10  # spelled words before the one that is read
TRAIN_SHARE = 0.8
PROBE_DECAY = (
    26e-4  # 1e-4 for the mean over 26 letters, for which SAEBench's loss is a 26th of that of one letter
)
L1 = 0.01  # of the probe that ranks latents
FEWEST = 4  # training words of a letter, and others
INTERCEPT = 1000  # liblinear penalises the intercept; with a large scale that does not matter


@dataclass(frozen=True)
class Words:
    """Words with what the model reads of them; the first ones train, the others test."""

    texts: list[str]
    letters: NDArray[np.int64]
    """Place in LETTERS of each word's first letter."""
    prompts: list[str]
    """For each word other words with their letters, a line each, then the word itself, whose token is the last."""
    n_train: int


def words_of(vocabulary: Vocabulary, most: int, seed: int) -> Words:
    """Draw up to `most` tokens that are letters from a to z with at most one space before them, and write their prompts.

    Prompts have words of the same part, training or test. A word is left out whose token does not come back as the last one of
    its prompt. Raises LabelError when fewer than 26 are left, or none of a part."""
    rng = np.random.default_rng(seed)
    names = vocabulary.text.names
    known = vocabulary.text.known.tolist()
    spelled = [(names[token], token) for token in known if _is_word(names[token])]
    drawn = [spelled[at] for at in rng.permutation(len(spelled))[:most]]
    n_train = int(TRAIN_SHARE * len(drawn))
    parts = drawn[:n_train], drawn[n_train:]
    training, test = (
        [
            (word, prompt)
            for word, token in part
            if vocabulary.encode(prompt := _prompt(word, [other for other, _ in part], rng))[-1:] == [token]
        ]
        for part in parts
    )
    kept = [*training, *test]
    if len(kept) < len(LETTERS):
        raise LabelError(
            f"the vocabulary has {len(kept)} tokens that are words of the letters a to z: the first-letter task needs more"
        )
    if not training or not test:
        which = "test" if training else "training"
        raise LabelError(
            f"none of the {which} words comes back as the last token of its prompt, out of {len(parts[bool(training)])}: the "
            f"first-letter task needs words of both parts"
        )
    letters = np.array([LETTERS.index(word.strip()[0].lower()) for word, _ in kept])
    return Words([word for word, _ in kept], letters, [prompt for _, prompt in kept], len(training))


def _is_word(name: str) -> bool:
    bare = name.removeprefix(" ")
    return bare.isascii() and bare.isalpha()


def _prompt(word: str, others: Sequence[str], rng: np.random.Generator) -> str:
    """Return lines that say other words' first letters, and the word."""
    places = rng.choice(len(others), min(EXAMPLES + 1, len(others)), replace=False)
    examples = [others[int(at)] for at in places if others[int(at)] != word][:EXAMPLES]
    lines = [f"{one} has the first letter: {one.strip()[0].upper()}" for one in examples]
    return "\n".join([*lines, word])


@dataclass(frozen=True)
class LetterProbe:
    """A linear probe for one letter; a row has it where `row @ weights + bias` is above 0."""

    weights: Float[np.ndarray, "D"]
    bias: float

    def scores(self, x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n"]:
        """Return the log-odds of rows."""
        return x @ self.weights + self.bias


def letter_probe(x: Float[np.ndarray, "n D"], y: Bool[np.ndarray, "n"]) -> LetterProbe:
    """Fit a logistic regression on activations, in which both classes weigh as much. Raises LabelError with fewer than FEWEST of either."""
    from sklearn.linear_model import LogisticRegression

    refuse_few(y)
    strength = 1 / (len(y) * PROBE_DECAY)
    model = LogisticRegression(C=strength, class_weight=_weights(y), max_iter=1000).fit(x, y)
    return LetterProbe(model.coef_[0], float(model.intercept_[0]))


def refuse_few(y: Bool[np.ndarray, "n"]) -> None:
    """Raise LabelError unless there are FEWEST rows of either class."""
    if min(y.sum(), (~y).sum()) < FEWEST:
        raise LabelError(
            f"{int(y.sum())} words of {len(y)} have the letter: a probe needs at least {FEWEST} of either kind"
        )


def ranked_latents(values: Matrix, y: Bool[np.ndarray, "n"], count: int) -> list[int]:
    """Return the latents with the largest weights in an L1-regularised logistic regression, signs counted, the largest first.

    `values` are a scipy CSR array [n, F]."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=1 / (len(y) * L1), l1_ratio=1, solver="liblinear", class_weight=_weights(y),
        intercept_scaling=INTERCEPT, random_state=0, max_iter=300,
    )  # fmt: skip
    weights = model.fit(values, y).coef_[0]
    return np.argsort(-weights, kind="stable")[:count].tolist()


@dataclass(frozen=True)
class Split:
    """The latents that stand for a letter."""

    latents: list[int]
    f1: float
    """F1 on test words of a logistic regression on these latents."""


def split_latents(
    values: Matrix,
    y: Bool[np.ndarray, "n"],
    values_test: Matrix,
    y_test: Bool[np.ndarray, "m"],
    most: int,
    jump: float,
) -> Split:
    """Return the latents that stand for a letter: as many of the best as raise the F1 by more than `jump` each.

    More than one means that the letter's feature is split. The first is always taken."""
    from sklearn.linear_model import LogisticRegression

    order = ranked_latents(values, y, most)
    best = Split([], -np.inf)
    for k in range(1, len(order) + 1):
        chosen = np.array(order[:k])
        model = LogisticRegression(max_iter=500, class_weight="balanced").fit(columns(values, chosen), y)
        score = f1(y_test, model.predict(columns(values_test, chosen)))
        if score <= best.f1 + jump:
            break
        best = Split(order[:k], score)
    return best


def f1(truth: Bool[np.ndarray, "m"], said: Bool[np.ndarray, "m"]) -> float:
    """Return the harmonic mean of precision and recall; 0 where nothing is both said and true."""
    both = int((truth & said).sum())
    return 2 * both / max(int(truth.sum() + said.sum()), 1)


def _weights(y: Bool[np.ndarray, "n"]) -> dict[bool, float]:
    """Return weights of the classes with which both have the same sum, the negative one weighing 1 a row."""
    return {False: 1.0, True: float((~y).sum() / y.sum())}
