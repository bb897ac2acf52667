"""Explain all latents of a run by rules, beside controls, and keep the result in its features folder."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch.nn.functional import normalize

from activations import embeddings
from activations.disk import files
from activations.errors import RunError
from activations.progress import Progress, no_progress
from sae.features import collect
from sae.features.explanations import (
    FORMAT,
    LATENT,
    RANDOM,
    SCORES,
    Explanations,
    explanations_of,
    save_explanations,
)
from sae.features.feature import FeatureStore, features_of
from sae.rules.controls import random_directions, shuffled_rows
from sae.rules.corpus import Corpus, read_corpus
from sae.rules.explaining import ExplainConfig, distributions, explain_targets
from sae.rules.families import families
from sae.rules.targets import NEAREST, Sources, Target, read_firings, targets_of
from sae.runs.run import Run, device

log = logging.getLogger(__name__)

SCRATCH = "explaining"
AT_ONCE = 256  # latents whose rules are chosen together
ENOUGH = 4  # times the least firings that a latent with a control should have


def explain(run: Run, cfg: ExplainConfig | None = None, progress: Progress = no_progress) -> Explanations:
    """Explain every latent of a finished run with features, and write explanations.json into its features folder.

    The store's first `cfg.tokens` are encoded once. Rules are chosen on half of the documents and scored on the other. Random
    directions of the activations, and the run's own latents with shuffled firings, are explained in the same way. What people
    called a latent is left as it is. Interrupted and called again, it goes on: shards that are encoded and latents that are
    explained are kept until the end. Explanations of the same features and settings are returned as they are.

    Memory: five bytes a firing, and some 200 bytes a token. Raises RunError where features are missing or of other weights,
    StoreError when the store is gone, ModelError when word embeddings cannot be fetched, BusyError when another process works in the features folder."""
    cfg, features = cfg or ExplainConfig(), features_of(run)
    if (done := _finished(features, cfg)) is not None:
        return done
    # first, because it may need the network
    vectors = embeddings.of_tokens(features.token_text) if cfg.embeddings else None
    with files.alone_in(features.path):
        scratch = features.path / SCRATCH
        identity = {"features_sha256": features.digest, "config": asdict(cfg)}
        collect.prepare(scratch, {"format": FORMAT, **identity})
        sources, corpus = _read(run, cfg, features, scratch, progress)
        table = _explained(sources, corpus, vectors, cfg, scratch, progress)
        content = {
            **identity,
            **_content(run, int((np.diff(sources.latents.signs.indptr) > 0).sum()), table, corpus),
        }
        explanations = save_explanations(features, table, content)
        collect.clear(scratch)
        files.sweep(features.path)
    return explanations


def _finished(features: FeatureStore, cfg: ExplainConfig) -> Explanations | None:
    """Return the explanations that are there, if they are those asked for. Damaged ones are reported, and made again."""
    try:
        done = explanations_of(features)
        if done is None or done.record.config != asdict(cfg):
            return None
        done.check()
        return done
    except RunError as error:
        log.warning("%s; making it again", error.message)
        return None


def _read(
    run: Run, cfg: ExplainConfig, features: FeatureStore, scratch: Path, progress: Progress
) -> tuple[Sources, Corpus]:
    """Encode the text, by the SAE and by random directions, and return where all targets fire, with the text."""
    store, sae = run.store, run.sae().to(device())
    n_shards, n_rows = collect.shards_to_read(store, cfg.tokens)
    controlled = _controlled(features, cfg, n_rows)
    densities = features.table["density"].to_numpy()[controlled]
    directions = random_directions(store, run.hook, densities, cfg.seed, device())
    with progress("encode", 2 * n_rows, "tokens") as advance:
        for encoder, name in ((sae, LATENT), (directions, RANDOM)):
            for number in range(n_shards):
                collect.encode_shard(encoder, store, run.hook, number, cfg.batch, scratch / name, advance)
    corpus = read_corpus(store, n_shards, features.token_text)
    cosines = directions.directions.cpu() @ normalize(sae.W_dec.float().cpu(), dim=1).T
    largest = features.table["max"].to_numpy(), -features.table["min"].to_numpy()
    fires = read_firings(scratch / LATENT, store, n_shards, len(features), largest, cfg.above)
    sources = Sources(
        fires,
        read_firings(scratch / RANDOM, store, n_shards, len(controlled)),
        shuffled_rows(corpus, cfg.seed),
        features.table["neighbours"].to_pylist(),
        {latent: place for place, latent in enumerate(controlled.tolist())},
        cosines.topk(min(NEAREST, len(features)), dim=1).indices.tolist(),
    )
    return sources, corpus


def _controlled(features: FeatureStore, cfg: ExplainConfig, n_rows: int) -> NDArray[np.int64]:
    """Return the latents that controls go with, drawn from those that fire often enough; of all that fire where none does."""
    densities = features.table["density"].to_numpy()
    often = np.flatnonzero(densities * n_rows >= ENOUGH * cfg.least_firings)
    often = often if len(often) else np.flatnonzero(densities)
    drawn = np.random.default_rng(cfg.seed).permutation(often)[: cfg.controls]
    return np.sort(drawn)


def _explained(
    sources: Sources,
    corpus: Corpus,
    vectors: NDArray[np.float32] | None,
    cfg: ExplainConfig,
    scratch: Path,
    progress: Progress,
) -> pa.Table:
    """Explain all targets and controls, a batch at a time. Batches that an interrupted call finished are read."""
    targets: Sequence[Target] = targets_of(sources.latents, corpus, cfg.least_firings)
    if not targets:
        raise RunError(
            f"no latent fires {cfg.least_firings} times in either half of {corpus.n_counted:,} tokens: read more (--tokens), or "
            f"lower --least-firings"
        )
    targets = [*targets, *sources.controls(targets)]
    kinds, parts = families(corpus), []
    with progress("explain", len(targets), "latents") as advance:
        for start in range(0, len(targets), AT_ONCE):
            batch, path = targets[start : start + AT_ONCE], scratch / f"explained-{start}.parquet"
            if not path.exists():
                table = explain_targets(batch, sources.rows, sources.nearest, corpus, kinds, vectors)
                files.write_atomically(path, lambda part, table=table: pq.write_table(table, part))
            parts.append(pq.read_table(path))
            advance(len(batch))
    return pa.concat_tables(parts)


def _content(run: Run, fired: int, table: pa.Table, corpus: Corpus) -> dict[str, object]:
    """Return the fields of explanations.json that sum the table up, of a text on which `fired` latents fire."""
    of_latents = [
        (latent, kind)
        for what, latent, kind in zip(
            *(table[name].to_pylist() for name in ("kind", "latent", "rule_kind")), strict=True
        )
        if what == LATENT
    ]
    return {
        "sae_sha256": run.digest,
        "store_fingerprint": run.store.fingerprint,
        "hook": run.hook,
        "tokens": {"choosing": int(corpus.choosing.sum()), "scoring": int(corpus.scoring.sum())},
        "groups": corpus.n_groups,
        "halves": "windows" if corpus.by_windows else "documents",
        "too_rare": fired - len({latent for latent, _ in of_latents}),
        "scores": {
            name: {kind: asdict(found) for kind, found in distributions(table, name).items()}
            for name in SCORES
        },
        "rule_kinds": dict(Counter(kind for _, kind in of_latents).most_common()),
    }
