"""What `sae absorption` measured, as rows of text and as HTML, for the command line and the Evidence page."""

from sae.probing.absorption import WHOSE, AbsorptionRecord
from sae.report import render
from sae.report.numbers import fixed
from sae.runs.records import Estimate

MEAN_HEADS = ("", "mean absorbed fraction", "95 % interval", "fully absorbed", "95 % interval")
LETTER_HEADS = (
    "letter",
    "words",
    "known",
    "probe F1",
    "latents",
    "their F1",
    "fraction",
    "full",
    "random: fraction",
    "full",
)
HELP = (
    "Of a word that begins with a letter: the part of the letter's direction that other latents carry than those which stand for "
    "the letter. 0 is none, 1 is all; fully absorbed are words on which the letter's latents are silent."
)
DIFFERENCE = "the SAE beyond the random one"


def basis(record: AbsorptionRecord) -> str:
    """Return what the numbers are based on, in words."""
    words = sum(each.true_positives for each in record.letters["sae"])
    return (
        f"{len(record.letters['sae'])} letters, {words:,} test words that a probe on activations recognises"
    )


def means(record: AbsorptionRecord) -> list[tuple[str, ...]]:
    """Return a row of MEAN_HEADS for the SAE, for the random one and for their difference."""
    rows = [(WHOSE[whose], record.mean(whose, "fraction"), record.mean(whose, "full")) for whose in WHOSE]
    rows.append((DIFFERENCE, record.beyond_control("fraction"), record.beyond_control("full")))
    return [(title, *_shown(fraction), *_shown(full)) for title, fraction, full in rows]


def conclusion(record: AbsorptionRecord) -> str:
    """Return what can be said, in a sentence."""
    beyond = record.beyond_control("fraction")
    if beyond.value is None:
        return "No letter could be measured."
    split = f"Beyond the first, {record.split:.1f} latents a letter stand for it (feature splitting)."
    if beyond.low is None or beyond.high is None:
        return f"One letter does not tell whether more is absorbed than by a random SAE. {split}"
    if beyond.low > 0:
        return f"More is absorbed than by a random SAE. {split}"
    if beyond.high < 0:
        return f"Less is absorbed than by a random SAE. {split}"
    return f"Absorption is not distinguishable from that of a random SAE. {split}"


def by_letter(record: AbsorptionRecord) -> list[tuple[str, ...]]:
    """Return a row of LETTER_HEADS for each letter."""
    return [
        (
            own.letter,
            f"{own.words:,}",
            f"{own.true_positives:,}",
            f"{own.probe_f1:.2f}",
            " ".join(map(str, own.latents)),
            f"{own.f1:.2f}",
            f"{own.fraction:.3f}",
            f"{own.full:.3f}",
            f"{control.fraction:.3f}",
            f"{control.full:.3f}",
        )
        for own, control in zip(record.letters["sae"], record.letters["random sae"], strict=True)
    ]


def tables(record: AbsorptionRecord) -> str:
    """Return both tables as HTML."""
    rows = [(title, "", values) for title, *values in means(record)]
    letters = [(letter, "", values) for letter, *values in by_letter(record)]
    parts = [
        render.columns(MEAN_HEADS[1:], rows),
        render.section("By letter", "", 3),
        render.columns(LETTER_HEADS[1:], letters),
    ]
    return "".join(parts)


def _shown(estimate: Estimate) -> tuple[str, str]:
    if estimate.value is None:
        return "–", ""
    if estimate.low is None:
        return fixed(estimate.value, 3), "unknown: one letter"
    return fixed(estimate.value, 3), f"{fixed(estimate.low, 3)} to {fixed(estimate.high, 3)}"
