"""Time a search through the labels, tokens and example texts of 65,536 features.

Run: python -m benchmarks.search [--features 65536]"""

import random
import time
from dataclasses import dataclass

import pyarrow as pa
import tyro
from rich.console import Console
from rich.table import Table

from sae.report import features as features_report
from sae.report.features import Wanted

LETTERS = "etaoinshrdlucmfw"
VOCABULARY, LINES, TOKENS = (
    30_000,
    10,
    21,
)  # words; examples a feature, and tokens of each, as `sae features` keeps
REPEATS = 5


@dataclass(frozen=True)
class Search:
    """Time searches through a made-up run."""

    features: int = 65_536
    """Features of the run."""


def made_up(n: int) -> tuple[pa.Table, pa.ChunkedArray]:
    """Make up a table of all features, and the text of their examples."""
    rng = random.Random(0)
    words = [" " + "".join(rng.choices(LETTERS, k=rng.randint(1, 9))) for _ in range(VOCABULARY)]
    texts = ["\n".join("".join(rng.choices(words, k=TOKENS)) for _ in range(LINES)) for _ in range(n)]
    tokens = pa.array([rng.choices(words, k=5) for _ in range(n)], pa.list_(pa.string()))
    columns = {
        "feature": pa.array(range(n), pa.int32()),
        "density": pa.array([100 * rng.random() for _ in range(n)]),
        "fires most on": tokens,
        "raises": tokens,
    }
    labels = {latent: f"label {rng.choice(words)}" for latent in rng.sample(range(n), n // 10)}
    return features_report.with_labels(pa.table(columns), labels), pa.chunked_array([texts])


def main() -> None:
    """Make the run, search it, print a table."""
    table, texts = made_up(tyro.cli(Search).features)
    start = time.perf_counter()
    haystack = features_report.haystack(table, texts)
    once = time.perf_counter() - start
    shown = Table(
        title=f"{len(table):,} features, {texts.nbytes / 1e6:,.0f} MB of examples, read once in {once:.2f} s"
    )
    for column in ("searched for", "found", "seconds, best of 5"):
        shown.add_column(column, justify="right")
    for words in ("e", "the", "label", "tion of", "no such text anywhere"):
        took, found = [], table
        for _ in range(REPEATS):
            start = time.perf_counter()
            found = features_report.filtered(table, Wanted(words, density=(0.1, 1.0)), haystack)
            took.append(time.perf_counter() - start)
        shown.add_row(words, f"{len(found):,}", f"{min(took):.3f}")
    Console().print(shown)


if __name__ == "__main__":
    main()
