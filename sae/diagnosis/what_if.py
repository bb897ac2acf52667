"""What a change would do: how many dead latents would fire with other biases, a larger k, lower thresholds, resampled."""

import copy
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures import SAE
from sae.diagnosis.evidence import Drives
from sae.diagnosis.sample import Rows
from sae.evaluation.measures import DENSE
from sae.runs.records import BiasCurve, KCurve, ResampleCurve, ThresholdCurve

BIAS_STEPS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)  # in typical living drives
EXTRA_FACTORS = (1, 2, 4, 8, 16, 32, 64)  # of the k there is, for latents kept beyond it
THRESHOLD_SHARES = (0.9, 0.75, 0.5, 0.25, 0.1, 0.0)
SCALES = (0.2, 0.5, 1.0)  # of the living encoders' mean norm; the paper takes 0.2
CANDIDATES = 8192  # training rows among which badly rebuilt ones are drawn


def bias_moved(drives: Drives, dead: Tensor) -> BiasCurve | None:
    """How many of the `dead` (places in `drives`) would fire somewhere were their bias moved by so much.

    Each alone, the others staying; upwards, or where latents are signed towards the sign that is nearer. Exact on
    the rows looked at. Moves are in multiples of `unit`, the median drive of living latents where they fire."""
    if math.isnan(drives.typical):
        return None
    missing = -drives.margin[dead] / drives.typical
    fire = [int((missing < step).sum()) for step in BIAS_STEPS]
    return BiasCurve(drives.typical, list(BIAS_STEPS), fire)


def k_larger(drives: Drives, dead: Tensor, k: int | None, n_latents: int) -> KCurve | None:
    """How many would fire were so many more latents kept of each row; None unless latents are chosen by rank.

    Exact on the rows looked at. `k` is what the rows keep now, if they all keep the same."""
    if not drives.by_rank:
        return None
    start = k or 32
    extra = sorted(
        {min(factor * start, n_latents - (k or 0)) for factor in EXTRA_FACTORS} | {max(1, start // 2)}
    )
    missing = drives.missing_places[dead]
    fire = [int(((missing >= 0) & (missing <= more)).sum()) for more in extra]
    return KCurve(k, extra, fire)


def thresholds_lower(drives: Drives, dead: Tensor, thresholds: Tensor) -> ThresholdCurve | None:
    """How many would fire were all thresholds multiplied by a share; None where there are none, or rank decides too."""
    if drives.by_rank or not bool((thresholds > 0).any()):
        return None
    ratio, positive = drives.ratio[dead], drives.positive_share[dead] > 0
    fire = [int(((ratio > share) if share else positive).sum()) for share in THRESHOLD_SHARES]
    return ThresholdCurve(list(THRESHOLD_SHARES), fire)


@torch.no_grad()
def resampled(sae: SAE, rows: Rows, dead: Int[Tensor, "n"], living: Tensor) -> ResampleCurve | None:
    """How many of the dead would fire on held-out rows once resampled, all of them at once.

    As in Bricken et al. 2023, appendix "Neuron Resampling": each gets a training row, drawn with probability
    proportional to its squared loss, as its encoder, at a share of the living encoders' mean norm, and as its
    decoder at norm 1; bias 0. None where latents have no encoder column of their own, or nothing is dead. With
    a choice by rank the resampled have to win their places. `dense` counts those that would fire on more than a
    tenth of the rows: they read what all rows share, and training has to part them."""
    own = dict(sae.named_parameters())
    if "W_enc" not in own or not len(dead) or not living.any():
        return None
    x = _badly_rebuilt(sae, rows, len(dead))
    norm = float(sae.encoder_directions()[living.to(sae.device)].norm(dim=1).mean())
    fire, dense = [], []
    for scale in SCALES:
        changed = with_encoders(sae, dead, x, scale * norm)
        fired = torch.zeros(sae.d_sae, dtype=torch.int64)
        for piece in rows.text():
            code = changed.encode(piece.x[piece.held_out].to(sae.device))
            fired += torch.bincount(code.indices[code.values != 0], minlength=sae.d_sae).cpu()
        fire.append(int((fired[dead] > 0).sum()))
        dense.append(int((fired[dead] > DENSE * rows.n["held_out"]).sum()))
    return ResampleCurve(list(SCALES), fire, rows.n["held_out"], norm, dense)


@torch.no_grad()
def with_encoders(sae: SAE, latents: Int[Tensor, "n"], x: Float[Tensor, "n D"], norm: float) -> SAE:
    """A copy whose latents read the rows x, at this norm, and write them at norm 1, with no bias."""
    changed = copy.deepcopy(sae)
    directions = F.normalize(x.to(sae.device) - sae.b_dec, dim=1)
    changed.W_enc[:, latents] = norm * directions.T
    changed.W_dec[latents] = directions
    for name in set(sae.in_activation_units) - {"b_dec"}:
        if (bias := getattr(changed, name)).shape == sae.b_enc.shape:  # every bias that each latent has
            bias[latents] = 0.0
    if not sae.pre_bias:  # where b_dec is not taken off x, the bias does it
        changed.b_enc[latents] = -norm * (directions @ sae.b_dec)
    return changed


def _badly_rebuilt(sae: SAE, rows: Rows, n: int) -> Float[Tensor, "n D"]:
    """Training rows drawn with probability proportional to their squared loss, some twice when n is large."""
    kept, losses, seen = [], [], 0
    for piece in rows.text():
        x = piece.x[~piece.held_out]
        kept.append(x)
        losses.append((sae(x.to(sae.device)).cpu() - x).square().sum(1))
        seen += len(x)
        if seen >= CANDIDATES:
            break
    weight = torch.cat(losses).double().square()
    generator = torch.Generator().manual_seed(rows.cfg.seed)
    enough = int((weight > 0).sum()) >= n
    return torch.cat(kept)[torch.multinomial(weight, n, replacement=not enough, generator=generator)]
