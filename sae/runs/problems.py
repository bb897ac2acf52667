"""What is wrong with a run's SAE, from what its folder already says: the end of its log, its evaluation, its settings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def problems(
    about: Mapping[str, Any], log: Sequence[Mapping[str, float]], evaluation: Mapping[str, Any] | None
) -> list[str]:
    """A line for each thing that makes a run useless as it is, with the likely remedy; none for an ordinary run.

    `about` is the content of run.json, `log` the rows of log.jsonl, `evaluation` that of eval.json."""
    config = about["config"]
    settings, d_sae = config["arch"], config["arch"].get("d_sae")
    lr = config["train"].get("lr")
    remedy = (
        f"lower --train.lr (it was {lr:g})"
        if lr
        else "check that model, hook point and scale are those it was trained on"
    )
    found, last = [], log[-1] if log else {}
    estimates = (evaluation or {}).get("estimates", {})
    fvu, l0 = (estimates.get(name, {}).get("value") for name in ("fvu", "l0"))
    if _worse(last.get("fvu")):
        found.append(
            f"training stands at FVU {last['fvu']:.3g}, worse than the mean activation (FVU 1): {remedy}"
        )
    if _worse(fvu):
        found.append(f"FVU on held-out tokens is {fvu:.3g}, worse than the mean activation (FVU 1): {remedy}")
    silent = (evaluation or {}).get("dead")
    if 0 in (l0, last.get("l0")) or silent == 1:
        weight = next((name for name in ("l1_weight", "sparsity_weight") if settings.get(name)), None)
        lower = f" or --arch.{weight.replace('_', '-')} (it was {settings[weight]:g})" if weight else ""
        found.append(f"no latent fires on any token (L0 is 0): {remedy}{lower}")
    elif d_sae and last.get("dead") == d_sae:
        found.append(f"all {d_sae:,} latents are dead: {remedy}")
    k = settings.get("k")
    if (
        d_sae
        and isinstance(k, int | float)
        and silent is not None
        and 0 < (alive := round((1 - silent) * d_sae)) < k
    ):
        found.append(
            f"only {alive:,} latents fire, fewer than k = {k:g}: {remedy}, or train with a smaller --arch.k"
        )
    return found


def _worse(fvu: float | None) -> bool:
    return fvu is not None and not (math.isfinite(fvu) and fvu <= 1)
