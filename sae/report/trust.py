"""A run beside its controls, as the Evidence page, the command line and the HTML report show it. Pure: from the content of trust.json."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae.evaluation.measures import MEASURES
from sae.report import render
from sae.report.numbers import DASH, fixed, number, percent, signed
from sae.report.render import escaped
from sae.runs.records import Estimate
from sae.runs.trust import STABLE, UNEQUAL, Against, Beside, TrustRecord

FEW_DOCUMENTS = 20  # below which a bootstrap over documents tells little
TITLES = {
    "run": ("this run", "The run itself."),
    "frozen-decoder": (
        "frozen decoder",
        "Trained like the run, but the decoder stays as it started, at random rows.",
    ),
    "soft-frozen-decoder": (
        "soft-frozen decoder",
        "Trained like the run, but each decoder row stays within a cosine of 0.8 of its random start.",
    ),
    "frozen-encoder": (
        "frozen encoder",
        "Trained like the run, but the encoder's weights stay as they started, at random.",
    ),
    "pca": ("PCA", "All principal components; each row keeps as many as the run's L0, the largest in size."),
    "random-dictionary": (
        "random dictionary",
        "As many random directions as the run has latents; each row keeps as many as the run's L0, the largest in size.",
    ),
}
RANDOM = {
    "redrawn-model": (
        "model re-drawn",
        "Trained like the run on the same text, read by a model whose weights are drawn again at their mean and deviation.",
    ),
    "shuffled-model": (
        "model shuffled",
        "Trained like the run on the same text, read by a model whose weights are shuffled within each tensor.",
    ),
}
TITLES |= RANDOM
VERDICTS = {
    "beats": "beats it",
    "too small": "smaller than the smallest reliable difference",
    "other sparsity": "not compared: another L0",
    "not distinguishable": "not distinguishable",
    "falls short": "falls short of it",
}


class Line(NamedTuple):
    """One SAE's value of a measure."""

    name: str
    """Its name among the controls; `run` for the run."""
    title: str
    help: str
    l0: Estimate
    value: Estimate
    against: Against | None
    """How the run compares with it; None for the run and its seeds."""
    documents: int
    """Documents that the measure was taken over; 0 where that is not known."""


def title(name: str) -> str:
    """Return a control's name in words."""
    return TITLES[name][0] if name in TITLES else name.replace("-", " ")


def lines(record: TrustRecord, measure: str) -> Iterator[Line]:
    """Yield the run, its seeds, then its controls."""
    beside, documents = record.measures[measure], record.documents_of(measure)
    yield Line("run", *TITLES["run"], record.l0, beside.value, None, documents)
    for name, value in beside.seeds.items():
        yield Line(
            name,
            title(name),
            "The run once more, with another seed.",
            record.controls[name].l0,
            value,
            None,
            documents,
        )
    for name, against in {**beside.controls, **beside.random_models}.items():
        help_ = TITLES.get(name, ("", ""))[1]
        yield Line(name, title(name), help_, record.controls[name].l0, against.value, against, documents)


def conclusion(record: TrustRecord, measure: str) -> str:
    """Return what a measure says about the run, as a sentence about the control that comes closest."""
    beside: Beside = record.measures[measure]
    name = beside.closest
    against = beside.controls[name]
    by, control = number(abs(against.better_by.value or 0.0)), title(name)
    symbol = MEASURES[measure].symbol
    if against.verdict == "beats":
        return f"{symbol}: the run beats its controls, the closest of them ({control}) by {by}."
    if against.verdict == "falls short":
        return f"{symbol}: the run falls short of {control} by {by}."
    if against.verdict == "not distinguishable":
        return f"{symbol}: the run is not distinguishable from {control}."
    if against.verdict == "other sparsity":
        beaten = [title(other) for other, one in beside.controls.items() if one.verdict == "beats"]
        others = f"; it beats {', '.join(beaten)}" if beaten else ""
        return (
            f"{symbol}: nothing is said of {control}, which fires {number(record.controls[name].l0.value)} latents a row where the run "
            f"fires {number(record.l0.value)}{others}."
        )
    better = "better" if (against.better_by.value or 0.0) > 0 else "worse"
    return (
        f"{symbol}: the run is {better} than {control} by {by}, smaller than the smallest reliable difference "
        f"({number(beside.smallest)})."
    )


def of_random_models(record: TrustRecord) -> list[str]:
    """Return, for each measure of an SAE of a random model, whether it tells the trained model from that one."""
    told = []
    for measure, beside in record.measures.items():
        for name, against in beside.random_models.items():
            by, symbol = number(abs(against.better_by.value or 0.0)), MEASURES[measure].symbol
            told.append(
                f"{symbol}: the run is better by {by} than the same SAE of a random model ({title(name)})."
                if against.verdict == "beats"
                else f"{symbol} is not compared with {title(name)}: its SAE has another L0."
                if against.verdict == "other sparsity"
                else f"{symbol} does not tell the model from a random one ({title(name)}), whose SAE is "
                f"{'better' if against.verdict == 'falls short' else 'as good'}."
            )
    return told


def stability(record: TrustRecord) -> str:
    """Return how stable the latents are over seeds, as a sentence."""
    found = record.stability
    return (
        f"Stability over {_seeds(record)} seeds: {percent(found.stable)} of latents have a counterpart (mean largest |cosine| of at "
        f"least {STABLE}) in the other seeds; the mean is {fixed(found.mean, 2)}, and {fixed(found.chance, 2)} with random directions."
    )


def conclusions(record: TrustRecord) -> list[str]:
    """Return all that was found, a sentence each."""
    return [
        *(conclusion(record, measure) for measure in record.measures),
        *of_random_models(record),
        stability(record),
    ]


def cautions(record: TrustRecord) -> list[str]:
    """Return what limits the findings, a sentence each."""
    found = [f"{title(name)} is missing: {why}" for name, why in record.left_out.items()]
    if record.documents < FEW_DOCUMENTS:
        found.append(
            f"Only {_documents(record.documents)} measured, and a bootstrap over so few tells little: harvest more."
        )
    elif 0 < record.windows_documents < FEW_DOCUMENTS:
        found.append(
            f"Of the text that the language model read, only {_documents(record.windows_documents)} measured, and a bootstrap over so "
            f"few tells little: read more (--windows)."
        )
    own = record.l0.value or 0.0
    l0s = {name: control.l0.value or 0.0 for name, control in record.controls.items()}
    unequal = [f"{title(name)} {number(l0)}" for name, l0 in l0s.items() if abs(l0 - own) > UNEQUAL * own]
    if unequal:
        found.append(
            f"The run has L0 {number(own)}, but {', '.join(unequal)}: an SAE with more latents firing reconstructs more, so that only "
            f"the one with fewer can be called better."
        )
    return found


def _documents(number: int) -> str:
    return f"{number} held-out document{'s were' if number != 1 else ' was'}"


def basis(record: TrustRecord) -> str:
    """Return what was measured, in words."""
    spliced = f", {record.windows} windows read by the language model" if record.windows else ""
    documents = f"{record.documents:,} document{'s' * (record.documents != 1)}"
    return f"{record.tokens:,} held-out tokens of {documents}{spliced} · {_seeds(record)} seeds"


def _seeds(record: TrustRecord) -> int:
    """Return how many seeds took part, the run's own included; those that diverged did not."""
    return 1 + sum(control.kind == "seed" for control in record.controls.values())


def numbers(record: TrustRecord) -> list[tuple[str, str, str]]:
    """Return key numbers as (name, value, explanation)."""
    cells = []
    for measure, beside in record.measures.items():
        beaten = sum(against.verdict == "beats" for against in beside.controls.values())
        cells.append(
            (
                f"{MEASURES[measure].symbol}: beats",
                f"{beaten} of {len(beside.controls)}",
                "Controls that the run is better than by more than documents and seeds can explain.",
            )
        )
    found = record.stability
    return [
        *cells,
        ("stable latents", percent(found.stable), f"Share of latents with a stability of at least {STABLE}."),
        (
            "mean stability",
            fixed(found.mean, 2),
            f"Mean largest |cosine| with a decoder row of the other seeds; random directions have {fixed(found.chance, 2)}.",
        ),
    ]


def interval(estimate: Estimate, documents: int, sign: bool = False) -> str:
    """Return a 95 % interval over so many documents as text; a dash where it is not known.

    One document says nothing of the spread over documents: its bootstrap interval has no width. Where the number of documents is
    not known (0), such an interval is taken for one of a single document."""
    show = signed if sign else number
    unknown = estimate.low is None or (documents <= 1 and estimate.low == estimate.high)
    return DASH if unknown else f"{show(estimate.low)} to {show(estimate.high)}"


def table(record: TrustRecord, measure: str) -> str:
    """Return a measure of the run beside its seeds and controls as HTML: values, an axis with intervals, differences, verdicts."""
    every = list(lines(record, measure))
    ends = [end for line in every for end in (line.value.low, line.value.high) if end is not None]
    low, high = min(ends), max(ends)
    rows = "".join(_row(line, low, high) for line in every)
    head = (
        '<tr><td></td><th scope="col" class="n">L0</th><th scope="col" class="n">value</th><th scope="col" class="n">95 % interval</th><td></td>'
        '<th scope="col" class="n">run better by</th><th scope="col" class="n">95 % interval</th><th scope="col">verdict</th></tr>'
    )
    return render.wide(f'<table class="sae estimates evidence">{head}{rows}</table>')


def _row(line: Line, low: float, high: float) -> str:
    kind = "own" if line.name == "run" else "" if line.against else "seed"
    better = line.against.better_by if line.against else None
    cells = [
        f'<td title="{escaped(line.help)}">{escaped(line.title)}</td>',
        f'<td class="n">{number(line.l0.value)}</td><td class="n">{number(line.value.value)}</td>',
        f'<td class="n dim">{interval(line.value, line.documents)}</td><td class="axis">{_axis(line.value, low, high)}</td>',
        f'<td class="n">{signed(better.value) if better else ""}</td>',
        f'<td class="n dim">{interval(better, line.documents, sign=True) if better else ""}</td>',
        f"<td>{escaped(VERDICTS[line.against.verdict]) if line.against else ''}</td>",
    ]
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _axis(estimate: Estimate, low: float, high: float) -> str:
    """Return a value as a dot and its interval as a line, on an axis from `low` to `high`."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    scale = (high - low) or 1.0
    left, width, dot = (
        (value / scale) for value in (estimate.low - low, estimate.high - estimate.low, estimate.value - low)
    )
    return f'<i style="--l:{left:.4f};--w:{width:.4f}"></i><b style="--x:{dot:.4f}"></b>'


def remark(beside: Beside) -> str:
    """Return the smallest reliable difference of a measure, in words."""
    return f"smallest reliable difference {number(beside.smallest)}, by the spread over seeds"


def badge(every: NDArray[np.float64] | None, latent: int) -> str:
    """Return a latent's stability, of all latents' [F], as HTML to stand beside its label; empty where it is not known."""
    if every is None:
        return ""
    stability = float(every[latent])
    word = "stable" if stability >= STABLE else "not stable"
    return (
        f'<span class="badge" title="Mean over the other seeds of its largest |cosine| with a decoder row there; '
        f'from {STABLE} on it counts as stable">{word} over seeds: {fixed(stability, 2)}</span>'
    )


def page(record: TrustRecord, name: str) -> str:
    """Return the report as one HTML page that opens anywhere."""
    parts = [
        f'<header class="sae"><h1>Evidence for {escaped(name)}</h1><p>{escaped(basis(record))}</p></header>',
        render.figures(numbers(record)),
        *(f'<p class="sae verdict">{escaped(text)}</p>' for text in conclusions(record)),
        *(f'<p class="sae verdict dim">{escaped(text)}</p>' for text in cautions(record)),
    ]
    for measure, beside in record.measures.items():
        parts.append(render.section(MEASURES[measure].title, remark(beside)) + table(record, measure))
    return render.document(f"Evidence for {name}", parts)
