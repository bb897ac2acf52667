"""Explain the latents of an SAE from their firings on a store: rules, their scores, and the same for controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from activations.errors import ConfigError, check_seed
from sae.evaluation import bootstrap
from sae.evaluation.measures import DENSE
from sae.features.explanations import ENDS, KINDS, LATENT, NAMED, SCORES, Distribution
from sae.rules.corpus import Corpus
from sae.rules.families import Family
from sae.rules.score import Interval, Scores, score
from sae.rules.search import Chosen, choose
from sae.rules.similar import similar
from sae.rules.targets import Target
from sae.runs.records import Estimate

NO_RULE = "no rule"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ExplainConfig:
    """Settings of `sae explain`: the text to read, which firings count, and how many controls stand beside the latents."""

    tokens: int | None = 500_000
    """Read only the store's first tokens, rounded up to whole shards; half of them choose the rules, half score them."""
    least_firings: int = 10
    """Firings that a latent must have in either half to be explained."""
    above: float = 0.0
    """Only firings of at least this share of the latent's largest value count; 0 for all of them."""
    controls: int = 256
    """Random directions, and latents with shuffled firings, that are explained too."""
    batch: int = 2048
    """Rows encoded at once."""
    embeddings: bool = False
    """Also tell by word embeddings (WordLlama's, 19 MB, fetched once) whether the contexts that a latent fires on are alike."""
    seed: int = 0
    """Seed of the controls."""

    def __post_init__(self) -> None:
        for name in ("least_firings", "batch", "controls"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"tokens = {self.tokens} must be at least 1, or None for all of them")
        if not 0 <= self.above < 1:
            raise ConfigError(f"above = {self.above} must be at least 0 and below 1")
        check_seed(self.seed)


def explain_targets(
    targets: Sequence[Target],
    rows_of: Callable[[Target, bool], NDArray[np.int64]],
    nearest: Callable[[Target], list[tuple[int, NDArray[np.int64]]]],
    corpus: Corpus,
    families: Sequence[Family],
    embeddings: NDArray[np.float32] | None = None,
) -> pa.Table:
    """Return a row of explanations.parquet for each target.

    `rows_of` gives the rows on which a target fires, all or the strong ones; `nearest` its nearest latents with their rows. Without
    `embeddings` [V, E] of the tokens, scores that need them are null."""
    fires, strong = (
        _stacked([rows_of(target, only_strong) for target in targets], corpus.n_rows)
        for only_strong in (False, True)
    )
    halved = fires.multiply(corpus.choosing[None].astype(np.int32)).tocsr()
    halved.eliminate_zeros()
    rules = choose(halved, families, corpus.choosing)
    seeds = [(KINDS.index(target.kind), target.latent, target.sign + 1) for target in targets]
    alike = similar(fires, embeddings, corpus, seeds)
    scores = score(rules, fires, strong, [nearest(target) for target in targets], corpus, alike)
    return _table(targets, rules, scores, int(corpus.scoring.sum()))


def distributions(table: pa.Table, name: str) -> dict[str, Distribution]:
    """Return the distribution of a score over the explanations of each kind, controls paired with the latents they go with."""
    columns: dict[str, dict[tuple[int, int], float]] = {kind: {} for kind in KINDS}
    for kind, latent, sign, value in zip(
        *(table[column].to_pylist() for column in ("kind", "latent", "sign", name)), strict=True
    ):
        if value is not None:
            columns[kind][latent, sign] = value
    own = columns[LATENT]
    return {kind: distribution(values, None if kind == LATENT else own) for kind, values in columns.items()}


def distribution(
    values: Mapping[tuple[int, int], float], beside: Mapping[tuple[int, int], float] | None
) -> Distribution:
    """Return the distribution of a score by what is scored, paired with another kind's scores in `beside`, if it has any."""
    scores = list(values.values())
    if not scores:
        return Distribution(0, Estimate(None, None, None), {})
    both = [(beside[key], value) for key, value in values.items() if key in beside] if beside else []
    better = [own - control for own, control in both]
    return Distribution(
        len(scores),
        _mean(scores),
        {f"{q:g}": float(np.quantile(scores, q)) for q in QUANTILES},
        sum(score >= NAMED for score in scores) / len(scores),
        _mean(better) if better else None,
    )


def _mean(values: Sequence[float]) -> Estimate:
    return Estimate(*bootstrap.ratio(values, np.ones(len(values))))


def _stacked(rows: Sequence[NDArray[np.int64]], n_rows: int) -> Any:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in rows])])
    entries = np.ones(offsets[-1], np.int32), np.concatenate(rows).astype(np.int32), offsets
    return sparse.csr_matrix(entries, shape=(len(rows), n_rows))


def _table(targets: Sequence[Target], rules: Sequence[Chosen], scores: Scores, n_scored: int) -> pa.Table:
    made = [chosen.rule() for chosen in rules]
    dense = scores.fired >= DENSE * n_scored
    kinds = [
        rule.kind if rule.conditions else "dense" if everywhere else "none"
        for rule, everywhere in zip(made, dense.tolist(), strict=True)
    ]
    columns: dict[str, Any] = {
        "kind": pa.array([target.kind for target in targets], pa.string()),
        "latent": pa.array([target.latent for target in targets], pa.int32()),
        "sign": pa.array([target.sign for target in targets], pa.int8()),
        "explanation": pa.array(
            [NO_RULE if kind == "none" else str(rule) for rule, kind in zip(made, kinds, strict=True)],
            pa.string(),
        ),
        "rule": pa.array([rule.to_json() for rule in made], pa.string()),
        "rule_kind": pa.array(kinds, pa.string()),
    }
    for name in ("fired", "matched", "near"):
        columns[name] = pa.array(getattr(scores, name), pa.int64())
    confused = scores.confused_with
    columns["confused_with"] = pa.array(confused, pa.int32(), mask=confused < 0)
    for name in ("chance", "strong_recall"):
        columns[name] = pa.array(getattr(scores, name), from_pandas=True)  # nan becomes null
    for name in SCORES:
        interval: Interval = getattr(scores, name)
        for end, column in zip(ENDS, interval, strict=True):
            columns[name + end] = pa.array(column, pa.float64(), from_pandas=True)
    return pa.table(columns)
