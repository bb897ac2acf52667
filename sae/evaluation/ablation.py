"""Measure how sparse the effects of single latents on the logits are, beside those of random directions.

Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093, section 4.5: ablate a latent at one token, take the
differences of the logits there and at the following tokens, less their median over the vocabulary at each, and ask by (L1 / L2)^2 how
many of them change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from activations.errors import ConfigError, RunError, check_seed
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from activations.rows import is_held_out
from activations.store import Store
from activations.views import Edit
from sae.architectures import SAE
from sae.evaluation import bootstrap
from sae.evaluation.measures import AblationEffects, EffectGroup, Estimate
from sae.evaluation.splicing import held_out_windows

LATENTS, DICTIONARY, DIRECTIONS = KINDS = ("latents", "random-dictionary", "random-directions")
"""What is ablated: the sampled latents; where each of them fires, a latent of a random dictionary that fires there; and a random
direction of the norm of what the latent writes there."""
BATCH = 8  # windows run at once
ROWS = 2048  # encoded at once
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class AblationConfig:
    """Settings of the measurement of effects."""

    latents: int = 64
    """Latents sampled among those that fire."""
    firings: int = 2
    """Firings of each of them that are ablated, at most."""
    positions: int = 16
    """Positions that are compared: the ablated one and those that follow it."""
    windows: int = 64
    """Held-out windows in which firings are looked for."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("latents", "firings", "positions", "windows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"effects: {name} = {getattr(self, name)} must be at least 1")
        check_seed(self.seed, "effects: seed")


class Firing(NamedTuple):
    """One place where a sampled latent fires, and what is taken out of the activation there, by kind."""

    unit: int
    """Index of the latent in the sample."""
    window: int
    position: int
    written: dict[str, Float[Tensor, "D"]]


class Effect(NamedTuple):
    """What taking one vector out does to the logits."""

    sparsity: float
    """(L1 / L2)^2 as a share of all logits and positions, above 0 and at most 1; NaN where nothing changes."""
    size: float
    """Root mean square of the differences."""


def effect(differences: Float[Tensor, "T V"]) -> Effect:
    """Return how sparse and how large differences of logits are, after the median over the vocabulary is taken off at each position.

    A shift of all logits of a position changes no prediction, and the median takes it off (of an even number of logits the lower of
    the two in the middle). A single logit that changes gives 1 / (T V), logits that all change alike in size about 1."""
    centred = differences.double()
    centred = centred - centred.median(-1, keepdim=True).values
    l1, squares = float(centred.abs().sum()), float(centred.square().sum())
    return Effect(
        l1**2 / squares / centred.numel() if squares else float("nan"), (squares / centred.numel()) ** 0.5
    )


@torch.no_grad()
def ablation_effects(
    model: LanguageModel,
    sae: SAE,
    random_dictionary: SAE,
    store: Store,
    hook: str,
    cfg: AblationConfig | None = None,
    progress: Progress = no_progress,
) -> AblationEffects:
    """Ablate sampled latents where they fire on held-out text, and say how sparse the changes of the logits are.

    At a firing x becomes x - f W_dec[latent]: the code with f set to 0 is decoded, and the SAE's error is kept. The same is done with a
    latent of `random_dictionary` that fires on the same row, drawn among those, and with a random direction of the same norm as
    f W_dec[latent]. A firing counts where the `cfg.positions` positions from it on lie in its own held-out document and window.
    A latent's value is the mean over its firings; intervals are a bootstrap over latents, paired between latents and controls.
    Firings whose ablation changes no logit at all are left out. The model runs once for every window, and once for each firing and kind.

    Raises RunError when no latent fires where it can be measured."""
    cfg = cfg or AblationConfig()
    tokens, documents = held_out_windows(store, cfg.windows)
    eligible = _eligible(documents, store.spec.excluded, cfg.positions)
    if not eligible.any():
        raise RunError(
            f"{store.path} has no held-out document with {cfg.positions} positions in one window after its first: compare fewer positions"
        )
    x = _rows(model, tokens, hook, eligible, progress)
    own, control = _entries(sae, x), _entries(random_dictionary, x)
    if not len(own.values):
        raise RunError("no latent fires on the held-out text whose effects could be measured")
    sampled, live = _sampled(own, cfg)
    firings = list(_firings(sae, random_dictionary, own, control, sampled, eligible.nonzero().tolist(), cfg))
    effects, vocabulary = _measure(model, tokens, hook, firings, len(sampled), cfg.positions, progress)
    units = [unit for unit in range(len(sampled)) if all(effects[kind][unit] for kind in KINDS)]
    if not units:
        raise RunError(f"no ablation at {hook} changed a logit: nothing after it depends on single latents")
    means = {kind: np.array([np.mean(effects[kind][unit], axis=0) for unit in units]) for kind in KINDS}
    return AblationEffects(
        latents=[sampled[unit] for unit in units],
        live=live,
        firings=len(firings),
        positions=cfg.positions,
        vocabulary=vocabulary,
        windows=len({firing.window for firing in firings}),
        groups={kind: _group(means[kind], means[LATENTS] if kind != LATENTS else None) for kind in KINDS},
    )


def _eligible(documents: Int[Tensor, "n T"], excluded: int, positions: int) -> Bool[Tensor, "n T"]:
    """Return which positions have `positions` positions of their own held-out document from them on, themselves included."""
    eligible = torch.zeros_like(documents, dtype=torch.bool)
    if positions <= documents.shape[1]:
        ahead = documents.unfold(1, positions, 1)
        same = (ahead == ahead[..., :1]).all(-1)
        eligible[:, : same.shape[1]] = same
    eligible &= is_held_out(documents.contiguous())
    eligible[:, :excluded] = False
    return eligible


def _rows(
    model: LanguageModel,
    tokens: Int[Tensor, "n T"],
    hook: str,
    eligible: Bool[Tensor, "n T"],
    progress: Progress,
) -> Float[Tensor, "rows D"]:
    """Return the activations at the eligible positions, in order, on the CPU."""
    rows = []
    with progress("find firings", len(tokens), "windows") as advance:
        for piece, here in zip(tokens.split(BATCH), eligible.split(BATCH), strict=True):
            x = model.capture(piece.long(), [hook])[hook]
            rows.append(x[here.to(x.device)].cpu())
            advance(len(piece))
    return torch.cat(rows)


class Entries(NamedTuple):
    """The entries of a code that are not 0, by rising row."""

    rows: NDArray[np.int64]
    latents: NDArray[np.int64]
    values: NDArray[np.float64]


def _entries(sae: SAE, x: Float[Tensor, "rows D"]) -> Entries:
    parts = []
    for start in range(0, len(x), ROWS):
        code = sae.encode(x[start : start + ROWS].to(sae.W_dec))
        fires = code.values != 0
        parts.append([part[fires].cpu().numpy() for part in (code.rows() + start, code.indices, code.values)])
    rows, latents, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(rows, kind="stable")
    return Entries(rows[order], latents[order].astype(np.int64), values[order].astype(np.float64))


def _sampled(own: Entries, cfg: AblationConfig) -> tuple[list[int], int]:
    """Return the sampled latents, drawn without replacement among those that fire, and the number of those."""
    live = np.unique(own.latents)
    chosen = np.random.default_rng(cfg.seed).choice(live, min(cfg.latents, len(live)), replace=False)
    return sorted(chosen.tolist()), len(live)


def _firings(
    sae: SAE,
    random_dictionary: SAE,
    own: Entries,
    control: Entries,
    sampled: Sequence[int],
    places: Sequence[Sequence[int]],
    cfg: AblationConfig,
) -> Iterator[Firing]:
    """Yield the firings to ablate of each sampled latent, drawn among its own, with what is taken out there for each kind."""
    rng = np.random.default_rng([cfg.seed, 1])
    for unit, latent in enumerate(sampled):
        of_latent = np.flatnonzero(own.latents == latent)
        for entry in rng.choice(of_latent, min(cfg.firings, len(of_latent)), replace=False):
            row = int(own.rows[entry])
            written = float(own.values[entry]) * sae.W_dec[latent].cpu()
            direction = torch.from_numpy(rng.standard_normal(len(written))).to(written)
            first, last = np.searchsorted(control.rows, [row, row + 1])
            assert first < last, "a random dictionary keeps k latents of every row"
            other = int(rng.integers(first, last))
            in_its_place = (
                float(control.values[other]) * random_dictionary.W_dec[int(control.latents[other])].cpu()
            )
            window, position = places[row]
            kinds = (written, in_its_place, written.norm() * normalize(direction, dim=0))
            yield Firing(unit, window, position, dict(zip(KINDS, kinds, strict=True)))


def _measure(
    model: LanguageModel,
    tokens: Int[Tensor, "n T"],
    hook: str,
    firings: Sequence[Firing],
    units: int,
    positions: int,
    progress: Progress,
) -> tuple[dict[str, list[list[Effect]]], int]:
    """Return the effects of every ablation that has one, by kind and unit, and the size of the vocabulary."""
    effects: dict[str, list[list[Effect]]] = {kind: [[] for _ in range(units)] for kind in KINDS}
    vocabulary = 0
    with progress("effects", len(KINDS) * len(firings), "ablations") as advance:
        for window, group in groupby(
            sorted(firings, key=lambda f: (f.window, f.position)), lambda f: f.window
        ):
            here = list(group)
            # Later tokens have no influence: the window is cut off after the last position that is compared.
            ids = tokens[window, : here[-1].position + positions].long()[None]
            clean = model.logits(ids)[0]
            vocabulary = clean.shape[-1]
            ablations = [(firing, kind) for firing in here for kind in KINDS]
            for start in range(0, len(ablations), BATCH):
                batch = ablations[start : start + BATCH]
                logits = model.logits(ids.expand(len(batch), -1), {hook: _without(batch)})
                for (firing, kind), changed in zip(batch, logits, strict=True):
                    compared = slice(firing.position, firing.position + positions)
                    found = effect(clean[compared].cpu() - changed[compared].cpu())
                    if found.size:
                        effects[kind][firing.unit].append(found)
                advance(len(batch))
    return effects, vocabulary


def _without(batch: Sequence[tuple[Firing, str]]) -> Edit:
    """Return the edit that takes one vector out of each window of a batch, at its firing."""

    def edit(x: Tensor) -> Tensor:
        out = x.clone()
        for row, (firing, kind) in enumerate(batch):
            out[row, firing.position] -= firing.written[kind].to(x)
        return out

    return edit


def _group(means: NDArray[np.float64], latents: NDArray[np.float64] | None) -> EffectGroup:
    """Return one kind's effects from the mean sparsity and size of each unit [units, 2], and from those of the latents."""
    ones = np.ones(len(means))
    sparsity, size = (Estimate(*bootstrap.ratio(column, ones)) for column in means.T)
    less = None
    if latents is not None:
        less = Estimate(*bootstrap.difference((means[:, 0], ones), (latents[:, 0], ones)))
    quantiles = {str(q): float(np.quantile(means[:, 0], q)) for q in QUANTILES}
    return EffectGroup(sparsity, quantiles, size, means[:, 0].tolist(), less)
