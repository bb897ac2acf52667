"""`sae explain`: a rule for every latent of a run, with its scores on text that did not choose it, beside controls; and, with
`--judge`, what a language model says of some of them."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from activations.errors import ConfigError, quoted
from activations.progress import show_progress
from sae.cli import arguments
from sae.features.explanations import Explanations
from sae.features.feature import FeatureStore
from sae.features.judgements import Judgements
from sae.features.meaning import collect_where_possible
from sae.judging.config import JudgeConfig
from sae.report import explanations as report
from sae.report import judgements as judged_report
from sae.report.numbers import fixed, percent
from sae.report.render import visible
from sae.rules.explaining import ExplainConfig
from sae.runs.run import Run
from sae.workflows.explain import explain
from sae.workflows.judge import judge


@dataclass(frozen=True)
class Explain:
    """Explain every latent of a run by a rule: a token, a set of them, an n-gram with gaps, an ending, a place, a property of the text.

    Example: sae explain runs/demo. Rules are chosen on half of the documents and scored on the other half, beside random directions
    and shuffled firings. The run needs features. Labels that people gave stay as they are. After an interruption the same
    command continues.

    With --judge ADDRESS a language model there explains some latents too, and reads its explanations and the rules on the same
    texts; `sae plan explain` tells first what that costs. Nothing is sent without it. docs/explanations.md."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    show: int = 10
    """Explanations printed, those with the largest F1; 0 for none."""
    config: ExplainConfig = field(default_factory=ExplainConfig)
    judging: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        if self.show < 0:
            raise ConfigError(f"show = {self.show} must be at least 0")
        unread = [name for group, name in arguments.changed(self) if group == "judging"]
        if unread and self.judging.judge is None:
            raise ConfigError(
                f"--{unread[0].replace('_', '-')} has no effect without --judge: give an address, or leave it out"
            )


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Explain, "sae explain", args, tyro.conf.OmitArgPrefixes)
    run, judging = Run(command.run), command.judging
    if judging.judge is not None:  # what is wrong with it is told before the rules take their minutes
        _ = judging.address, judging.model, judging.key
    explained = explain(run, command.config, show_progress)
    # Word embeddings may have been fetched only now, for the scores
    collect_where_possible(FeatureStore(run.path / "features"), show_progress)
    summarise(run, explained, command.show)
    if judging.judge is not None:
        show_judged(run, judge(run, judging, show_progress), command.show)
    print(f"{explained.path}: explained; next: sae app {quoted(run.path.parent)}, page Features")
    return 0


def summarise(run: Run, explained: Explanations, best: int) -> None:
    """Print the scores beside those of the controls, the kinds of rules, the best explanations, and what can be said."""
    console, record = Console(), explained.record
    table = Table(title=f"{run.path}: rules, scored on text that did not choose them")
    for column in ("mean", *report.KINDS.values(), "latents beyond random directions"):
        table.add_column(column, justify="left" if column == "mean" else "right")
    for score, kinds in report.lines(record).items():
        means = [
            f"{fixed(found.mean.value, 3)}\n{report.interval(found.mean)}" if found.number else ""
            for found in kinds.values()
        ]
        better = kinds["random direction"].better_by
        beyond = f"{fixed(better.value, 3, sign=True)}\n{report.interval(better)}" if better else ""
        table.add_row(report.TITLES[score][0], *means, beyond)
    table.caption = "under each mean its 95 % interval over latents"
    console.print(table)
    total = sum(record.rule_kinds.values())
    kinds = ", ".join(
        f"{kind} {percent(round(number / total, 3))}" for kind, number in list(record.rule_kinds.items())[:8]
    )
    console.print(f"Kinds of rules: {kinds}")
    if best:
        console.print(_best(explained, best))
    for text in report.conclusions(record):
        console.print(text)


def show_judged(run: Run, found: Judgements, most: int) -> None:
    """Print what a language model said: its scores beside the rule's and the control's, some explanations, and what can be said."""
    console, record = Console(), found.record
    table = Table(title=f"{run.path}: explanations read by {record.model}, on texts that did not make them")
    for column in ("mean", *judged_report.READINGS.values()):
        table.add_column(column, justify="left" if column == "mean" else "right")
    for title, means in judged_report.lines(record):
        table.add_row(title, *means.values())
    table.caption = "under each mean its 95 % interval over latents; chance: detection .5, intruder .2"
    console.print(table)
    if most:
        console.print(_beside(found, most))
    for text in judged_report.conclusions(record):
        console.print(text, markup=False)


def _beside(found: Judgements, n: int) -> Table:
    """Return a table of the first latents: the model's explanation above the rule, each with its detection score."""
    table = Table(title="The model's explanation above the rule, both read by the model on the same texts")
    for column in ("latent", "by", "explanation", "detection", "another latent's", "intruder"):
        table.add_column(column, justify="left" if column in ("by", "explanation") else "right")
    for one in found.record.judged[:n]:
        said = Text(visible(one.explanation) if one.explanation is not None else "not readable")
        others = fixed(one.of("control").value, 2), fixed(one.intruder.value, 2)
        table.add_row(str(one.latent), "model", said, fixed(one.of("model").value, 2), *others)
        if one.rule is not None:
            table.add_row("", "rule", Text(visible(one.rule)), fixed(one.of("rule").value, 2), "", "")
        table.add_section()
    return table


def _best(explained: Explanations, n: int) -> Table:
    found = [one for both in explained.by_latent.values() for one in both if one.f1.value is not None]
    found.sort(key=lambda one: (-(one.f1.value or 0.0), -one.fired))
    table = Table(title="The explanations with the largest F1")
    for column in ("latent", "F1", "95 % interval", "fires", "rule"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for one in found[:n]:
        sign = report.SIGNS[one.sign] if len(explained.of(one.latent)) > 1 else ""
        table.add_row(
            str(one.latent),
            fixed(one.f1.value, 3),
            report.interval(one.f1),
            f"{one.fired:,}",
            Text(visible(sign + one.text)),
        )
    return table
