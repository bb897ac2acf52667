"""What makes a run useless as it is, said from its log and its evaluation, with the likely remedy."""

import math
from collections.abc import Mapping, Sequence

from sae.runs.records import Evaluation, RunRecord


def problems(
    record: RunRecord, log: Sequence[Mapping[str, float]], evaluation: Evaluation | None
) -> list[str]:
    """Return a line for each thing that makes a run useless as it is, with the likely remedy; none for an ordinary run.

    `log` holds the rows of log.jsonl."""
    config = record.config
    settings, d_sae = config["arch"], config["arch"].get("d_sae")
    lr = config["train"].get("lr")
    remedy = (
        f"lower --train.lr (it was {lr:g})"
        if lr
        else "check that model, hook point and scale are those it was trained on"
    )
    lines, last = [], log[-1] if log else {}
    estimates = evaluation.estimates if evaluation else {}
    fvu, l0 = (estimates[name].value if name in estimates else None for name in ("fvu", "l0"))
    if _worse(last.get("fvu")):
        lines.append(
            f"training stands at FVU {last['fvu']:.3g}, worse than the mean activation (FVU 1): {remedy}"
        )
    if _worse(fvu):
        lines.append(f"FVU on held-out tokens is {fvu:.3g}, worse than the mean activation (FVU 1): {remedy}")
    silent = evaluation.dead if evaluation else None
    if 0 in (l0, last.get("l0")) or silent == 1:
        weight = next((name for name in ("l1_weight", "sparsity_weight") if settings.get(name)), None)
        lower = f" or --arch.{weight.replace('_', '-')} (it was {settings[weight]:g})" if weight else ""
        lines.append(f"no latent fires on any token (L0 is 0): {remedy}{lower}")
    elif d_sae and last.get("dead") == d_sae:
        lines.append(f"all {d_sae:,} latents are dead: {remedy}")
    k = settings.get("k")
    if (
        d_sae
        and isinstance(k, int | float)
        and silent is not None
        and 0 < (alive := round((1 - silent) * d_sae)) < k
    ):
        lines.append(
            f"only {alive:,} latents fire, fewer than k = {k:g}: {remedy}, or train with a smaller --arch.k"
        )
    return lines


def _worse(fvu: float | None) -> bool:
    return fvu is not None and not (math.isfinite(fvu) and fvu <= 1)
