"""Compare a run with its controls: train or make them on the run's own store, measure all on the same documents, keep the result."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from activations.disk import files
from activations.errors import RunError
from activations.language_model import LanguageModel
from activations.parallel import ranks
from activations.progress import Progress, no_progress, part_of
from activations.reharvest import reharvest
from activations.shuffle import sample
from activations.store import Store
from sae.architectures import SAE
from sae.config import RunConfig
from sae.evaluation import bootstrap
from sae.evaluation.held_out import document_sums, held_out_rows
from sae.evaluation.matching import nearest
from sae.evaluation.measures import MEASURES
from sae.evaluation.similarity import cosine
from sae.evaluation.splicing import SplicedSums, splice_sums
from sae.runs.run import TRUST, Run, device
from sae.runs.saved_sae import save_sae
from sae.runs.trust import FORMAT, INDEX, STABILITY, STABLE, Trust
from sae.training.trainer import INIT_ROWS
from sae.trust import controls, random_models
from sae.trust.plan import FEWEST_SEEDS, STORES, Plan, TrustConfig, is_finished, plan_trust
from sae.trust.verdicts import judged, smallest_reliable_difference
from sae.workflows.import_sae import run_record
from sae.workflows.together import train_together
from sae.workflows.training import resolve

log = logging.getLogger(__name__)

MOST_ROWS = 1_000_000  # of those the run was trained on, for PCA: a covariance needs no more
RUN = "run"  # the name of the run itself among its controls
Sums = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]
"""Numerators and denominators per document, by SAE and measure."""


def trust(
    run: Run,
    cfg: TrustConfig | None = None,
    model: LanguageModel | None = None,
    progress: Progress = no_progress,
) -> Trust:
    """Compare a finished run with its controls and its seeds, and write what was found into its folder `trust`.

    Each control is an ordinary run in a folder of its own there. Controls that are trained read the same rows as the run, in one
    pass over its store for all of them. All SAEs are measured on the held-out documents, and with a `model` on the same
    `cfg.windows` windows. Interrupted and called again, it goes on where the training stopped; finished controls are kept.

    Raises RunError for a run that is not finished, was imported, started from another one or was trained on a stream, and when
    fewer than three seeds stay finite; StoreError when the store is gone; Stopped at a signal, after checkpoints; BusyError when another process works in the folder."""
    cfg = cfg or TrustConfig()
    plan, folder = plan_trust(run, cfg), run.path / TRUST
    with ranks.alone_in(folder):
        _read_with_random_models(run, plan, progress)
        failed = _train(plan, folder, progress)
        store, sae = run.store, run.sae()
        with progress("measure", held_out_rows(store), "tokens") as advance:
            own = document_sums(sae.to(device()), store, run.hook, cfg.batch, advance)
        _make_untrained(run, folder, _mean_of(own["l0"]), progress)
        runs = {
            name: Run(folder / name) for name in (*plan.trained, *controls.UNTRAINED) if name not in failed
        }
        seeds = [name for name in runs if name.startswith("seed-")]
        if len(seeds) + 1 < FEWEST_SEEDS:
            raise RunError(
                f"{folder}: {len(failed)} seeds diverged, so that the spread of equal runs is unknown: {failed}"
            )
        sums, spliced = _measured(run, own, runs, cfg, model, progress)
        tensors = _stability(run, runs, seeds, progress)
        files.write_tensors(folder / STABILITY, tensors, f"sae-stability-{FORMAT}")
        files.write_sealed(
            folder / INDEX, _record(run, cfg, runs, sums, spliced, tensors, plan.left_out | failed)
        )
    return Trust(run)


def _read_with_random_models(run: Run, plan: Plan, progress: Progress) -> None:
    """Make the stores of the SAEs of random models that are not there."""
    if not plan.stores:
        return
    with progress(
        "random models", len(plan.stores) * run.store.windows * run.store.context, "tokens"
    ) as advance:
        for name in plan.stores:
            model = run.language_model()  # anew for each: the change is made in place
            random_models.randomise(model, name, run.config.train.seed)
            reharvest(model, run.store, run.hook, run.path / TRUST / STORES / name, advance)


def _train(plan: Plan, folder: Path, progress: Progress) -> dict[str, str]:
    """Train what is missing; return what was said of those that diverged, by name.

    Controls with the run's seed read the same rows in the same order: one pass over the store feeds them all. A seed has an
    order of its own, and two readers at once would take the memory twice, so that seeds are trained one after the other."""
    groups: dict[tuple[str, int], dict[Path, RunConfig]] = {}
    for name, settings in plan.trained.items():
        groups.setdefault((settings.store, settings.train.seed), {})[folder / name] = settings
    steps = {name: settings.train.steps or 0 for name, settings in plan.trained.items()}
    done = sum(count for name, count in steps.items() if name not in plan.missing)
    failed: dict[str, str] = {}
    with progress("train", sum(steps.values()), "steps", done=done) as advance:
        for runs in groups.values():
            diverged = train_together(
                runs, folder, part_of(advance, "train", ", ".join(path.name for path in runs))
            )
            failed |= {path.name: message for path, message in diverged.items()}
    return failed


def _mean_of(sums: tuple[np.ndarray, np.ndarray]) -> float:
    return float(sums[0].sum() / sums[1].sum())


def _make_untrained(run: Run, folder: Path, l0: float, progress: Progress) -> None:
    """Write the dictionaries that need no training, from the rows that the run was trained on, at the run's L0."""
    missing = [name for name in controls.UNTRAINED if not is_finished(folder / name)]
    if not missing:
        return
    cfg, store, k = run.config, run.store, max(1, round(l0))
    _, reader = resolve(cfg, store)
    x = sample(reader, INIT_ROWS).x
    batches = max(1, min(cfg.train.steps or 1, MOST_ROWS // cfg.train.batch))
    with progress("covariance", batches, "batches") as advance:

        def rows() -> Iterable[Tensor]:
            for batch in islice(iter(reader), batches):
                yield batch.x
                advance(1)

        mean, covariance = controls.covariance(rows())
    reader.close()
    made: dict[str, SAE] = {
        "pca": controls.principal_components(mean, covariance, k),
        "random-dictionary": controls.random_dictionary(x, mean.float(), cfg.arch.d_sae, k, cfg.train.seed),
    }
    for name in missing:
        _write(folder / name, name, made[name], store, run.hook)


def _write(path: Path, name: str, sae: SAE, store: Store, hook: str) -> None:
    """Write an SAE as a finished run, whole or not at all."""
    source = {"format": "control", "path": name, "notes": ["made by sae trust, without training"]}
    with files.new_folder(path) as folder:
        save_sae(folder, sae, {"hook": hook, "model": store.spec.model, "step": None})
        record = run_record(sae, store, hook, store.spec.model, store.positions)
        files.write_sealed(folder / "run.json", {**record, "imported": source})


def _measured(
    run: Run,
    own: dict[str, tuple[np.ndarray, np.ndarray]],
    runs: Mapping[str, Run],
    cfg: TrustConfig,
    model: LanguageModel | None,
    progress: Progress,
) -> tuple[Sums, SplicedSums | None]:
    """Return the sums of every SAE by name, the run's under RUN, and those with the language model."""
    store = run.store
    sums: Sums = {RUN: own}
    with progress("measure", len(runs) * held_out_rows(store), "tokens") as advance:
        for name, other in runs.items():
            sae = other.sae().to(device())
            # 0.1.0 wrote untrained controls that do not say which positions they are for
            rows = Store(other.store.path, store.positions)
            sums[name] = document_sums(sae, rows, run.hook, cfg.batch, advance)
    if model is None or not cfg.windows:
        return sums, None
    spliceable = {name: one for name, one in runs.items() if _kind(name) != "random-model"}
    saes = {name: one.sae().to(device()) for name, one in {RUN: run, **spliceable}.items()}
    spliced = splice_sums(model, saes, store, run.hook, cfg.windows, progress=progress)
    for name in saes:
        above, below = spliced.recovered(name, "zero")
        sums[name] |= {
            "recovered_zero": (above.numpy(), below.numpy()),
            "kl": (spliced.kl[name].numpy(), spliced.tokens.numpy()),
        }
    return sums, spliced


def _stability(run: Run, runs: Mapping[str, Run], seeds: list[str], progress: Progress) -> dict[str, Tensor]:
    """Return each latent's largest |cosine| with a decoder row of each seed, of a random dictionary, and the mean over seeds."""
    decoder = run.sae().W_dec
    with progress("match", (len(seeds) + 1) * len(decoder), "latents") as advance:

        def largest(name: str) -> Tensor:
            similarity = cosine(decoder, runs[name].sae().W_dec, absolute=True)
            return nearest(similarity, 1, advance=advance)[0].similarities[:, 0]

        by_seed = torch.stack([largest(name) for name in seeds])
        chance = largest("random-dictionary")
    return {"stability": by_seed.mean(0), "by_seed": by_seed, "chance": chance}


def _record(
    run: Run,
    cfg: TrustConfig,
    runs: Mapping[str, Run],
    sums: Sums,
    spliced: SplicedSums | None,
    tensors: Mapping[str, Tensor],
    left_out: Mapping[str, str],
) -> dict[str, object]:
    """Return the content of trust.json."""
    estimates = {name: bootstrap.ratio(*one["l0"])._asdict() for name, one in sums.items()}
    l0 = {name: estimate["value"] for name, estimate in estimates.items()}
    stability = tensors["stability"]
    above, below = sums[RUN]["l0"]
    return {
        "format": FORMAT,
        "sae_sha256": run.digest,
        "store_fingerprint": run.store.fingerprint,
        "hook": run.hook,
        "config": asdict(cfg),
        "tokens": int(below.sum()),
        "documents": len(above),
        "windows": spliced.windows if spliced else 0,
        "windows_documents": len(spliced.tokens) if spliced else 0,
        "l0": estimates[RUN],
        "controls": {
            name: {"kind": _kind(name), "sae_sha256": one.digest, "l0": estimates[name]}
            for name, one in runs.items()
        },
        "measures": {
            name: beside(name, {sae: one[name] for sae, one in sums.items() if name in one}, l0)
            for name, measure in MEASURES.items()
            if measure.lower_is_better is not None and name in sums[RUN]
        },
        "stability": {
            "mean": stability.mean().item(),
            "stable": (stability >= STABLE).double().mean().item(),
            "chance": tensors["chance"].mean().item(),
        },
        "left_out": dict(left_out),
        "sha256": {STABILITY: files.sha256(run.path / TRUST / STABILITY)},
    }


def _kind(name: str) -> str:
    if name in random_models.CHANGES:
        return "random-model"
    return "seed" if name.startswith("seed-") else "control"


def beside(
    measure: str, sums: Mapping[str, tuple[np.ndarray, np.ndarray]], l0: Mapping[str, float] | None = None
) -> dict[str, object]:
    """Return one measure of the run beside those of its seeds and controls, as trust.json has it (`records.Beside`).

    `sums` are numerators and denominators per document, the run's under RUN, seeds' under names that begin with seed-.
    `l0` are the latents per row of each; when left out, equal ones."""
    values = {name: bootstrap.ratio(*one) for name, one in sums.items()}
    seeds = {name: value for name, value in values.items() if _kind(name) == "seed" and name != RUN}
    smallest = smallest_reliable_difference([values[RUN].value, *(one.value for one in seeds.values())])
    against = {}
    for name in sums.keys() - seeds.keys() - {RUN}:
        pair = (sums[name], sums[RUN]) if MEASURES[measure].lower_is_better else (sums[RUN], sums[name])
        better_by = bootstrap.difference(*pair)
        against[name] = {
            "value": values[name]._asdict(),
            "better_by": better_by._asdict(),
            "verdict": judged(better_by, smallest, (l0[RUN], l0[name]) if l0 else (1.0, 1.0)),
        }
    return {
        "value": values[RUN]._asdict(),
        "seeds": {name: value._asdict() for name, value in seeds.items()},
        "smallest": smallest,
        "controls": {name: against[name] for name in sums if name in against and _kind(name) == "control"},
        "random_models": {name: against[name] for name in sums if _kind(name) == "random-model"},
    }
