"""A part of the Steering page: steering by latents beside its rivals, and how well side effects are forecast."""

from collections.abc import Collection, Sequence
from functools import partial

import streamlit as st
from streamlit.components.v2 import component

from app import widgets
from app.session import arms, runs
from sae.report import arms as report
from sae.report import render
from sae.runs.arms import ArmsRecord
from sae.runs.run import Run

TITLE = "Compared with other arms"
CONCEPT, EVERY = "concept", "*"  # a parameter of the URL, and its value for all concepts together
MISSING = (
    "Whether a latent steers better than a difference in means, a probe's weights, a prompt or random directions of equal strength "
    "has not been measured of this run. With a concept given as labelled texts, this measures it:"
)

SCRIPT = """
export default function({ parentElement, data }) {
  let root = parentElement.querySelector(":scope > .drawn");
  if (!root) {
    root = document.createElement("div");
    root.className = "drawn";
    parentElement.appendChild(root);
  }
  if (root.source !== data.html) root.innerHTML = root.source = data.html;
}
"""
_mount = component("sae_drawn", js=SCRIPT, isolate_styles=False)


def in_url(run: str) -> dict[str, str]:
    """Return the parameter of the URL that holds the concept chosen in this session; none where none was."""
    chosen = st.session_state.get(_key(run))
    return {CONCEPT: chosen} if chosen else {}


def comparison(name: str, run: Run, steered: Collection[int]) -> None:
    """Show the results of all arms on a concept, first one whose latent is steered on the page; where there are none, how to get them."""
    record = arms.of(run)
    options = [] if record is None else _ordered(record, steered)
    chosen = _chosen(name, options)
    own = record and {each.name for each in record.concepts if each.latent in steered}
    with st.expander(TITLE, icon=":material/compare_arrows:", expanded=bool(own or in_url(name))):
        if record is None:
            widgets.note(MISSING)
            widgets.shell(f"{runs.command('steer', run)} --compare glue_sst2")
        else:
            _results(name, record, options, chosen)
        _forecast(run)


def _results(name: str, record: ArmsRecord, options: Sequence[str], chosen: str) -> None:
    widgets.note(report.basis(record))
    if len(options) > 1:
        titles = {EVERY: report.EVERY} | {
            each.name: f"{each.name} · latent {each.latent}" for each in record.concepts
        }
        widgets.box(
            st.selectbox,
            "Concept",
            chosen,
            partial(_choose, name),
            options=options,
            format_func=lambda option: render.visible(titles[option]),
            width=320,
        )
    if chosen == EVERY:
        widgets.section("Verdicts", report.VERDICTS_OF, level=3)
        st.html(report.verdicts(record))
        widgets.section(report.EVERY, report.EVERY_REMARK, level=3)
        _drawn(report.overall(record), "arms, all concepts")
    else:
        result = next(each for each in record.concepts if each.name == chosen)
        widgets.section(result.name, report.towards(result), level=3)
        _drawn(report.concept(result, name), "arms, one concept")
    st.html(report.limits(record))
    st.html(
        f'<details class="sae meanings"><summary>What the columns mean</summary>{report.meanings()}</details>'
    )


def _drawn(html: str, key: str) -> None:
    """Show HTML from `sae.report` with drawings, which `st.html` leaves out; all foreign text in it is escaped."""
    _mount(key=key, data={"html": html})


def _forecast(run: Run) -> None:
    found = arms.forecast(run)
    if found is None:
        return
    record = found.record
    if len(record.kl) < len(record.latents):
        done = f"The forecast of side effects was interrupted after {len(record.kl)} of {len(record.latents)} latents. This goes on:"
        widgets.note(done)
        widgets.shell(f"{runs.command('steer', run)} --forecast {len(record.latents)}")
    elif record.kl:
        widgets.note(f"Forecast of side effects: {report.forecast(record, bool(found.shares))}")


def _ordered(record: ArmsRecord, steered: Collection[int]) -> list[str]:
    """Return the choices: first concepts whose latent is steered, then all together, then the others."""
    own = [each.name for each in record.concepts if each.latent in steered]
    others = [each.name for each in record.concepts if each.latent not in steered]
    return [*own, *([EVERY] if record.overall else []), *others]


def _chosen(run: str, options: Sequence[str]) -> str:
    """Return what the URL names, or else the first choice. A concept that there is none of, or no longer, is not kept."""
    asked = st.query_params.get(CONCEPT)
    if asked and asked in options:
        st.session_state[_key(run)] = asked
        return asked
    st.session_state.pop(_key(run), None)
    return options[0] if options else ""


def _choose(run: str, concept: str) -> None:
    st.session_state[_key(run)] = concept
    st.query_params[CONCEPT] = concept


def _key(run: str) -> str:
    return f"steering concept {run}"
