"""State and controls of the Activations page: which store, its geometry, and the job that measures it."""

from functools import partial

import pyarrow as pa
import streamlit as st
from streamlit.column_config import TextColumn

from activations.errors import quoted
from activations.geometry import measure
from activations.geometry.records import Geometry, GeometryConfig
from activations.store import Store
from app import widgets
from app.session import jobs, navigation, runs, stores
from sae.report import geometry as geometry_report
from sae.report import render

LAST = "last store"  # key of the name of the store seen last in this session, and of the run that was chosen then


def store() -> tuple[str, Store]:
    """Return name and store: the one that the URL names, or else the one seen last, that of the run seen last, or the first.
    Where another run has been chosen since a store was seen, its store comes before that one.

    The page says so where the URL names one that does not exist, such as one that has been deleted since. Raises Missing when
    there are no stores."""
    every = stores.by_name()
    asked = st.query_params.get("store")
    run = st.query_params.get("run") or st.session_state.get(widgets.LAST_RUN, "")
    last, its_run = st.session_state.get(LAST, ("", ""))
    likely = (asked, last, stores.of_run(run)) if run == its_run else (asked, stores.of_run(run), last)
    name = next((name for name in likely if name in every), next(iter(every)))
    if asked and name != asked:
        widgets.warnings(
            [
                f"There is no store {asked!r} among those of {runs.folder()}, or no longer: the page shows {name}."
            ]
        )
    st.session_state[LAST] = name, run
    navigation.complete(store=name)
    return name, every[name]


def show_store(name: str) -> None:
    """Go to another store."""
    st.query_params["store"] = name


def store_chooser(current: str) -> None:
    """Show a box in the sidebar that leads to another store."""
    with st.sidebar:
        options = list(stores.by_name())
        widgets.box(
            st.selectbox,
            "Store",
            current,
            show_store,
            "store box",
            options=options,
            format_func=render.visible,
        )


def geometry(store: Store) -> Geometry | None:
    """Return the store's geometry as it was measured last; None when it was not, or before the store changed."""
    job, written = measuring(store), runs.stamp(store.path / measure.FILE)
    if job and job.result and job.result.written == written:
        return job.result.what
    return _geometry(store, store.fingerprint, written)


def command(store: Store) -> str:
    """Return the command line that measures the geometry."""
    return f"sae store geometry {quoted(store.path)}"


def begin(store: Store) -> None:
    """Start to measure the geometry in the background, with the defaults of `sae store geometry`."""

    def work(report: jobs.Report) -> runs.Made[Geometry]:
        geometry = measure.measure(store, GeometryConfig(), jobs.progress(report))
        return runs.Made(geometry, runs.stamp(store.path / measure.FILE))

    jobs.start(_key(store), work, f"measuring the geometry of {store.path.name}")


def measuring(store: Store) -> jobs.Job[runs.Made[Geometry]] | None:
    """Return this visitor's job that measures the store, running or finished; None if none was started."""
    return jobs.find(_key(store))


def measure_button(store: Store) -> None:
    """Show the job that measures the store, or a button that starts it."""
    job = measuring(store)
    if job:
        widgets.job(job)
    if not job or not job.running:
        st.button(
            "Measure it now", icon=":material/play_arrow:", type="primary", on_click=partial(begin, store)
        )


def table(geometry: Geometry) -> None:
    """Show a row for each hook point."""
    cells = zip(*geometry_report.rows(geometry), strict=True)
    columns = dict(zip(geometry_report.COLUMNS, map(list, cells), strict=True))
    helped = {name: TextColumn(help=said) for name, said in geometry_report.COLUMNS.items()}
    widgets.long_table(pa.table(columns), helped)


def _key(store: Store) -> str:
    return f"geometry {store.path} {store.fingerprint}"


@st.cache_resource(max_entries=8, show_spinner=False)
def _geometry(_store: Store, fingerprint: str, stamp: tuple[int, int]) -> Geometry | None:
    return measure.read(_store)
