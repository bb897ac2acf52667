"""`sae trust`: a run beside its controls and its seeds, with what can be said and what cannot."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from activations.disk import files
from activations.errors import ConfigError, quoted
from activations.progress import show_progress
from sae.cli import arguments
from sae.cli.evaluate import WITHOUT_MODEL
from sae.evaluation.measures import MEASURES
from sae.report import trust as trust_report
from sae.report.numbers import duration, number, signed
from sae.runs.run import Run
from sae.runs.trust import TrustRecord
from sae.trust.plan import Plan, TrustConfig, plan_trust
from sae.workflows.trust import trust


@dataclass(frozen=True)
class TrustCommand:
    """Compare a run with its controls: SAEs of the same store and steps whose decoder or encoder stays random, PCA and a random
    dictionary of equal L0, and the run with other seeds. Writes trust/ into the run's folder and says which differences are
    beyond chance, and how stable each latent is over seeds.

    Example: sae trust runs/demo --html evidence.html. After an interruption the same command continues. docs/trust.md."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; it must be finished."""
    html: Path | None = None
    """Also write the report as one HTML file, which opens without a network."""
    plan: bool = False
    """Only say what would be trained, and about what it takes."""
    config: TrustConfig = field(default_factory=TrustConfig)

    def __post_init__(self) -> None:
        if self.html is not None and self.html.is_dir():
            raise ConfigError(
                f"--html {self.html} is a folder: name a file, as in {self.html / 'evidence.html'}"
            )


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(TrustCommand, "sae trust", args, tyro.conf.OmitArgPrefixes)
    run, cfg = Run(command.run), command.config
    print(cost(plan_trust(run, cfg)))
    if command.plan:
        return 0
    model = run.language_model() if cfg.windows and not run.reads_files else None
    found = trust(run, cfg, model, show_progress)
    show(run, found.record)
    if run.reads_files and cfg.windows:
        print(f"{run.path}: {WITHOUT_MODEL} what the SAEs cost the model (cross-entropy, KL)")
    if command.html:
        page = trust_report.page(found.record, run.name)
        files.write_atomically(command.html, lambda part: part.write_text(page, encoding="utf-8"))
        print(f"{command.html}: written")
    print(f"{found.path}: written; next: sae app {quoted(run.path.parent)}, page Evidence")
    return 0


def cost(plan: Plan) -> str:
    """Return what is going to be trained, and about what it costs."""
    if not plan.missing and not plan.stores:
        return "all controls are trained already; they are measured again"
    time = (
        "for as long as the run itself took, each"
        if plan.seconds is None
        else f"for about {duration(plan.seconds)} at the speed of the run itself"
    )
    reads = f"{len(plan.stores)} random models read the store's text again; " if plan.stores else ""
    return (
        f"{reads}{len(plan.missing)} SAEs to train ({', '.join(plan.missing)}), {time}, into {files.size_text(plan.bytes)}; "
        f"then all are measured"
    )


def show(run: Run, record: TrustRecord) -> None:
    """Print the tables, the conclusions and the cautions."""
    console = Console()
    for measure, beside in record.measures.items():
        table = Table(title=f"{run.path}: {MEASURES[measure].title}")
        for column in ("", "L0", "value", "95 % interval", "run better by", "95 % interval", "verdict"):
            table.add_column(column, justify="left" if column in ("", "verdict") else "right")
        for line in trust_report.lines(record, measure):
            better = line.against.better_by if line.against else None
            table.add_row(
                line.title,
                number(line.l0.value),
                number(line.value.value),
                trust_report.interval(line.value, line.documents),
                signed(better.value) if better else "",
                trust_report.interval(better, line.documents, sign=True) if better else "",
                trust_report.VERDICTS[line.against.verdict] if line.against else "",
            )
        table.caption = trust_report.remark(beside)
        console.print(table)
    for text in (*trust_report.conclusions(record), *trust_report.cautions(record)):
        print(text)
