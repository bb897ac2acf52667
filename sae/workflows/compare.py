"""Compare runs: their results side by side, as a CSV file and a Pareto plot, and the latents of two runs matched with one another."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from activations.disk import files
from activations.disk.schema import parse
from activations.errors import ConfigError, RunError, quoted
from activations.progress import Progress, no_progress
from activations.store import Store
from sae.architectures import ArchConfig, name_of
from sae.evaluation.held_out import held_out_rows
from sae.evaluation.matching import LEVELS, compare
from sae.evaluation.measures import MEASURES
from sae.evaluation.scaling import by_level
from sae.evaluation.similarity import codes
from sae.report import run_charts
from sae.runs.records import Comparison
from sae.runs.run import Run, device
from sae.runs.saved_sae import read_results

GRID = "rgba(140, 138, 132, 0.22)"
LABELS = {
    "run": "run",
    "architecture": "architecture",
    "width": "width",
    "dead": "dead",
    "decoder_cosine": "c_dec",
    "decoder_projection": "s_dec",
    **{name: MEASURES[name].symbol for name in ("l0", "fvu", "recovered_zero", "recovered_mean")},
}
"""Heads of the columns."""
FORMAT = 1  # of compare-NAME.json
TOKENS = 50_000  # held-out ones looked at to match latents, unless told otherwise
SIMILARITIES = {"cosine": "decoder cosine", "activation": "activation correlation"}


class Result(NamedTuple):
    """A run and what its evaluation measured; None for what has not been measured."""

    run: str
    architecture: str
    width: int
    """Latents in the dictionary."""
    l0: float | None
    fvu: float | None
    recovered_zero: float | None
    """Share of the loss caused by zero ablation that the SAE recovers; `recovered_mean` is for mean ablation."""
    recovered_mean: float | None
    dead: float | None
    """Share of latents silent on the held-out tokens."""
    decoder_cosine: float | None = None
    """Proxies of the right L0 (`sae.evaluation.l0_proxies`); `decoder_projection` is the other."""
    decoder_projection: float | None = None
    hook: str | None = None
    """Hook point whose activations it reads."""


def result(run: Run) -> Result:
    """Return a run's line, from its eval.json if it has one."""
    evaluation, arch = run.evaluation, run.config.arch
    measures = evaluation.measures if evaluation else {}
    l0, fvu, zero, mean = (
        measures[name].value if name in measures else None
        for name in ("l0", "fvu", "recovered_zero", "recovered_mean")
    )
    dead = evaluation.dead if evaluation else None
    proxies = evaluation.l0_proxies if evaluation else None
    cosine, projection = (proxies.decoder_cosine, proxies.decoder_projection) if proxies else (None, None)
    return Result(
        run.name, name_of(arch), arch.d_sae, l0, fvu, zero, mean, dead, cosine, projection, run.hook
    )


def no_result(name: str, arch: ArchConfig) -> Result:
    """Return the line of a run that could not be begun."""
    return Result(name, name_of(arch), arch.d_sae, None, None, None, None, None)


def which_l0(results: Sequence[Result]) -> list[str]:
    """Return a sentence for each architecture, width and hook point with three L0s or more: where c_dec is smallest, the proxy of
    the right L0.

    Runs whose L0 is less than a fifth above the smallest of them, as those of several seeds, count as one L0 with the mean of their
    c_dec. Where it is smallest at an end of the sweep, the right L0 may lie beyond or the proxy may have no minimum: the sentence
    says so."""
    kinds: dict[tuple[str, str | None], list[tuple[float, float]]] = {}
    for line in results:
        if line.l0 is not None and line.decoder_cosine is not None:
            kinds.setdefault((_kind(line), line.hook), []).append((line.l0, line.decoder_cosine))
    hooks = {hook for _, hook in kinds}
    return [
        _which_l0(kind if len(hooks) < 2 else f"{kind} at {hook}", [_mean(level) for level in levels])
        for (kind, hook), points in kinds.items()
        if len(levels := by_level(points, lambda point: point[0])) >= 3
    ]


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return fmean(l0 for l0, _ in points), fmean(cosine for _, cosine in points)


def _which_l0(kind: str, points: list[tuple[float, float]]) -> str:
    l0, cosine = min(points, key=lambda point: point[1])
    source = "(Chanin and Garriga-Alonso 2025, arXiv:2508.16560)"
    if l0 in (points[0][0], points[-1][0]):
        side = "smallest" if l0 == points[0][0] else "largest"
        return (
            f"{kind}: decoder rows overlap least (c_dec {cosine:.3g}) at the {side} L0 of the sweep, {l0:.3g}, so that it does not tell "
            f"which L0 is right; sweep beyond {source}"
        )
    below, above = (max(p[0] for p in points if p[0] < l0), min(p[0] for p in points if p[0] > l0))
    return (
        f"{kind}: decoder rows overlap least (c_dec {cosine:.3g}) at L0 {l0:.3g}, a sign that the right L0 lies between {below:.3g} and "
        f"{above:.3g}; too small or too large an L0 mixes features {source}"
    )


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """Write the lines with full precision; a field is empty where something has not been measured."""

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([Result._fields, *results])

    files.write_atomically(path, write)


def need_plotly() -> None:
    """Raise ConfigError unless plots can be drawn. Call it before hours of work that end in a plot."""
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise ConfigError("the Pareto plot needs plotly: pip install 'sae-workbench[app]'") from error


def write_pareto(path: Path, results: Sequence[Result]) -> None:
    """Draw one HTML file that needs no network: L0 against FVU and, where measured, against CE recovered.

    Runs of one architecture and width are joined by a line. Runs without an evaluation are left out."""
    need_plotly()
    from plotly.subplots import make_subplots

    lines = [line for line in results if line.fvu is not None]
    measures = {"fvu": "FVU (lower is better)"}
    if any(line.recovered_zero is not None for line in lines):
        measures["recovered_zero"] = "CE recovered, zero ablation (higher is better)"
    kinds = list(dict.fromkeys(_kind(line) for line in sorted(lines, key=lambda line: line[1:3])))
    figure = make_subplots(rows=1, cols=len(measures), horizontal_spacing=0.1)
    for column, (measure, label) in enumerate(measures.items(), 1):
        for trace in run_charts.traces(_points(lines, measure), kinds):
            figure.add_trace({**trace, "showlegend": column == 1}, row=1, col=column)
        figure.update_yaxes(title=label, nticks=6, row=1, col=column)
    figure.update_xaxes(
        run_charts.l0_axis(_points(lines, "fvu")), title="L0 (latents firing per token)", zeroline=False
    )
    figure.update_yaxes(zeroline=False, gridcolor=GRID)
    figure.update_layout(
        height=460,
        width=560 * len(measures),
        plot_bgcolor="white",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    )
    page = figure.to_html(include_plotlyjs=True)
    files.write_atomically(path, lambda part: part.write_text(page, encoding="utf-8"))


def _kind(line: Result) -> str:
    return f"{line.architecture}, {line.width:,} latents"


def _points(lines: Sequence[Result], measure: str) -> list[run_charts.Point]:
    """Return the lines that have the measure, as points."""
    return [
        (line.run, _kind(line), line.l0, getattr(line, measure))
        for line in lines
        if line.l0 is not None and getattr(line, measure) is not None
    ]


def place(first: Run, second: Run) -> Path:
    """Return the file of the comparison of two runs. It is named after the second run, so runs of one name share it."""
    return first.path / f"compare-{second.name}.json"


def kept(first: Run, second: Run) -> Comparison | None:
    """Return the comparison that was written for the very SAEs these runs hold, or None.

    Raises RunError when a run is not finished, or the file is damaged or of a newer format."""
    path, digests = place(first, second), (first.digest, second.digest)
    again = f"sae compare {quoted(first.path)} {quoted(second.path)}"
    comparison = read_results(path, "comparison", FORMAT, Comparison, again, f"rm {quoted(path)}")
    if comparison is None:
        return None
    if (comparison.first.weights_file_sha256, comparison.second.weights_file_sha256) != digests:
        return None
    if comparison.positions != first.config.positions:  # 0.1.0 compared all rows
        return None
    _refuse_strange_latents(path, comparison, (first.config.arch.d_sae, second.config.arch.d_sae))
    return comparison


def match_runs(
    first: Run,
    second: Run,
    store: Store | None = None,
    tokens: int = TOKENS,
    near: float = LEVELS[0],
    absolute: bool | None = None,
    block: int = 1024,
    progress: Progress = no_progress,
) -> Comparison:
    """Match the latents of two finished runs on held-out tokens of a store, the first run's when left out.

    The result is not written to disk (`keep` does that).
    Raises RunError when a run is not finished or the two read other widths, StoreError when there is no store
    or it lacks a hook point."""
    refuse_other_widths(first, second)
    runs, names = (first, second), ("first", "second")
    sources = {
        name: {"run": str(run.path), "weights_file_sha256": run.digest}
        for name, run in zip(names, runs, strict=True)
    }
    store = store or first.store
    saes = [run.sae().to(device()) for run in runs]
    with progress("encode", 2 * min(tokens, held_out_rows(store)), "tokens") as advance:
        encoded = [
            codes(sae, store, run.hook, tokens, advance=advance) for sae, run in zip(saes, runs, strict=True)
        ]
    decoders = saes[0].W_dec, saes[1].W_dec
    with progress("match", len(SIMILARITIES) * first.config.arch.d_sae, "latents") as advance:
        matchings = compare(decoders, (encoded[0], encoded[1]), near, absolute, block, advance)
    rows = {"store_fingerprint": store.fingerprint, "positions": store.positions}
    return parse(Comparison, {"format": FORMAT, **sources, **rows, **matchings})


def keep(first: Run, second: Run, comparison: Comparison) -> Path:
    """Write a comparison into the first run's folder, replacing an earlier one; return its path."""
    files.write_sealed(place(first, second), asdict(comparison))
    return place(first, second)


def _refuse_strange_latents(path: Path, comparison: Comparison, sizes: tuple[int, int]) -> None:
    """Raise RunError unless all lists are as long as the SAEs are wide, and name latents of the other SAE."""
    for measure in SIMILARITIES:
        for side, size, others in (("first", *sizes), ("second", *sizes[::-1])):
            latents = comparison.by(measure).latents.get(side)
            if latents is None or any(len(lists) != size for lists in vars(latents).values()):
                raise RunError(
                    f"{path} is damaged: a list of the {side} run's latents does not have {size} entries",
                    fix=f"rm {quoted(path)}",
                )
            if not all(-1 <= latent < others for latent in latents.nearest + latents.partner):
                raise RunError(
                    f"{path} is damaged: a partner of the {side} run's latents is not among the other's {others}",
                    fix=f"rm {quoted(path)}",
                )


def refuse_other_widths(first: Run, second: Run) -> None:
    """Raise RunError unless both runs read activations of one width."""
    reads = [(run.record.d_model, f"({run.record.model}, {run.hook})") for run in (first, second)]
    if reads[0][0] != reads[1][0]:
        (width, where), (other, elsewhere) = reads
        raise RunError(
            f"{first.path} reads activations of width {width} {where}, {second.path} of width {other} {elsewhere}: "
            f"latents can be matched within one width only"
        )
