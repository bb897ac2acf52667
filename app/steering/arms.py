"""A part of the Steering page: steering by latents beside its rivals, what compares another concept, and how well side effects are forecast."""

from collections.abc import Callable, Collection, Sequence
from functools import partial

import streamlit as st
from streamlit.components.v2 import component

from activations.errors import ConfigError, WorkbenchError, quoted
from app import widgets
from app.session import arms, runs
from app.steering import comparing
from sae.report import arms as report
from sae.report import render
from sae.report.numbers import duration
from sae.runs.arms import ArmsRecord
from sae.runs.run import Run

TITLE = "Compared with other arms"
CONCEPT, EVERY = "concept", "*"  # a parameter of the URL, and its value for all concepts together
MISSING = (
    "Whether a latent steers better than a difference in means, a probe's weights, a prompt or random directions of equal strength "
    "has not been measured for this run. With a concept given as labelled texts, this measures it:"
)
BOXES = "arms with", "arms without"  # keys of what is typed
TITLES = "Texts with the concept", "Texts without it"
HINTS = "One text a line", "One text a line, alike in everything else"
ENOUGH = "at least 20 texts of each kind; some hundred say more"
GUIDE = "How long that takes was not measured on this machine yet; on two busy cores SmolLM2-135M takes some 3 s a text."
MOST_MEGABYTES = 5  # of an uploaded file
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
    """Show the results of all arms on a concept, first one whose latent is steered on the page, and what compares another one."""
    record, job = arms.of(run), comparing.job(name)
    options = [] if record is None else _ordered(record, steered, job.result if job else None)
    chosen = _chosen(name, options)
    is_open = bool(
        job or in_url(name) or (record and any(each.latent in steered for each in record.concepts))
    )
    with st.expander(TITLE, icon=":material/compare_arrows:", expanded=is_open):
        if job:
            widgets.job(job)
        if record:
            _results(name, record, options, chosen)
        elif not (job and job.running):
            widgets.note(MISSING)
            widgets.shell(f"{runs.command('steer', run)} --compare glue_sst2")
        _forecast(run)
        if not (job and job.running):
            _unfinished(name, run, record)
            _form(name, run, record)


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
        widgets.shell(f"{runs.command('steer', run)} {arms.goes_on(record)}")
    elif record.kl:
        widgets.note(f"Forecast of side effects: {report.forecast(record, bool(found.shares))}")


def _unfinished(name: str, run: Run, record: ArmsRecord | None) -> None:
    """Show a button and a command that go on with concepts that were given on the page and whose comparison was interrupted."""
    left = comparing.unfinished(run, record)
    if not left:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.note(f"Not compared to the end: {', '.join(left)}. What was measured is kept.")
        if st.button("Go on", icon=":material/resume:"):
            _started(name, lambda: comparing.start(name, run, left[-1]))
    files = " ".join(quoted(path) for path in comparing.kept(run).values())
    widgets.shell(f"{runs.command('steer', run)} --compare {files}")


def _form(name: str, run: Run, record: ArmsRecord | None) -> None:
    """Show a form that takes labelled texts and compares arms on them."""
    widgets.section("Compare on a concept of yours", ENOUGH, level=3)
    with st.form("arms form", border=False):
        for key, title, hint, side in zip(BOXES, TITLES, HINTS, st.columns(2, gap="large"), strict=True):
            side.text_area(title, key=key, height=140, placeholder=hint)
        file = st.file_uploader(
            "… or a file of labelled texts",
            type=["csv", "tsv", "jsonl", "parquet"],
            max_upload_size=MOST_MEGABYTES,
            key="arms upload",
            help="It has the columns text and label, with two labels. What is steered towards is the label that comes second in the "
            "alphabet.",
        )
        with st.container(horizontal=True, vertical_alignment="bottom"):
            concept = st.text_input(
                "Name of the concept", key="arms concept", placeholder="praise", max_chars=64, width=220
            )
            pressed = st.form_submit_button("Compare", icon=":material/compare_arrows:", type="primary")
    widgets.note(_cost(run, record))
    if lost := comparing.replaced(run, record):
        widgets.note(
            f"The results will show only concepts that were given on this page. Those of {', '.join(lost)} come back by `sae steer "
            f"--compare` with all of them, which measures only what is new."
        )
    if pressed:
        texts, others = (str(st.session_state[key] or "").splitlines() for key in BOXES)
        given = concept.strip()

        def begin() -> None:
            if file and (texts or others):
                raise ConfigError("give a file or texts in the boxes, not both: empty the one or the other")
            task = (
                comparing.from_file(given, file.name, file.getvalue())
                if file
                else comparing.from_sets(given, texts, others)
            )
            comparing.add(name, run, task)

        _started(name, begin)


def _started(name: str, begin: Callable[[], None]) -> None:
    """Begin a comparison, whose concept is shown when it ends; what is wrong with it is said in the page."""
    try:
        begin()
    except WorkbenchError as problem:
        widgets.error(problem.message, problem.fix)
        return
    st.session_state.pop(_key(name), None)
    st.query_params.pop(CONCEPT, None)
    st.rerun()


def _cost(run: Run, record: ArmsRecord | None) -> str:
    """Return how long a comparison on another concept takes, as a sentence."""
    texts = comparing.texts_to_write(run, record)
    seconds = comparing.seconds(run, texts)
    how = GUIDE if seconds is None else f"At the pace of the last time here that takes {duration(seconds)}."
    return f"The model writes up to {texts:,} texts of {comparing.CFG.new_tokens} tokens. {how}"


def _ordered(record: ArmsRecord, steered: Collection[int], newest: str | None) -> list[str]:
    """Return the choices: the concept compared last on the page, those whose latent is steered, all together, then the others."""
    first = [each.name for each in record.concepts if each.name == newest]
    own = [each.name for each in record.concepts if each.latent in steered]
    every = [EVERY] if record.overall else []
    return [*dict.fromkeys([*first, *own, *every, *(each.name for each in record.concepts)])]


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
