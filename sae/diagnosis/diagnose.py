"""Diagnose an SAE on a store: which latents are dead, rare or dense, and why."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from activations.errors import RunError
from activations.language_model import LanguageModel
from activations.progress import Advance, ignore
from activations.store import Store
from sae.architectures import SAE
from sae.diagnosis import dense, report, what_if
from sae.diagnosis.causes import RULES, Evidence, cause_of, fires_on, living_of, training_of, words
from sae.diagnosis.evidence import (
    Firings,
    Nearest,
    PreActivations,
    Weights,
    firings,
    nearest_living,
    pre_activations,
    weights,
)
from sae.diagnosis.report import DeadReport, FiringColumns, LatentRow
from sae.diagnosis.sample import DeadConfig, Rows, off_distribution
from sae.evaluation.measures import DENSE
from sae.runs.records import Changes, DeadBy, DeadSummary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """Facts about the training of an SAE, and about its features if they were collected."""

    dead_after_tokens: int
    """Tokens without a firing after which training takes a latent for dead."""
    tokens: int
    """Tokens of the whole training."""
    history: dict[str, Tensor] | None = None
    """The latents' history in training, as `Run.history` returns it."""
    fired: Tensor | None = None
    """Firings [F] on the rows that `sae features` read, if it has run."""
    fired_rows: int = 0
    """Number of those rows."""


def diagnose(
    sae: SAE,
    store: Store,
    hook: str,
    cfg: DeadConfig,
    out: Path,
    sae_sha256: str,
    trained: Trained,
    borrow: Callable[[], AbstractContextManager[LanguageModel]] | None = None,
    vocabulary: Sequence[str] | None = None,
    advance: Advance = ignore,
) -> DeadReport:
    """Write the report into the folder `out` and return it opened; one of the same SAE, store and settings is kept as it is.

    A latent is dead that fires on none of the rows of text that are read, nor on any that `sae features` read. `borrow`
    lends the language model while it reads off-distribution text; without it that text is left out. `vocabulary` is the
    text of each token id; without it the model's own is used, and without either token classes are left out. `advance`
    is called with the number of rows of each batch (`workflows.diagnose.work` gives the total)."""
    job = {
        "sae_sha256": sae_sha256,
        "store_fingerprint": store.fingerprint,
        "hook": hook,
        "positions": store.positions,
        "config": asdict(cfg),
        "off_distribution": borrow is not None,
        "features_rows": trained.fired_rows,
        "history": trained.history is not None,
        "rules": {**asdict(RULES), "dense": asdict(dense.RULES)},
    }
    if finished := _finished(out, job):
        return finished
    rows = Rows(store, hook, cfg)
    other: dict[str, Tensor] = {}
    if borrow is not None:
        with borrow() as model:
            other = off_distribution(model, store, hook, cfg)
            vocabulary = vocabulary or model.vocabulary.text.names
    summary, table = examine(sae, rows, other, trained, vocabulary, advance)
    return report.write(out, job, summary, table)


def _finished(out: Path, job: Mapping[str, object]) -> DeadReport | None:
    """Return the report in the folder if it is whole and of this job, else None. A damaged one is reported and made again."""
    if not (out / report.INDEX).exists():
        return None
    try:
        finished = DeadReport(out)
        _ = finished.table
    except RunError as error:
        log.warning("%s; making it again", error.message)
        return None
    return finished if job.items() <= vars(finished.record).items() else None


def examine(
    sae: SAE,
    rows: Rows,
    other: dict[str, Tensor],
    trained: Trained,
    vocabulary: Sequence[str] | None = None,
    advance: Advance = ignore,
) -> tuple[DeadSummary, list[LatentRow]]:
    """Diagnose an SAE: counts and what-if curves, and a row for each latent that is dead, rare or dense.

    `other` are activations [n, D] of further groups, beside text and special positions."""
    counted = firings(sae, rows, other, advance)
    kinds = kinds_of(counted, trained)
    chosen = torch.tensor([latent for latent, kind in kinds.items() if kind != "dense"], dtype=torch.int64)
    measured = pre_activations(sae, rows, chosen, advance)
    table = _evidence(sae, counted, measured, chosen, kinds, trained)
    dense_rows = dense.describe(sae, rows, counted, None if vocabulary is None else list(vocabulary))
    table += [_dense_row(row, counted, trained) for row in dense_rows]
    is_dead = torch.tensor([kinds[latent] == "dead" for latent in chosen.tolist()], dtype=torch.bool)
    l0 = sae.cfg.expected_l0()
    changes = Changes(
        bias=what_if.bias_moved(measured, is_dead) if sae.encoder_bias() is not None else None,
        k=what_if.k_larger(measured, is_dead, None if l0.assumed else round(l0.value), sae.d_sae),
        threshold=what_if.thresholds_lower(measured, is_dead, sae.thresholds()),
        resample=what_if.resampled(sae, rows, chosen[is_dead], counted.text > 0),
    )
    return _summary(sae.d_sae, counted, table, changes), table


def _summary(d_sae: int, counted: Firings, table: list[LatentRow], changes: Changes) -> DeadSummary:
    """Count the latents by kind, and the dead by cause, by the data they fire on and by what became of them."""
    dead = [row for row in table if row["kind"] == "dead"]
    kinds = Counter(row["kind"] for row in table)
    return DeadSummary(
        d_sae=d_sae,
        rows=counted.rows,
        resolution=3 / counted.n_text,  # a latent of this density fires on no row with p = exp(-3) = 5 %
        changes=changes,
        kinds={kind: kinds[kind] for kind in report.KINDS},
        silent={name: int((counts == 0).sum()) for name, counts in counted.counts.items()},
        dead_by=DeadBy(
            cause=_counts(row.get("cause") for row in dead),
            fires_on=_counts(row["fires_on"] for row in dead),
            training=_counts(row["training"] for row in dead),
        ),
        dense_by_kind=_counts(row.get("dense_kind") for row in table if row["kind"] == "dense"),
    )


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    """Return how often each value occurs, in the order in which they first do; None does not count."""
    return dict(Counter(value for value in values if value is not None))


def kinds_of(counted: Firings, trained: Trained) -> dict[int, str]:
    """Return the kind of each latent that is dead, fires in training text only, is rare or dense, in order of latents."""
    text, fired = counted.text, counted.text
    density = counted.density
    if trained.fired is not None:
        fired = torch.maximum(text, trained.fired)
        density = torch.where(trained.fired > 0, trained.fired / max(trained.fired_rows, 1), density)
    rare = (fired > 0) & (density * trained.dead_after_tokens < RULES.rare)
    kinds: dict[int, str] = {}
    for latent in range(len(text)):
        counts = {name: int(counted.counts[name][latent]) for name in ("train", "held_out")}
        if not fired[latent]:
            kinds[latent] = "dead"
        elif text[latent] and fires_on(counts, counted.rows) == "training text only":
            kinds[latent] = "training only"
        elif rare[latent]:
            kinds[latent] = "rare"
        elif counted.density[latent] > DENSE:
            kinds[latent] = "dense"
    return kinds


def _evidence(
    sae: SAE,
    counted: Firings,
    measured: PreActivations,
    chosen: Tensor,
    kinds: dict[int, str],
    trained: Trained,
) -> list[LatentRow]:
    """Return a row of evidence, with its cause, for each of the chosen latents."""
    lives, of_weights = counted.text > 0, weights(sae, counted)
    near = nearest_living(sae, chosen, lives)
    projection = measured.mean_of_all.float()
    if of_weights.bias is not None:
        projection = projection - of_weights.bias
    thresholds = sae.thresholds().float().cpu()
    norms = (of_weights.encoder_norm, of_weights.decoder_norm)
    living = living_of(norms, of_weights.bias, thresholds, projection, lives)
    shared = bool((thresholds == thresholds[0]).all())
    columns = {
        **_of_pre_activations(measured),
        **_of_weights(of_weights, thresholds, chosen),
        **_of_nearest(near),
        "mean_projection": projection[chosen],
    }
    lists = {name: column.tolist() for name, column in columns.items()}
    table: list[LatentRow] = []
    for at, latent in enumerate(chosen.tolist()):
        # Any, because the fields of Evidence that these numbers become differ in type
        numbers: dict[str, Any] = {name: _plain(column[at]) for name, column in lists.items()}
        if of_weights.bias is None:
            numbers["mean_projection"] = None
        evidence = Evidence(
            kind=kinds[latent],
            by_competition=measured.by_rank or shared,
            signed=sae.signed,
            **numbers,
            **_of_firings(counted, trained, latent),
        )
        cause, also = cause_of(evidence, living)
        text = words(evidence, cause, also, living, aux_k=hasattr(sae.cfg, "aux_k"))
        row = {**vars(evidence), "cause": cause, "also": also, "evidence": text}
        table.append(cast("LatentRow", row))
    return table


def _of_firings(counted: Firings, trained: Trained, latent: int) -> FiringColumns:
    counts = {name: int(column[latent]) for name, column in counted.counts.items()}
    fate = training_of(trained.history, trained.dead_after_tokens, trained.tokens, latent)
    columns = {
        "latent": latent,
        "density": float(counted.density[latent]),
        "fires_on": fires_on(counts, counted.rows),
        **{f"fired_{name}": count for name, count in counts.items()},
        "fired_features": None if trained.fired is None else int(trained.fired[latent]),
        **vars(fate),
    }
    return cast("FiringColumns", columns)  # one `fired_` for each group of rows that there is


def _of_pre_activations(measured: PreActivations) -> dict[str, Tensor]:
    return {
        "margin": measured.margin,
        "needed": measured.needed,
        "best_drive": measured.margin + measured.needed,
        "positive_share": measured.positive_share,
        "mean_drive": measured.mean,
        "best_rank": measured.best_rank,
        "missing_places": measured.missing_places,
    }


def _of_weights(of_weights: Weights, thresholds: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    nan = torch.full_like(of_weights.encoder_norm, math.nan)
    columns = {
        "encoder_norm": of_weights.encoder_norm,
        "decoder_norm": of_weights.decoder_norm,
        "bias": nan if of_weights.bias is None else of_weights.bias,
        "threshold": thresholds,
        "mean_cosine": of_weights.mean_cosine,
        "special_cosine": nan if of_weights.special_cosine is None else of_weights.special_cosine,
    }
    return {name: column[chosen] for name, column in columns.items()}


def _of_nearest(near: Nearest) -> dict[str, Tensor]:
    return {
        "near_decoder": near.by_decoder,
        "near_decoder_cosine": near.decoder_cosine,
        "near_decoder_encoder_cosine": near.its_encoder_cosine,
        "near_encoder": near.by_encoder,
        "near_encoder_cosine": near.encoder_cosine,
    }


def _dense_row(row: dense.DenseRow, counted: Firings, trained: Trained) -> LatentRow:
    columns = {name: value for name, value in row.items() if name in report.SCHEMA.names}
    fired = _of_firings(counted, trained, row["latent"])
    return cast("LatentRow", {**columns, **fired, "kind": "dense", "dense_kind": row["kind"]})


def _plain(value: float) -> float | None:
    """Return None for NaN and infinity, which Parquet and sentences show as missing."""
    return value if math.isfinite(value) else None
