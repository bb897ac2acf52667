"""Present runs on pages and in notebooks: the table of all runs, one run's evaluation and settings, several side by side."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import pyarrow as pa

from sae.evaluation.measures import DENSE, MEASURES, QuasiOrthogonality, measure, shown
from sae.report.numbers import DASH, duration, hundredfold, percent, setting
from sae.report.render import visible
from sae.runs.records import Evaluation, RunRecord


class Run(Protocol):
    """The part of a `sae.runs.run.Run` that these functions read."""

    @property
    def record(self) -> RunRecord:
        """The content of run.json."""
        ...

    @property
    def finished(self) -> bool:
        """Whether training reached its last step."""
        ...


class Estimate(NamedTuple):
    """One line of a run's evaluation: a measure, its explanation, its value, its 95 % interval."""

    label: str
    why: str
    value: str
    interval: str


def state(run: Run, steps_done: int | None) -> str:
    """Return how far the run's training is, in words; None for unknown steps."""
    if run.finished or steps_done is None:
        return "finished" if run.finished else "unfinished"
    return f"step {steps_done:,} of {run.record.config['train']['steps']:,}"


def progress(record: RunRecord, log: Sequence[Mapping[str, float]], quiet: float) -> tuple[float, str]:
    """Return how far an unfinished training is, as a share and in words: its pace and the time left, or that it stopped.

    `quiet` is the time in seconds since the last entry of the log. A training counts as stopped when that is more than a
    minute and more than ten entries would have taken."""
    train = record.config["train"]
    if not log:
        return 0.0, f"step 0 of {train['steps']:,}"
    step = int(log[-1]["step"])
    paces = [row["tokens_per_second"] for row in log[-5:] if row.get("tokens_per_second")]
    so_far = f"step {step:,} of {train['steps']:,}"
    share = min(step / train["steps"], 1.0)
    if not paces:
        return share, so_far
    pace = sum(paces) / len(paces)
    seconds_per_step = train["batch"] / pace
    if quiet > max(60.0, 10 * train["log_every"] * seconds_per_step):
        return share, f"{so_far} · seems to have stopped: nothing logged for {duration(quiet)}"
    left = duration((train["steps"] - step) * seconds_per_step)
    return share, f"{so_far} · {pace:,.0f} tokens/s · {left} left"


def runs(
    by_name: Mapping[str, Run], measured: Mapping[str, Evaluation], steps_done: Mapping[str, int]
) -> pa.Table:
    """Return the table of all runs, a row for each; None where something has not been measured. `steps_done` may lack runs."""
    rows = []
    for name, run in by_name.items():
        config = run.record.config
        values = _values(measured.get(name))
        rows.append(
            {
                "name": visible(name),
                "state": state(run, steps_done.get(name)),
                "architecture": config["architecture"],
                "features": config["arch"].get("d_sae"),
                "k": config["arch"].get("k"),
                "FVU": values.get("fvu"),
                "CE recovered": hundredfold(values.get("recovered_zero")),
                "L0": values.get("l0"),
                "dead": hundredfold(measured[name].dead if name in measured else None),
                "hook": run.record.hook,
                "model": visible(str(run.record.model)),
                "steps": config["train"].get("steps"),
            }
        )
    return pa.Table.from_pylist(rows)


def estimates(evaluation: Evaluation) -> list[Estimate]:
    """Return all measures of an evaluation with their intervals, in the order of MEASURES, unknown ones after them."""
    measures = evaluation.measures
    order = [name for name in MEASURES if name in measures]
    order += [name for name in measures if name not in MEASURES]
    lines = []
    for name in order:
        known = measure(name)
        value = shown(measures[name].value, known.format)
        lines.append(Estimate(known.symbol, known.help, value, interval(evaluation, name)))
    dead, dense = (percent(share) for share in (evaluation.dead, evaluation.dense))
    lines.append(Estimate("dead", "Share of features that fire on none of these tokens.", dead, ""))
    lines.append(
        Estimate(
            "dense", f"Share of features that fire on more than {percent(DENSE)} of these tokens.", dense, ""
        )
    )
    return lines


def interval(evaluation: Evaluation, name: str, how: str | None = None) -> str:
    """Return a measure's 95 % interval as text, its ends as the measure is formatted, or by another format specification.

    A single document says nothing of the spread over documents: the interval is unknown then."""
    if evaluation.documents_of(name) == 1:
        return "unknown: one document"
    estimate, how = evaluation.measures[name], measure(name).format if how is None else how
    return f"{shown(estimate.low, how)} to {shown(estimate.high, how)}"


def basis(evaluation: Evaluation) -> str:
    """Return how much text an evaluation used, in words."""
    documents = evaluation.documents
    return f"{evaluation.tokens:,} held-out tokens, {documents:,} document{'s' * (documents != 1)}"


def frontier(
    by_name: Mapping[str, Run], measured: Mapping[str, Evaluation], measure: str = "fvu"
) -> list[tuple[str, str, float, float]]:
    """Return (name, kind, L0, measure) of every run for which both are defined; runs of one kind lie on one frontier.

    The kind is the architecture, with the size, hook point, model and store where the runs differ in these."""
    points = []
    for name, kind in _kinds({name: by_name[name].record for name in measured}).items():
        values = _values(measured[name])
        l0, value = values.get("l0"), values.get(measure)
        if l0 is not None and value is not None:
            points.append((name, kind, l0, value))
    return points


def _kinds(records: Mapping[str, RunRecord]) -> dict[str, str]:
    """Return what tells the kinds of runs apart: the architecture, and whatever else they differ in."""
    stores = {
        record.store_fingerprint: str(record.config.get("store") or "stream") for record in records.values()
    }
    names = short(list(stores.values()))
    if len({*names}) < len(names):  # such as a store that was harvested anew at its place
        names = [f"{name} {(mark or '')[:6]}".strip() for name, mark in zip(names, stores, strict=True)]
    named = dict(zip(stores, names, strict=True))
    told: dict[str, list[str | None]] = {}
    for name, record in records.items():
        size = record.config["arch"].get("d_sae")
        told[name] = [size and f"{size:,}", record.hook, record.model, named[record.store_fingerprint]]
    differ = [len({*values}) > 1 for values in zip(*told.values(), strict=True)]
    return {
        name: ", ".join(
            [
                records[name].config["architecture"],
                *(value for value, shown in zip(values, differ, strict=True) if shown and value),
            ]
        )
        for name, values in told.items()
    }


def common(table: pa.Table, names: Sequence[str] = ("hook", "model", "steps")) -> tuple[pa.Table, list[str]]:
    """Return the table of runs without those of the columns `names` in which all of several runs agree, and their values."""
    alike = [name for name in names if len(table) > 1 and len({*table[name].to_pylist()}) == 1]
    values = [(name, table[name][0].as_py()) for name in alike]
    words = [
        f"{value:,} steps" if name == "steps" else str(value) for name, value in values if value is not None
    ]
    return table.drop_columns(alike), words


def brief(record: RunRecord) -> list[tuple[str, str]]:
    """Return what a run is, in a few names and values."""
    config = record.config
    pairs = {"SAE": config["architecture"], "size": config["arch"].get("d_sae"), "k": config["arch"].get("k")}
    pairs |= {"model": record.model, "hook": record.hook}
    return [(name, setting(value)) for name, value in pairs.items() if value is not None]


def summary(record: RunRecord) -> str:
    """Return what a run is, in one line."""
    facts = dict(brief(record))
    size = f"{facts['size']} features" if "size" in facts else None
    k = f"k = {facts['k']}" if "k" in facts else None
    return " · ".join(part for part in (facts["SAE"], size, k, facts["model"], facts["hook"]) if part)


def imported(record: RunRecord) -> list[tuple[str, str]]:
    """Return an imported SAE's origin, what its files say of it and what was changed; empty for a run trained here."""
    source = record.imported
    if source is None:
        return []
    facts = {name: value for name, value in source.facts.items() if not isinstance(value, dict | list)}
    pairs = {"imported from": source.path, "format": source.format, **facts}
    shown = [(name.replace("_", " "), setting(value)) for name, value in pairs.items() if value is not None]
    return shown + [("note", note) for note in source.notes]


def settings(record: RunRecord) -> list[tuple[str, str]]:
    """Return a run's settings as names and values, nested ones under their own name. Unset ones are left out."""
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
    return [(name, setting(value)) for name, value in pairs.items() if value not in (None, "")]


def differing(records: Mapping[str, RunRecord]) -> list[tuple[str, list[str]]]:
    """Return the settings in which runs differ, each with its value in every run; a dash where a run lacks the setting."""
    tables = [dict(settings(record)) for record in records.values()]
    names = dict.fromkeys(name for table in tables for name in table)
    lines = [(name, [table.get(name, DASH) for table in tables]) for name in names]
    return [(name, values) for name, values in lines if len({*values}) > 1]


def short(names: Sequence[str]) -> list[str]:
    """Return the names of runs without the folders that all of them share."""
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
    """Return the measures that tell runs apart, as (label, explanation, value in every run).

    A run that lacks a measure has a dash. The list is empty when no run is evaluated."""
    tables = [
        {line.label: line for line in estimates(evaluation)} if evaluation else {} for evaluation in measured
    ]
    left_out = {measure.symbol for measure in MEASURES.values() if not measure.compared}
    labels = {label: line.why for table in tables for label, line in table.items() if label not in left_out}
    return [
        (label, why, [table[label].value if label in table else DASH for table in tables])
        for label, why in labels.items()
    ]


def _values(evaluation: Evaluation | None) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in evaluation.measures.items()} if evaluation else {}


def eps_lbo(quasi: QuasiOrthogonality) -> str:
    """Return the median of eps_LBO and the range of its middle nine tenths, as text; how many codes are 0 where none has one."""
    if not quasi.eps_lbo:
        return f"the codes of all {quasi.rows:,} rows are 0"
    low, median, high = (quasi.eps_lbo[name] for name in ("0.05", "0.5", "0.95"))
    return f"eps_LBO {median:.2g} ({low:.2g} to {high:.2g}) of {quasi.rows:,} held-out rows"
