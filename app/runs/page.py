"""The Runs page: all runs of the folder, and one with curves, evaluation and settings, or several side by side."""

import streamlit as st

from app import widgets
from app.features import state as features
from app.runs import controls
from app.session import address, runs
from sae.report import effects as effects_report
from sae.report import render, run_charts
from sae.report import runs as runs_report
from sae.report import scaling as scaling_report

every = runs.require_any()
evaluations = runs.evaluations(every)
logs = runs.logs(every)
steps_done = {name: int(log[-1]["step"]) if log else 0 for name, log in logs.items()}
overview, in_common = runs_report.common(runs_report.runs(every, evaluations, steps_done))
compared = controls.chosen()
with widgets.header(
    "Runs",
    " · ".join([f"{len(every)} {'run' if len(every) == 1 else 'runs'} in {runs.folder()}", *in_common]),
):
    controls.together_switch(compared is not None)
table = st.container()
name, run = address.run()
finished, origin = run.finished, runs_report.imported(run.record)
with table:
    if compared is None:
        controls.pick_row(overview, list(every), name)
    else:
        controls.pick_rows(overview, list(every), compared)


@st.fragment(run_every=None if finished else "2s")
def training() -> None:
    """Show the curves, which grow while the run is training; when it ends, the whole page runs again."""
    if run.finished != finished:
        st.rerun()
    if finished:
        widgets.section("Training", "finished", level=3)
    else:
        widgets.section("Training", level=3)
        st.progress(*runs_report.progress(run.record, runs.log(run), runs.quiet_for(run)))
    steps = run.record.config["train"].get("steps")
    widgets.chart(run_charts.curves({name: runs.log(run)}, steps), "training curves", "curves")


def one() -> None:
    """Show the chosen run: its training and its evaluation."""
    with widgets.header(name, runs_report.summary(run.record), level=2):
        widgets.page_button("features/page.py", "Features", ":material/apps:", features.query(name))
    widgets.warnings(runs.problems(run))
    left, right = st.columns([3, 2], gap="large")
    with left:
        if origin:
            widgets.section("Imported", "trained elsewhere, so there are no curves", level=3)
            st.html(render.facts(origin))
        elif name in logs:
            training()
        else:
            widgets.section("Training", "its log is damaged", level=3)
        if name in evaluations and (effects := evaluations[name].effects):
            widgets.section("Sparsity of effects", effects_report.basis(effects), level=3)
            widgets.chart(effects_report.figure(effects), "sparsity of effects on the logits", "effects")
            heads = ["mean", "95 % interval", "change of a logit"]
            lines = effects_report.lines(effects)
            st.html(
                render.columns(
                    heads, [(one.title, one.help, [one.mean, one.interval, one.size]) for one in lines]
                )
            )
            for text in effects_report.conclusions(effects):
                widgets.note(text)
    with right:
        if name in evaluations:
            widgets.section("Evaluation", runs_report.basis(evaluations[name]), level=3)
            st.html(render.estimates(runs_report.estimates(evaluations[name])))
            if quasi := evaluations[name].quasi_orthogonality:
                widgets.section("Norms of inputs and codes", runs_report.eps_lbo(quasi), level=3)
                widgets.chart(run_charts.norms(quasi), "norm of the code against that of the input", "norms")
                st.caption(
                    "On the dotted line they are equal, as where the decoder rows in use are orthogonal and rebuild all of the "
                    "input. Points above it are inputs whose latents overlap and partly cancel; below it latents point alike, "
                    "or much of the input is left out (see FVU)."
                )
        else:
            question = "How well does it reconstruct held-out activations?"
            widgets.empty("Not evaluated yet", *runs.from_store("evaluate", run, question), level=3)


def side_by_side(names: list[str]) -> None:
    """Show runs side by side: their curves in one figure, the settings that differ, their measures."""
    if not names:
        widgets.empty("No runs chosen", "Tick two runs or more in the table to see them side by side.")
        return
    heads = runs_report.short(names)
    left, right = st.columns([3, 2], gap="large")
    with left:
        widgets.section("Training", f"{len(names)} runs")
        curves = {head: logs[name] for head, name in zip(heads, names, strict=True) if name in logs}
        widgets.chart(run_charts.curves(curves), "training curves", "overlaid")
    with right:
        widgets.section("Settings that differ")
        rows = [
            (label, "", values)
            for label, values in runs_report.differing({n: every[n].record for n in names})
        ]
        widgets.html_or_note(render.columns(heads, rows) if rows else "", "None: all were trained alike.")
        widgets.section("Evaluation", "each on its own held-out text")
        rows = runs_report.side_by_side([evaluations.get(name) for name in names])
        widgets.html_or_note(
            render.columns(heads, rows) if rows else "", "None of these runs has been evaluated."
        )


if compared is None:
    one()
else:
    side_by_side(compared)
if len(evaluations) > 1:
    widgets.section(
        "Sparsity against quality", "evaluated runs, each on its own held-out text; click a run to choose it"
    )
    height = controls.height_chooser(run_charts.HEIGHTS)
    points = runs_report.frontier(every, evaluations, height)
    figure = run_charts.frontier(points, name, height)
    controls.pressed_point(figure, "quality against L0 of all evaluated runs", "pareto", controls.show_run)
laws = runs.scaling(run)
if laws:
    widgets.warnings(runs.changed_since_fit(laws, run))
    for number, fit in enumerate(laws.fits):
        widgets.section(f"Scaling laws of {scaling_report.title(fit)}", scaling_report.basis(fit))
        widgets.chart(
            scaling_report.figure(fit), "FVU by width and by compute, with fitted laws", f"scaling {number}"
        )
        tables = scaling_report.tables(fit)
        for place, (title, rows) in zip(st.columns(len(tables), gap="large"), tables, strict=True):
            with place:
                widgets.note(title)
                st.html(render.estimates(rows))
        for text in scaling_report.remarks(fit):
            widgets.note(text)
with st.expander("Settings"):
    st.html(render.facts(runs_report.settings(run.record)))
