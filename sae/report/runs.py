"""Pure: what run folders say -> tables of one run or of several side by side, measures and settings, ready to show."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from sae.evaluation.measures import MEASURES, measure, shown
from sae.report.numbers import percent
from sae.report.render import escaped, visible
from sae.runs.records import Evaluation, RunRecord


def columns(heads: Sequence[str], rows: Iterable[tuple[str, str, Sequence[str]]]) -> str:
    """Rows of (label, explanation, a value for each head); all plain text."""
    head = "".join(f'<th class="n">{escaped(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><td title="{escaped(why)}">{escaped(label)}</td>'
        + "".join(f'<td class="n">{escaped(value)}</td>' for value in values)
        + "</tr>"
        for label, why, values in rows
    )
    return f'<div class="sae sides"><table class="sae estimates"><tr><th></th>{head}</tr>{body}</table></div>'


class Run(Protocol):
    """What these functions read of a run (`sae.runs.run.Run` is one)."""

    @property
    def record(self) -> RunRecord:
        """The content of run.json."""
        ...

    @property
    def finished(self) -> bool:
        """Whether training reached its last step."""
        ...


class Estimate(NamedTuple):
    """One line of a run's evaluation."""

    label: str
    why: str
    value: str
    interval: str


def state(run: Run, steps_done: int) -> str:
    """How far the run's training is, in words."""
    return "finished" if run.finished else f"step {steps_done:,} of {run.record.config['train']['steps']:,}"


def progress(record: RunRecord, log: Sequence[Mapping[str, float]], quiet: float) -> tuple[float, str]:
    """How far a training that is not finished is, as a share and in words: pace and time left, or since when it rests.

    `quiet` is for how many seconds nothing has been logged; more than ten entries would have taken, and a minute, is
    taken for a stop."""
    train = record.config["train"]
    if not log:
        return 0.0, f"step 0 of {train['steps']:,}"
    step, pace = (
        int(log[-1]["step"]),
        [row["tokens_per_second"] for row in log[-5:] if row.get("tokens_per_second")],
    )
    said = f"step {step:,} of {train['steps']:,}"
    share = min(step / train["steps"], 1.0)
    if not pace:
        return share, said
    a_step = train["batch"] / (sum(pace) / len(pace))  # in seconds
    if quiet > max(60.0, 10 * train["log_every"] * a_step):
        return share, f"{said} · stopped, it seems: nothing logged for {_duration(quiet)}"
    left = _duration((train["steps"] - step) * a_step)
    return share, f"{said} · {sum(pace) / len(pace):,.0f} tokens/s · {left} left"


def runs(
    found: Mapping[str, Run], measured: Mapping[str, Evaluation], steps_done: Mapping[str, int]
) -> pa.Table:
    """A row per run, by name; None where something has not been measured."""
    rows = []
    for name, run in found.items():
        config = run.record.config
        values = {line: value for line, (value, _, _) in _intervals(measured.get(name)).items()}
        rows.append(
            {
                "name": visible(name),
                "state": state(run, steps_done[name]),
                "architecture": config["architecture"],
                "features": config["arch"].get("d_sae"),
                "k": config["arch"].get("k"),
                "FVU": values.get("fvu"),
                "CE recovered": _hundredfold(values.get("recovered_zero")),
                "L0": values.get("l0"),
                "dead": _hundredfold(measured[name].dead if name in measured else None),
                "hook": run.record.hook,
                "model": visible(str(run.record.model)),
                "steps": config["train"].get("steps"),
            }
        )
    return pa.Table.from_pylist(rows)


def estimates(evaluation: Evaluation) -> list[Estimate]:
    """All measures of an evaluation with their intervals, in the order they are explained in."""
    found = _intervals(evaluation)
    order = [name for name in MEASURES if name in found] + [name for name in found if name not in MEASURES]
    lines = []
    for name in order:
        about = measure(name)
        value, low, high = (shown(number, about.format) for number in found[name])
        lines.append(Estimate(about.symbol, about.help, value, f"{low} to {high}"))
    dead, dense = (percent(share) for share in (evaluation.dead, evaluation.dense))
    lines.append(Estimate("dead", "Share of features that fired on none of these tokens.", dead, ""))
    lines.append(Estimate("dense", "Share of features on more than 10 % of these tokens.", dense, ""))
    return lines


def basis(evaluation: Evaluation) -> str:
    """What text an evaluation rests on."""
    documents = evaluation.documents
    return f"{evaluation.tokens:,} held-out tokens, {documents:,} document{'s' * (documents != 1)}"


def frontier(
    found: Mapping[str, Run], measured: Mapping[str, Evaluation], measure: str = "fvu"
) -> list[tuple[str, str, float, float]]:
    """Name, architecture (with the size where runs have several), L0 and a measure, of every run that has it."""
    sizes = {found[name].record.config["arch"].get("d_sae") for name in measured}
    points = []
    for name, evaluation in measured.items():
        values, config = _intervals(evaluation), found[name].record.config
        size = config["arch"].get("d_sae")
        kind = config["architecture"] + (f", {size:,}" if len(sizes) > 1 and size else "")
        if values.keys() >= {measure, "l0"}:
            points.append((name, kind, values["l0"][0], values[measure][0]))
    return points


def common(table: pa.Table, names: Sequence[str] = ("hook", "model", "steps")) -> tuple[pa.Table, list[str]]:
    """The table of runs without those of these columns that say the same of several runs; and what they say."""
    alike = [name for name in names if len(table) > 1 and len({*table[name].to_pylist()}) == 1]
    said = [(name, table[name][0].as_py()) for name in alike]
    words = [
        f"{value:,} steps" if name == "steps" else str(value) for name, value in said if value is not None
    ]
    return table.drop_columns(alike), words


def brief(record: RunRecord) -> list[tuple[str, str]]:
    """What a run is, in a few names and values."""
    config = record.config
    pairs = {"SAE": config["architecture"], "size": config["arch"].get("d_sae"), "k": config["arch"].get("k")}
    pairs |= {"model": record.model, "hook": record.hook}
    return [(name, _text(value)) for name, value in pairs.items() if value is not None]


def summary(record: RunRecord) -> str:
    """What a run is, in one line."""
    facts = dict(brief(record))
    size = f"{facts['size']} features" if "size" in facts else None
    k = f"k = {facts['k']}" if "k" in facts else None
    return " · ".join(part for part in (facts["SAE"], size, k, facts["model"], facts["hook"]) if part)


def imported(record: RunRecord) -> list[tuple[str, str]]:
    """Where an imported SAE comes from, what its files say of it and what was changed; nothing of one trained here."""
    source = record.imported
    if source is None:
        return []
    facts = {name: value for name, value in source.facts.items() if not isinstance(value, dict | list)}
    pairs = {"imported from": source.path, "format": source.format, **facts}
    shown = [(name.replace("_", " "), _text(value)) for name, value in pairs.items() if value is not None]
    return shown + [("note", note) for note in source.notes]


def settings(record: RunRecord) -> list[tuple[str, str]]:
    """A run's settings as names and values, the nested ones by their last name; unset ones left out."""
    config = record.config
    nested = {**config["arch"], **config["train"]}
    first = {
        "model": record.model,
        "hook point": record.hook,
        "activation width": record.d_model,
        "store": config["store"],
        "architecture": config["architecture"],
    }
    last = {
        "code version": (record.git_commit or "")[:12],
        "torch": record.versions.get("torch"),
    }
    pairs = {**first, **{name.replace("_", " "): value for name, value in nested.items()}, **last}
    return [(name, _text(value)) for name, value in pairs.items() if value not in (None, "")]


def differing(records: Mapping[str, RunRecord]) -> list[tuple[str, list[str]]]:
    """Settings in which runs differ, each with its value in every run; a dash where a run has no such setting."""
    found = [dict(settings(record)) for record in records.values()]
    names = dict.fromkeys(name for one in found for name in one)
    lines = [(name, [one.get(name, "–") for one in found]) for name in names]
    return [(name, values) for name, values in lines if len({*values}) > 1]


def short(names: Sequence[str]) -> list[str]:
    """Names of runs without the folders that all of them share."""
    parts = [name.split("/") for name in names]
    shared = 0
    while (
        len(parts) > 1
        and len({tuple(part[: shared + 1]) for part in parts}) == 1
        and shared + 1 < min(map(len, parts))
    ):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def side_by_side(measured: Sequence[Evaluation | None]) -> list[tuple[str, str, list[str]]]:
    """The measures that tell runs apart, as (label, explanation, value in every run); a dash where one has none.

    Nothing when no run is evaluated."""
    tables = [{line.label: line for line in estimates(one)} if one else {} for one in measured]
    apart = {each.symbol for each in MEASURES.values() if not each.compared}
    labels = {label: line.why for table in tables for label, line in table.items() if label not in apart}
    return [
        (label, why, [table[label].value if label in table else "–" for table in tables])
        for label, why in labels.items()
    ]


def _intervals(evaluation: Evaluation | None) -> dict[str, tuple[float | None, float | None, float | None]]:
    measures = evaluation.measures if evaluation else {}
    return {name: (estimate.value, estimate.low, estimate.high) for name, estimate in measures.items()}


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    )
