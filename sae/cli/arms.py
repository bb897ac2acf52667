"""`sae steer RUN --compare`: steering by a latent beside its rivals, on concepts given as labelled texts."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from activations import labelled_texts
from activations.disk import files
from activations.labelled_texts import LabelledTexts
from activations.progress import show_progress
from sae.report import arms as arms_report
from sae.report.numbers import fixed
from sae.runs.arms import FOLDER, FORECAST, INDEX, ArmsRecord
from sae.runs.run import Run
from sae.steering.arms import ArmsConfig
from sae.workflows.arms import compare_arms
from sae.workflows.forecast import forecast_side_effects, holds
from sae.workflows.probe import require_scikit_learn


def main(
    run: Run, concepts: Sequence[str], unrelated: Sequence[str], cfg: ArmsConfig, html: Path | None
) -> int:
    """Compare, print what was found, and write the report where one is asked for."""
    require_scikit_learn()
    _ = run.digest  # refuses a run that is not finished, before texts are fetched for it
    record = compare_arms(run, tasks(concepts), cfg, tasks(unrelated), progress=show_progress)
    show(record)
    if html:
        page = arms_report.page(record, run.name)
        files.write_atomically(html, lambda part: part.write_text(page, encoding="utf-8"))
        print(f"{html}: written")
    print(f"{run.path / FOLDER / INDEX}: written")
    return 0


def forecast_main(run: Run, latents: int, cfg: ArmsConfig) -> int:
    """Measure side effects of some latents, and print how well those of others can be foreseen."""
    record = forecast_side_effects(run, latents, cfg, progress=show_progress)
    print(arms_report.forecast(record, holds(record)))
    print(f"{run.path / FOLDER / FORECAST}: written")
    return 0


def tasks(names: Sequence[str]) -> list[LabelledTexts]:
    """Return labelled texts by the name of a file or of a task of sae-probes; a name with a suffix or a folder is a file's."""
    read = []
    for name in names:
        path = Path(name)
        is_file = path.exists() or path.suffix in (".csv", ".tsv", ".jsonl", ".json", ".parquet")
        read += [labelled_texts.read_file(path)] if is_file else labelled_texts.packaged([name])
    return read


def show(record: ArmsRecord) -> None:
    """Print the verdicts, the measures of each arm at each strength, and the cautions."""
    console = Console()
    for result in record.concepts:
        title = f"{result.name}: latent {result.latent}, AUC {fixed(result.latent_auc, 2)}; judge's AUC {fixed(result.judge_auc, 2)}"
        table = Table(title=title)
        for column in ("arm", *(title for title, _ in arms_report.MEASURES.values())):
            table.add_column(column, justify="left" if column == "arm" else "right")
        for name, arm in result.arms.items():
            table.add_section()
            for level in arm.levels:
                told = f"{arms_report.TITLES[name][0]}, {arms_report.strength(name, level.strength)}"
                table.add_row(told, *arms_report.values(level))
        console.print(table)
        for text in arms_report.conclusion(result):
            print(text)
    if record.overall:
        table = Table(title="concepts by verdict")
        for column in ("arm", *arms_report.VERDICTS.values()):
            table.add_column(column, justify="left" if column == "arm" else "right")
        for name, row in arms_report.counts(record):
            table.add_row(arms_report.TITLES[name][0], *map(str, row))
        console.print(table)
    for text in arms_report.cautions(record):
        print(text)
