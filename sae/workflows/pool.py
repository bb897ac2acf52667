"""Pool finished runs that differ in seed into one SAE, and train that further on their store."""

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from activations.disk import files
from activations.errors import ConfigError, RunError, check_seed, quoted
from activations.parallel import ranks
from activations.progress import Progress, no_progress
from activations.shuffle import sample
from activations.store import Store
from sae.architectures import name_of
from sae.config import RunConfig
from sae.evaluation import pooling
from sae.evaluation.pooling import NEAR, Pooled
from sae.evaluation.similarity import encoded
from sae.runs.pool import FORMAT, INDEX, MEMBERS, PooledFrom, PoolRecord, pool_of
from sae.runs.run import POOL, Run, device
from sae.runs.saved_sae import save_sae
from sae.workflows.import_sae import run_record
from sae.workflows.train import train
from sae.workflows.training import resolve

BATCH = 2048  # rows encoded at once
SHARE_OF_STEPS, SHARE_OF_RATE = 0.5, 0.4  # of the runs': measured (LOG.md)
# Settings of training in which the runs of a pool may differ: what is logged and kept changes no weight, and the precision is measured
# for each run where it is left out
MAY_DIFFER = {"seed", "precision", "log_every", "held_out_every", "checkpoint_minutes", "keep_checkpoints"}


@dataclass(frozen=True)
class PoolConfig:
    """Settings of pooling, and of the training that follows."""

    near: float = NEAR
    """Correlation of their values from which latents of two runs count as one. Lower merges more."""
    tokens: int = 32_768
    """Training rows on which latents are compared."""
    steps: int | None = None
    """Steps that the pooled SAE is trained; when left out, half as many as the runs were."""
    lr: float | None = None
    """Peak learning rate, which falls linearly to 0; when left out, two fifths of the first run's."""
    seed: int = 0
    """Seed of the order of rows. Give two pools that you compare different ones, as their runs have."""

    def __post_init__(self) -> None:
        if not 0 < self.near <= 1:
            raise ConfigError(f"near = {self.near} must lie in (0, 1]")
        for name, least in (("tokens", 2), ("steps", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} = {value} must be at least {least}")
        check_seed(self.seed)


def pool(
    runs: Sequence[Run],
    out: Path | str,
    cfg: PoolConfig | None = None,
    resume: bool = False,
    progress: Progress = no_progress,
) -> Run:
    """Pool the SAEs of finished runs that differ in seed, train the result further on their store, and return it as a run in `out`.

    `sae.evaluation.pooling.pool` says what the pooled SAE is; it is kept as a run of its own in the folder `pool` of `out`, with
    its origin in pool.json, and the run in `out` starts from it with the runs' own settings. Stops and resumes as `sae.train` does.

    Raises RunError for runs that do not belong together (fewer than two, the same SAE twice, another store, hook point or
    setting than the seed) or when `out` holds another run or pool; StoreError when the store is gone; ConfigError for a method whose latents
    cannot be taken apart."""
    cfg, out = cfg or PoolConfig(), Path(out)
    check(runs)
    settings = _settings(runs, out, cfg)
    begun = (out / "run.json").exists() and (out / POOL).exists()
    if files.is_taken(out, besides=(POOL,)) and not (resume and begun):
        raise RunError(f"{out} is not empty: choose another --out, or add --resume to continue a pool")
    if (out / POOL).exists():
        _refuse_other_pool(out, runs, cfg)
    else:
        with ranks.alone_in(out):
            _write(out / POOL, runs, cfg, _pooled(runs, settings, cfg, progress))
    return train(settings, out, (out / "run.json").exists(), progress=progress)


def check(runs: Sequence[Run]) -> None:
    """Raise RunError unless the runs are finished, of one store and hook point and the same settings, and no two the same SAE."""
    if len(runs) < 2:
        raise RunError(f"runs given: {len(runs)}; a pool needs at least 2 that differ in seed (--train.seed)")
    first, seen = runs[0], {}
    pooling.refuse(first.sae())
    for run in runs:
        if run.config.stream:
            raise RunError(f"{run.path} was trained on a stream, which is gone: pool runs on a store")
        theirs = _alike(run)
        for what, own in _alike(first).items():
            if own != theirs[what]:
                raise RunError(
                    f"{run.path} has another {what} than {first.path} ({theirs[what]}, not {own}): only runs that differ in "
                    f"seed can be pooled"
                )
        if run.digest in seen:
            raise RunError(
                f"{run.path} and {seen[run.digest]} hold the same SAE: pool runs of different seeds"
            )
        seen[run.digest] = run.path


def _alike(run: Run) -> dict[str, object]:
    """Return what runs that are pooled must have in common, by name."""
    cfg = run.config
    first = {
        "method": name_of(cfg.arch),
        "number of latents": cfg.arch.d_sae,
        "hook point": run.hook,
        "store": run.store.fingerprint,
    }
    arch = {f"arch.{name}": value for name, value in asdict(cfg.arch).items()}
    train = {f"train.{name}": value for name, value in asdict(cfg.train).items() if name not in MAY_DIFFER}
    rows = {"positions": cfg.positions, "labels": cfg.labels, "shuffle_tokens": cfg.shuffle_tokens}
    start = "random weights" if cfg.start_from is None else "the weights of another SAE"
    return {**first, **arch, **train, **rows, "start": start, "loss": cfg.loss}


def _settings(runs: Sequence[Run], out: Path, cfg: PoolConfig) -> RunConfig:
    """Return the settings of the training that starts from the pool: the first run's, but for steps, rate, decay and seed."""
    before = runs[0].config
    steps, lr = before.train.steps, before.train.lr
    if (steps is None and cfg.steps is None) or (not isinstance(lr, float) and cfg.lr is None):
        raise ConfigError(
            f"{runs[0].path} was imported and does not say how it was trained: add --steps and --lr"
        )
    training = dataclasses.replace(
        before.train,
        steps=cfg.steps or max(1, round(SHARE_OF_STEPS * (steps or 0))),
        lr=SHARE_OF_RATE * float(lr or 0) if cfg.lr is None else cfg.lr,
        warmup_steps=None,
        dead_after_tokens=None,
        decay_share=1.0,
        seed=cfg.seed,
    )
    return dataclasses.replace(
        before, hook=runs[0].hook, train=training, loggers=(), start_from=str(out / POOL), loss=None
    )


def _pooled(runs: Sequence[Run], settings: RunConfig, cfg: PoolConfig, progress: Progress) -> Pooled:
    saes = [run.sae().to(device()) for run in runs]
    x = _rows(settings, runs[0].store, cfg.tokens)
    with progress("encode", len(runs) * len(x), "tokens") as advance:
        codes = [encoded(sae, x.split(BATCH), advance) for sae in saes]
    pairs = len(runs) * (len(runs) - 1) // 2
    with progress("match", pairs * saes[0].d_sae, "latents") as advance:
        return pooling.pool([sae.cpu() for sae in saes], codes, cfg.near, advance)


def _rows(settings: RunConfig, store: Store, tokens: int) -> Tensor:
    """Return the first training rows in the order that the pooled SAE will read them."""
    _, reader = resolve(settings, store)
    try:
        return sample(reader, max(tokens, reader.batch)).x[:tokens]
    finally:
        reader.close()


def _write(path: Path, runs: Sequence[Run], cfg: PoolConfig, pooled: Pooled) -> None:
    """Write the pooled SAE as a finished run, whole or not at all."""
    store, hook = runs[0].store, runs[0].hook
    found_in = pooled.found_in().bincount(minlength=len(runs) + 1)[1:].tolist()
    record = {
        "format": FORMAT,
        "runs": [asdict(each) for each in _origins(runs)],
        "near": cfg.near,
        "tokens": cfg.tokens,
        "found_in": found_in,
    }
    notes = [f"{count:,} latents of {n} of the {len(runs)} runs" for n, count in enumerate(found_in, 1)]
    source = {"format": "pool", "path": ", ".join(str(run.path) for run in runs), "notes": notes}
    with files.new_folder(path) as folder:
        save_sae(folder, pooled.sae, {"hook": hook, "model": store.spec.model, "step": None})
        files.write_tensors(folder / MEMBERS, {"members": pooled.members}, f"sae-pool-{FORMAT}")
        record["sha256"] = {MEMBERS: files.sha256(folder / MEMBERS)}
        files.write_sealed(folder / INDEX, record)
        content = run_record(pooled.sae, store, hook, store.spec.model, store.positions)
        files.write_sealed(folder / "run.json", {**content, "imported": source})


def _origins(runs: Sequence[Run]) -> list[PooledFrom]:
    return [PooledFrom(str(run.path), run.digest, run.config.train.seed) for run in runs]


def _refuse_other_pool(out: Path, runs: Sequence[Run], cfg: PoolConfig) -> None:
    """Raise RunError unless the pool in `out` is of these SAEs with these settings."""
    record: PoolRecord = pool_of(Run(out / POOL))
    theirs = ([each.sae_sha256 for each in record.runs], record.near, record.tokens)
    if theirs != ([run.digest for run in runs], cfg.near, cfg.tokens):
        raise RunError(
            f"{out / POOL} was made of other runs or with other settings: choose another --out",
            fix=f"rm -r {quoted(out)}",
        )
