"""Steering by a latent beside its rivals, as the command line and the HTML report show it. Pure: from the content of arms.json."""

from collections.abc import Sequence

from sae.evaluation.measures import Estimate
from sae.report import pareto, render
from sae.report.charts import PALETTE
from sae.report.numbers import DASH, fixed, number, percent, signed
from sae.report.pareto import Line, Mark
from sae.report.render import escaped
from sae.runs.arms import ArmsRecord, ConceptResult, ForecastRecord, Level, Overall

TITLES = {
    "latent": ("latent", "Moves along the decoder row of the latent that tells the concept best."),
    "difference": (
        "difference in means",
        "Moves along the difference of the mean activations of labelled texts.",
    ),
    "probe": ("probe", "Moves along the weights of a logistic regression on the same labelled texts."),
    "wrong sign": ("latent, wrong sign", "Moves along the latent's decoder row the other way."),
    "prompt": ("prompt", "Puts examples of the concept before the prompt; nothing is steered."),
    "random": ("random directions", "Moves as far, in directions uniform on the sphere."),
}
COLORS = dict(zip(TITLES, PALETTE, strict=True))
VERDICTS = {
    "above random": "beats random directions",
    "not distinguishable": "not distinguishable from random",
    "below random": "falls below random directions",
}
MEASURES = {
    "concept": (
        "concept",
        "How much more of the concept the judge sees than in unsteered texts: 1 is the distance from texts without it to texts with it.",
    ),
    "kl": ("KL", "KL from the unsteered predictions on unrelated text, nats a token."),
    "surprise": (
        "surprise",
        "By how many nats a token the texts are less likely under the unsteered model than its own.",
    ),
    "moved": (
        "unrelated moved",
        "How far the judges of unrelated concepts move, on average. Chance alone makes it more than 0: compare with random directions.",
    ),
}
VERDICTS_OF = "concepts by what can be said of an arm beside random directions of equal strength (the prompt has no strength)"
EVERY, EVERY_REMARK = "All concepts", "means, with 95 % intervals over concepts"
COST, GAIN = "KL on unrelated text, nats", "concept"
KEPT_RATE = 0.05  # false-discovery rate above which a latent was not found
SHOWN = 3  # texts of each arm


def interval(estimate: Estimate | None, sign: bool = False) -> str:
    """Return an estimate with its 95 % interval as text."""
    if estimate is None:
        return DASH
    show = signed if sign else number
    return f"{show(estimate.value)} ({show(estimate.low)} to {show(estimate.high)})"


def values(level: Level | Overall) -> list[str]:
    """Return the measures of a level as text, in the order of MEASURES."""
    return [interval(getattr(level, name), sign=name in ("concept", "surprise")) for name in MEASURES]


def strength(arm: str, value: float) -> str:
    """Return a strength in words."""
    return f"{value:g} example{'s' if value != 1 else ''}" if arm == "prompt" else f"{value:g} of the norm"


def conclusion(result: ConceptResult) -> list[str]:
    """Return what can be said of each arm on a concept, a sentence each."""
    return [
        f"{TITLES[name][0]}: {VERDICTS[arm.verdict]} ({interval(arm.better_by, sign=True)}; smallest reliable difference "
        f"{number(result.smallest)})"
        for name, arm in result.arms.items()
        if arm.verdict
    ]


def counts(record: ArmsRecord) -> list[tuple[str, list[int]]]:
    """Return, for each arm but the random one, on how many concepts it has each verdict, in the order of VERDICTS."""
    names = [name for name in TITLES if name != "random"]
    return [
        (name, [sum(each.arms[name].verdict == verdict for each in record.concepts) for verdict in VERDICTS])
        for name in names
    ]


def cautions(record: ArmsRecord) -> list[str]:
    """Return what limits the findings, a sentence each."""
    said = [f"{name} is left out: {why}." for name, why in record.left_out.items()]
    unfound = [each.name for each in record.concepts if each.latent_q > KEPT_RATE]
    if unfound:
        said.append(
            f"No latent tells these concepts on held-out texts (q above {KEPT_RATE:g}), so that the latent arm steers with a poor "
            f"choice: {', '.join(unfound)}."
        )
    alone = [each.name for each in record.concepts if not each.unrelated]
    if alone:
        said.append(
            f"No judge of an unrelated concept watched these: {', '.join(alone)}. Name some with --unrelated."
        )
    nulls = record.nulls
    said.append(
        f"Judged as if they were arms, {nulls.distinguishable} of {nulls.judged} random directions are distinguishable from the "
        f"others ({percent(nulls.distinguishable / max(nulls.judged, 1))})."
    )
    return said


def chart(levels: dict[str, Sequence[Level | Overall]]) -> str:
    """Return the plot of concept against KL, a line for each arm."""
    lines = [
        Line(
            TITLES[name][0],
            COLORS[name],
            [
                Mark(
                    each.kl,
                    each.concept,
                    f"{TITLES[name][0]}, {strength(name, each.strength)}: {interval(each.concept, True)}",
                )
                for each in own
            ],
        )
        for name, own in levels.items()
    ]
    return pareto.svg(lines, COST, GAIN)


def forecast(record: ForecastRecord, holds: bool) -> str:
    """Return how well side effects are foreseen, as a sentence."""
    strongest = sorted(record.weights, key=lambda name: -abs(record.weights[name]))[:3]
    said = ", ".join(f"{name} {signed(record.weights[name])}" for name in strongest)
    return (
        f"{len(record.latents)} latents measured, KL {number(min(record.kl))} to {number(max(record.kl))} nats on unrelated text at "
        f"{record.share:g} of the norm; rank correlation of the forecast on unseen latents {interval(record.correlation, True)}: "
        f"{'the Steering page shows it' if holds else 'too weak to be shown'}. Largest weights: {said}"
    )


def basis(record: ArmsRecord) -> str:
    """Return what was measured, in words."""
    cfg = record.config
    texts = len(cfg["starts"]) * int(cfg["draws"]) if isinstance(cfg["starts"], list) else 0  # type: ignore[arg-type]
    return (
        f"{_several(len(record.concepts), 'concept')}, {len(TITLES)} arms, {texts} texts of {cfg['new_tokens']} tokens at each strength, "
        f"{cfg['directions']} random directions, {cfg['unrelated_windows']} windows of unrelated text"
    )


def page(record: ArmsRecord, name: str) -> str:
    """Return the report as one HTML page that opens anywhere."""
    parts = [
        f'<header class="sae"><h1>Steering {escaped(name)}, compared</h1><p>{escaped(basis(record))}</p></header>',
        render.section("Verdicts", VERDICTS_OF),
        verdicts(record),
        limits(record),
    ]
    if record.overall:
        parts += [render.section(EVERY, EVERY_REMARK), overall(record)]
    for result in record.concepts:
        parts += [render.section(result.name, towards(result)), concept(result)]
    parts.append(render.section("What the columns mean", "") + meanings())
    return render.document(f"Steering {name}, compared", parts)


def towards(result: ConceptResult) -> str:
    """Return the class that a concept steers towards, in words."""
    return f"towards {result.concept!r}"


def verdicts(record: ArmsRecord) -> str:
    """Return a table of the number of concepts on which each arm has each verdict."""
    rows = [(*TITLES[arm], [str(n) for n in row]) for arm, row in counts(record)]
    return render.columns(list(VERDICTS.values()), rows)


def limits(record: ArmsRecord) -> str:
    """Return what limits the findings, a line each."""
    return "".join(f'<p class="sae verdict dim">{escaped(text)}</p>' for text in cautions(record))


def overall(record: ArmsRecord) -> str:
    """Return the plot and the table of means over all concepts."""
    levels = {arm: [each for each in record.overall if each.arm == arm] for arm in TITLES}
    return chart({**levels}) + _table({**levels})


def concept(result: ConceptResult, run: str | None = None) -> str:
    """Return what steers towards a concept and who judges, what is said of each arm, the plot, the table and the texts.

    The latent's number links to its page unless `run` is None."""
    latent = f"Latent {render.feature_anchor(run, result.latent)}{'' if result.sign > 0 else ', negative'}"
    told = (
        f"AUC {fixed(result.latent_auc, 2)} held out; the judge's AUC {fixed(result.judge_auc, 2)}; "
        f"{_several(len(result.unrelated), 'unrelated concept')}"
    )
    chosen = f'<p class="sae verdict dim">{latent}, {escaped(told)}</p>'
    levels = {name: arm.levels for name, arm in result.arms.items()}
    said = "".join(f'<p class="sae verdict">{escaped(text)}</p>' for text in conclusion(result))
    written = "".join(
        f"<tr><td>{escaped(TITLES[name][0])}</td><td>{escaped(strength(name, level.strength))}</td>"
        f'<td><span class="strip">{escaped(" ¶ ".join(texts[:SHOWN]))}</span></td></tr>'
        for name, arm in result.arms.items()
        for level, texts in zip(arm.levels, arm.texts, strict=True)
    )
    texts = f'<details class="sae meanings"><summary>Texts</summary><table class="sae estimates">{written}</table></details>'
    return chosen + said + chart({**levels}) + _table({**levels}) + texts


def meanings() -> str:
    """Return what each column of the tables means."""
    return render.facts(MEASURES.values())


def _table(levels: dict[str, Sequence[Level | Overall]]) -> str:
    rows = [
        (f"{TITLES[name][0]}, {strength(name, each.strength)}", TITLES[name][1], values(each))
        for name, own in levels.items()
        for each in own
    ]
    return f'<div class="sae arms">{render.columns([title for title, _ in MEASURES.values()], rows)}</div>'


def _several(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"
