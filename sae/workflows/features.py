"""Collect the features of an SAE: the pass over a store, the logit lens, neighbours and the map, written as one folder."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import torch
from jaxtyping import Bool
from torch import Tensor

from activations.disk import files, tables
from activations.errors import RunError
from activations.from_files import token_text
from activations.language_model import LanguageModel
from activations.parallel import ranks
from activations.progress import Progress, no_progress
from activations.store import Store
from sae.architectures import SAE
from sae.features import collect, folder, write
from sae.features import map as maps
from sae.features.cofiring import Cofiring
from sae.features.collect import Collected, FeaturesConfig
from sae.features.effects import load_effect, measure_effect, save_effect
from sae.features.feature import FeatureStore
from sae.features.lenses import jacobian_of
from sae.features.logit_lens import LogitLens, logit_lens, sees
from sae.features.neighbours import encoder_decoder_cosine, nearest_and_live
from sae.runs.run import Run, device

log = logging.getLogger(__name__)


def describe(
    sae: SAE,
    activations: Store,
    hook: str,
    model: LanguageModel | None,
    out: Path,
    cfg: FeaturesConfig,
    sae_sha256: str,
    progress: Progress = no_progress,
) -> FeatureStore:
    """Fill the folder `out` and return it opened. A folder that is complete for the same SAE, store and settings is kept.

    Interrupted and called again, the work continues after the last whole shard. With several ranks
    (`activations.parallel.ranks`) each does its share of the pass and of the lens, and `progress` shows that share; rank 0
    writes, and the folder has the same bytes whatever their number. See `collect.collect` for memory. Without scikit-learn
    there is no map; a folder without one is made again once scikit-learn is installed. Without a model, as for a store of
    files, there is no logit lens, and token ids read as the store's own tokenizer has them. Raises BusyError when another
    process works in the folder."""
    identity = {"sae_sha256": sae_sha256, "store_fingerprint": activations.fingerprint, "hook": hook}
    if activations.positions != "all":  # 0.1.0 did not say, and its unfinished passes go on
        identity["positions"] = activations.positions
    job: dict[str, object] = {
        **identity,
        "positions": activations.positions,
        "config": asdict(cfg),
        "model": activations.spec.model,
    }
    if mapped := maps.available():
        job["map"] = True
    if ranks.from_first(_is_complete(out, job)):
        if not ranks.rank():
            files.clear_lock(out, lambda: _tidy(out))  # a crash may have come between the index and this
        return FeatureStore(out)
    with ranks.alone_in(out):
        if ranks.rank() == 0:
            (out / folder.INDEX).unlink(missing_ok=True)
        scratch = out / collect.SCRATCH
        collected = collect.collect(sae, activations, hook, cfg, scratch, identity, progress)
        sae = sae.cpu()
        lens = None if model is None else _lens(model, sae, cfg, scratch, progress)
        if ranks.rank() == 0:
            columns = _columns(sae, collected, cfg, mapped, progress)
            spelled = token_text(activations) if model is None else model.vocabulary.text
            write.write(out, job, columns, collected, lens, spelled, activations)
            _tidy(out)
        ranks.barrier()
    return FeatureStore(out)


def collect_features(
    run: Run, model: LanguageModel | None, cfg: FeaturesConfig, progress: Progress = no_progress
) -> FeatureStore:
    """Fill the features folder of a finished run, or finish one that was interrupted, and return it opened (see `describe`)."""
    sae, out = run.sae().to(device()), run.path / "features"
    return describe(sae, run.store, run.hook, model, out, cfg, run.digest, progress)


def measure_effects(
    run: Run,
    model: LanguageModel,
    features: FeatureStore,
    latents: tuple[int, ...],
    progress: Progress = no_progress,
) -> None:
    """Measure what each of these latents does to the model's predictions, and keep it in the features folder.

    Effects that have been measured before are not measured again."""
    missing = [latent for latent in latents if load_effect(features, latent) is None]
    sae, jacobian = run.sae().to(device()), jacobian_of(run)
    with progress("effects", len(missing), "latents") as advance:
        for latent in missing:
            effect = measure_effect(model, sae, features, run.hook, latent, jacobian=jacobian)
            save_effect(features, effect)
            advance(1)


def _tidy(out: Path) -> None:
    """Remove scratch files and the remains of interrupted writes from a complete folder."""
    collect.clear(out / collect.SCRATCH)
    files.sweep(out)
    files.sync(out)


def _is_complete(out: Path, job: Mapping[str, object]) -> bool:
    """Return whether the folder is complete and belongs to this job. A damaged one is reported, and made again."""
    if not (out / folder.INDEX).exists():
        return False
    try:
        finished = FeatureStore(out)
        finished.check()
    except RunError as error:
        log.warning("%s; making it again", error.message)
        return False
    return job.items() <= vars(finished.record).items()


def _lens(
    model: LanguageModel, sae: SAE, cfg: FeaturesConfig, scratch: Path, progress: Progress
) -> LogitLens | None:
    """Return the logit lens of all latents, of which each rank computes its share; None if the model's width is another."""

    def find(latents: range) -> dict[str, Tensor]:
        some = sae.W_dec[latents.start : latents.stop]
        with progress("logit lens", len(latents), "latents") as advance:
            lens = logit_lens(model, some, cfg.logits, advance=advance)
        assert lens is not None
        return lens._asdict()

    if not sees(model, sae.W_dec.shape[1]):
        return None
    return LogitLens(**ranks.share_latents(scratch, "lens", sae.d_sae, find))


def _columns(
    sae: SAE, collected: Collected, cfg: FeaturesConfig, mapped: bool, progress: Progress
) -> dict[str, pa.Array]:
    """Return the table's columns beside statistics and lens: norms, biases, neighbours, co-firing and the map."""
    alive, n = collected.statistics.fired > 0, max(cfg.neighbours, maps.NEAREST - 1)
    with progress("neighbours", sae.d_sae, "latents") as advance:
        near, live = nearest_and_live(sae.W_dec, n, alive, advance=advance)
    listed = (torch.arange(near.latents.shape[1]) < cfg.neighbours).expand_as(near.latents)
    columns = {
        "enc_dec_cosine": _column(encoder_decoder_cosine(sae)),
        "decoder_norm": _column(sae.W_dec.norm(dim=1)),
        "b_enc": pa.nulls(sae.d_sae) if (bias := sae.encoder_bias()) is None else _column(bias),
        "neighbours": _lists(near.latents, listed),
        "neighbour_cosines": _lists(near.cosines, listed),
        **_cofiring_columns(collected.cofiring),
    }
    if mapped:
        log.info("laying out the map of features")
        columns |= _map_columns(maps.make_map(sae.W_dec, alive, live))
    else:
        log.info("no map of the features: it needs scikit-learn (pip install 'sae-workbench[map]')")
    return columns


def _cofiring_columns(cofiring: Cofiring) -> dict[str, pa.Array]:
    named = {"cofiring": cofiring.latents, "cofiring_counts": cofiring.counts, "cofiring_pmi": cofiring.pmi}
    return {name: _lists(column, cofiring.latents >= 0) for name, column in named.items()}


def _map_columns(layout: maps.Map) -> dict[str, pa.Array]:
    """Return positions and clusters as columns, with null for latents that are not on the map."""
    x, y = (pa.array(axis.double().numpy(), from_pandas=True) for axis in layout.places.T)  # nan becomes null
    return {"map_x": x, "map_y": y, "cluster": pa.array(layout.clusters, mask=layout.clusters < 0)}


def _column(values: Tensor) -> pa.Array:
    """Return numbers as a column: int64, or float64 for any floating-point numbers."""
    return pa.array((values.double() if values.is_floating_point() else values.long()).cpu().numpy())


def _lists(values: Tensor, listed: Bool[Tensor, "F n"]) -> pa.Array:
    """Return values [F, n] as a column of the lists of those that are `listed`."""
    return tables.nested(_column(values[listed]), listed.sum(1).numpy())
