"""Diagnose the dead and dense latents of a run, from everything in its folder, and write the report into its dead/."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from sae.diagnosis.diagnose import Trained, diagnose
from sae.diagnosis.report import INDEX, DeadReport
from sae.diagnosis.sample import DeadConfig, Rows, off_rows
from sae.features import folder as features_folder
from sae.features.feature import FeatureStore
from sae.runs.run import Run, device

DEAD_AFTER_TOKENS = 10_000_000  # where the run does not say it; Gao et al. 2024, appendix A.2
Borrow = Callable[[], AbstractContextManager[LanguageModel]]


def folder(run: Run) -> Path:
    """Return the folder of a run's report, which may not exist yet."""
    return run.path / "dead"


def is_there(run: Run) -> bool:
    """Return whether the run has a finished report."""
    return (folder(run) / INDEX).exists()


def _work(run: Run, cfg: DeadConfig) -> int:
    """Return how many rows the diagnosis goes through: text twice, special positions once, other text twice."""
    rows = Rows(run.store, run.hook, cfg)
    return 2 * rows.n_text + rows.n["special"] + 2 * off_rows(run.store, cfg)


def diagnose_run(
    run: Run, cfg: DeadConfig, borrow: Borrow | None, progress: Progress = no_progress
) -> DeadReport:
    """Fill the run's dead folder, or return it as it is if it is up to date. Raises RunError when the run is not finished.

    `borrow` lends the language model while off-distribution text is read; with None, or with cfg.off_tokens 0, the report
    says nothing of such text."""
    digest = run.digest
    features = _features(run, digest)
    with progress("dead", _work(run, cfg), "rows") as advance:
        return diagnose(
            run.sae().to(device()),
            run.store,
            run.hook,
            cfg,
            folder(run),
            digest,
            _trained(run, features),
            borrow if cfg.off_tokens else None,
            None if features is None else features.vocabulary,
            advance,
        )


def _features(run: Run, digest: str) -> FeatureStore | None:
    """Return the run's features if they were collected for this SAE, on the positions that it was trained on, else None."""
    if not (run.path / "features" / features_folder.INDEX).exists():
        return None
    features = FeatureStore(run.path / "features")
    belong = features.record.sae_sha256 == digest and features.record.positions == run.config.positions
    return features if belong else None


def _trained(run: Run, features: FeatureStore | None) -> Trained:
    cfg = run.config.train  # of an imported SAE nothing is known of its training
    dead_after, seen = cfg.dead_after_tokens or DEAD_AFTER_TOKENS, (cfg.steps or 0) * cfg.batch
    fired = None if features is None else torch.tensor(features.table["fired"].to_pylist())
    rows = 0 if features is None else features.record.tokens
    return Trained(dead_after, seen, run.history, fired, rows)
