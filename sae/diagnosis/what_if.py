"""Count how many dead latents would fire after a change: other biases, a larger k, lower thresholds, or resampling."""

import copy
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures import SAE
from sae.diagnosis.evidence import PreActivations
from sae.diagnosis.sample import Rows
from sae.evaluation.measures import DENSE
from sae.runs.records import BiasCurve, KCurve, ResampleCurve, ThresholdCurve

BIAS_STEPS = (
    0.05,
    0.1,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
    1.5,
    2.0,
    3.0,
    5.0,
    10.0,
)  # in multiples of the typical pre-activation
EXTRA_FACTORS = (1, 2, 4, 8, 16, 32, 64)  # latents kept beyond k, as multiples of k
THRESHOLD_SHARES = (0.9, 0.75, 0.5, 0.25, 0.1, 0.0)
SCALES = (0.2, 0.5, 1.0)  # resampled encoder norms, in mean norms of live encoders; the paper takes 0.2
CANDIDATES = 8192  # training rows among which badly reconstructed ones are drawn


def bias_moved(measured: PreActivations, dead: Tensor) -> BiasCurve | None:
    """Count how many dead latents would fire on some row with their bias moved by each of BIAS_STEPS units.

    `dead` marks them among the latents that were measured. Each bias moves alone: upwards, or where latents are signed
    towards the nearer sign. Counts are exact on the rows that were read. The unit is the median pre-activation that fires.
    Returns None where nothing fires."""
    if math.isnan(measured.typical):
        return None
    missing = -measured.margin[dead] / measured.typical
    fire = [int((missing < step).sum()) for step in BIAS_STEPS]
    return BiasCurve(measured.typical, list(BIAS_STEPS), fire)


def k_larger(measured: PreActivations, dead: Tensor, k: int | None, n_latents: int) -> KCurve | None:
    """Count how many dead latents would fire were more latents kept in each row; None unless latents are chosen by rank.

    Counts are exact on the rows that were read. `k` is the number that every row keeps now; None where rows differ."""
    if not measured.by_rank:
        return None
    start = k or 32
    extra = sorted(
        {min(factor * start, n_latents - (k or 0)) for factor in EXTRA_FACTORS} | {max(1, start // 2)}
    )
    missing = measured.missing_places[dead]
    fire = [int(((missing >= 0) & (missing <= more)).sum()) for more in extra]
    return KCurve(k, extra, fire)


def thresholds_lower(measured: PreActivations, dead: Tensor, thresholds: Tensor) -> ThresholdCurve | None:
    """Count how many dead latents would fire with all thresholds multiplied by a share; None without thresholds, or where
    rank decides too."""
    if measured.by_rank or not bool((thresholds > 0).any()):
        return None
    ratio, positive = measured.ratio[dead], measured.positive_share[dead] > 0
    fire = [int(((ratio > share) if share else positive).sum()) for share in THRESHOLD_SHARES]
    return ThresholdCurve(list(THRESHOLD_SHARES), fire)


@torch.no_grad()
def resampled(sae: SAE, rows: Rows, dead: Int[Tensor, "n"], living: Tensor) -> ResampleCurve | None:
    """Count how many dead latents would fire on held-out rows once all of them are resampled at once.

    As in Bricken et al. 2023, appendix "Neuron Resampling": each gets a training row, drawn with probability proportional
    to its squared loss, as its encoder, at a share of the live encoders' mean norm, and as its decoder at norm 1; its
    bias becomes 0. Latents chosen by rank have to win their ranks. `dense` counts those that would fire on more than a
    tenth of the rows: they read what all rows share, and only training would tell them apart. None where latents have no
    encoder column of their own, nothing is dead or nothing is alive, and where no training row is there that has a loss."""
    own = dict(sae.named_parameters())
    if "W_enc" not in own or not len(dead) or not living.any():
        return None
    if (x := _badly_reconstructed(sae, rows, len(dead))) is None:
        return None
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
    """Return a copy of the SAE whose `latents` read the rows x - b_dec at this encoder norm, write them at norm 1 and have no bias."""
    changed = copy.deepcopy(sae)
    directions = F.normalize(x.to(sae.device) - sae.b_dec, dim=1)
    changed.W_enc[:, latents] = norm * directions.T
    changed.W_dec[latents] = directions
    for name in set(sae.in_activation_units) - {"b_dec"}:
        if (bias := getattr(changed, name)).shape == sae.b_enc.shape:  # every bias that each latent has
            bias[latents] = 0.0
    if not sae.pre_bias:  # where b_dec is not subtracted from x, the bias does it
        changed.b_enc[latents] = -norm * (directions @ sae.b_dec)
    return changed


def _badly_reconstructed(sae: SAE, rows: Rows, n: int) -> Float[Tensor, "n D"] | None:
    """Draw n training rows with probability proportional to their squared loss, with repeats where fewer have a loss.

    Return None where none has one, or there is no training row."""
    candidates, losses, seen = [], [], 0
    for piece in rows.text():
        x = piece.x[~piece.held_out]
        candidates.append(x)
        losses.append((sae(x.to(sae.device)).cpu() - x).square().sum(1))
        seen += len(x)
        if seen >= CANDIDATES:
            break
    weight = torch.cat(losses).double().square()
    generator = torch.Generator().manual_seed(rows.cfg.seed)
    with_loss = int((weight > 0).sum())
    if not with_loss:
        return None
    enough = with_loss >= n
    return torch.cat(candidates)[torch.multinomial(weight, n, replacement=not enough, generator=generator)]
