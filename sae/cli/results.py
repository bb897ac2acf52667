"""The table of runs side by side, as `sae compare` and `sae sweep` print it."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sae.evaluation.measures import shown
from sae.workflows.compare import LABELS, Result


def table(results: Sequence[Result], title: str | None = None) -> Table:
    """Return the lines as a table, with a dash for what has not been measured."""
    rows = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))  # 80 columns hold it
    rows.add_column(LABELS["run"], overflow="fold")
    rows.add_column(LABELS["architecture"], no_wrap=True)
    for name in Result._fields[2:]:
        rows.add_column(LABELS[name], justify="right", min_width=max(map(len, LABELS[name].split())))
    for line in results:
        shares = (shown(share, ".1%") for share in line[5:])
        rows.add_row(*line[:2], f"{line.width:,}", shown(line.l0, ".1f"), shown(line.fvu, ".4f"), *shares)
    return rows
