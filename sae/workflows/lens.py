"""Find the lens that predicts what a run's latents do: the model's head alone, or the mean Jacobian of the blocks before it."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from activations.disk import files
from activations.errors import ConfigError, RunError, check_seed, quoted
from activations.jacobian import PER_COORDINATE, JacobianConfig, MeanJacobian, mean_jacobian, read_jacobian
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from sae.architectures import SAE
from sae.evaluation import bootstrap
from sae.features import collect
from sae.features.effects import EffectConfig, effect_on_tokens, lenses_of
from sae.features.feature import FeatureStore, features_of
from sae.features.lenses import LENSES, LISTED, Lenses, save_lenses
from sae.features.lenses import lenses_of as found_lenses
from sae.features.logit_lens import correlations, logit_lens
from sae.features.write import lens_columns
from sae.runs.run import Run, device
from sae.runs.saved_sae import read_json

SCRATCH = "lens-measuring"
LEAST_FIRINGS = 20  # of a latent that is measured
SCORES = ("spearman", "pearson", "listed", "of_another")


@dataclass(frozen=True)
class LensConfig:
    """Settings of `sae lens`: how the mean Jacobian is measured, and what the lenses are compared with."""

    latents: int = 100
    """Latents whose effect is measured, drawn from those that fire at least 20 times."""
    strongest: int = 3
    """Strongest examples of each that are measured."""
    sampled: int = 3
    """Further examples of each, drawn uniformly from all."""
    words: int = 10
    """Tokens listed for every latent that the Jacobian lens raises most, and as many that it lowers most."""
    seed: int = 0
    """Seed of the latents drawn."""
    jacobian: JacobianConfig = field(default_factory=JacobianConfig)

    def __post_init__(self) -> None:
        for name, least in (("latents", 2), ("strongest", 1), ("sampled", 0), ("words", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least {least}")
        check_seed(self.seed)


class Cost(NamedTuple):
    """What `sae lens` is going to do: tokens that the model reads, and about how long that takes."""

    jacobian: int
    """Tokens for the mean Jacobian; 0 where it is known."""
    effects: int
    """Tokens for the measured effects."""
    seconds: float


def lens(
    run: Run,
    cfg: LensConfig | None = None,
    model: LanguageModel | None = None,
    progress: Progress = no_progress,
) -> Lenses:
    """Measure the mean Jacobian of a run's store at its hook point, and how well it and the logit lens predict what latents do.

    The Jacobian is kept in the store's folder, for all runs on it; the agreement, and the tokens of the Jacobian lens of every latent,
    in the run's features folder. An effect is the mean change of each token's log-probability at the peaks of a latent's examples when
    it is ablated there. Interrupted and called again, it goes on; a result of the same features and settings is returned as it is.

    Raises RunError where features are missing or of other weights or too few latents fire, StoreError when the store is gone or has no
    held-out text, ModelError for a model without a readout, BusyError when another process works in the features folder."""
    cfg, features = cfg or LensConfig(), features_of(run)
    done = found_lenses(features)
    if done is not None and done.record.config == _flat(cfg):
        return done
    model = model or run.language_model()
    jacobian = mean_jacobian(model, run.store, run.hook, cfg.jacobian, progress)
    sae, latents = run.sae().to(device()), drawn(features, cfg)
    with files.alone_in(features.path):
        scratch = features.path / SCRATCH
        identity = {
            "features_sha256": features.digest,
            "config": _flat(cfg),
            "jacobian": jacobian.record.sha256,
        }
        collect.prepare(scratch, identity)
        scores = _scores(model, sae, features, run.hook, latents, jacobian, cfg, scratch, progress)
        with progress("lens", len(features), "latents") as advance:
            listed = logit_lens(
                model, sae.W_dec, cfg.words, advance=advance, jacobian=jacobian.matrix.to(device())
            )
        assert listed is not None  # mean_jacobian refuses a model without a readout
        table = pa.table(lens_columns(listed, features.vocabulary))
        content = {
            "features_sha256": features.digest,
            "sae_sha256": run.digest,
            "hook": run.hook,
            "config": _flat(cfg),
            "jacobian_sha256": jacobian.record.sha256,
            "explained": jacobian.record.explained,
            "measured_share": jacobian.record.measured_share,
            "rows": jacobian.record.rows,
            "latents": latents,
            **_agreement(scores),
        }
        saved = save_lenses(features, table, content)
        collect.clear(scratch)
        files.sweep(features.path)
    return saved


def cost(run: Run, cfg: LensConfig, model: LanguageModel) -> Cost:
    """Return about what `lens` takes, from the time in which the model reads one window now."""
    features, store = features_of(run), run.store
    known = read_jacobian(store, run.hook)
    rows = max(cfg.jacobian.rows, PER_COORDINATE * store.width(run.hook))
    held_out = sum(store.count(number, "held-out", positions="all") for number in range(len(store.shards)))
    windows = sum(entry.windows for entry in store.shards)
    # A document is held out as a whole; where documents are longer than windows, few windows have rows of both kinds
    used = min(windows * store.context, held_out * 1.5) / max(held_out, 1)
    jacobian = 0 if known and known.record.config == cfg.jacobian else int(2 * rows * used)
    # Each example is read as it is and with the latent ablated
    effects = 2 * len(drawn(features, cfg)) * (cfg.strongest + cfg.sampled) * store.context
    tokens = store.read(0).tokens[:2]
    model.logits(tokens).sum().item()  # the first pass prepares the model
    started = time.perf_counter()
    model.logits(tokens).sum().item()  # waits for a GPU
    per_token = (time.perf_counter() - started) / tokens.numel()
    return Cost(jacobian, effects, per_token * (jacobian + effects))


def drawn(features: FeatureStore, cfg: LensConfig) -> list[int]:
    """Return the latents whose effects are measured, in rising order. Raises RunError when fewer than two fire often enough."""
    fired = features.table["fired"].to_numpy()
    often = np.flatnonzero(fired >= LEAST_FIRINGS)
    if len(often) < 2:
        raise RunError(
            f"{len(often)} latents of {features.path.parent} fire {LEAST_FIRINGS} times, at least 2 are needed: "
            f"collect features on more text",
            fix=f"sae features {quoted(features.path.parent)}",
        )
    some = np.random.default_rng(cfg.seed).permutation(often)[: cfg.latents]
    return np.sort(some).tolist()


def _flat(cfg: LensConfig) -> dict[str, int | float]:
    """Return the settings as lens.json has them: those of the Jacobian with its name before them."""
    own = {name: value for name, value in asdict(cfg).items() if name != "jacobian"}
    return own | {f"jacobian.{name}": value for name, value in asdict(cfg.jacobian).items()}


Scores = dict[str, dict[str, list[float]]]
"""By lens and score, a number for each latent measured."""


def _scores(
    model: LanguageModel,
    sae: SAE,
    features: FeatureStore,
    hook: str,
    latents: Sequence[int],
    jacobian: MeanJacobian,
    cfg: LensConfig,
    scratch: Path,
    progress: Progress,
) -> Scores:
    """Measure each latent's effect and compare it with its lenses, and with those of the latent drawn before it.

    What an interrupted call has measured is read from the scratch folder."""
    settings = EffectConfig(cfg.strongest, cfg.sampled, following=0)
    known = features.token_text.known
    finished = sum((scratch / f"{latent}.json").exists() for latent in latents)
    rows = []
    with progress("effects", len(latents), "latents", done=finished) as advance:
        for place, latent in enumerate(latents):
            path = scratch / f"{latent}.json"
            if not path.exists():
                effect = effect_on_tokens(model, sae, features, hook, latent, settings)
                assert effect is not None  # it fires, so that it has examples
                ids = known[known < len(effect)]
                own, other = (
                    [
                        None if one is None else one[ids]
                        for one in lenses_of(model, sae, which, jacobian.matrix)
                    ]
                    for which in (latent, latents[place - 1])
                )
                files.write_sealed(path, _compared(effect[ids], own, other))
                advance(1)
            rows.append(read_json(path))
    names = [name for name in LENSES if name in rows[0]]
    return {name: {score: [row[name][score] for row in rows] for score in SCORES} for name in names}


def _compared(
    effect: Float[Tensor, "V"], own: Sequence[Tensor | None], other: Sequence[Tensor | None]
) -> dict[str, dict[str, float]]:
    """Return each lens's scores for one latent; a correlation that does not exist counts as 0."""
    scores = {}
    n = min(LISTED, len(effect))
    most = set(effect.topk(n).indices.tolist())
    for name, lens, another in zip(LENSES, own, other, strict=True):
        if lens is None or another is None:
            continue
        pearson, spearman = correlations(effect, lens)
        shared = len(most & set(lens.topk(n).indices.tolist())) / n
        of_another = correlations(effect, another)[1]
        values = (spearman or 0.0, pearson or 0.0, shared, of_another or 0.0)
        scores[name] = dict(zip(SCORES, values, strict=True))
    return scores


def _agreement(scores: Scores) -> dict[str, object]:
    """Return the fields of lens.json that sum the scores up."""

    def mean(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
        return bootstrap.ratio(values, np.ones(len(values)))._asdict()

    agreement = {name: {score: mean(of) for score, of in one.items()} for name, one in scores.items()}
    ranks = [np.array(scores[name]["spearman"]) for name in LENSES if name in scores]
    return {"agreement": agreement, "better_by": mean(ranks[1] - ranks[0]) if len(ranks) > 1 else None}
