"""Latents that tell two sets of texts apart, as the Find page shows them."""

import pyarrow as pa

from sae.probing.latents import Found
from sae.probing.records import Monitor
from sae.report.feature import Describe
from sae.report.features import labelled
from sae.report.numbers import percent

RATES = (0.0, 0.01, 0.05, 0.1)
"""False-positive rates that a monitor's threshold can be chosen for."""
FDR = 0.05
MARKS = {True: "yes", False: "no"}


def listing(found: Found, describe: Describe | None) -> pa.Table:
    """Return a row for each candidate, the best first, with its label and tokens where features have been collected."""
    rows = []
    for place, each in enumerate(found.latents, 1):
        label, tokens = describe(each.latent) if describe else ("", [])
        rows.append(
            {
                "feature": each.latent,
                "rank": place,
                "AUC": each.auc,
                "q": each.q,
                "found": MARKS[each.q <= FDR],
                "higher on": "first" if each.sign > 0 else "second",
                "fires on first": 100 * each.fires[0],
                "fires on second": 100 * each.fires[1],
                "label": label,
                "fires on": list(tokens),
            }
        )
    table = pa.Table.from_pylist(rows)
    return labelled(table) if rows else table


def numbers(found: Found, sizes: tuple[int, int]) -> list[tuple[str, str, str]]:
    """Return the key numbers as (name, value, explanation)."""
    held_out = int((~found.chosen_on).sum())
    best = f"{found.latents[0].auc:.3f}" if found.latents else "–"
    return [
        (
            "Found",
            f"{len(found.kept(FDR))}",
            f"Candidates that differ beyond chance: at most {percent(FDR)} of them are expected to be false discoveries.",
        ),
        (
            "Candidates",
            f"{len(found.latents)}",
            "The latents with the best AUC on the half of the texts that ranks them.",
        ),
        (
            "AUC at rank 1",
            best,
            "Of the latent that was best on the ranking half, measured on held-out texts, where another may do better: .5 is "
            "chance, 1 tells every pair apart.",
        ),
        ("Texts", f"{sizes[0]:,} and {sizes[1]:,}", "Different texts of the first and the second set."),
        (
            "Held out",
            f"{held_out:,}",
            "Texts that took no part in choosing the candidates and that AUC and q are measured on.",
        ),
    ]


def monitor_line(monitor: Monitor) -> str:
    """Return what a monitor was measured to do, in one sentence."""
    side = "above" if monitor.sign > 0 else "below"
    return (
        f"Latent {monitor.latent} {side} {monitor.sign * monitor.threshold:.4g} fires on "
        f"{percent(monitor.true_positive_rate)} of {monitor.examples[0]} held-out texts of the first set and on "
        f"{percent(monitor.false_positive_rate)} of {monitor.examples[1]} of the second."
    )
