"""From an SAE and a store to a features folder: the pass, the lens, neighbours and the map, all written at once."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from activations import files
from activations.models import LanguageModel
from activations.store import Store
from sae.architectures import SAE
from sae.features import collect, store, write
from sae.features import map as maps
from sae.features.cofiring import Cofiring
from sae.features.collect import FeaturesConfig
from sae.features.logits import logit_lens
from sae.features.neighbours import encoder_decoder_cosine, nearest
from sae.features.store import FeatureStore
from sae.runs import read_json

log = logging.getLogger(__name__)


def describe(
    sae: SAE,
    activations: Store,
    hook: str,
    model: LanguageModel,
    out: Path,
    cfg: FeaturesConfig,
    sae_sha256: str,
    on_rows: Callable[[int], None] = lambda n: None,
) -> FeatureStore:
    """Fill the folder `out` and return it opened; if it is there for the same SAE, store and settings, as it is.

    Interrupted and called again, it goes on from the last whole shard. See `collect.collect` for memory. Without
    umap-learn there is no map, and a folder made without one is made again once there is."""
    identity = {"sae_sha256": sae_sha256, "store_fingerprint": activations.fingerprint, "hook": hook}
    about = {**identity, "config": asdict(cfg), "model": activations.spec.model}
    if mapped := maps.available():
        about["map"] = True
    if (out / store.INDEX).exists() and about.items() <= read_json(out / store.INDEX).items():
        return FeatureStore(out)
    (out / store.INDEX).unlink(missing_ok=True)
    scratch = out / collect.SCRATCH
    collected = collect.collect(sae, activations, hook, cfg, scratch, identity, on_rows)
    sae = sae.cpu()
    neighbours, cosines = nearest(sae.W_dec, cfg.neighbours)
    columns = {
        "enc_dec_cosine": encoder_decoder_cosine(sae).tolist(),
        "decoder_norm": sae.W_dec.norm(dim=1).tolist(),
        "b_enc": [None] * sae.d_sae if (bias := sae.encoder_bias()) is None else bias.tolist(),
        "neighbours": neighbours.tolist(),
        "neighbour_cosines": cosines.tolist(),
        **_cofiring_columns(collected.cofiring),
    }
    if mapped:
        log.info("laying out the map of features")
        columns |= _map_columns(maps.make_map(sae.W_dec, collected.statistics.fired > 0))
    else:
        log.info("no map of the features: it needs umap-learn (pip install 'sae-workbench[map]')")
    lens = logit_lens(model, sae.W_dec, cfg.logits)
    vocabulary = write.token_texts(model.tokenizer)
    features = write.write(out, about, columns, collected, lens, vocabulary, activations)
    collect.clear(scratch)
    files.sweep(out)
    files.sync(out)
    return features


def _cofiring_columns(found: Cofiring) -> dict[str, Any]:
    there = (found.latents >= 0).sum(1).tolist()
    named = {"cofiring": found.latents, "cofiring_counts": found.counts, "cofiring_pmi": found.pmi}
    return {
        name: [row[:n] for row, n in zip(column.tolist(), there, strict=True)]
        for name, column in named.items()
    }


def _map_columns(made: maps.Map) -> dict[str, Any]:
    """Places as null where there is none; clusters too."""
    x, y = (np.where(np.isnan(axis), None, axis.astype(object)) for axis in made.places.numpy().T)
    return {"map_x": x, "map_y": y, "cluster": [None if c < 0 else c for c in made.clusters.tolist()]}
